"""A training step on paper: the FLOPs and bytes of every operation, and what fusing it would save.

`python -m bench.step_profile` prints, for the reference model as PyTorch runs it under bfloat16 autocast,
the share of each operation in a step and how much of the step a fused kernel would take off. From 3 % on
a kernel is worth writing. The last column names the kernel that this project has: `add_norm` stays below
3 % and is there because GlyphCRM's three-way norm is what others want to reuse.

The rates are assumptions (`bench.operations`), so the percentages matter and the milliseconds do not.
"""

from __future__ import annotations

import argparse

from bench.operations import A100, H100, Chip, operations
from glyphcrm.configuration import PRESETS, GlyphCRMConfig, preset


def table(config: GlyphCRMConfig, sequences: int, length: int, distinct: int, chip: Chip) -> str:
    """Return the profile as text, one line an operation."""
    lines = operations(config, sequences, length, distinct)
    total = sum(line.seconds(chip) for line in lines)
    rows = [
        f"{sequences} x {length} tokens, {distinct:,} distinct characters, bfloat16, {chip.name}: "
        f"{total * 1e3:.1f} ms if PyTorch runs every line apart",
        f"{'operation':<48}{'TFLOP':>8}{'GB':>8}{'ms':>8}{'share':>8}{'fusion saves':>16}  kernel",
    ]
    for line in lines:
        share = line.seconds(chip) / total
        saved = (line.seconds(chip) - line.seconds(chip, fused=True)) / total
        rows.append(
            f"{line.name:<48}{line.flops / 1e12:>8.2f}{line.bytes / 1e9:>8.2f}{line.seconds(chip) * 1e3:>8.2f}"
            f"{share:>8.1%}{saved:>16.1%}  {line.kernel}".rstrip()
        )
    return "\n".join(rows)


def main() -> None:
    """Print the table for one size and both chips."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="base", choices=list(PRESETS))
    parser.add_argument("--sequences", type=int, default=32)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--distinct", type=int, default=1700, help="distinct characters in the batch")
    options = parser.parse_args()
    for chip in (A100, H100):
        # The bound on the 9x9 convolutions is one of this project's kernel, and these are PyTorch's.
        chip = chip._replace(convolution=chip.matrix)
        print(table(preset(options.preset), options.sequences, options.length, options.distinct, chip), end="\n\n")


if __name__ == "__main__":
    main()
