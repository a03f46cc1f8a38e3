"""Builds the optional C++ part, aim_kernels._C and ._again, when torch is importable; everything runs without it.

pip's isolated builds have no torch, and must not fetch one: they install the Python part alone. `make setup` builds
without isolation, so that the C++ part is compiled against the torch that is installed. _C, operators on a CPU, uses
torch's stable ABI of 2.10, so that one build serves later versions too, and picks its instruction set when it runs,
never from this machine. _again, launches on a GPU, serves this Python and torch; others have the same in Python. The
mark of the sources is compiled in, so that a build which they have left behind is known by it.
"""

import sys
from pathlib import Path

from setuptools import setup

SOURCES, REPLAYS = (sorted(str(path) for path in Path("csrc").glob(kind)) for kind in ("*.cpp", "again/*.cpp"))
HEADERS = sorted(str(path) for path in Path("csrc").glob("*.h"))
GNU_FLAGS = [
    "-std=c++17",
    "-O3",
    "-g0",
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

    made_of = ("AIM_SOURCES", f'"{sources.mark().decode()}"')
    flags = [] if sys.platform == "win32" else GNU_FLAGS
    operators = CppExtension(
        "aim_kernels._C",
        SOURCES,
        depends=HEADERS,
        define_macros=[("TORCH_TARGET_VERSION", "0x020a000000000000"), made_of],
        extra_compile_args=flags,
        py_limited_api=True,
        optional=True,
    )
    replays = CppExtension(
        "aim_kernels._again", REPLAYS, define_macros=[made_of], extra_compile_args=flags, optional=True
    )
    setup(ext_modules=[operators, replays], cmdclass={"build_ext": OptionalBuild})
