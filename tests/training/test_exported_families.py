"""Every kind of model through the graph of its export, and one of each kind of trunk through ONNX."""

import copy

import pytest
import torch

from aim_fast.training.exports.graph import trace
from tests.models.test_contract import CASES

CPU = torch.device("cpu")
THROUGH_ONNX = ("aim_vit_demo", "aim_vit_demo-evl", "aim_swin_demo", "uniformer_demo", "torchvision:mvit_v2_s")


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_written_out_graph_has_no_operator_of_the_engine_and_gives_the_models_logits(case, tmp_path):
    model = case.make().eval()
    if model.takes_class_names:
        model.set_classes(case.overrides["class_names"])
    clips = torch.cat([case.clips(), case.clips().flip(1)])[:3]
    with torch.no_grad():
        wanted = model(clips)
        program = trace(copy.deepcopy(model), torch.float32, CPU, written_out=True)
        assert not [node for node in program.graph.nodes if str(node.target).startswith("aim.")]
        torch.testing.assert_close(program.module()(clips), wanted, rtol=1e-4, atol=1e-4)
    if case.name not in THROUGH_ONNX:
        return
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from aim_fast.training.exports import onnx_file

    onnx_file.write(program, "{}", tmp_path / "model.onnx", None)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    for batch, rows in ((clips, wanted), (clips[:1], wanted[:1])):
        found = torch.from_numpy(session.run(None, {"clips": batch.numpy()})[0])
        torch.testing.assert_close(found, rows, rtol=1e-4, atol=1e-4)
