"""A comparison with an export that may not run says so before any other model is measured."""

import pytest

from aim_fast.errors import CheckpointError
from aim_fast.models.identity import Identity
from aim_fast.studies.comparison import count, measure
from aim_fast.studies.contenders import Asked, Contender, find_contender
from aim_fast.training.devices import single_place
from aim_fast.training.exports.description import Description


def test_machine_code_is_refused_before_anything_is_measured():
    model = find_contender("aim_vit_demo,num_frames=2", Asked("ssv2", 2, 5))
    about = {"shape": ["batch", 2, 48, 48, 3]}
    code = Description(model.identity.model, model.identity.options, list("abcde"), "aoti", "float32", about, {})
    contenders = [model, Contender("model.bin", Identity(code.model, code.options), export=code)]
    said: list[str] = []
    with pytest.raises(CheckpointError, match="model.bin: holds machine code"):
        measure(contenders, count(contenders), single_place("cpu", "fp32"), 1, 1, said.append)
    assert said == []
