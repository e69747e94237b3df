"""What a run has come to, for the screen."""

from __future__ import annotations

from glyphcrm.finetuning.results import Summary


def describe(summary: Summary) -> str:
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
