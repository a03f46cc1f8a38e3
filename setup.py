"""Builds the optional C++ part, aim_kernels._C, when torch is importable; everything runs without it.

pip's isolated builds have no torch, and must not fetch one: they install the Python part alone. `make setup` builds
without isolation, so that the C++ part is compiled against the torch that is installed.
"""

from pathlib import Path

from setuptools import setup

SOURCES = sorted(str(path) for path in Path("csrc").glob("*.cpp"))

try:
    from torch.utils.cpp_extension import BuildExtension, CppExtension
except ImportError:
    setup()
else:
    extension = CppExtension("aim_kernels._C", SOURCES, optional=True) if SOURCES else None
    setup(ext_modules=[extension] if extension else [], cmdclass={"build_ext": BuildExtension} if extension else {})
