"""What a run writes about itself."""

from aim_fast.training.metrics import METRICS, MetricsLog, draw_curves, read_metrics


def fill(folder, steps, resume_step=None):
    log = MetricsLog(folder, resume_step)
    for step in steps:
        log.write("train", step, epoch=1, loss=1.0 / step, lr=0.1, clips_per_s=2.0, data_wait=0.0)
    log.write("eval", step, epoch=1, top1=0.5, top5=0.9, loss=0.7)
    log.close()


def test_lines_are_objects_with_a_kind(tmp_path):
    fill(tmp_path, [1, 2])
    rows = read_metrics(tmp_path)
    assert [row["kind"] for row in rows] == ["train", "train", "eval"]
    assert set(rows[0]) == {"kind", "step", "epoch", "loss", "lr", "clips_per_s", "data_wait"}


def test_resuming_drops_the_lines_after_the_checkpoint_and_keeps_the_rest(tmp_path):
    fill(tmp_path, [1, 2, 3, 4])
    fill(tmp_path, [3, 4], resume_step=2)
    rows = read_metrics(tmp_path)
    assert [row["step"] for row in rows if row["kind"] == "train"] == [1, 2, 3, 4]
    assert len([row for row in rows if row["kind"] == "eval"]) == 1


def test_a_line_cut_short_by_a_kill_is_left_out(tmp_path):
    fill(tmp_path, [1, 2])
    path = tmp_path / METRICS
    path.write_text(path.read_text() + '{"kind": "tra')
    assert len(read_metrics(tmp_path)) == 3


def test_events_are_there_for_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    fill(tmp_path, [1, 2, 3])
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3]


def test_curves_are_drawn(tmp_path):
    from PIL import Image

    fill(tmp_path, [1, 2, 3])
    with Image.open(draw_curves(tmp_path, chance=0.1)) as image:
        pixels = image.convert("RGB")
        assert image.format == "PNG"
        assert len(pixels.getcolors(pixels.width * pixels.height)) > 10
