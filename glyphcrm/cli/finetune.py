"""`finetune.py`: from the command line to a short report."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence

from glyphcrm.errors import UserError, exit_on_user_error
from glyphcrm.finetuning.options import parse_options
from glyphcrm.finetuning.results import Summary

INTERRUPTED_EXIT_CODE = 130


@exit_on_user_error
def main(arguments: Sequence[str] | None = None) -> int:
    """Fine-tune as the command line says; return the exit code."""
    options = parse_options(arguments)
    from glyphcrm.finetuning.run import finetune  # after the options: --help need not wait for it

    try:
        summary = finetune(options)
    except KeyboardInterrupt:
        print("\ninterrupted; the same command continues from the last checkpoint", file=sys.stderr)
        return INTERRUPTED_EXIT_CODE
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise UserError(f"{options.run_dir}: {error.strerror}; make room, then repeat the command") from error
    if int(os.environ.get("RANK", "0")) == 0:
        print(report(summary))
    return 0


def report(summary: Summary) -> str:
    """Return what a run has come to, in a few lines."""
    names = list(summary.test)
    lines = ["", "seed   dev " + summary.metric + "".join(f"   test {name}" for name in names)]
    dev = summary.dev[summary.metric].values
    for seed, value in enumerate(dev):
        cells = [f"{value:>{5 + len(summary.metric)}.2%}".rjust(4 + len(summary.metric))]
        cells += [f"{summary.test[name].values[seed]:.2%}".rjust(5 + len(name)) for name in names]
        lines.append(f"{seed:>4}   " + "   ".join(cells))
    lines += ["", "test, mean ± standard deviation over the seeds:"]
    lines += [f"  {name:<10} {spread}" for name, spread in summary.test.items()]
    if summary.test_unseen is not None:
        seen = summary.sizes["test"] - summary.sizes["test_unseen"]
        lines.append(f"without the {seen:,} of {summary.sizes['test']:,} test texts that also stand in train:")
        lines += [f"  {name:<10} {spread}" for name, spread in summary.test_unseen.items()]
    lines += [f"note: {note}" for note in summary.notes]
    kept = f"   model: {summary.kept_model}" if summary.kept_model else ""
    lines += ["", f"{summary.run_dir}: summary.json chart.png seed-*/predictions.jsonl{kept}"]
    return "\n".join(lines)
