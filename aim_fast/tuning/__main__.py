from aim_fast.tuning.child import run

if __name__ == "__main__":
    run()
