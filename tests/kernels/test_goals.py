"""The table of goals: what is measured is judged, on its own device and setting alone."""

import json

from bench import goals

STEP = {
    "bench": "step",
    "date": "2025-01-02T03:04:05+00:00",
    "device": "cpu",
    "model": "aim_vit_b16_clip",
    "frames": 8,
    "batch": 1,
    "ratio_vs_published_eager": 1.4,
    "saved_mib_per_clip": {"published": 100.0, "fast": 60.0, "balanced": 23.0, "lean": 7.5},
    "gradient_error": {"fast": 0.011, "published": 0.01},
}


def statuses(*results):
    return {(row["goal"], row["device"]): row["status"] for row in goals.judge(results)}


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
    eager = {"ratio_vs_published_eager": 2.4, "clips_per_s": 600.0}
    results = {**STEP, **eager, "device": "cuda", "batch": 32, "captured": {"clips_per_s": 500.0}}
    speed, ratio = ("B/16 clips/s", "cuda"), ("B/16 step over published eager", "cuda")
    assert (statuses(results)[speed], statuses(results)[ratio]) == ("reached", "missed")
    results["captured"] = {"ratio_vs_published_eager": 2.6, "clips_per_s": 650.0}
    assert (statuses(results)[speed], statuses(results)[ratio]) == ("reached", "reached")
    assert next(row for row in goals.judge([results]) if row["goal"] == "B/16 clips/s")["figure"] == 650.0


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
    rows = {"wide_mlp": {"ratio_vs_compiled": 1.2}, "adapter": {"ratio_vs_eager": 2.0}}
    kernels = {**STEP, "bench": "kernels", "device": "cuda", "batch": 32}
    assert statuses({**kernels, "operators": rows})[goal] == "unmeasured"
    assert statuses({**kernels, "operators": {**rows, "adapter": {"ratio_vs_compiled": 1.0}}})[goal] == "reached"


def test_the_newest_file_is_read_first(tmp_path):
    for name, year, speed in (("a", "2024", 1.0), ("b", "2025", 2.0)):
        results = {**STEP, "date": f"{year}-01-01T00:00:00", "ratio_vs_published_eager": speed}
        (tmp_path / f"{name}.json").write_text(json.dumps(results))
    (tmp_path / "goals.json").write_text("[]")
    rows = goals.judge(goals.read_results(tmp_path))
    assert rows[0]["figure"] == 2.0
    assert len(goals.table(rows).rows) == len(rows)
