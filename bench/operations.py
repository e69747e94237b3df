"""The operations of a training step on paper: FLOPs, bytes, parameters, and the chips that run them.

A step is MLM + NSP, forward, backward and optimiser, under bfloat16 autocast. An operation takes as long as its
arithmetic or its memory traffic, whichever is longer.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from typing import NamedTuple

from glyphcrm.configuration import GlyphCRMConfig

B = 2  # bytes of an activation, bfloat16
PREDICTED_SHARE = 0.15  # of the tokens; logits are computed there alone


class Chip(NamedTuple):
    """What large operations reach on a GPU; each figure is an assumption until it is measured there.

    Attributes:
        matrix: FLOP/s of bfloat16 matrix products.
        convolution: the same of the 9x9 convolutions.
        memory: bytes/s, read plus written.
        nvlink: bytes/s that a GPU sends to others of its node in a collective.
        network: bytes/s that a GPU's own adapter sends to other nodes.
        launch: seconds that the host needs for an operation, Python included.
    """

    name: str
    matrix: float
    convolution: float
    memory: float
    nvlink: float
    network: float
    launch: float = 5e-6


# 60 % of peak arithmetic (dense bfloat16), 80 % of the peak bandwidth of memory and of links in one direction. Peaks
# from NVIDIA's data sheets: A100 312 TFLOP/s, 2.04 TB/s, NVLink 600 GB/s both ways; H100 SXM 989 TFLOP/s, 3.35 TB/s,
# 900 GB/s; 200 and 400 Gbit/s InfiniBand a GPU, as in DGX A100 and DGX H100. The 9x9 kernel reaches at most 44 % on
# sm_90, where L1 sets its pace (`python -m bench.static_report`); on sm_80 no such bound is known.
A100 = Chip("A100 SXM 80 GB", 0.6 * 312e12, 0.6 * 312e12, 0.8 * 2.04e12, 0.8 * 300e9, 0.8 * 25e9)
H100 = Chip("H100 SXM", 0.6 * 989e12, 0.44 * 989e12, 0.8 * 3.35e12, 0.8 * 450e9, 0.8 * 50e9)


class Term(StrEnum):
    """What a second of a step is spent on."""

    NINE_BY_NINE = "HanGlyph 9x9"
    HANGLYPH = "other HanGlyph"
    MATMULS = "encoder matmuls"
    ATTENTION = "attention"
    ELEMENTWISE = "elementwise"
    HEADS = "heads"
    OPTIMISER = "optimiser"
    EXCHANGE = "glyph exchange"
    ALL_REDUCE = "all-reduce, exposed"
    HOST = "waiting for the host"


class Operation(NamedTuple):
    """One kind of operation of a training step, forward and backward together."""

    name: str
    term: Term
    flops: float  # in matrix products and convolutions; the rest is bound by memory
    bytes: float
    fused_bytes: float  # what remains if the whole line is one kernel each way; `bytes` where none can be
    forward_flops: float = 0.0
    kernel: str = ""  # of this project, that does it

    def arithmetic_seconds(self, chip: Chip) -> float:
        """Return the time on `chip` if memory cost nothing."""
        return self.flops / (chip.convolution if self.term == Term.NINE_BY_NINE else chip.matrix)

    def memory_seconds(self, chip: Chip, fused: bool = False) -> float:
        """Return the time on `chip` if arithmetic cost nothing."""
        return (self.fused_bytes if fused else self.bytes) / chip.memory

    def seconds(self, chip: Chip, fused: bool = False) -> float:
        """Return the time on `chip`, bound by arithmetic or by memory."""
        return max(self.arithmetic_seconds(chip), self.memory_seconds(chip, fused))

    @property
    def backward_share(self) -> float:
        """Share of the backward pass in it; of memory traffic, half (the lines' bytes are not kept apart)."""
        if self.term == Term.OPTIMISER:
            return 0.0
        return 1 - self.forward_flops / self.flops if self.flops else 0.5


class Parameters(NamedTuple):
    """Numbers of a model's parameters in the order in which the backward pass reaches them."""

    heads: int
    encoder: int
    embeddings: int  # and HanGlyph, or BERT's table, the tied decoder

    @property
    def total(self) -> int:
        return sum(self)


def parameters(config: GlyphCRMConfig) -> Parameters:
    """Return the parameters of `GlyphCRMForPreTraining`."""
    c1, c2, d, v = config.stem_channels, config.glyph_channels, config.hidden_size, config.vocab_size
    convolutions = (27 + 1) * c1 + 3 * (81 * c1 + 1) * c1 + (9 * c1 + 1) * c2 + 3 * (9 * c2 + 1) * c2
    hanglyph = convolutions + (144 * c1 + 1) * d + 2 * (9 * c2 + 1) * d
    return Parameters(_head_weights(config) + v * d, _encoder_weights(config), hanglyph + _position_weights(config))


def bert_parameters(config: GlyphCRMConfig) -> Parameters:
    """Return the parameters of the BERT of the same depth, width and vocabulary, whose decoder is tied."""
    table = config.vocab_size * config.hidden_size
    return Parameters(_head_weights(config), _encoder_weights(config), table + _position_weights(config))


def operations(
    config: GlyphCRMConfig, sequences: int, length: int, distinct: int, predicted: int | None = None
) -> list[Operation]:
    """Return the operations of one training step of GlyphCRM in their order.

    Logits are computed at `predicted` positions, by default those that are masked.
    """
    tokens = sequences * length
    return [
        *_hanglyph(config, distinct),
        *_embeddings(config, tokens),
        *_encoder(config, sequences, length, skips=2),
        *_heads(config, round(PREDICTED_SHARE * tokens) if predicted is None else predicted),
        *_optimiser(parameters(config)),
    ]


def bert_operations(config: GlyphCRMConfig, sequences: int, length: int, predicted: int) -> list[Operation]:
    """Return the operations of one training step of BERT, with logits at `predicted` positions."""
    return [
        *_embeddings(config, sequences * length),
        *_encoder(config, sequences, length, skips=0),
        *_heads(config, predicted),
        *_optimiser(bert_parameters(config)),
    ]


def _head_weights(config: GlyphCRMConfig) -> int:
    d = config.hidden_size
    return 2 * (d + 1) * d + 2 * d + config.vocab_size + 2 * (d + 1)  # dense, pooler, LN, decoder's bias, NSP


def _position_weights(config: GlyphCRMConfig) -> int:
    return (config.max_position_embeddings + config.type_vocab_size + 2) * config.hidden_size  # 2: LN


def _encoder_weights(config: GlyphCRMConfig) -> int:
    d, inner = config.hidden_size, config.intermediate_size
    return config.num_hidden_layers * (4 * (d + 1) * d + (d + 1) * inner + (inner + 1) * d + 4 * d)


def _product(name: str, term: Term, rows: int, inputs: int, outputs: int, count: int = 1) -> Operation:
    """``count`` linear layers: forward, two products of that size backward; the bias gradient reads dy."""
    forward = 2.0 * rows * inputs * outputs * count
    moved = 3 * B * (rows * inputs + rows * outputs + inputs * outputs) * count + B * rows * outputs * count
    return Operation(name, term, 3 * forward, moved, moved, forward)


def _hanglyph(config: GlyphCRMConfig, distinct: int) -> Iterator[Operation]:
    c1, c2, d = config.stem_channels, config.glyph_channels, config.hidden_size
    stem, pooled = distinct * 48 * 48 * c1 * B, distinct * 24 * 24 * c1 * B
    # The image's channel of every glyph, and once the two position channels.
    stem_flops = 2.0 * 48 * 48 * 9 * (distinct + 2) * c1
    yield Operation(
        "stem: unpack, 3x3, ReLU, pool",
        Term.HANGLYPH,
        2 * stem_flops,  # the images need no gradient
        # forward: convolution 1, constant map 2, ReLU 2, pool 1.25 and int64 positions; backward: pool 1.25 and
        # positions, addition of the two gradients 3, ReLU 3, constant map's sum 1, weight gradient 1
        (6 + 8 + 1.25) * stem + (1 + 4 + 4 + 1) * pooled,
        (stem + pooled) + (2 * stem + pooled),
        stem_flops,
        "glyph_stem",
    )
    sizes = [(c1, c1, 9, 48, 40, 0), (c1, c1, 9, 40, 32, 0), (c1, c1, 9, 32, 24, 1)]
    sizes += [(c1, c2, 3, 12, 12, 0), (c2, c2, 3, 12, 10, 0), (c2, c2, 3, 10, 8, 0), (c2, c2, 3, 8, 6, 1)]
    epilogue = fused_epilogue = 0.0
    for kernel in (9, 3):
        forward = backward = streams = 0.0
        for c_in, c_out, k, before, after, pools in sizes:
            if k != kernel:
                continue
            products = 2.0 * distinct * after**2 * k * k * c_in * c_out
            forward += products
            backward += 2 * products
            x, y = distinct * before**2 * c_in * B, distinct * after**2 * c_out * B
            streams += (x + y) + (2 * x + 2 * y)  # forward; data and weight gradient
            # forward: bias, ReLU each read and write y; backward: ReLU (3 y) and bias (1 y)
            epilogue += 4 * y + 4 * y
            fused_epilogue += 3 * y
            if pools:  # residual: 3 y; pool: y, y/4, int64 positions; backward: 1.5 y and the positions
                epilogue += 3 * y + 1.25 * y + y + 1.25 * y + y
                fused_epilogue += y + y
        name = f"{kernel}x{kernel} convolutions"
        term = Term.NINE_BY_NINE if kernel == 9 else Term.HANGLYPH
        yield Operation(name, term, forward + backward, streams, streams, forward, "glyph_conv")
    name = "bias, ReLU, residual, pool of the convolutions"
    yield Operation(name, Term.HANGLYPH, 0, epilogue, fused_epilogue, kernel="glyph_conv")
    yield _product("glyph projection and skip 2", Term.HANGLYPH, distinct, c2 * 9, d, 2)
    yield _product("skip 1", Term.HANGLYPH, distinct, c1 * 144, d)


def _embeddings(config: GlyphCRMConfig, tokens: int) -> Iterator[Operation]:
    nd = tokens * config.hidden_size * B
    # gather 2, dropout 2.5, two additions of 2 (position and segment rows come from the cache), LN 2, dropout 2.5;
    # backward: dropout 2.5, LN 3, position and segment sums 2, dropout 2.5, segment sum 1
    yield Operation("glyph + position + segment, LN, dropout", Term.ELEMENTWISE, 0, (13 + 11) * nd, (1 + 3) * nd)


def _encoder(config: GlyphCRMConfig, sequences: int, length: int, skips: int) -> Iterator[Operation]:
    blocks, d, inner = config.num_hidden_layers, config.hidden_size, config.intermediate_size
    tokens = sequences * length
    nd, nf = tokens * d * B, tokens * inner * B
    yield _product("query, key, value", Term.MATMULS, tokens, d, d, 3 * blocks)
    attention = 4.0 * sequences * length**2 * d * blocks
    moved = (4 * nd + 8 * nd) * blocks
    # Flash attention computes the scores again: five products backward for two forward.
    yield Operation("attention (SDPA)", Term.ATTENTION, 3.5 * attention, moved, moved, attention)
    yield _product("attention output", Term.MATMULS, tokens, d, d, blocks)
    # forward: dropout 2.5, addition 3, LN 2; backward: LN 3, dropout 2.5. Fused: 3 and 5.
    two_way, fused, count = (7.5 + 5.5) * nd, (3 + 5) * nd, 2 * blocks - skips
    yield Operation("add-norm, two-way", Term.ELEMENTWISE, 0, two_way * count, fused * count, kernel="add_norm")
    # more: gather 2, addition 3; backward: segment sum 1. Fused: the gathered rows, twice, and the sum.
    three_way, fused = (two_way + 6 * nd) * skips, (fused + 3 * nd) * skips
    yield Operation("add-norm, three-way", Term.ELEMENTWISE, 0, three_way, fused, kernel="add_norm")
    yield _product("FFN", Term.MATMULS, tokens, d, inner, blocks)
    yield _product("FFN output", Term.MATMULS, tokens, inner, d, blocks)
    # The bias is in the product's epilogue already; a kernel could sum the bias gradient in GELU's backward.
    yield Operation("bias + GELU", Term.ELEMENTWISE, 0, (2 + 3 + 1) * nf * blocks, (2 + 3) * nf * blocks)
    # Autocast would run LN in float32, so that each of four linear layers a block casts its input, and its
    # gradient back. add_norm keeps the stream in bfloat16: nothing is left.
    name = "casts of the stream, had LN float32 outputs"
    yield Operation(name, Term.ELEMENTWISE, 0, 4 * 2 * 3 * nd * blocks, 0, kernel="add_norm")


def _heads(config: GlyphCRMConfig, predicted: int) -> Iterator[Operation]:
    yield _product("MLM head, dense", Term.HEADS, predicted, config.hidden_size, config.hidden_size)
    yield _product("MLM head, decoder", Term.HEADS, predicted, config.hidden_size, config.vocab_size)
    logits = predicted * config.vocab_size
    # cast to float32, log-softmax, loss; gradient, cast back. Fused: read and write the bfloat16 logits.
    yield Operation("cross-entropy", Term.HEADS, 0, ((2 + 4) + 8 + 4 + 12 + 6) * logits, (2 + 2 + 2) * logits)


def _optimiser(weights: Parameters) -> Iterator[Operation]:
    # weight, gradient and two moments in float32: 16 bytes read, 12 written; clipping reads the gradient once more
    moved, fused = (28 + 4 + 8) * weights.total, (28 + 4) * weights.total
    yield Operation("AdamW, fused, and clipping", Term.OPTIMISER, 0, moved, fused)
    casts = (6 + 6) * weights.total
    yield Operation("autocast's weights and their gradients", Term.OPTIMISER, 0, casts, casts)
