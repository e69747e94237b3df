"""What to expect of a training step on GPUs: `python -m bench.step_model [--json FILE] [--chart FILE.png]`.

Prints, from `bench.step_time` and thus without any GPU, three Markdown tables: steps by chip, batch and number of GPUs;
the same step with each idea off, and of BERT; and what ideas that are not built would save. With a GPU at hand,
`python -m bench.step_model --chip H100 $(python -m bench.ceilings)` takes its measured ceilings.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from bench.operations import A100, H100, Chip, Term
from bench.step_time import BERT_CAREFUL, BERT_USUAL, GLYPHCRM, StepTime, Way, step_time
from glyphcrm.configuration import PRESETS, GlyphCRMConfig, preset

CHIPS = {"A100": A100, "H100": H100}
BATCHES = ((32, 128), (4, 512), (32, 512), (256, 512))  # sequences of a GPU, their length
GPUS = (1, 8, 64)
MAIN = (32, 512)  # on 8 GPUs, the paper's 256 sequences; so are (4, 512) on 64

SHARED = Way("GlyphCRM, characters shared by all GPUs", encoded="job")
WAYS = (
    GLYPHCRM,
    Way("GlyphCRM, nothing fused", fusion="none"),
    Way("GlyphCRM, HanGlyph on every token", encoded="token"),
    Way("GlyphCRM, padded, logits everywhere", everywhere=True, real=BERT_USUAL.real),
    BERT_CAREFUL,
    BERT_USUAL,
)


class Idea(NamedTuple):
    """What could be built: a way of computing, and whether 9x9 convolutions then reach the rate of other products."""

    name: str
    way: Way = GLYPHCRM
    faster_convolutions: bool = False

    def chip(self, chip: Chip) -> Chip:
        """Return what the chip's ceilings would be then."""
        return chip._replace(convolution=max(chip.convolution, chip.matrix)) if self.faster_convolutions else chip


IDEAS = (
    Idea("each character encoded on one GPU of all", SHARED),
    Idea("9x9 at the rate of matrix products", faster_convolutions=True),
    Idea("every line of the profile fused", GLYPHCRM._replace(fusion="all")),
    Idea("gradients summed in 16 bits", GLYPHCRM._replace(gradient_bytes=2)),
)


def steps_table(config: GlyphCRMConfig, chips: Iterable[Chip]) -> str:
    """Return the table of steps; ratios are of tokens per second."""
    rows = []
    for chip in chips:
        for sequences, length in BATCHES:
            alone = step_time(config, chip, 1, sequences, length)
            for gpus in GPUS:
                step, shared, usual, careful = (
                    step_time(config, chip, gpus, sequences, length, way)
                    for way in (GLYPHCRM, SHARED, BERT_USUAL, BERT_CAREFUL)
                )
                exposed = step.seconds.get(Term.ALL_REDUCE, 0.0)
                rows.append(
                    (
                        chip.name,
                        f"{sequences} × {length}",
                        f"{gpus}",
                        f"{step.encoded:,}",
                        _ms(step.total),
                        f"{step.tokens_per_second:,.0f}",
                        f"{step.largest} {step.share(step.largest):.0%}, {step.bounds[step.largest]}",
                        f"{_ms(step.all_reduce)}, {_ms(exposed)}" if gpus > 1 else "",
                        f"{step.tokens_per_second / alone.tokens_per_second / gpus:.1%}" if gpus > 1 else "",
                        f"{step.tokens_per_second / careful.tokens_per_second:.2f}",
                        f"{step.tokens_per_second / usual.tokens_per_second:.2f}",
                        _ms(shared.total) if gpus > 1 else "",
                    )
                )
    head = ("chip", "a GPU's batch", "GPUs", "encoded", "ms", "tokens/s", "largest term, its bound")
    more = ("all-reduce ms, exposed", "scaling", "/ careful BERT", "/ usual BERT", "ms if shared by all GPUs")
    return _markdown((*head, *more), rows)


def ways_table(config: GlyphCRMConfig, chips: Sequence[Chip]) -> str:
    """Return milliseconds and thousands of tokens per second of each way on one GPU."""
    steps = [[step_time(config, chip, 1, *MAIN, way) for chip in chips] for way in WAYS]
    rows = [
        (way.name, *(f"{_ms(step.total)}, {step.tokens_per_second / 1e3:,.0f}" for step in row))
        for way, row in zip(WAYS, steps, strict=True)
    ]
    return _markdown(("one GPU, {} × {}: ms, thousand tokens/s".format(*MAIN), *(chip.name for chip in chips)), rows)


def savings_table(config: GlyphCRMConfig, chips: Sequence[Chip]) -> str:
    """Return by how much each idea that is not built would shorten a step."""
    places = [(chip, gpus) for chip in chips for gpus in GPUS]
    rows = []
    for idea in IDEAS:
        steps = [
            (step_time(config, chip, gpus, *MAIN), step_time(config, idea.chip(chip), gpus, *MAIN, idea.way))
            for chip, gpus in places
        ]
        rows.append((idea.name, *(f"{1 - after.total / before.total:.1%}" for before, after in steps)))
    head = ("{} × {} a GPU: saved".format(*MAIN), *(f"{gpus} × {chip.name}" for chip, gpus in places))
    return _markdown(head, rows)


def records(config: GlyphCRMConfig, chips: Iterable[Chip]) -> list[dict[str, object]]:
    """Return the steps of the first table in each way; times in seconds, ceilings as `Chip` has them."""
    return [
        {
            "chip": chip._asdict(),
            "gpus": gpus,
            "sequences_per_gpu": sequences,
            "length": length,
            "way": way._asdict(),
            "encoded_per_gpu": step.encoded,
            "seconds": step.seconds,
            "bounds": step.bounds,
            "step_seconds": step.total,
            "all_reduce_seconds": step.all_reduce,
            "tokens_per_second": step.tokens_per_second,
        }
        for chip in chips
        for sequences, length in BATCHES
        for gpus in GPUS
        for way in (*WAYS, SHARED)
        for step in [step_time(config, chip, gpus, sequences, length, way)]
    ]


def chart_groups(config: GlyphCRMConfig, chip: Chip) -> list[list[tuple[str, StepTime]]]:
    """Return what the chart shows of a chip, from the top: a group of named steps for each number of GPUs."""
    alone = [way for way in WAYS if way.encoded != "token"]  # that one would be several times as long as the others
    return [
        [
            (f"{gpus} GPU{'s' * (gpus > 1)}: {way.name}", step_time(config, chip, gpus, *MAIN, way))
            for way in (alone if gpus == 1 else (GLYPHCRM, SHARED))
        ]
        for gpus in GPUS
    ]


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.1f}"


def _markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, rule, *rows))


def _chips(parser: argparse.ArgumentParser, options: argparse.Namespace) -> list[Chip]:
    given = {
        "matrix": options.matrix_tflops and options.matrix_tflops * 1e12,
        "convolution": options.convolution_tflops and options.convolution_tflops * 1e12,
        "memory": options.memory_gbs and options.memory_gbs * 1e9,
        "nvlink": options.nvlink_gbs and options.nvlink_gbs * 1e9,
        "network": options.network_gbs and options.network_gbs * 1e9,
    }
    given = {name: value for name, value in given.items() if value is not None}
    if any(value <= 0 for value in given.values()):
        parser.error("ceilings must be above 0")
    if options.chip is None:
        if given:
            parser.error("ceilings are those of one chip: say which with --chip, the others stay its defaults")
        return list(CHIPS.values())
    return [CHIPS[options.chip]._replace(**given)]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.step_model",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--preset", default="base", choices=list(PRESETS))
    parser.add_argument("--chip", choices=list(CHIPS), help="default: all")
    parser.add_argument("--matrix-tflops", type=float, help="TFLOP/s of bfloat16 products, from `bench.ceilings`")
    parser.add_argument("--convolution-tflops", type=float, help="TFLOP/s of the 9x9 convolutions, from `make bench`")
    parser.add_argument("--memory-gbs", type=float, help="GB/s, read plus written, from `bench.ceilings`")
    parser.add_argument("--nvlink-gbs", type=float, help="GB/s a GPU in one direction: nccl-tests' busbw in a node")
    parser.add_argument("--network-gbs", type=float, help="GB/s of a GPU's adapter: busbw across nodes / 8")
    parser.add_argument("--json", type=Path, help="write every step here")
    parser.add_argument("--chart", type=Path, help="draw into this .png")
    options = parser.parse_args(arguments)
    config, chips = preset(options.preset), _chips(parser, options)
    for table in (steps_table, ways_table, savings_table):
        print(table(config, chips), end="\n\n")
    if options.json:
        options.json.write_text(json.dumps(records(config, chips), indent=1), "utf-8")
    if options.chart:
        from bench.step_chart import draw_chart

        title = "A pre-training step on paper, {} × {} tokens a GPU, GlyphCRM {} (nothing measured)"
        draw_chart(
            {chip.name: chart_groups(config, chip) for chip in chips},
            title.format(*MAIN, options.preset),
            options.chart,
        )


if __name__ == "__main__":
    main()
