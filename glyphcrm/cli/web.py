"""`glyphcrm web`: a page on this machine that shows what the models do."""

from __future__ import annotations

import argparse
import importlib.util
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from glyphcrm.command_line import Parser
from glyphcrm.config_file import read_config
from glyphcrm.errors import UserError

PORT = 7860


def parse(words: Sequence[str] | None, prog: str | None) -> Callable[[], int]:
    """Read the command line of `web`; return the work that it asks for."""
    parser = Parser(
        prog=prog,
        description="Serve a page on this machine: fill masks, label texts and find names, draw a character and see "
        "its look-alikes, see which strokes decide, and attack with look-alikes.",
    )
    add = parser.add_argument
    add("--model", type=Path, required=True, metavar="DIR", help="a pre-trained GlyphCRM, as checkpoints/glyphcrm-tiny")
    task_help = "models that `glyphcrm finetune --keep-model best` has kept"
    add("--task-model", type=Path, nargs="+", action="extend", default=[], metavar="DIR", help=task_help)
    bert_help = "BERTs to compare with: a pre-trained one, and those fine-tuned on the tasks of --task-model"
    add("--bert", type=Path, nargs="+", action="extend", default=[], metavar="DIR", help=bert_help)
    add("--port", type=int, default=PORT, metavar="N", help="default: %(default)s; 0: any that is free")
    host_help = "default: %(default)s, this machine alone; with another, whoever reaches it can use the page"
    add("--host", default="127.0.0.1", metavar="NAME", help=host_help)
    arguments = parser.parse_args(words)
    if not 0 <= arguments.port < 1 << 16:
        parser.error("--port must be 0 to 65535")
    if importlib.util.find_spec("gradio") is None:
        raise UserError('the page needs Gradio: pip install "glyphcrm[web]"')
    for directory in (arguments.model, *arguments.task_model):
        read_config(directory, ("GlyphCRM",))
    for directory in arguments.bert:
        read_config(directory, ("BERT",))
    return partial(_run, arguments)


def _run(arguments: argparse.Namespace) -> int:
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}  # before they are imported
    from glyphcrm.web.address import bind

    with bind(arguments.host, arguments.port) as listener:
        from glyphcrm.web.models import load_models

        models = load_models(arguments.model, arguments.task_model, arguments.bert)
        from glyphcrm.web.page import build  # Gradio takes seconds: what is wrong above is told before
        from glyphcrm.web.server import serve

        serve(build(models), listener, arguments.host)
    return 0
