"""`glyphcrm convert-release`, `glyphcrm convert-bert` and `glyphcrm convert-half`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from glyphcrm.cli.arguments import add_font, check_new, whole_number
from glyphcrm.command_line import Parser
from glyphcrm.config_file import read_config
from glyphcrm.errors import UserError
from glyphcrm.tokens import read_vocabulary

if TYPE_CHECKING:
    from glyphcrm.glyphs.atlas import GlyphAtlas
    from glyphcrm.modeling import GlyphCRMForPreTraining


def parse_release(words: Sequence[str] | None, prog: str | None) -> Callable[[], int]:
    """Read the command line of `convert-release`; return the work that it asks for."""
    parser = Parser(prog=prog, description="Convert a checkpoint of the authors' release.")
    add = partial(parser.add_argument, type=Path, required=True, metavar="FILE")
    add("--weights", help="the torch-saved checkpoint")
    add("--vocab", help="its vocabulary, a token a line")
    add("--bitmaps", help="its images, .npz of (V, 288) uint8")
    arguments = _with_out(parser, words)
    read_vocabulary(arguments.vocab)
    for file in (arguments.weights, arguments.bitmaps):
        if not file.is_file():
            raise UserError(
                f"{file}: {'is a directory' if file.is_dir() else 'no such file'}; give that of the release"
            )
    return partial(_convert_release, arguments)


def parse_bert(words: Sequence[str] | None, prog: str | None) -> Callable[[], int]:
    """Read the command line of `convert-bert`; return the work that it asks for."""
    parser = Parser(prog=prog, description="Make a GlyphCRM of a BERT's encoder and heads, to be pre-trained further.")
    parser.add_argument("--bert", type=Path, required=True, metavar="DIR", help="directory that save_pretrained wrote")
    add_font(parser)
    seed_help = "of HanGlyph's initial weights (default: %(default)s)"
    parser.add_argument("--seed", type=whole_number(0, 2**32 - 1), default=0, metavar="N", help=seed_help)
    arguments = _with_out(parser, words)
    read_config(arguments.bert, ("BERT",))
    return partial(_convert_bert, arguments)


def parse_half(words: Sequence[str] | None, prog: str | None) -> Callable[[], int]:
    """Read the command line of `convert-half`; return the work that it asks for."""
    parser = Parser(
        prog=prog, description="Store a checkpoint's weights in float16; they are computed with in float32."
    )
    parser.add_argument("--model", type=Path, required=True, metavar="DIR", help="directory that save_pretrained wrote")
    arguments = _with_out(parser, words)
    read_config(arguments.model)
    return partial(_convert_half, arguments)


def _with_out(parser: argparse.ArgumentParser, words: Sequence[str] | None) -> argparse.Namespace:
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="directory to write")
    arguments = parser.parse_args(words)
    check_new(arguments.out)
    return arguments


def _convert_release(arguments: argparse.Namespace) -> int:
    from glyphcrm.conversion.release import convert_release

    return _write(*convert_release(arguments.weights, arguments.vocab, arguments.bitmaps), arguments.out)


def _convert_bert(arguments: argparse.Namespace) -> int:
    from glyphcrm.glyphs.fonts import font_chain, open_font

    fonts = font_chain([open_font(font) for font in arguments.font])
    from glyphcrm.conversion.bert import convert_bert  # imports torch: what is wrong above is told before

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
