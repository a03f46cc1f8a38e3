"""The text tower: equal features with open_clip's, gradients to embeddings alone, and every text that does not fit."""

import open_clip
import pytest
import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg, CustomTextCLIP
from safetensors.torch import save_file

from aim_fast.errors import UsageError, WeightsError
from aim_fast.models.heads.text_tower import TextTower, infer_text_architecture, text_tensors
from aim_fast.models.heads.tokens import tokenize
from aim_fast.models.weights.files import WeightsFile, read_weights
from aim_fast.models.weights.state_dict import load_strictly

SIZES = {"context_length": 77, "vocab_size": 49408, "width": 128, "depth": 2, "num_heads": 2, "output_dim": 48}
NAMES = ["a dog", "Pushing something from left to right, slowly!", "cliff diving"]


def make_clip(kind=CLIP, quick_gelu=True, **text):
    torch.manual_seed(0)
    vision = CLIPVisionCfg(layers=1, width=64, head_width=64, patch_size=8, image_size=16)
    text = CLIPTextCfg(**{"vocab_size": 49408, "width": 128, "heads": 2, "layers": 2, **text})
    clip = kind(48, vision, text, quick_gelu=quick_gelu).eval()
    for name, parameter in clip.named_parameters():
        if not name.startswith("visual.") and "token_embedding" not in name:
            parameter.data += 0.05 * torch.randn_like(parameter)  # no bias or norm left at a telltale 0 or 1
    return clip


def tower_in(file):
    """The tower of a file, as the models that have one read it."""
    tensors = text_tensors(file.tensors, "file.pt")
    tower = TextTower(**infer_text_architecture(tensors, "file.pt"), activation=file.activation or "quick_gelu")
    load_strictly(tower, tensors, "file.pt")
    return tower.eval()


@pytest.fixture(scope="module")
def clip():
    return make_clip()


@pytest.mark.parametrize("write", [torch.save, save_file])
def test_features_equal_those_of_open_clip(clip, write, tmp_path):
    path = tmp_path / "clip.pt"
    write(clip.state_dict(), path)
    tower = tower_in(read_weights(path))
    ids = open_clip.get_tokenizer("ViT-B-16")(NAMES)
    texts = tokenize(NAMES)
    assert torch.equal(texts.ids, ids)
    with torch.no_grad():
        truth = clip.encode_text(ids)
        torch.testing.assert_close(tower(ids), truth, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(tower.encode_tokens(texts), truth, rtol=1e-4, atol=1e-5)
    assert tower.logit_scale == clip.logit_scale


@pytest.mark.parametrize("quick_gelu", [True, False])
def test_the_files_activation_is_taken(quick_gelu):
    clip = make_clip(quick_gelu=quick_gelu)
    tower = tower_in(WeightsFile(clip.state_dict(), "quick_gelu" if quick_gelu else "gelu"))
    ids = tokenize(NAMES).ids
    torch.testing.assert_close(tower(ids), clip.encode_text(ids), rtol=1e-4, atol=1e-5)


def test_the_names_of_open_clips_newer_models_are_taken():
    clip = make_clip(CustomTextCLIP)
    tower = tower_in(WeightsFile(clip.state_dict()))
    ids = tokenize(NAMES).ids
    torch.testing.assert_close(tower(ids), clip.encode_text(ids), rtol=1e-4, atol=1e-5)


def test_the_architecture_is_read_from_the_shapes(clip):
    assert infer_text_architecture(clip.state_dict()) == SIZES


def test_gradients_reach_embeddings_and_no_weight_of_the_tower(clip):
    tower = tower_in(WeightsFile(clip.state_dict()))
    embeddings = torch.randn(2, 9, 128, requires_grad=True)
    tower.encode(embeddings, torch.tensor([8, 4])).sum().backward()
    assert not any(parameter.requires_grad for parameter in tower.parameters())
    moved = embeddings.grad.abs().sum(-1) > 0
    assert moved[0].all()
    assert moved[1].tolist() == [True] * 5 + [False] * 4  # attention is causal: nothing after the end is read


@pytest.mark.parametrize("shared", [1, 4])
def test_a_shared_beginning_gives_the_same_features_and_gradients(clip, shared):
    tower = tower_in(WeightsFile(clip.state_dict())).double()
    rest = torch.randn(3, 9, 128, dtype=torch.float64)
    begin = torch.randn(4, 128, dtype=torch.float64)
    ends = torch.tensor([8, 4, 6])
    found = []
    for count in (0, shared):
        begin_, rest_ = (x.clone().requires_grad_(True) for x in (begin, rest))
        features = tower.encode(torch.cat([begin_.expand(3, -1, -1), rest_[:, 4:]], dim=1), ends, count)
        (features * torch.arange(1.0, 4)[:, None]).sum().backward()
        found.append((features, begin_.grad, rest_.grad))
    for one, other in zip(*found):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_a_prompt_longer_than_the_context_is_named():
    long = "very " * 80
    with pytest.raises(UsageError, match="very very.*80 tokens.*room for 75"):
        tokenize(["short", long])
    with pytest.raises(UsageError, match="'a dog' is too long.*room for 1 beside 6 of the learned prompt"):
        tokenize(["a dog"], context_length=9, spare=6)
    assert tokenize(["a dog"], context_length=10, spare=6).longest == 4


def test_a_class_without_a_name_and_another_vocabulary_are_refused():
    with pytest.raises(UsageError, match="no word"):
        tokenize(["a dog", " "])
    with pytest.raises(UsageError, match="knows 50 tokens"):
        tokenize(["a dog"], vocab_size=50)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["conv1.weight"], "image tower alone"),
        (["text_model.embeddings.token_embedding.weight"], "Hugging Face"),
        (["blocks.0.attn.qkv.weight"], "ImageNet trunk"),
        (["blocks.0.attn.q_proj.weight", "attn_pool.latent"], "image tower alone .*SigLIP's.*both towers"),
    ],
)
def test_a_file_without_a_text_tower_says_what_it_is(names, said):
    with pytest.raises(WeightsError, match=said):
        tower_in(WeightsFile({name: torch.zeros(1) for name in names}))


def test_a_text_tower_with_a_missing_tensor_names_it(clip):
    state = clip.state_dict()
    del state["transformer.resblocks.1.ln_2.weight"]
    with pytest.raises(WeightsError, match=r"missing transformer\.resblocks\.1\.ln_2\.weight"):
        tower_in(WeightsFile(state))
