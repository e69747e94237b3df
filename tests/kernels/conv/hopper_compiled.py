"""Compiles what the operators launch on Hopper and prints what the machine code is made of; run as a program.

    python -m tests.kernels.conv.hopper_compiled bfloat16 ["forward 48" ...]

Prints as JSON a list of launches, all unless some are named. Triton must not be interpreting.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import triton
from glyphcrm_kernels._shared.launch import Launch, intercepted
from glyphcrm_kernels._shared.operators import Operator
from glyphcrm_kernels._shared.targets import Target, pretend
from glyphcrm_kernels.conv import triton as op
from torch import Tensor

from bench.static_report import compile_ahead

TARGET = Target("cuda", 90)
IMAGES = 100


def launches_of(operator: Operator, *arguments: Any) -> list[Launch]:
    """Return what an operator would launch, given tensors on the meta device."""
    launched: list[Launch] = []
    with pretend(TARGET), intercepted(launched.append):
        operator.body(*arguments)  # in whose place meta tensors would get the rule for shapes
    return launched


def launches(dtype: torch.dtype) -> list[tuple[str, Launch]]:
    """Return the launches of a training step with their names."""

    def empty(side: int) -> Tensor:
        return torch.empty(IMAGES, side, side, 64, dtype=dtype, device="meta").permute(0, 3, 1, 2)

    weight = torch.empty(64, 64, 9, 9, dtype=dtype, device="meta")
    bias = torch.empty(64, device="meta")  # float32, as under autocast
    found = []
    for side in (48, 40, 32):
        x, g = empty(side), empty(side - 8)
        residual = g if side == 32 else None
        forward = (x, weight, bias, residual, True)
        found.append((f"forward {side}", launches_of(op._glyph_conv, *forward, False, 0, True)))
        if side == 32:
            found.append((f"pooled {side}", launches_of(op._glyph_conv, *forward, True, 0, True)))
        found.append((f"data gradient {side}", launches_of(op._data_gradient, g, weight, 0, True)))
        found.append((f"weight gradient {side}", launches_of(op._weight_gradient, g, x, weight, 0, True)))
    return [(name, launch) for name, (launch,) in found]


def products(constants: dict[str, Any]) -> dict[str, int]:
    """Return the wgmma that the code must have, by shape: loops over taps are unrolled, loops over turns are not."""
    groups, size = constants["WARPS"] // 4, constants["SIZE"]
    wanted: Counter[str] = Counter()
    if "SLOTS" in constants:
        for places in filter(None, (constants["P0"], constants["P1"])):
            pixels = places * constants["MINOR"] // groups
            width = min(pixels, 256)
            wanted[f"64x{width}x16"] += pixels // width * size * constants["CHUNK"] // 16
    else:
        channels, columns = constants["C"] // groups, constants["COLUMNS"]
        width = min((size - 1) * channels, 256)
        wanted[f"64x{width}x16"] += (size - 1) * channels // width * columns
        wanted[f"64x{channels}x16"] += columns
    return dict(wanted)


def figures(name: str, launch: Launch) -> dict[str, Any]:
    """Compile a launch and count."""
    compiled = compile_ahead(launch, TARGET)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(compiled.asm["cubin"])

        def tool(*command: str) -> str:
            return subprocess.run([*command, str(path)], capture_output=True, text=True, check=True).stdout

        usage = tool(triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage")
        code = tool(triton.knobs.nvidia.nvdisasm.path, "-c", "-ndf")
    sequence = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", code)
    counts = Counter(opcode.partition(".")[0] for opcode in sequence)
    unguarded, waiting = 0, False
    for opcode in sequence:
        if opcode.startswith("WARPGROUP.DEPBAR"):
            waiting = True
        elif opcode.startswith("BAR."):
            waiting = False
        elif opcode.startswith("UTMALDG"):
            unguarded += waiting
    return {
        "name": name,
        "registers": int(re.search(r"REG:(\d+)", usage)[1]),
        "stack": int(re.search(r"STACK:(\d+)", usage)[1]),
        "spills": counts["LDL"] + counts["STL"],
        "shared": compiled.metadata.shared,
        "products": dict(Counter(re.search(r"\d+x\d+x\d+", o)[0] for o in sequence if o.startswith("HGMMA"))),
        "wanted": products(launch.constants),
        "copies": counts["UTMALDG"],
        "other copies": counts["LDGSTS"],
        # More than the source asks for where the compiler cannot keep products asynchronous.
        "waits": sum(opcode.startswith("WARPGROUP.DEPBAR") for opcode in sequence),
        "wanted waits": 1 + launch.constants["SIZE"] if "SLOTS" in launch.constants else 3,
        "unguarded": unguarded,
    }


if __name__ == "__main__":
    dtype, *names = sys.argv[1:]
    wanted = [(name, launch) for name, launch in launches(getattr(torch, dtype)) if name in names or not names]
    print(json.dumps([figures(*each) for each in wanted]))
