"""`glyphcrm convert-release`, `glyphcrm convert-bert` and `glyphcrm convert-half`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from glyphcrm.cli.arguments import add_font, refuse_used
from glyphcrm.command_line import Parser
from glyphcrm.config_file import read_config

if TYPE_CHECKING:
    from glyphcrm.glyphs.atlas import GlyphAtlas
    from glyphcrm.modeling import GlyphCRMForPreTraining


def parse_release(words: Sequence[str] | None, prog: str | None) -> Callable[[], int]:
    """Read the command line of `convert-release`; return the work that it asks for."""
    parser = Parser(prog=prog)
    parser.add_argument("--weights", type=Path, required=True, help="the torch-saved checkpoint")
    parser.add_argument("--vocab", type=Path, required=True, help="its vocabulary, a token a line")
    parser.add_argument("--bitmaps", type=Path, required=True, help="its images, .npz of (V, 288) uint8")
    return partial(_convert_release, _with_out(parser, words))


def parse_bert(words: Sequence[str] | None, prog: str | None) -> Callable[[], int]:
    """Read the command line of `convert-bert`; return the work that it asks for."""
    parser = Parser(prog=prog)
    parser.add_argument("--bert", type=Path, required=True, help="directory that save_pretrained wrote")
    add_font(parser)
    parser.add_argument("--seed", type=int, default=0, help="of HanGlyph's initial weights")
    arguments = _with_out(parser, words)
    read_config(arguments.bert, ("BERT",))
    return partial(_convert_bert, arguments)


def parse_half(words: Sequence[str] | None, prog: str | None) -> Callable[[], int]:
    """Read the command line of `convert-half`; return the work that it asks for."""
    parser = Parser(prog=prog)
    parser.add_argument("--model", type=Path, required=True, help="directory that save_pretrained wrote")
    arguments = _with_out(parser, words)
    read_config(arguments.model)
    return partial(_convert_half, arguments)


def _with_out(parser: argparse.ArgumentParser, words: Sequence[str] | None) -> argparse.Namespace:
    parser.add_argument("--out", type=Path, required=True, help="directory to write")
    arguments = parser.parse_args(words)
    refuse_used(arguments.out)
    return arguments


def _convert_release(arguments: argparse.Namespace) -> int:
    from glyphcrm.conversion.release import convert_release

    return _write(*convert_release(arguments.weights, arguments.vocab, arguments.bitmaps), arguments.out)


def _convert_bert(arguments: argparse.Namespace) -> int:
    from glyphcrm.conversion.bert import convert_bert
    from glyphcrm.glyphs.fonts import font_chain, open_font

    fonts = font_chain([open_font(font) for font in arguments.font])
    return _write(*convert_bert(arguments.bert, fonts, arguments.seed), arguments.out)


def _convert_half(arguments: argparse.Namespace) -> int:
    from glyphcrm.conversion.half import convert_half

    convert_half(arguments.model, arguments.out)
    size = sum(file.stat().st_size for file in arguments.out.iterdir())
    print(f"{arguments.out}: {size / 1e6:.1f} MB")
    return 0


def _write(model: GlyphCRMForPreTraining, atlas: GlyphAtlas, out: Path) -> int:
    from glyphcrm.checkpoint import save_with_tokens

    save_with_tokens(model, atlas.tokens, out)
    print(f"{out}: {model.num_parameters():,} parameters, {len(atlas):,} characters")
    return 0
