"""Builds the optional C++ part, aim_kernels._C, when torch is importable; everything runs without it.

pip's isolated builds have no torch, and must not fetch one: they install the Python part alone. `make setup` builds
without isolation, so that the C++ part is compiled against the torch that is installed. It uses torch's stable ABI of
2.10, so that one build serves later versions too, and picks its instruction set when it runs, never from this machine.
The mark of its sources is compiled in, so that a build which they have left behind is known by it.
"""

import sys
from pathlib import Path

from setuptools import setup

SOURCES = sorted(str(path) for path in Path("csrc").glob("*.cpp"))
HEADERS = sorted(str(path) for path in Path("csrc").glob("*.h"))
GNU_FLAGS = [
    "-std=c++17",
    "-O3",
    "-fno-math-errno",
    "-fvisibility=hidden",
    "-Wall",
    "-Wno-psabi",
    "-Wno-maybe-uninitialized",
]

try:
    from torch.utils.cpp_extension import BuildExtension, CppExtension
except ImportError:
    setup()
else:
    sys.path.insert(0, "kernels")
    from aim_kernels import sources

    class OptionalBuild(BuildExtension):
        """A build that may fail: without a working compiler the Python part is installed alone."""

        def run(self) -> None:
            try:
                super().run()
            except Exception as error:
                print(f"warning: aim_kernels._C is not built ({error}): operators run in plain torch on CPU")

    extension = CppExtension(
        "aim_kernels._C",
        SOURCES,
        depends=HEADERS,
        define_macros=[("TORCH_TARGET_VERSION", "0x020a000000000000"), ("AIM_SOURCES", f'"{sources.mark().decode()}"')],
        extra_compile_args=[] if sys.platform == "win32" else GNU_FLAGS,
        py_limited_api=True,
        optional=True,
    )
    setup(ext_modules=[extension], cmdclass={"build_ext": OptionalBuild})
