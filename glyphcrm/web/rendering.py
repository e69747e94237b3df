"""What the functions of the page return, as HTML. All text in it is escaped."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from glyphcrm.answers import Answer
from glyphcrm.web.characters import Seen, Shares
from glyphcrm.web.heat import HeatMap
from glyphcrm.web.models import Models
from glyphcrm.web.substitution import Attack

INK = (20, 20, 20)
NEUTRAL, FOR, AGAINST = np.array((205, 199, 189)), np.array((190, 22, 34)), np.array((24, 90, 168))
NAME_COLOURS = 6


def message(text: str) -> str:
    """Return what is wrong."""
    return f'<p class="message" role="alert">{escape(text)}</p>'


def hint(text: str) -> str:
    """Return what an empty place says."""
    return f'<p class="hint">{escape(text)}</p>'


def answer(found: Answer, given: str | None = None) -> str:
    """Return labels or characters as bars, a table for each mask, or names in colours; no text that is `given`."""
    note = f'<p class="hint">{escape(found.note)}</p>' if found.note else ""
    if found.choices:
        headings = [f"▢ {i}" for i in range(1, len(found.choices) + 1)] if len(found.choices) > 1 else [""]
        tables = "".join(map(bars, found.choices, headings))
        text = "" if found.text == given else f'<p class="text">{escape(found.text)}</p>'
        return f'{text}{note}<div class="columns">{tables}</div>'
    parts, end = [], 0
    for name in found.names:
        colour = found.labels.index(name.label) % NAME_COLOURS
        parts.append(escape(found.text[end : name.start]))
        parts.append(f'<mark class="name c{colour}">{escape(name.text)}<small>{escape(name.label)}</small></mark>')
        end = name.end
    parts.append(escape(found.text[end:]))
    none = "" if found.names else hint("No name was found.")
    return f'<p class="text">{"".join(parts)}</p>{note}{none}'


def bars(shares: Shares, heading: str = "") -> str:
    """Return characters or labels with their probabilities as bars."""
    rows = "".join(
        f'<tr><th class="zh">{escape(label)}</th><td class="bar"><i style="width:{share:.2%}"></i></td>'
        f"<td>{share:.1%}</td></tr>"
        for label, share in shares
    )
    caption = f"<caption>{escape(heading)}</caption>" if heading else ""
    return f'<table class="bars">{caption}{rows}</table>'


def seen(found: Seen, models: Models) -> str:
    """Return a character's picture, its neighbours with theirs, and what is read in its place."""
    tiles = "".join(
        f"<figure>{_picture(models.atlas.pictures(models.atlas.rows[char]))}"
        f'<figcaption><span class="zh">{escape(char)}</span> U+{ord(char):04X}<br>{cosine:.3f}</figcaption></figure>'
        for char, cosine in found.neighbours
    )
    parts = [
        '<div class="seen"><figure class="large">',
        _picture(found.picture),
        "<figcaption>as the model sees it</figcaption></figure>",
        f'<div><h3>Nearest characters, with cosines</h3><div class="tiles">{tiles}</div></div></div>',
    ]
    if found.read:
        parts += ["<h3>What the model reads in the sentence</h3>", '<div class="columns">']
        parts += [bars(found.read, "where it is shown this picture"), bars(found.hidden, "where it is shown [MASK]")]
        parts += ["</div>"]
    return "".join(parts)


def heat_map(found: HeatMap) -> str:
    """Return the pictures of a text, their ink red where it speaks for the answer, blue where against it."""
    most = max((float(np.abs(token.heat).max()) for token in found.tokens), default=0.0)
    figures = "".join(
        f"<figure>{_coloured(token.picture, token.heat / most if most else token.heat)}"
        f'<figcaption><span class="zh">{escape(token.token)}</span> {token.heat.sum():+.2f}</figcaption></figure>'
        for token in found.tokens
    )
    return (
        f'<p class="text">{escape(found.answer)} <small>{found.share:.1%}</small></p><div class="heat">{figures}</div>'
        '<p class="hint"><b class="for">Red</b> ink speaks for this answer, <b class="against">blue</b> ink against '
        f"it; full colour is {most:.3f} nats of its log-probability a pixel. Below each character stands the sum.</p>"
    )


def attack(found: Attack, models: Models) -> str:
    """Return both texts and the answers to them, a row a model."""
    changed = [i for i, (old, new) in enumerate(zip(found.before, found.after, strict=True)) if old != new]
    pairs = "".join(
        f"<figure>{_picture(models.atlas.pictures(models.atlas.rows[found.before[i]]))}"
        f"{_picture(models.atlas.pictures(models.atlas.rows[found.after[i]]))}"
        f'<figcaption class="zh">{escape(found.before[i])} → {escape(found.after[i])}</figcaption></figure>'
        for i in changed
    )
    rows = "".join(
        f"<tr><th>{escape(which)}</th><td>{answer(before, found.before)}</td><td>{answer(after, found.after)}</td></tr>"
        for which, (before, after) in found.answers.items()
    )
    before, after = (_with_marks(text, changed) for text in (found.before, found.after))
    alone = "" if "BERT" in found.answers else hint("Start with --bert DIR to see a BERT's answer beside it.")
    return (
        f'<div class="pairs">{pairs}</div><table class="attack"><tr><th></th><th>as it was</th>'
        f'<th>with look-alikes</th></tr><tr><th>text</th><td class="text">{before}</td><td class="text">{after}</td>'
        f"</tr>{rows}</table>{alone}"
    )


def _with_marks(text: str, places: Sequence[int]) -> str:
    return "".join(f"<mark>{escape(char)}</mark>" if i in places else escape(char) for i, char in enumerate(text))


def _picture(picture: NDArray[np.uint8]) -> str:
    return _image(np.where(picture[..., None] != 0, INK, 255))


def _coloured(picture: NDArray[np.uint8], heat: NDArray[np.float32]) -> str:
    """Colour ink by a heat from -1 to 1."""
    strength = np.sqrt(np.abs(heat))[..., None]  # what is weak shall be seen, too
    towards = np.where((heat > 0)[..., None], FOR, AGAINST)
    ink = NEUTRAL + strength * (towards - NEUTRAL)
    return _image(np.where(picture[..., None] != 0, ink, 255))


def _image(colours: NDArray[np.generic]) -> str:
    content = io.BytesIO()
    Image.fromarray(colours.astype(np.uint8)).save(content, "PNG")
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}">'
