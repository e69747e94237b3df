"""Launches kept instead of run, built from tensors that are never read.

What compiles them ahead of time sees exactly what a GPU would be given.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from glyphcrm_kernels._shared.launch import Launch, intercepted
from glyphcrm_kernels._shared.operators import Operator
from glyphcrm_kernels._shared.targets import Target, pretend


@contextlib.contextmanager
def record(target: Target) -> Iterator[list[Launch]]:
    """Let operators believe that they run on `target`, and yield the list that takes their launches; none runs."""
    launches: list[Launch] = []
    with pretend(target), intercepted(launches.append):
        yield launches


def launches_of(operator: Operator, target: Target, *arguments: Any) -> list[Launch]:
    """Return what an operator (see `Op.operators`) would launch on `target`, given tensors on the meta device."""
    with record(target) as launches:
        operator.body(*arguments)  # in whose place meta tensors would get the rule for shapes
    return launches
