"""The memory of one training step in a process of its own: `python -m bench.throughput.peak_memory MODEL ...`.

It prints a JSON object with two numbers of bytes: `before`, resident after the imports and before the model is built,
and `peak`, the most that ever was. The peak is the kernel's VmHWM and not getrusage's ru_maxrss: the latter is
inherited through exec, so that a child of a large process reports its parent's peak.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from bench.throughput.environment import ROOT
from bench.throughput.models import TrainingStep, bert_arguments, build_bert, build_glyphcrm, glyphcrm_arguments
from bench.throughput.sizes import sizes
from glyphcrm.glyphs.atlas import GlyphAtlas
from glyphcrm.training.freed_memory import keep_freed_memory


@dataclass(frozen=True)
class Peak:
    """Bytes of resident memory, see above."""

    before: int
    peak: int

    @property
    def added(self) -> int:
        """What model, optimiser and step took on top of the imports."""
        return self.peak - self.before


def measure(model: str, preset: str, atlas: Path, batch: Path) -> Peak:
    """Run the first training step of "glyphcrm" or "bert" in a fresh process, on the batch of a file."""
    command = [sys.executable, "-m", "bench.throughput.peak_memory", model, preset, str(atlas), str(batch)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return Peak(**json.loads(done.stdout))


def _resident(field: str) -> int:
    """Return a field of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    kilobytes = next(line.split()[1] for line in lines if line.startswith(f"{field}:"))
    return 1024 * int(kilobytes)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.throughput.peak_memory", description=__doc__)
    parser.add_argument("model", choices=["glyphcrm", "bert"])
    parser.add_argument("preset")
    parser.add_argument("atlas", type=Path)
    parser.add_argument("batch", type=Path, help="a batch of PretrainingCollator, written by torch.save")
    options = parser.parse_args(arguments)
    batch = torch.load(options.batch)
    atlas = GlyphAtlas.load(options.atlas)
    config = sizes(options.preset).configuration(len(atlas))
    before = _resident("VmRSS")
    keep_freed_memory()  # as pretrain.py does
    if options.model == "glyphcrm":
        step = TrainingStep(build_glyphcrm(config, atlas), glyphcrm_arguments)
    else:
        step = TrainingStep(build_bert(config), bert_arguments)
    step([batch])
    print(json.dumps({"before": before, "peak": _resident("VmHWM")}))


if __name__ == "__main__":
    main()
