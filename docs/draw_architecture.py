"""Draw docs/architecture.svg: a real glyph of the default font on its way through the model.

Run from the repository: `.venv/bin/python docs/draw_architecture.py`.
"""

from __future__ import annotations

from pathlib import Path

from glyphcrm.glyphs.fonts import default_font
from glyphcrm.glyphs.raster import IMAGE_SIZE, Rasterizer

CHARACTER = "語"
PIXEL = 2.5
INK, LINE, NOTE = "#1c1c1c", "#5b6b7b", "#6b7785"
CNN, SKIP, ENCODER = "#e7eef7", "#c8452d", "#f3efe4"
FONT = "font-family='Helvetica, Arial, sans-serif'"


def glyph(x: float, y: float) -> str:
    """Return the character's pixels as one SVG path, its ink in runs along the rows."""
    image = Rasterizer(default_font()).draw(CHARACTER)
    runs = []
    for row in range(IMAGE_SIZE):
        column = 0
        while column < IMAGE_SIZE:
            width = 0
            while column + width < IMAGE_SIZE and image[row, column + width]:
                width += 1
            if width:
                left, top = x + column * PIXEL, y + row * PIXEL
                runs.append(f"M{left:g} {top:g}h{width * PIXEL:g}v{PIXEL}h-{width * PIXEL:g}z")
            column += width + 1
    side = IMAGE_SIZE * PIXEL
    return (
        f"<rect x='{x}' y='{y}' width='{side}' height='{side}' fill='white' stroke='{LINE}'/>"
        f"<path d='{''.join(runs)}' fill='{INK}'/>"
    )


def box(x: float, y: float, width: float, height: float, fill: str, title: str, *notes: str) -> str:
    """Return a box with a title and lines of notes in its middle."""
    middle, line = x + width / 2, 15
    top = y + height / 2 - line * len(notes) / 2 + 4
    parts = [f"<rect x='{x}' y='{y}' width='{width}' height='{height}' rx='5' fill='{fill}' stroke='{LINE}'/>"]
    parts.append(text(middle, top, title, size=13, weight="bold"))
    parts += [text(middle, top + line * i, note, size=11, fill=NOTE) for i, note in enumerate(notes, 1)]
    return "".join(parts)


def text(x: float, y: float, content: str, size: int = 11, weight: str = "normal", fill: str = INK) -> str:
    """Return a line of text centred at x."""
    return (
        f"<text x='{x}' y='{y}' {FONT} font-size='{size}' font-weight='{weight}' "
        f"fill='{fill}' text-anchor='middle'>{content}</text>"
    )


def arrow(points: str, colour: str = LINE) -> str:
    """Return a polyline that ends in an arrow head."""
    head = "skip" if colour == SKIP else "flow"
    return f"<polyline points='{points}' fill='none' stroke='{colour}' stroke-width='1.6' marker-end='url(#{head})'/>"


def marker(name: str, colour: str) -> str:
    """Return the definition of an arrow head."""
    return (
        f"<marker id='{name}' viewBox='0 0 8 8' refX='7' refY='4' markerWidth='7' markerHeight='7' orient='auto'>"
        f"<path d='M0 0L8 4L0 8z' fill='{colour}'/></marker>"
    )


def draw() -> str:
    """Return the picture."""
    parts = [
        "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 900 330' width='900' height='330'>",
        f"<defs>{marker('flow', LINE)}{marker('skip', SKIP)}</defs><rect width='900' height='330' fill='white'/>",
        glyph(20, 60),
        text(80, 200, "48 × 48, ink or no ink,", fill=NOTE),
        text(80, 215, "and each pixel's x and y", fill=NOTE),
        box(185, 78, 92, 84, CNN, "stem", "conv 3×3"),
        box(307, 78, 118, 84, CNN, "block 1", "three conv 9×9", "C1 × 12 × 12"),
        box(455, 78, 118, 84, CNN, "block 2", "four conv 3×3", "C2 × 3 × 3"),
        f"<rect x='170' y='50' width='418' height='130' rx='8' fill='none' stroke='{LINE}' stroke-dasharray='4 4'/>",
        text(379, 40, "HanGlyph: once for each distinct character of a batch", size=12, weight="bold"),
        arrow("140,120 183,120"),
        arrow("277,120 305,120"),
        arrow("425,120 453,120"),
        box(640, 250, 240, 56, ENCODER, "glyph + position + segment", "LayerNorm"),
        box(640, 184, 240, 48, ENCODER, "block 0", "LN(h + FFN(h) + skip 1)"),
        box(640, 118, 240, 48, ENCODER, "block 1", "LN(h + FFN(h) + skip 2)"),
        box(640, 30, 240, 70, ENCODER, "blocks 2 … 11", "as in BERT", "masked characters, next sentence"),
        arrow("760,250 760,234"),
        arrow("760,184 760,168"),
        arrow("760,118 760,102"),
        arrow("495,162 495,278 638,278"),
        arrow("366,162 366,215 638,215", SKIP),
        arrow("540,162 540,198 606,198 606,142 638,142", SKIP),
        text(566, 270, "glyph vector", fill=INK),
        text(430, 208, "skip 1", fill=SKIP),
        text(572, 191, "skip 2", fill=SKIP),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    Path(__file__).with_name("architecture.svg").write_text(draw(), encoding="utf-8")
