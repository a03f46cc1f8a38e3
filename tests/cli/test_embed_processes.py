"""`aim-fast embed` in several processes, one of them killed."""

import pytest

from tests.cli.processes import finish, start
from tests.cli.test_embed import contents

pytestmark = pytest.mark.slow


def test_a_kill_and_two_processes_make_the_bytes_of_one(motion_set, trunk, tmp_path):
    model = ("--model", "aim_vit_demo", "--weights", trunk, "--frames", 4, "--precision", "fp32", "--quiet")
    command = ("embed", motion_set, *model, "--window", 6, "--stride", 1, "--per-file", 4, "--output")
    finish(start(*command, tmp_path / "whole"))
    killed = start(*command, tmp_path / "parts")
    while killed.poll() is None and not list((tmp_path / "parts").glob("part-*")):
        pass
    killed.kill()
    killed.wait()
    began = len(list((tmp_path / "parts").glob("part-*")))
    assert 0 < began < len(list((tmp_path / "whole").glob("part-*")))
    finish(start(*command, tmp_path / "parts", processes=2))
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")
