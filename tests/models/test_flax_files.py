"""Files that flax wrote: read as they are, in every place where parameters lie, and refused in one line."""

import pytest
import torch

from aim_fast.errors import WeightsError
from aim_fast.models.loading import load_weights
from aim_fast.models.registry import create_model
from aim_fast.models.weights.files import read_weights
from tests.models.golden_cases import assert_relative, flax_case

msgpack = pytest.importorskip("msgpack")


def packed(array, dtype=None):
    """An array as flax.serialization packs it."""
    parts = (array.shape, dtype or array.dtype.name, array.tobytes())
    return msgpack.ExtType(1, msgpack.packb(parts, use_bin_type=True))


def nested(tensors, pack=packed):
    tree = {}
    for name, tensor in tensors.items():
        *path, leaf = name.split(".")
        below = tree
        for part in path:
            below = below.setdefault(part, {})
        below[leaf] = pack(tensor.numpy())
    return tree


def write(path, tree):
    path.write_bytes(msgpack.packb(tree, strict_types=True))
    return path


@pytest.fixture(scope="module")
def case():
    return flax_case("vivit_fe")


@pytest.mark.parametrize("place", ["optimizer.target", "target", "params", ""])
def test_a_checkpoint_gives_the_golden_values(case, tmp_path, place):
    tree = nested(case.published)
    for name in reversed(place.split(".") if place else []):
        tree = {name: tree, "step": 7}
    file = write(tmp_path / "checkpoint_7", tree)
    config = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4, "temporal_layers": 1}
    model = create_model("vivit_fe_b16x2", **config, num_frames=8, num_classes=5).double().eval()
    assert load_weights(model, file).kind == "aim"
    assert_relative(model(case.truth["input"].double()), case.truth["logits"])


def test_bfloat16_and_arrays_in_chunks_are_read(tmp_path):
    values = torch.arange(6.0).reshape(2, 3)
    half = values.to(torch.bfloat16)
    chunks = {str(i): packed(part.numpy()) for i, part in enumerate(values.flatten().split(4))}
    tree = {
        "half": packed(half.view(torch.int16).numpy(), "bfloat16"),
        "whole": {"__msgpack_chunked_array__": True, "shape": {"0": 2, "1": 3}, "chunks": chunks},
    }
    found = read_weights(write(tmp_path / "file", {"params": {"layer": tree}})).tensors
    assert found["layer.half"].dtype is torch.bfloat16
    assert torch.equal(found["layer.half"].float(), values)
    assert torch.equal(found["layer.whole"], values)


def test_a_damaged_file_is_refused_in_one_line(case, tmp_path):
    whole = write(tmp_path / "whole", {"params": nested(case.published)}).read_bytes()
    wrong = msgpack.packb({"params": {"x": msgpack.ExtType(1, msgpack.packb(((3,), "float32", b"1234")))}})
    for content in (whole[: len(whole) // 2], wrong):
        (tmp_path / "file").write_bytes(content)
        with pytest.raises(WeightsError, match="truncated or damaged checkpoint of flax") as caught:
            read_weights(tmp_path / "file")
        assert "\n" not in str(caught.value)
    with pytest.raises(WeightsError, match="holds no parameters"):
        read_weights(write(tmp_path / "empty", {"params": {"step": 3}}))
