"""`glyphcrm atlas`: draw an atlas, look at one, add characters to a model's, encode it, find look-alikes in it.

What needs torch is imported where it is used: `--help` need not wait for it.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from glyphcrm.atlas_sources import (
    counts_in,
    frequent_characters,
    listed_characters,
    look_alikes_note,
    named,
    read_pictures,
    with_input_only,
)
from glyphcrm.cli.arguments import add_counts_from, add_font, add_top, check_new, readable, whole_number
from glyphcrm.command_line import Parser
from glyphcrm.config_file import read_config
from glyphcrm.errors import UserError, listed
from glyphcrm.files import check_directory, check_place
from glyphcrm.glyphs.atlas import GlyphAtlas, check_fonts_draw
from glyphcrm.glyphs.fonts import REGULAR_WEIGHT, font_chain, open_font
from glyphcrm.glyphs.picture_file import PICTURE_SOURCE
from glyphcrm.glyphs.sheet import contact_sheet, save_sheet
from glyphcrm.normalization import normalize
from glyphcrm.tokens import SPECIAL_TOKENS, VOCABULARY_FILE, read_vocabulary
from glyphcrm.vocabulary import DEFAULT_VOCABULARY_SIZE


def parse(words: Sequence[str] | None, prog: str | None) -> Callable[[], int]:
    """Read the command line of `atlas`, its first word one of the commands; return the work that it asks for."""
    parser = Parser(prog=prog)
    commands = parser.add_subparsers(required=True, metavar="build|show|add|encode|nearest")
    for add_command in (_add_build, _add_show, _add_add, _add_encode, _add_nearest):
        add_command(commands)
    arguments = parser.parse_args(words)
    if "model" in arguments:
        read_config(arguments.model, ("GlyphCRM",))
    return partial(arguments.run, arguments)


def _add_build(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = _described(commands, "build", "draw an atlas from fonts")
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="FILE", help="the .safetensors file to write")
    add_font(parser)
    weight_help = f"with --font: the weight of variable fonts (default: {REGULAR_WEIGHT:g})"
    add("--weight", type=float, metavar="N", help=weight_help)
    source = parser.add_mutually_exclusive_group(required=True)
    listed_help = "the vocabulary: the file's characters, in their order"
    source.add_argument("--characters", type=Path, metavar="FILE", help=listed_help)
    text_help = "UTF-8 text; its most frequent characters are the vocabulary"
    source.add_argument("--text", type=Path, nargs="+", metavar="FILE", help=text_help)
    size_help = f"with --text: how many tokens at most (default: {DEFAULT_VOCABULARY_SIZE})"
    add("--vocabulary-size", type=whole_number(len(SPECIAL_TOKENS) + 1), metavar="N", help=size_help)
    only_help = "leave out what the fonts draw beyond the vocabulary, which a model reads but cannot predict"
    add("--no-input-only", dest="input_only", action="store_false", help=only_help)
    add("--force", action="store_true", help="write over --out when it exists")
    parser.set_defaults(run=build)


def _add_show(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = _described(commands, "show", "look at the pictures of some characters")
    parser.add_argument("text", metavar="TEXT", help="the characters")
    atlas_help = "an atlas file, or a checkpoint directory (default: draw from the fonts)"
    parser.add_argument("--atlas", type=Path, metavar="PATH", help=atlas_help)
    parser.add_argument("--out", type=Path, metavar="FILE", help="write a contact sheet to this PNG file")
    font_help = "what training with this --train-font would read as well; with --out, a row of the sheet"
    parser.add_argument("--train-font", action="append", default=[], metavar="SPEC", help=font_help)
    parser.set_defaults(run=show)


def _add_add(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = _described(commands, "add", "let a trained model read more characters: a copy of it with rows added")
    add = parser.add_argument
    add("characters", metavar="CHARACTERS", nargs="?", default="", help="those that fonts are to draw")
    add("--model", type=Path, required=True, metavar="DIR", help="a checkpoint directory, of any head")
    add("--out", type=Path, required=True, metavar="DIR", help="the checkpoint directory to write")
    add_font(parser)
    png_help = "the picture of one more character, dark on light; U+20BB7=FILE does, too"
    add("--png", action="append", default=[], metavar="CHARACTER=FILE", help=png_help)
    predict_help = "let the model predict them, too, by what their pictures have in common with those that it predicts"
    add("--predict", action="store_true", help=predict_help)
    add_counts_from(parser, "--predict")
    parser.set_defaults(run=add_to_model)


def _add_encode(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = _described(commands, "encode", "keep the vectors of all characters beside a model, for inference")
    parser.add_argument("--model", type=Path, required=True, metavar="DIR", help="a checkpoint directory, of any head")
    dtype_help = "of the vectors (default: %(default)s)"
    parser.add_argument("--dtype", choices=("float32", "float16"), default="float32", help=dtype_help)
    parser.set_defaults(run=encode)


def _add_nearest(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = _described(commands, "nearest", "find the characters that a model sees as most alike")
    parser.add_argument("text", metavar="TEXT", help="a table is printed for each of its characters")
    parser.add_argument("--model", type=Path, required=True, metavar="DIR", help="a checkpoint directory, of any head")
    add_top(parser, 10, "characters for each")
    parser.set_defaults(run=show_nearest)


def _described(commands: argparse._SubParsersAction[Parser], name: str, what: str) -> Parser:
    return commands.add_parser(name, help=what, description=f"{what[0].upper()}{what[1:]}.")


def build(arguments: argparse.Namespace) -> int:
    """Draw an atlas; print how many rows each font drew."""
    out, weight, size = arguments.out, arguments.weight, arguments.vocabulary_size
    if weight is not None and not arguments.font:
        raise UserError("--weight is of the fonts that --font names; give one, or leave it out")
    if size is not None and arguments.text is None:
        raise UserError("--vocabulary-size is for --text; all that --characters lists is taken, leave it out")
    if out.is_dir():
        raise UserError(f"{out}: is a directory; name a file")
    if out.exists() and not arguments.force:
        raise UserError(f"{out}: exists; give another --out, or --force to write over it")
    if not out.absolute().parent.is_dir():
        raise UserError(f"{out}: its folder does not exist; make it first")
    check_place(out)
    fonts = [open_font(spec, weight=REGULAR_WEIGHT if weight is None else weight) for spec in arguments.font]
    chain = font_chain(fonts)
    if arguments.characters is not None:
        vocabulary = listed_characters(arguments.characters, chain)
    else:
        files = arguments.text
        vocabulary = frequent_characters(counts_in(files) or {}, files[0], chain, size or DEFAULT_VOCABULARY_SIZE)
    atlas = with_input_only(vocabulary, chain) if arguments.input_only else vocabulary
    check_fonts_draw(fonts, atlas)
    atlas.save(out)
    added = len(atlas) - len(vocabulary)
    print(f"{out}: {len(atlas):,} rows = {len(vocabulary):,} of the vocabulary + {added:,} input-only")
    for source, rows in Counter(atlas.sources.tolist()).most_common():
        print(f"{rows:8,} {atlas.fonts[source]}")
    if note := look_alikes_note(atlas):
        print(note)
    return 0


def show(arguments: argparse.Namespace) -> int:
    """Print the row of each character and what drew it; draw the contact sheet."""
    characters = list(dict.fromkeys(normalize(readable(arguments.text, "TEXT"))))
    if not characters:
        raise UserError(f"the text {arguments.text!r} has no characters that are drawn")
    if arguments.atlas is None:
        fonts = font_chain()
        atlas = GlyphAtlas.build(characters, fonts, leave_out=True)
    elif arguments.atlas.is_dir():
        read_config(arguments.atlas, ("GlyphCRM",))
        from glyphcrm.checkpoint import load_atlas

        atlas = load_atlas(arguments.atlas)
    else:
        atlas = GlyphAtlas.load(arguments.atlas)
    for char in characters:
        row = atlas.rows.get(char)
        found = "no picture" if row is None else f"row {row:<6} {atlas.fonts[atlas.sources[row]]}"
        print(f"{named(char)} {found}")
    own = atlas.of(filter(atlas.rows.__contains__, characters))
    fonts = [open_font(spec) for spec in arguments.train_font]
    others = {font.name: own.redrawn(font) for font in fonts}
    for font, other in others.items():
        lacked = [named(char) for char in own.tokens if other.fonts[other.sources[other.rows[char]]] != font]
        print(f"{font}: has {'all' if not lacked else f'no {listed(lacked)}'}")
    if arguments.out is not None:
        save_sheet(contact_sheet(characters, own, others), arguments.out)
        print(f"{arguments.out}: written")
    return 0


def add_to_model(arguments: argparse.Namespace) -> int:
    """Write a copy of a model that reads more characters; print the new rows and what drew them."""
    characters = list(dict.fromkeys(normalize(readable(arguments.characters, "CHARACTERS"))))
    pictures = read_pictures(map(_with_readable_name, arguments.png))
    if not characters and not pictures:
        raise UserError("no character to add was given; give CHARACTERS, or --png CHARACTER=FILE")
    if twice := pictures.keys() & characters:
        raise UserError(f"{named(min(twice))} is to be drawn by a font and by --png; give it once")
    if arguments.counts_from and not arguments.predict:
        raise UserError("--counts-from is for --predict; give both, or leave it out")
    check_new(arguments.out)
    read = frozenset(read_vocabulary(arguments.model / VOCABULARY_FILE))
    if known := [char for char in (*characters, *pictures) if char in read]:
        raise UserError(f"{arguments.model}: reads {named(known[0])} already; leave it out")
    fonts = [open_font(spec) for spec in arguments.font]
    counts = counts_in(arguments.counts_from)
    drawn = GlyphAtlas.build(characters, font_chain(fonts))
    check_fonts_draw(fonts, drawn)

    from glyphcrm.checkpoint import load_as_saved, save_with_tokens  # torch: what is wrong above is told before
    from glyphcrm.modeling import GlyphCRMForMaskedLM, GlyphCRMForPreTraining

    model, atlas = load_as_saved(arguments.model)
    extended = atlas.extended(drawn)
    if pictures:
        extended = extended.append(tuple(pictures), np.stack(list(pictures.values())), PICTURE_SOURCE)
    model.set_atlas(extended)
    if arguments.predict:
        if not isinstance(model, GlyphCRMForPreTraining | GlyphCRMForMaskedLM):
            raise UserError(f"{arguments.model}: predicts no characters; leave out --predict, or give another")
        model.eval().extend_decoder("".join(extended.tokens[len(atlas) :]), counts)
    save_with_tokens(model, extended.tokens, arguments.out)
    new = range(len(atlas), len(extended))
    print(f"{arguments.out}: {len(extended):,} rows = {len(atlas):,} of {arguments.model} + {len(new):,} new")
    for row in new:
        print(f"{named(extended.tokens[row])} row {row:<6} {extended.fonts[extended.sources[row]]}")
    if note := look_alikes_note(extended, len(atlas)):
        print(note)
    return 0


def _with_readable_name(spec: str) -> str:
    name, equals, file = spec.partition("=")
    return readable(name, f"--png {spec}") + equals + file


def show_nearest(arguments: argparse.Namespace) -> int:
    """Print for each character those that the model sees as most alike, with the cosines of their vectors."""
    characters = list(dict.fromkeys(normalize(readable(arguments.text, "TEXT"))))
    if not characters:
        raise UserError(f"the text {arguments.text!r} has no characters that are drawn")
    read = frozenset(read_vocabulary(arguments.model / VOCABULARY_FILE))
    if unknown := [char for char in characters if char not in read]:
        raise UserError(f"{arguments.model}: has no picture of {named(unknown[0])}; `glyphcrm atlas add` gives it one")

    import torch  # takes seconds: what is wrong above is told before

    from glyphcrm.checkpoint import load_as_saved
    from glyphcrm.modeling import nearest

    model, _ = load_as_saved(arguments.model, dtype=torch.float32)
    for char in characters:
        found = nearest(model.eval(), char, arguments.top)
        print(named(char))
        for token, cosine in found:
            print(f"  {cosine:.3f} {named(token) if len(token) == 1 else token}")
    return 0


def encode(arguments: argparse.Namespace) -> int:
    """Write the vectors of all characters of a model beside it; print what was written."""
    check_directory(arguments.model)
    read_vocabulary(arguments.model / VOCABULARY_FILE)

    import torch  # takes seconds: what is wrong above is told before

    from glyphcrm.checkpoint import load_as_saved
    from glyphcrm.modeling.backend import on_accelerator
    from glyphcrm.modeling.glyph_vectors import DTYPES, VECTORS_FILE, save_vectors

    # Without the cache, as a file that is there is about to be replaced.
    model, atlas = load_as_saved(arguments.model, glyph_cache=False, dtype=torch.float32)
    base = on_accelerator(model.glyph_model)
    path = arguments.model / VECTORS_FILE
    save_vectors(path, base.hanglyph, base.glyph_table.bitmaps, DTYPES[arguments.dtype])
    print(f"{path}: {len(atlas):,} rows, {arguments.dtype}, {path.stat().st_size / 1e6:,.0f} MB")
    return 0
