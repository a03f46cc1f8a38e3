from aim_fast.cli import main

main()
