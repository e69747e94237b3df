"""A training step on paper: the FLOPs and bytes of every operation, and what fusing it would save.

`python -m bench.step_profile` prints, for the reference model as PyTorch runs it under bfloat16 autocast,
the share of each operation in a step and how much of the step a fused kernel would take off. From 3 % on
a kernel is worth writing. The last column names the kernel that this project has: `add_norm` stays below
3 % and is there because GlyphCRM's three-way norm is what others want to reuse.

An operation takes as long as its arithmetic or its memory traffic, whichever is longer; both at a share
of the chip's peak that is an assumption (`Chip`), so the percentages matter and the milliseconds do not.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import NamedTuple

from glyphcrm.configuration import PRESETS, GlyphCRMConfig, preset

B = 2  # bytes of an activation, bfloat16


class Chip(NamedTuple):
    """Peak rates, and the share of them that large operations reach (assumed, not measured)."""

    name: str
    flops: float  # dense bfloat16, a second
    bandwidth: float  # bytes a second
    matrix_share: float = 0.6
    memory_share: float = 0.8


A100 = Chip("A100 SXM 80 GB", 312e12, 2.04e12)
H100 = Chip("H100 SXM", 989e12, 3.35e12)


class Operation(NamedTuple):
    """One kind of operation of a training step, forward and backward together."""

    name: str
    flops: float  # in matrix products and convolutions; the rest is bound by memory
    bytes: float
    fused_bytes: float  # what remains if the whole line is one kernel each way; `bytes` where none can be
    forward_flops: float = 0.0
    kernel: str = ""  # of this project, that does it

    def seconds(self, chip: Chip, fused: bool = False) -> float:
        """Return the time on `chip`, bound by arithmetic or by memory."""
        moved = self.fused_bytes if fused else self.bytes
        return max(self.flops / (chip.flops * chip.matrix_share), moved / (chip.bandwidth * chip.memory_share))


def operations(config: GlyphCRMConfig, sequences: int, length: int, distinct: int) -> list[Operation]:
    """Return the operations of one training step (MLM + NSP) in their order."""
    tokens = sequences * length
    return [
        *_hanglyph(config, distinct),
        *_embeddings(config, tokens),
        *_encoder(config, sequences, length),
        *_heads(config, round(0.15 * tokens)),
        *_optimiser(config),
    ]


def _product(name: str, rows: int, inputs: int, outputs: int, count: int = 1) -> Operation:
    """``count`` linear layers: forward, two products of that size backward; the bias gradient reads dy."""
    forward = 2.0 * rows * inputs * outputs * count
    moved = 3 * B * (rows * inputs + rows * outputs + inputs * outputs) * count + B * rows * outputs * count
    return Operation(name, 3 * forward, moved, moved, forward)


def _hanglyph(config: GlyphCRMConfig, distinct: int) -> Iterator[Operation]:
    c1, c2, d = config.stem_channels, config.glyph_channels, config.hidden_size
    stem, pooled = distinct * 48 * 48 * c1 * B, distinct * 24 * 24 * c1 * B
    # The image's channel of every glyph, and once the two position channels.
    stem_flops = 2.0 * 48 * 48 * 9 * (distinct + 2) * c1
    yield Operation(
        "stem: unpack, 3x3, ReLU, pool",
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
        yield Operation(name, forward + backward, streams, streams, forward, "glyph_conv")
    yield Operation("bias, ReLU, residual, pool of the convolutions", 0, epilogue, fused_epilogue, kernel="glyph_conv")
    yield _product("glyph projection and skip 2", distinct, c2 * 9, d, 2)
    yield _product("skip 1", distinct, c1 * 144, d)


def _embeddings(config: GlyphCRMConfig, tokens: int) -> Iterator[Operation]:
    nd = tokens * config.hidden_size * B
    # gather 2, dropout 2.5, two additions of 2 (position and segment rows come from the cache), LN 2, dropout 2.5;
    # backward: dropout 2.5, LN 3, position and segment sums 2, dropout 2.5, segment sum 1
    yield Operation("glyph + position + segment, LN, dropout", 0, (13 + 11) * nd, (1 + 3) * nd)


def _encoder(config: GlyphCRMConfig, sequences: int, length: int) -> Iterator[Operation]:
    blocks, d, inner = config.num_hidden_layers, config.hidden_size, config.intermediate_size
    tokens = sequences * length
    nd, nf = tokens * d * B, tokens * inner * B
    yield _product("query, key, value", tokens, d, d, 3 * blocks)
    attention = 4.0 * sequences * length**2 * d * blocks
    moved = (4 * nd + 8 * nd) * blocks
    # Flash attention computes the scores again: five products backward for two forward.
    yield Operation("attention (SDPA)", 3.5 * attention, moved, moved, attention)
    yield _product("attention output", tokens, d, d, blocks)
    # forward: dropout 2.5, addition 3, LN 2; backward: LN 3, dropout 2.5. Fused: 3 and 5.
    two_way, fused = (7.5 + 5.5) * nd, (3 + 5) * nd
    yield Operation("add-norm, two-way", 0, two_way * (2 * blocks - 2), fused * (2 * blocks - 2), kernel="add_norm")
    # more: gather 2, addition 3; backward: segment sum 1. Fused: the gathered rows, twice, and the sum.
    yield Operation("add-norm, three-way", 0, (two_way + 6 * nd) * 2, (fused + 3 * nd) * 2, kernel="add_norm")
    yield _product("FFN", tokens, d, inner, blocks)
    yield _product("FFN output", tokens, inner, d, blocks)
    # The bias is in the product's epilogue already; a kernel could sum the bias gradient in GELU's backward.
    yield Operation("bias + GELU", 0, (2 + 3 + 1) * nf * blocks, (2 + 3) * nf * blocks)
    # Autocast would run LN in float32, so that each of four linear layers a block casts its input, and its
    # gradient back. add_norm keeps the stream in bfloat16: nothing is left.
    yield Operation("casts of the stream, had LN float32 outputs", 0, 4 * 2 * 3 * nd * blocks, 0, kernel="add_norm")


def _heads(config: GlyphCRMConfig, masked: int) -> Iterator[Operation]:
    yield _product("MLM head, dense", masked, config.hidden_size, config.hidden_size)
    yield _product("MLM head, decoder", masked, config.hidden_size, config.vocab_size)
    logits = masked * config.vocab_size
    # cast to float32, log-softmax, loss; gradient, cast back. Fused: read and write the bfloat16 logits.
    yield Operation("cross-entropy", 0, ((2 + 4) + 8 + 4 + 12 + 6) * logits, (2 + 2 + 2) * logits)


def _optimiser(config: GlyphCRMConfig) -> Iterator[Operation]:
    c1, c2, d, inner = config.stem_channels, config.glyph_channels, config.hidden_size, config.intermediate_size
    hanglyph = 27 * c1 + 3 * 81 * c1**2 + 9 * c1 * c2 + 27 * c2**2 + (2 * 9 * c2 + 144 * c1) * d
    block = 4 * d * d + 2 * d * inner
    weights = hanglyph + config.num_hidden_layers * block + (config.max_position_embeddings + config.vocab_size + d) * d
    # weight, gradient and two moments in float32: 16 bytes read, 12 written; clipping reads the gradient once more
    yield Operation("AdamW, fused, and clipping", 0, (28 + 4 + 8) * weights, (28 + 4) * weights)
    yield Operation("autocast's weights and their gradients", 0, (6 + 6) * weights, (6 + 6) * weights)


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
        print(table(preset(options.preset), options.sequences, options.length, options.distinct, chip), end="\n\n")


if __name__ == "__main__":
    main()
