"""Maps the two import packages to their folders and builds the C library; everything else stands in pyproject.toml.

`kernels/` has no `__init__.py` on purpose: as a top-level module it would shadow the pip package
`kernels`, which transformers imports. Its content is imported as `glyphcrm_kernels`.
"""

import runpy

from setuptools import find_packages, setup

setup(
    ext_modules=[runpy.run_path("kernels/extension.py")["c_functions"]("kernels")],
    packages=[*find_packages(include=["glyphcrm*"]), *find_packages("kernels")],
    package_dir={"glyphcrm_kernels": "kernels/glyphcrm_kernels"},
)
