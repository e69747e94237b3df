"""Training steps of GlyphCRM beside BERT's: milliseconds, real tokens a second, memory.

    python -m bench.step_time [--preset base] [--shapes 32x512 256x128 128x512 256x512] [--text FILE ...]
                              [--rounds N] [--json FILE] [--markdown FILE]

A shape is sequences a step and tokens a sequence, at most. All ways take the same steps of real text in turn, in one
process, on the device that pre-training would take; a step is all of it: batches to the device, forward, backward,
clipping, AdamW, and the measures that a run logs. As in a run, the host waits for the device only after some steps.
The ways:

* BERT: transformers' `BertForPreTraining` with SDPA, padded, logits at every position;
* BERT, masked logits: the same with logits where there is something to predict, as `--arch bert` trains it;
* GlyphCRM, padded / packed / recorded: padded batches, rows without padding, and these as CUDA graphs, which is how
  pre-training runs on an NVIDIA GPU. On a CPU the last one is left out;
* GlyphCRM, still: the fastest of these while HanGlyph's convolutions stand still (`--still-steps`).

What the machine can do comes first: a large matrix product in the numbers of a step, a large copy.
HanGlyph alone comes last: forward and backward over some characters, beside PyTorch's convolutions. Without a GPU the
default is `nano`, to try the way.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median

import torch
from transformers import PreTrainedModel

from bench import arguments, ceilings, markdown
from bench.clock import ratios, seconds_by_turns
from bench.environment import first_line, versions
from bench.throughput.material import SPECIALS, Material, documents, limited, sizes
from bench.throughput.models import GlyphStep, PlainBert, build_bert, build_glyphcrm, training_step
from glyphcrm.cli.arguments import whole_number
from glyphcrm.config_values import PRESETS
from glyphcrm.configuration import preset
from glyphcrm.data.packed_collator import PackedCollator
from glyphcrm.data.pretraining import Sample
from glyphcrm.errors import UserError, exit_code_of
from glyphcrm.modeling import GlyphCRMForPreTraining
from glyphcrm.modeling.bert import BertBaseline
from glyphcrm.pretraining.objective import PretrainingObjective
from glyphcrm.training.graph import CudaRecorder, Graphs, in_place_of, no_graph_because
from glyphcrm.training.machine import Machine

SHAPES = {"base": ("32x512", "256x128", "128x512", "256x512"), "nano": ("8x64",)}
# Of a micro-batch, padding included: of the shapes only 256x512 is cut in two. All ways lie in the memory together,
# two with recordings, so that a GPU of 80 GB takes half.
MICRO_TOKENS, LARGE_MEMORY = 1 << 16, 120e9
GLYPHS = {"base": (1700, 3000), "nano": (12,)}
STEPS = 3  # of different text, one after the other without a wait
WARM_UP = 3  # times all of them: kernels compile, each size of a graph runs, is recorded, is replayed
PEER, MASKED, RECORDED, STILL = "BERT", "BERT, masked logits", "GlyphCRM, recorded", "GlyphCRM, still"


@dataclass(frozen=True)
class Row:
    """How one way did at one shape; ratios are of tokens a second, medians over the rounds."""

    shape: str
    way: str
    milliseconds: float
    tokens_per_second: float
    beside_bert: float
    beside_masked: float
    gigabytes: float  # weights, buffers, still features, gradients, optimiser and the step's peak; 0 on a CPU
    loss: float


class Way:
    """A model with its optimiser, and the steps, each of some samples, that it takes."""

    def __init__(
        self,
        model: PreTrainedModel,
        objective: PretrainingObjective,
        machine: Machine,
        steps: Sequence[Sequence[Sample]],
        recorded: bool = False,
        still: bool = False,
    ) -> None:
        self.model, self._machine = model.train(), machine
        model.to(machine.device)  # type: ignore[arg-type]
        graphs = Graphs(CudaRecorder(machine.device), in_place_of(model), _tell) if recorded else None
        self._step = training_step(model, objective, machine, graphs)
        if still:
            self._step.hold_convolutions(True)
        self._batches = [objective.micro_batches(samples) for samples in steps]
        self.loss = math.nan
        self.peak = 0

    def __call__(self, _: int) -> None:
        """Take all steps, to their end."""
        if self._machine.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        for batches in self._batches:
            loss, _ = self._step(batches)
        self.loss = float(loss)  # waits for the device
        if self._machine.device.type == "cuda":  # a recording's memory is counted when it is made
            self.peak = max(self.peak, torch.cuda.max_memory_allocated() - torch.cuda.memory_allocated())

    @property
    def gigabytes(self) -> float:
        """Memory of the model and of a step of it."""
        parameters = list(self.model.parameters())
        own = 3 * sum(p.nbytes for p in parameters)  # itself, two moments
        own += sum(b.nbytes for b in self.model.buffers())
        still = getattr(getattr(self.model.base_model, "hanglyph", None), "still", None)
        if still is not None:
            own += still.block1.nbytes + still.block2.nbytes
        kept = sum(p.grad.nbytes for p in parameters if p.grad is not None)  # others come and go with a step
        return (own + kept + self.peak) / 1e9 if self.peak else 0.0


def measure(
    shape: str, material: Material, new: GlyphCRMForPreTraining, rounds: int, machine: Machine
) -> Iterator[Row]:
    """Yield a row for each way at one shape, BERT first; `new` is the GlyphCRM that they start from, on the CPU."""
    count, length = map(int, shape.split("x"))
    material.sizes = replace(material.sizes, length=length, batch=count)
    stream = material.stream(material.write_store(shape))
    steps = [[stream[(s * count + i) % len(stream)] for i in range(count)] for s in range(STEPS)]
    tokens = sum(len(sample["input_ids"]) for step in steps for sample in step) / STEPS
    micro = max(1, min(count, micro_tokens(machine.device) // length))

    def way(model: PreTrainedModel, kind: type[PretrainingObjective], packed: bool = False, **more: bool) -> Way:
        collator = PackedCollator(micro * length, length) if packed else None
        objective = kind(stream, stream, micro, machine, 1, collator)
        return Way(model, objective, machine, steps, **more)

    def glyphcrm(**more: bool) -> Way:
        return way(copy.deepcopy(new), PretrainingObjective, **more)

    ways = {
        PEER: way(build_bert(new.config), PlainBert),
        MASKED: way(BertBaseline.for_config(new.config, attn_implementation="sdpa"), PretrainingObjective),
        "GlyphCRM, padded": glyphcrm(packed=False),
        "GlyphCRM, packed": glyphcrm(packed=True),
    }
    can_record = not no_graph_because(machine.device, recomputes=False)
    if can_record:
        ways[RECORDED] = glyphcrm(packed=True, recorded=True)
    ways[STILL] = glyphcrm(packed=True, recorded=can_record, still=True)
    for each in ways.values():
        for number in range(WARM_UP):
            each(number)
    seconds = seconds_by_turns(ways, rounds)
    for name, each in ways.items():
        beside = [median(ratios(seconds[peer], seconds[name])) for peer in (PEER, MASKED)]
        own = median(seconds[name]) / STEPS
        yield Row(shape, name, 1e3 * own, tokens / own, *beside, each.gigabytes, each.loss)


def micro_tokens(device: torch.device) -> int:
    """Return how many tokens a micro-batch has at most."""
    memory = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else math.inf
    return MICRO_TOKENS if memory >= LARGE_MEMORY else MICRO_TOKENS // 2


def measure_hanglyph(
    preset: str, material: Material, model: GlyphCRMForPreTraining, rounds: int, machine: Machine
) -> Iterator[tuple[str, float, float]]:
    """Yield (what, milliseconds, times as fast as PyTorch's convolutions) for HanGlyph alone, forward and backward."""
    step = GlyphStep(model.to(machine.device).glyphcrm)  # type: ignore[arg-type]
    for count in GLYPHS.get(preset, GLYPHS["base"]):
        order, reference = step.faster_reference(count)
        ways: dict[str, Callable[[int], object]] = {
            "own": _to_the_end(machine, partial(step.fast, count)),
            "peer": _to_the_end(machine, partial(reference, count)),
        }
        seconds_by_turns(ways, 2)
        own, peer = seconds_by_turns(ways, rounds).values()
        ratio = median(ratios(peer, own))
        yield f"HanGlyph, {count:,} characters, beside PyTorch's convolutions ({order})", 1e3 * median(own), ratio


def _to_the_end(machine: Machine, call: Callable[[], object]) -> Callable[[int], object]:
    def run(_: int) -> None:
        with machine.autocast():
            call()
        if machine.device.type == "cuda":
            torch.cuda.synchronize()

    return run


def _tell(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def table(rows: Sequence[Row], glyphs: Sequence[tuple[str, float, float]]) -> list[str]:
    """Return the results as Markdown."""
    header = ("step", "way", "ms", "real tokens/s", f"x {PEER}", f"x {MASKED}", "GB")
    cells = [
        (
            *(r.shape, r.way, f"{r.milliseconds:,.1f}", f"{r.tokens_per_second:,.0f}"),
            *(f"{r.beside_bert:.2f}", f"{r.beside_masked:.2f}", f"{r.gigabytes:.1f}" if r.gigabytes else "-"),
        )
        for r in rows
    ]
    alone = [(what, f"{milliseconds:,.1f}", f"{ratio:.2f}") for what, milliseconds, ratio in glyphs]
    return [*markdown.table(header, cells, left=2), "", *markdown.table(("alone", "ms", "x"), alone)]


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.step_time", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    has_gpu = torch.cuda.is_available()
    parser.add_argument("--preset", choices=tuple(PRESETS), default="base" if has_gpu else "nano")
    parser.add_argument("--shapes", nargs="+", type=arguments.shape, help="sequences x tokens; default by preset")
    parser.add_argument("--text", nargs="+", default=[], help="training text; default: the demo corpus")
    parser.add_argument("--rounds", type=whole_number(1), default=5 if has_gpu else 2)
    parser.add_argument("--json", type=arguments.new_file)
    parser.add_argument("--markdown", type=arguments.new_file)
    options = parser.parse_args(words)
    shapes = options.shapes or SHAPES.get(options.preset, SHAPES["base"])
    fewest, most = SPECIALS + 2, preset(options.preset).max_position_embeddings
    if wrong := [shape for shape in shapes if not fewest <= int(shape.partition("x")[2]) <= most]:
        parser.error(f"argument --shapes: {wrong[0]}; tokens a sequence go from {fewest} to {most}")
    text = list(limited(documents(options.text), 4_000_000))
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    device = torch.device("cuda", 0) if has_gpu else torch.device("cpu")
    machine = Machine(device, bf16=has_gpu and torch.cuda.is_bf16_supported())
    numbers = torch.bfloat16 if machine.bf16 else torch.float32
    facts = {
        "commit": first_line("git", "describe", "--always", "--dirty"),
        "device": torch.cuda.get_device_name() if has_gpu else "CPU",
        "date": time.strftime("%Y-%m-%d"),
        **versions(("torch", "triton", "transformers")),
        "matrix product, TFLOP/s": f"{ceilings.arithmetic(device.type, numbers):.3g}",
        "copy, GB/s": f"{ceilings.bandwidth(device.type):,.0f}",
    }
    print(", ".join(f"{name} {value}" for name, value in facts.items()), flush=True)
    failed = False
    rows: list[Row] = []
    glyphs: list[tuple[str, float, float]] = []

    def keep() -> None:
        record = {"facts": facts, "rows": [asdict(row) for row in rows], "hanglyph": glyphs}
        if options.json:
            options.json.write_text(json.dumps(record, indent=1), encoding="utf-8")
        if options.markdown:
            options.markdown.write_text("\n".join(table(rows, glyphs)) + "\n", encoding="utf-8")

    with tempfile.TemporaryDirectory() as directory:
        amounts = sizes(options.preset)
        # Pictures and first weights, which take a while, are the same at all shapes.
        material = Material(amounts, text, [], Path(directory))
        new = build_glyphcrm(amounts.configuration(len(material.atlas)), material.atlas)
        for shape in shapes:
            try:
                for row in measure(shape, material, new, options.rounds, machine):
                    rows.append(row)
                    print(f"{shape:>8}  {row.way:<20} {row.milliseconds:9.1f} ms  x {row.beside_bert:.2f}", flush=True)
            except (RuntimeError, UserError) as error:  # memory, say; the other shapes may fit
                failed = True
                _tell(f"error: {shape}: {error}")
            keep()  # what has been measured stays, whatever comes
            gc.collect()  # models and recordings, which know each other
            if has_gpu:
                torch.cuda.empty_cache()
        for found in measure_hanglyph(options.preset, material, new, options.rounds, machine):
            glyphs.append(found)
            keep()
    print("\n".join(table(rows, glyphs)))
    bad = [row for row in rows if not math.isfinite(row.loss)]
    if bad:
        print(f"error: {bad[0].shape}, {bad[0].way}: the loss is {bad[0].loss}", file=sys.stderr)
    return 1 if bad or failed else 0


if __name__ == "__main__":
    raise SystemExit(exit_code_of(main))
