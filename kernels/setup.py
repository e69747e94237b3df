"""The kernels alone; see pyproject.toml."""

import runpy

from setuptools import find_packages, setup

setup(ext_modules=[runpy.run_path("extension.py")["c_functions"](".")], packages=find_packages())
