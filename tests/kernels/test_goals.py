"""The table of goals: what is measured is judged, on its own device and setting alone."""

import json

from bench import goals

STEP = {
    "bench": "step",
    "date": "2025-01-02T03:04:05+00:00",
    "device": "cpu",
    "device_name": "x86_64",
    "model": "aim_vit_b16_clip",
    "frames": 8,
    "batch": 1,
    "ratio_vs_published_eager": 1.4,
    "saved_mib_per_clip": {"published": 100.0, "fast": 60.0, "balanced": 23.0, "lean": 7.5},
    "gradient_error": {"fast": 0.011, "published": 0.01},
}


H200 = {"device": "cuda", "device_name": "NVIDIA H200"}


def rows(results):
    return {(row["goal"], row["device"]): row for row in goals.judge(results)}


def statuses(*results):
    return {key: row["status"] for key, row in rows(results).items()}


def test_nothing_measured_is_unmeasured():
    assert set(statuses().values()) == {"unmeasured"}


def test_a_step_is_judged_goal_by_goal():
    found = statuses(STEP)
    assert found["B/16 step, times faster than published eager", "cpu"] == "reached"
    assert found["B/16 step, stretch", "cpu"] == "missed"
    kept = [found[f"bytes kept, {word}, of published", "cpu"] for word in ("fast", "balanced", "lean")]
    assert kept == ["missed", "reached", "reached"]
    assert {status for (_, device), status in found.items() if device == "cuda"} == {"unmeasured"}


def test_a_captured_step_counts_where_it_is_the_faster():
    eager = {"ratio_vs_published_eager": 2.7, "clips_per_s": 600.0}
    results = {**STEP, **eager, **H200, "batch": 32, "captured": {"clips_per_s": 500.0}}
    speed, ratio = ("B/16 clips/s", "H200"), ("B/16 step over published eager", "cuda")
    assert (statuses(results)[speed], statuses(results)[ratio]) == ("reached", "missed")
    results["captured"] = {"ratio_vs_published_eager": 2.9, "clips_per_s": 650.0}
    assert (statuses(results)[speed], statuses(results)[ratio]) == ("reached", "reached")
    assert rows([results])[speed]["figure"] == 650.0


def test_a_speed_counts_for_its_own_card_and_precision():
    step = {**STEP, **H200, "batch": 32, "clips_per_s": 640.0}
    found = statuses(step, {**step, "dtype": "float8_e4m3fn"})
    assert found["B/16 clips/s", "H200"] == "reached"
    assert found["B/16, fp8, clips/s", "H200"] == "missed"
    assert found["B/16 clips/s", "H100"] == found["B/16, fp8, clips/s", "H100"] == "unmeasured"


def test_another_model_batch_or_precision_does_not_count():
    precise = {**STEP, "dtype": "float32", "gradient_error": {"fast": 1e-7, "published": 0.0}}
    others = ({**STEP, "model": "aim_vit_l14_clip"}, {**STEP, "batch": 2}, precise)
    assert set(statuses(*others).values()) == {"unmeasured"}


def test_an_operator_that_failed_its_error_rule_misses_its_goal():
    operators = {"spatial_attention": {"failed": "the error rule does not hold: no speed", "errors": {}}}
    found = statuses({**STEP, "bench": "kernels", "operators": operators})
    assert found["spatial attention over torch's", "cpu"] == "missed"
    assert found["temporal attention over torch's", "cpu"] == "unmeasured"


def test_an_operator_is_not_held_to_an_expression_that_does_not_compile():
    goal = "slowest operator over its compiled expression", "cuda"
    operators = {"wide_mlp": {"ratio_vs_compiled": 1.2}, "adapter": {"ratio_vs_eager": 2.0}}
    kernels = {**STEP, "bench": "kernels", "device": "cuda", "batch": 32}
    assert statuses({**kernels, "operators": operators})[goal] == "unmeasured"
    assert statuses({**kernels, "operators": {**operators, "adapter": {"ratio_vs_compiled": 1.0}}})[goal] == "reached"


def test_the_newest_file_is_read_first(tmp_path):
    for name, year, speed in (("a", "2024", 1.0), ("b", "2025", 2.0)):
        results = {**STEP, "date": f"{year}-01-01T00:00:00", "ratio_vs_published_eager": speed}
        (tmp_path / f"{name}.json").write_text(json.dumps(results))
    (tmp_path / "goals.json").write_text("[]")
    judged = goals.judge(goals.read_results(tmp_path))
    assert judged[0]["figure"] == 2.0
    assert len(goals.table(judged).rows) == len(judged)


def test_what_is_predicted_stands_apart_and_reaches_nothing():
    roofline = {
        "bench": "roofline",
        "device": "cuda",
        "predicted_for": "NVIDIA H200",
        "batch": 32,
        "clips_per_s": 700.0,
    }
    predicted = {**STEP, **roofline, "peak_mib": {"fast": 1000.0}}
    del predicted["gradient_error"]  # which no roofline has
    found = rows([predicted])
    row = found["B/16 clips/s", "H200"]
    assert (row["status"], row["figure"], row["predicted"], row["predicted_for"]) == (
        "unmeasured",
        None,
        700.0,
        "NVIDIA H200",
    )
    assert found["peak GB, fast, batch 32", "cuda"]["predicted"] == 1000 * 2**20 / 1e9
    assert "predicted" not in found["B/16 step, stretch", "cpu"]  # of a CPU, nothing is predicted
    assert "predicted" not in found["B/16 clips/s", "H100"]
    assert "predicted" not in found["B/16, fp8, clips/s", "H200"]
    assert not any("predicted" in row for row in goals.judge([{**predicted, "batch": 7}]))
    measured = {**STEP, **H200, "batch": 32, "clips_per_s": 500.0}
    row = rows([predicted, measured])["B/16 clips/s", "H200"]
    assert (row["status"], row["figure"], row["predicted"]) == ("missed", 500.0, 700.0)
