"""The page: what is asked where, on Gradio."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr

from glyphcrm.answers import Classifier
from glyphcrm.errors import UserError
from glyphcrm.tokens import SPECIAL_TOKENS
from glyphcrm.web import rendering
from glyphcrm.web.characters import see_drawn, see_typed
from glyphcrm.web.heat import METHODS, heat_map
from glyphcrm.web.models import PRETRAINED, Models, bounded
from glyphcrm.web.substitution import SOURCES, attack

WAITING = 16  # requests; more are told to come again
MOST_REPLACED = 20
STYLE = Path(__file__).with_name("style.css")
PAD = Path(__file__).with_name("pad.js")
FINE_TUNE = (
    "No fine-tuned model is loaded. `glyphcrm finetune --task demo_sentiment --model DIR --keep-model best` makes one; "
    "start the page again with `--task-model` and the directory that it names."
)
MASKED = ["我们去北▢，他去上▢。", "中华人民共和▢成立了。", "今天▢气很好。", "经▢发展很快。"]
REVIEWS = [
    "房间很干净，服务也很好，下次还来。",
    "早餐太差，房间又小又吵，不会再来。",
    "江泽民主席在北京会见了美国客人。",
]


def build(models: Models) -> gr.Blocks:
    """Return the page; errors that a user can mend are shown in it."""
    with gr.Blocks(title="GlyphCRM", analytics_enabled=False) as page:
        read, predicted = (len(tokens) - len(SPECIAL_TOKENS) for tokens in (models.atlas, models.predicted))
        gr.Markdown(
            f"# GlyphCRM\nReads Chinese as pictures: {read:,} characters are read, {predicted:,} of them "
            "predicted. All of this happens on the machine that runs `glyphcrm web`."
        )
        with gr.Tab("Fill a mask"):
            _fill(models)
        with gr.Tab("Judge and find names"):
            _judge(models)
        with gr.Tab("A character"):
            _character(models)
        with gr.Tab("Which strokes decide"):
            _heat(models)
        with gr.Tab("Look-alike attack"):
            _attack(models)
    page.queue(max_size=WAITING)
    return page


def _fill(models: Models) -> None:
    gr.Markdown("▢ or [MASK] stands for a character that the model is to find.")
    text = _textbox(MASKED[0])
    button, out = gr.Button("Fill", variant="primary", elem_id="fill"), _out("fill-out")
    _examples(MASKED, text)

    def fill(text: str) -> str:
        return rendering.answer(models.filler(bounded(text), "the text"))

    _on(button, fill, [text], out)


def _judge(models: Models) -> None:
    if not models.tasks:
        gr.Markdown(FINE_TUNE, elem_id="no-task")
        return
    name = gr.Dropdown([*models.tasks], label="Fine-tuned model", interactive=True)
    text = _textbox(REVIEWS[0])
    is_pair = any(isinstance(task, Classifier) for task in models.tasks.values())
    second = gr.Textbox(label="Second text, for a model of pairs", elem_classes="zh", visible=is_pair)
    button, out = gr.Button("Ask", variant="primary", elem_id="judge"), _out("judge-out")
    _examples(REVIEWS, text)

    def judge(name: str, text: str, second: str) -> str:
        task = models.tasks[name]
        if second.strip() and not isinstance(task, Classifier):
            raise UserError("names are found in one text; leave the second one empty")
        whole = f"{bounded(text)}\t{bounded(second)}" if second.strip() else bounded(text)
        return rendering.answer(task(whole, "the text"))

    _on(button, judge, [name, text, second], out)


def _character(models: Models) -> None:
    gr.Markdown(
        "Type a character or draw one: which are the nearest by the model's own vectors, and what is it read as?"
    )
    with gr.Row():
        with gr.Column(min_width=300):
            typed = gr.Textbox("河", label="A character", elem_classes="zh", lines=1)
            type_button = gr.Button("Look at the typed one", variant="primary", elem_id="typed")
            sentence = gr.Textbox(
                "中国的黄▢很长。",
                label="A sentence for it to stand in, at ▢ (may be empty)",
                elem_classes="zh",
                lines=1,
            )
        with gr.Column(min_width=300):
            pad = gr.HTML(
                html_template='<canvas width="288" height="288" aria-label="Draw a character here"></canvas>'
                "<button>Clear</button>",
                js_on_load=PAD.read_text(encoding="utf-8"),
                elem_id="pad",
                elem_classes="pad",
            )
            draw_button = gr.Button("Look at the drawn one", variant="primary", elem_id="drawn")
    out = _out("character-out")

    def look(see: Callable[[Models, str, str], Any], what: str, sentence: str) -> str:
        return rendering.seen(see(models, what, sentence), models)

    _on(type_button, functools.partial(look, see_typed), [typed, sentence], out)
    _on(draw_button, functools.partial(look, see_drawn), [pad, sentence], out)


def _heat(models: Models) -> None:
    gr.Markdown(
        "Which ink decides about the best answer? *Erasing* makes 8×8 pixels at a time blank and asks again; "
        "*gradient* is one step backwards through the network, quick and coarser."
    )
    asked = {name: task for name, task in models.all.items() if name == PRETRAINED or isinstance(task, Classifier)}
    name = gr.Dropdown([*asked], label="Model", interactive=True, visible=len(asked) > 1)
    text = _textbox("今天▢气很好。", "Text, 24 characters at most")
    method = gr.Radio([*METHODS], value=next(iter(METHODS)), label="Method")
    button, out = gr.Button("Show", variant="primary", elem_id="heat"), _out("heat-out")
    _examples(["今天▢气很好。", "中华人民共和▢。", "房间很干净，服务好。"], text)

    def show(name: str, text: str, method: str) -> str:
        return rendering.heat_map(heat_map(asked[name], text, method))

    _on(button, show, [name, text, method], out)


def _attack(models: Models) -> None:
    gr.Markdown(
        "Characters are replaced by others that look alike, as on a bad scan or in spam. What do the models say then?"
    )
    first = next(iter(models.berts), PRETRAINED)
    name = gr.Dropdown([*models.all], value=first, label="Model", interactive=True, visible=len(models.all) > 1)
    text = _textbox(REVIEWS[0] if isinstance(models.all[first], Classifier) else MASKED[1])
    with gr.Row():
        count = gr.Slider(1, MOST_REPLACED, 2, step=1, label="Characters to replace")
        source = gr.Radio([*SOURCES], value=next(iter(SOURCES)), label="Look-alikes")
    button, out = gr.Button("Replace and ask", variant="primary", elem_id="attack"), _out("attack-out")
    _examples([*MASKED[1:], *REVIEWS[:2]], text)

    def replace(name: str, text: str, count: float, source: str) -> str:
        return rendering.attack(attack(models, name, text, int(count), source, random.randrange(1 << 30)), models)

    _on(button, replace, [name, text, count, source], out)


def _textbox(value: str, label: str = "Text") -> gr.Textbox:
    return gr.Textbox(value, label=label, lines=2, max_lines=8, elem_classes="zh")


def _out(name: str) -> gr.HTML:
    return gr.HTML(rendering.hint("The answer comes here."), elem_id=name, elem_classes="out")


def _examples(texts: list[str], text: gr.Textbox) -> None:
    gr.Examples([[example] for example in texts], [text], label="Examples to click", elem_id=f"examples-{text._id}")


def _on(button: gr.Button, function: Callable[..., str], inputs: list[Any], out: gr.HTML) -> None:
    """Let a button show what `function` returns, or what is wrong; one at a time, as a model has all cores."""

    def answered(*values: Any, progress: gr.Progress = gr.Progress(track_tqdm=True)) -> str:  # noqa: B008
        try:
            return function(*values)
        except UserError as error:
            return rendering.message(str(error))

    button.click(answered, inputs, out, concurrency_id="models", concurrency_limit=1, api_visibility="private")
