"""A run through the hub's own client to a server on loopback and back: the same scores, whole or not at all."""

import json

import pytest
import yaml

from aim_fast.training.checkpoint import find_checkpoint, read_checkpoint
from tests.cli.hub_server import Hub


@pytest.fixture
def hub(monkeypatch, tmp_path):
    import huggingface_hub.constants as constants

    server = Hub()
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, server.address)
    monkeypatch.setattr(constants, "ENDPOINT", server.address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    yield server
    server.shutdown()
    server.server_close()


def top1(aim_fast, run, *options) -> float:
    status, out, err = aim_fast("eval", run, "--json", "-", *options)
    assert status == 0, err
    return json.loads(out)["top1"]


def test_a_run_is_pushed_with_its_card_and_pulled_to_the_same_scores(
    hub, trained, trunk, motion_set, tmp_path, aim_fast
):
    status, out, err = aim_fast("push", trained, "me/aim-motion", "--private", "--licence", "mit")
    assert (status, out) == (0, f"pushed: {hub.address}/me/aim-motion\n"), err
    files = hub.repos["me/aim-motion"]
    assert sorted(files) == ["README.md", "adapters.safetensors", "aim-fast.json", "recipe.yaml"]
    assert hub.private == {"me/aim-motion"}
    assert sum("/commit/" in line for line in hub.asked) == 1
    local = [str(path).encode() for path in (trained, trunk.parent, motion_set)]
    assert not any(path in data for path in local for data in files.values())  # no path of this machine

    from huggingface_hub import ModelCard

    card = ModelCard(files["README.md"].decode())
    assert (card.data.license, card.data.library_name) == ("mit", "aim-fast")
    assert card.data.pipeline_tag == "video-classification"
    metrics = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    best = max(row["top1"] for row in metrics if row["kind"] == "eval")
    assert {one.metric_name: one.metric_value for one in card.data.eval_results}["top-1"] == round(best, 4)
    assert "aim-fast pull me/aim-motion" in card.text

    folder = tmp_path / "pulled"
    status, out, err = aim_fast("pull", "me/aim-motion", "--output", folder)
    assert (status, out) == (0, f"pulled: {folder}\n"), err
    assert sorted(path.name for path in folder.iterdir()) == sorted(files)
    data = ("--data-root", motion_set)
    assert top1(aim_fast, folder, *data, "--weights", trunk) == top1(aim_fast, trained)
    status, _, err = aim_fast("eval", folder, *data)
    assert status == 2  # the trunk is named by its file
    assert "trunk.safetensors" in err
    assert err.count("\n") == 1


def test_with_its_trunk_a_run_needs_nothing_else(hub, trained, motion_set, tmp_path, aim_fast, monkeypatch):
    status, _, err = aim_fast("push", trained, "me/whole", "--with-trunk")
    assert status == 0, err
    assert "states no licence" in err
    assert "license" not in yaml.safe_load(hub.repos["me/whole"]["README.md"].decode().split("---")[1])
    monkeypatch.chdir(tmp_path)
    assert aim_fast("pull", "me/whole")[0] == 0
    video = next(motion_set.rglob("*.webm"))
    status, out, err = aim_fast("predict", "whole", video)
    assert status == 0, err
    assert out.strip()


@pytest.mark.parametrize("name", ["adapters.safetensors", "recipe.yaml", "aim-fast.json"])
def test_what_is_not_what_was_pushed_is_refused_and_leaves_nothing(hub, trained, tmp_path, aim_fast, name):
    assert aim_fast("push", trained, "me/run", "--licence", "mit")[0] == 0
    hub.repos["me/run"][name] = hub.repos["me/run"][name][:-40]
    status, _, err = aim_fast("pull", "me/run", "--output", tmp_path / "run")
    assert status == 2
    assert name in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_other_files_of_a_repository_are_not_fetched(hub, trained, tmp_path, aim_fast):
    assert aim_fast("push", trained, "me/run", "--licence", "mit")[0] == 0
    hub.repos["me/run"]["state.pt"] = b"pickle"
    assert aim_fast("pull", "me/run", "--output", tmp_path / "run")[0] == 0
    assert not (tmp_path / "run" / "state.pt").exists()
    content = json.loads(hub.repos["me/run"]["aim-fast.json"])
    content["files"]["../../evil"] = "0"
    hub.repos["me/run"]["aim-fast.json"] = json.dumps(content).encode()
    status, _, err = aim_fast("pull", "me/run", "--output", tmp_path / "other")
    assert status == 2
    assert "'../../evil', which no run has" in err


def test_what_cannot_be_is_one_line(hub, trained, tmp_path, aim_fast, monkeypatch):
    import huggingface_hub.constants

    hub.repos["me/plain"] = {"README.md": b"no run"}
    (tmp_path / "there").mkdir()
    out = ("--output", tmp_path / "new")
    for arguments, said in (
        (("push", trained, "no name"), "is no name of a repository"),
        (("push", tmp_path / "none", "me/run"), "does not exist"),
        (("push", trained, "me/run", "--licence", "a\nb"), "give the hub's word for one"),
        (("pull", "me/none", *out), "me/none: not pulled (it is not there"),
        (("pull", "me/plain", *out), "holds no aim-fast.json"),
        (("pull", "me/plain", "--output", tmp_path / "there"), "is there already"),
    ):
        status, _, err = aim_fast(*arguments)
        assert status == 2
        assert said in err
        assert err.count("\n") == 1
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "not for this login" in aim_fast("push", trained, "me/run")[2]
    monkeypatch.delenv("HF_TOKEN")
    status, _, err = aim_fast("push", trained, "me/run")
    assert (status, err.count("\n")) == (2, 1)
    assert "no login for the Hugging Face hub: run `hf auth login`, or set HF_TOKEN" in err
    hub.broken = True
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    status, _, err = aim_fast("pull", "me/plain", *out)
    assert status == 2
    assert "me/plain: not pulled (" in err
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")  # where nothing listens
    status, _, err = aim_fast("pull", "me/plain", *out)
    assert (status, err.count("\n")) == (2, 1)
    assert "me/plain: not pulled (" in err
    assert "me/run" not in hub.repos
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
    assert read_checkpoint(find_checkpoint(trained)).tensors  # what was there is whole
