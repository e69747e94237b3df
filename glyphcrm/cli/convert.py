"""`glyphcrm convert-release`, `glyphcrm convert-bert` and `glyphcrm convert-half`."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from glyphcrm.errors import UserError

if TYPE_CHECKING:
    from glyphcrm.glyphs.atlas import GlyphAtlas
    from glyphcrm.modeling import GlyphCRMForPreTraining


def add_conversion_parsers(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the three commands to the `glyphcrm` command line."""
    release = subparsers.add_parser("convert-release", help="convert a checkpoint of the authors' release")
    release.add_argument("--weights", type=Path, required=True, help="the torch-saved checkpoint")
    release.add_argument("--vocab", type=Path, required=True, help="its vocabulary, a token a line")
    release.add_argument("--bitmaps", type=Path, required=True, help="its images, .npz of (V, 288) uint8")
    release.add_argument("--out", type=Path, required=True, help="directory to write")
    release.set_defaults(run=run_convert_release)
    bert = subparsers.add_parser("convert-bert", help="warm-start from a transformers BERT directory")
    bert.add_argument("--bert", type=Path, required=True, help="directory that save_pretrained wrote")
    bert.add_argument("--font", action="append", default=[], help="font to draw with before the default one")
    bert.add_argument("--seed", type=int, default=0, help="of HanGlyph's initial weights")
    bert.add_argument("--out", type=Path, required=True, help="directory to write")
    bert.set_defaults(run=run_convert_bert)
    half = subparsers.add_parser("convert-half", help="store a checkpoint's weights in float16")
    half.add_argument("--model", type=Path, required=True, help="directory that save_pretrained wrote")
    half.add_argument("--out", type=Path, required=True, help="directory to write")
    half.set_defaults(run=run_convert_half)


def run_convert_release(arguments: argparse.Namespace) -> int:
    """Convert a released checkpoint; return the exit code."""
    from glyphcrm.conversion.release import convert_release

    _refuse_used(arguments.out)
    _write(*convert_release(arguments.weights, arguments.vocab, arguments.bitmaps), arguments.out)
    return 0


def run_convert_bert(arguments: argparse.Namespace) -> int:
    """Warm-start from a BERT; return the exit code."""
    from glyphcrm.conversion.bert import convert_bert
    from glyphcrm.glyphs.fonts import font_chain, open_font

    _refuse_used(arguments.out)
    fonts = font_chain([open_font(font) for font in arguments.font])
    _write(*convert_bert(arguments.bert, fonts, arguments.seed), arguments.out)
    return 0


def run_convert_half(arguments: argparse.Namespace) -> int:
    """Store weights in float16; return the exit code."""
    from glyphcrm.conversion.half import convert_half

    _refuse_used(arguments.out)
    convert_half(arguments.model, arguments.out)
    size = sum(file.stat().st_size for file in arguments.out.iterdir())
    print(f"{arguments.out}: {size / 1e6:.1f} MB")
    return 0


def _refuse_used(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out} exists and is not empty; name a new directory")


def _write(model: GlyphCRMForPreTraining, atlas: GlyphAtlas, out: Path) -> None:
    from glyphcrm.checkpoint import save_checkpoint
    from glyphcrm.tokenization import GlyphCRMTokenizer

    with tempfile.TemporaryDirectory() as directory:
        save_checkpoint(model, GlyphCRMTokenizer.from_tokens(atlas.tokens, directory), out)
    print(f"{out}: {model.num_parameters():,} parameters, {len(atlas):,} characters")
