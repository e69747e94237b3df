"""The time of a training step on one GPU or many, from bytes, FLOPs and ceilings: nothing here is measured.

`step_time` is a function of its arguments alone; `python -m bench.step_model` prints and draws it. Operations run one
after the other. With several GPUs, each has a replica of the model and its own sequences
(DistributedDataParallel), and float32 gradients are summed by a ring all-reduce while the backward pass runs.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple

from bench.operations import (
    PREDICTED_SHARE,
    B,
    Chip,
    Operation,
    Parameters,
    Term,
    bert_operations,
    bert_parameters,
    operations,
    parameters,
)
from glyphcrm.configuration import GlyphCRMConfig

# Distinct characters in so many tokens of real news text, measured when the project was designed.
DISTINCT = ((1_024, 450), (4_096, 970), (16_384, 1_700), (131_072, 2_990))
GPUS_PER_NODE = 8
# DDP sums gradients in buckets of 25 MiB (`bucket_cap_mb`); the last one is ready when the backward pass is over.
BUCKET_BYTES = 25 * 2**20
# The share of the backward pass that hides communication: NCCL's kernels take multiprocessors and bandwidth from it.
OVERLAP = 0.8
# Operations that the host launches, forward and backward: of the model around the blocks, and of a block.
LAUNCHES_AROUND = {"GlyphCRM": 270, "BERT": 95}
LAUNCHES_OF_A_BLOCK = 137
# Padded pre-training samples: in BERT's recipe a tenth has a length drawn evenly up to the longest.
REAL_SHARE = 0.95

Bound = Literal["arithmetic", "memory", "network", "host"]


class Way(NamedTuple):
    """A way of computing a step.

    Attributes:
        model: which of the two.
        encoded: HanGlyph runs once for each "token", for each distinct character of a "gpu"'s share, or of the
            whole "job": then each GPU encodes its part of them, all-gathers the vectors, and reduce-scatters
            the gradients.
        fusion: "none", what this project's "kernels" do, or "all", each line of the profile one kernel each way.
        everywhere: logits at all positions instead of the masked ones.
        real: share of the positions that are text; the rest is padding.
        gradient_bytes: of one gradient in the all-reduce.
    """

    name: str
    model: Literal["GlyphCRM", "BERT"] = "GlyphCRM"
    encoded: Literal["token", "gpu", "job"] = "gpu"
    fusion: Literal["none", "kernels", "all"] = "kernels"
    everywhere: bool = False
    real: float = 1.0
    gradient_bytes: int = 4


GLYPHCRM = Way("GlyphCRM")
BERT_USUAL = Way("BERT as usually run", model="BERT", fusion="none", everywhere=True, real=REAL_SHARE)
BERT_CAREFUL = Way("BERT with the same care", model="BERT")


@dataclass(frozen=True)
class StepTime:
    """A step on paper.

    Attributes:
        seconds: of each term that there is; they add up to the step.
        bounds: what most of a term's seconds wait for.
        tokens: of text, without padding, on all GPUs together.
        encoded: pictures that one GPU's HanGlyph reads.
        all_reduce: seconds of the all-reduce, hidden ones included.
    """

    seconds: dict[Term, float]
    bounds: dict[Term, Bound]
    tokens: float
    encoded: int
    all_reduce: float

    @property
    def total(self) -> float:
        """Seconds of the step."""
        return sum(self.seconds.values())

    @property
    def tokens_per_second(self) -> float:
        """Tokens of text a second, on all GPUs together."""
        return self.tokens / self.total

    @property
    def largest(self) -> Term:
        """The term that takes longest."""
        return max(self.seconds, key=self.seconds.__getitem__)

    def share(self, term: Term) -> float:
        """Return the share of a term in the step."""
        return self.seconds.get(term, 0.0) / self.total


def distinct_characters(tokens: float, most: int) -> int:
    """Return how many distinct characters so many tokens of news text hold, at most `most`.

    On straight lines between the measured points in log-log; beyond them the outermost lines go on.
    """
    lines = list(pairwise(DISTINCT))
    (x0, y0), (x1, y1) = next((line for line in lines if tokens <= line[1][0]), lines[-1])
    slope = math.log(y1 / y0) / math.log(x1 / x0)
    return max(1, min(most, int(tokens), round(y0 * (tokens / x0) ** slope)))


def link(chip: Chip, gpus: int) -> float:
    """Return the bytes/s at which a ring over `gpus` GPUs runs.

    Within a node it is NVLink's. Across nodes NCCL runs a ring for each network adapter, so that all adapters of a node
    carry its traffic together, up to NVLink's rate (https://github.com/NVIDIA/nccl/issues/412).
    """
    if gpus <= GPUS_PER_NODE:
        return chip.nvlink
    if gpus % GPUS_PER_NODE:
        raise ValueError(f"{gpus} GPUs are not whole nodes of {GPUS_PER_NODE}")
    return min(chip.nvlink, GPUS_PER_NODE * chip.network)


def step_time(
    config: GlyphCRMConfig,
    chip: Chip,
    gpus: int,
    sequences: int,
    length: int,
    way: Way = GLYPHCRM,
    distinct: int | None = None,
    overlap: float = OVERLAP,
) -> StepTime:
    """Return the time of one training step (MLM + NSP, no gradient accumulation).

    Args:
        chip: the ceilings.
        gpus: 1 to 8, or whole nodes of 8.
        sequences: of each GPU.
        length: positions of a sequence.
        distinct: distinct characters among which HanGlyph's work is shared, those of a GPU's sequences
            or, where `way` shares in the whole job, of all; default `distinct_characters`.
        overlap: share of the backward pass that hides communication.

    Raises:
        ValueError: `gpus` are not whole nodes.
    """
    positions = sequences * length
    encoded, shared = _encoded(config, way, gpus, positions, distinct)
    lines = _lines(config, way, sequences, length, encoded)
    seconds: defaultdict[Term, float] = defaultdict(float)
    waits: defaultdict[Term, defaultdict[Bound, float]] = defaultdict(lambda: defaultdict(float))
    backward = 0.0
    for line in lines:
        fused = way.fusion == "all" or (way.fusion == "kernels" and bool(line.kernel))
        taken = line.seconds(chip, fused)
        bound: Bound = "arithmetic" if taken > line.memory_seconds(chip, fused) else "memory"
        seconds[line.term] += taken
        waits[line.term][bound] += taken
        backward += taken * line.backward_share
    bounds: dict[Term, Bound] = {term: max(bound, key=bound.__getitem__) for term, bound in waits.items()}

    launches = LAUNCHES_AROUND[way.model] + LAUNCHES_OF_A_BLOCK * config.num_hidden_layers
    waiting = max(0.0, launches * chip.launch - sum(seconds.values()))
    if waiting:
        seconds[Term.HOST], bounds[Term.HOST] = waiting, "host"
    all_reduce = 0.0
    if gpus > 1:
        # The network does not wait for the host, so it works on meanwhile.
        weights = parameters(config) if way.model == "GlyphCRM" else bert_parameters(config)
        all_reduce, exposed = _all_reduce(weights, way.gradient_bytes, chip, gpus, overlap * (backward + waiting))
        seconds[Term.ALL_REDUCE], bounds[Term.ALL_REDUCE] = exposed, "network"
    if shared and gpus > 1:
        # Three vectors a character; they are gathered before the first block, and their gradients come last.
        vectors = 3 * config.hidden_size * B * shared
        seconds[Term.EXCHANGE] = 2 * (gpus - 1) / gpus * vectors / link(chip, gpus)
        bounds[Term.EXCHANGE] = "network"
    return StepTime(dict(seconds), bounds, way.real * positions * gpus, encoded, all_reduce)


def _encoded(config: GlyphCRMConfig, way: Way, gpus: int, positions: int, distinct: int | None) -> tuple[int, int]:
    """Return how many pictures a GPU encodes, and how many are exchanged among all GPUs."""
    if way.model == "BERT":
        return 0, 0
    if way.encoded == "token":
        return positions, 0
    job = way.encoded == "job"
    if distinct is None:
        distinct = distinct_characters(way.real * positions * (gpus if job else 1), config.num_glyphs)
    return (math.ceil(distinct / gpus), distinct) if job else (distinct, 0)


def _lines(config: GlyphCRMConfig, way: Way, sequences: int, length: int, encoded: int) -> list[Operation]:
    positions = sequences * length
    predicted = positions if way.everywhere else round(PREDICTED_SHARE * way.real * positions)
    if way.model == "BERT":
        return bert_operations(config, sequences, length, predicted)
    return operations(config, sequences, length, encoded, predicted)


def _all_reduce(weights: Parameters, size: int, chip: Chip, gpus: int, hidden: float) -> tuple[float, float]:
    """Return the seconds of the all-reduce, and those of them that the backward pass does not hide.

    Last in the backward pass come the gradients of HanGlyph and the embeddings (of BERT, its table): with them,
    and with the last bucket at least, the network begins when nothing is left to hide behind.
    """
    rate = link(chip, gpus) / (2 * (gpus - 1) / gpus)
    last = max(size * weights.embeddings, min(BUCKET_BYTES, size * weights.total))
    before = size * weights.total - last
    return size * weights.total / rate, max(0.0, before / rate - hidden) + last / rate
