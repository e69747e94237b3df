"""What is worth keeping of a reproduction, small enough to be sent: the report, and models in half precision."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from glyphcrm.conversion.half import convert_half
from glyphcrm.errors import UserError
from glyphcrm.files import write_atomically
from glyphcrm.reproduce.report import REPORT
from glyphcrm.training.run_directory import MODEL_DIRECTORY

KEEP = "keep"
KEPT_BYTES = 60_000_000
LEFT_OUT_FILE = "LEFT_OUT.txt"
NOTE_BYTES = 100_000  # for that file, and what directories take


def keep(output_dir: Path, runs: Sequence[Path], limit: int = KEPT_BYTES) -> None:
    """Write ``keep/`` in `output_dir`: its report, and of `runs` the models, in this order, as long as they fit.

    A model that is there already stays. LEFT_OUT.txt has a line for each that does not fit, with its size and place.
    """
    directory = output_dir / KEEP
    # The report, and models that a process was killed over.
    for old in (directory / REPORT, *(directory / "models").glob(".*")):
        shutil.rmtree(old, ignore_errors=True)
    for path in filter(Path.is_file, (output_dir / REPORT).rglob("*")):
        copy = directory / path.relative_to(output_dir)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)  # not copytree: its errors have no errno, by which a full disk is told
    room = limit - NOTE_BYTES - _size(directory / REPORT)
    left_out = []
    for run in runs:
        model, kept = run / MODEL_DIRECTORY, directory / "models" / run.name
        if not model.exists():
            continue  # it has failed
        try:
            if not kept.exists():
                convert_half(model, kept)
        except UserError as error:
            left_out.append(f"{model}: {error}")
            continue
        size = _size(kept)
        if size <= room:
            room -= size
        else:
            shutil.rmtree(kept)
            left_out.append(f"{model}: {size / 1e6:.1f} MB in half precision; {max(room, 0) / 1e6:.1f} MB were left")
    write_atomically(directory / LEFT_OUT_FILE, "".join(f"{line}\n" for line in left_out).encode())


def _size(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
