"""A trained run, made once."""

from pathlib import Path

import pytest

TINY = ("--model", "aim_vit_demo", "--frames", 4, "--batch-size", 8, "--log-every", 1, "--eval-every", 1)


@pytest.fixture
def tiny(motion_set, trunk):
    """Options of a training run that takes seconds."""
    return ("--dataset", "ssv2", "--data-root", motion_set, "--weights", trunk, *TINY)


@pytest.fixture(scope="session")
def trained(tmp_path_factory, motion_set, trunk) -> Path:
    """A run of two epochs."""
    from aim_fast.cli import main

    folder = tmp_path_factory.mktemp("runs") / "run"
    options = ("train", "--dataset", "ssv2", "--data-root", motion_set, "--weights", trunk, *TINY)
    with pytest.raises(SystemExit) as caught:
        main([str(option) for option in (*options, "--epochs", 2, "--output", folder, "--quiet")])
    assert not caught.value.code
    return folder


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory, motion_set, trunk) -> Path:
    """The run of `trained`, made in a process of its own as those that are stopped and killed are."""
    from tests.cli.processes import finish, start

    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    options = ("--dataset", "ssv2", "--data-root", motion_set, "--weights", trunk, *TINY)
    finish(start("train", *options, "--epochs", 2, "--output", folder, "--quiet"))
    return folder
