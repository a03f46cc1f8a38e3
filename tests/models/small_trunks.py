"""Small trunks of open_clip's and timm's, and the models that take them."""

import pytest
import timm
import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from torch import nn

from aim_fast.models.registry import create_model
from aim_fast.models.trunks.timm_models import vit_arguments

SIZES = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}


FRAMES = {"num_frames": 2, "num_classes": 3}


def drawn(module, seed=0):
    """No tensor of ``module`` left at a telltale 0 or 1."""
    torch.manual_seed(seed)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.1)
    return module.eval()


def make_clip():
    vision = CLIPVisionCfg(layers=2, width=32, head_width=8, patch_size=8, image_size=32)
    return drawn(CLIP(16, vision, CLIPTextCfg(8, 50, width=64, heads=1, layers=1), quick_gelu=True))


def make_vit():
    return drawn(timm.create_model("vit_base_patch16_224", **SIZES, num_classes=0))


def clip_model(**overrides):
    return create_model("aim_vit_demo", **SIZES, **FRAMES, **overrides).eval()


def features(model):
    torch.manual_seed(1)
    with torch.no_grad():
        return model.forward_features(torch.randn(2, 3, 2, 32, 32)).flatten(0, 1)


def frames():
    torch.manual_seed(1)
    return torch.randn(2, 3, 2, 32, 32).transpose(1, 2).flatten(0, 1)


def assert_is_clip(model, clip):
    tower = clip.visual
    projection, tower.proj = tower.proj, None
    with torch.no_grad():
        truth = tower(frames())
    tower.proj = projection
    torch.testing.assert_close(features(model), truth, rtol=1e-4, atol=1e-5)


def vit_model(**overrides):
    plain = timm.create_model("vit_base_patch16_224", **SIZES, num_classes=0)
    return create_model("aim_vit_b16_in21k", **{**vit_arguments(plain), **FRAMES, **overrides}).eval()


def assert_is_vit(model, vit):
    with torch.no_grad():
        torch.testing.assert_close(features(model), vit(frames()), rtol=1e-4, atol=1e-5)


def local_tokenizer(folder):
    """A tokenizer of words as transformers writes it."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    words = ["<pad>", "</s>", "<unk>", "a", "the", "again", "walking", "brush", "hair", "apply", "lipstick"]
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, "<unk>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.post_processor = tokenizers.processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", sep_token="</s>"
    )
    fast.save_pretrained(folder)
    return fast
