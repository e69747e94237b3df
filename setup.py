"""Maps the two import packages to their folders; everything else stands in pyproject.toml.

`kernels/` has no `__init__.py` on purpose: as a top-level module it would shadow the pip package
`kernels`, which transformers imports. Its content is imported as `glyphcrm_kernels`.
"""

from pathlib import Path

from setuptools import Extension, find_packages, setup

FLAGS = ["-O3", "-std=gnu11", "-fopenmp", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi"]
CSRC = Path("kernels/glyphcrm_kernels/csrc")

setup(
    # A library that ctypes loads, not a module. Without a C compiler a CPU runs PyTorch's operations in its place.
    ext_modules=[
        Extension(
            "glyphcrm_kernels._cpu",
            sorted(map(str, CSRC.glob("*.c"))),
            depends=sorted(map(str, CSRC.glob("*.h"))),
            extra_compile_args=FLAGS,
            extra_link_args=["-fopenmp"],
            libraries=["m"],
            optional=True,
        )
    ],
    packages=[*find_packages(include=["glyphcrm*"]), *find_packages("kernels")],
    package_dir={"glyphcrm_kernels": "kernels/glyphcrm_kernels"},
)
