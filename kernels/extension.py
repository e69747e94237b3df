"""How the C functions for the CPU are compiled; both `setup.py`s read it."""

from pathlib import Path

from setuptools import Extension

FLAGS = ["-O3", "-std=gnu11", "-fopenmp", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi"]


def c_functions(folder: str) -> Extension:
    """Return the library that ctypes loads, no module, from ``folder/glyphcrm_kernels/csrc``.

    Without a C compiler it is left out, and a CPU runs PyTorch's operations in its place.
    """
    csrc = Path(folder, "glyphcrm_kernels", "csrc")
    return Extension(
        "glyphcrm_kernels._cpu",
        sorted(map(str, csrc.glob("*.c"))),
        depends=sorted(map(str, csrc.glob("*.h"))),
        extra_compile_args=FLAGS,
        extra_link_args=["-fopenmp"],
        libraries=["m"],
        optional=True,
    )
