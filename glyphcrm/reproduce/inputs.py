"""The files that a reproduction is given. They are looked at before torch is imported."""

from __future__ import annotations

from collections.abc import Mapping

from glyphcrm.config_values import POSITIONS, PRESETS
from glyphcrm.data.text_files import expand
from glyphcrm.errors import UserError, shown
from glyphcrm.glyphs.fonts import open_font
from glyphcrm.reproduce.options import ReproduceOptions
from glyphcrm.reproduce.substitutions import read_look_alikes, to_traditional
from glyphcrm.tasks import TASKS, Task, find_task
from glyphcrm.training.options import check_length

DEMO_TASKS = ("demo_sentiment", "demo_ner")


def check_inputs(options: ReproduceOptions) -> None:
    """Read what is needed late, so that a wrong file, or a missing package, is found before anything is written."""
    check_length(options.max_length, PRESETS[options.preset].get("max_position_embeddings", POSITIONS))
    tasks_there(options)
    if options.text:
        expand(options.text)
    if options.look_alikes:
        read_look_alikes(options.look_alikes)
    if "robustness" not in options.without:
        to_traditional("")
    for font in filter(None, (options.other_font, *options.train_font)):
        open_font(font)
    if options.bert_vocabulary:
        from glyphcrm.reproduce.unknown_characters import unknown_to_bert  # imports tokenizers, which take a second

        unknown_to_bert(options.bert_vocabulary)


def tasks_there(options: ReproduceOptions) -> list[Task]:
    """Return the tasks to fine-tune on: those named, or all whose files are there.

    Raises:
        UserError: a task that was named is unknown, or none is there; two cannot be told apart, or one of a user's own
            has the name of a published one, beside whose numbers it would stand.
    """
    if options.tasks:
        return _told_apart({given: find_task(given) for given in options.tasks})
    if options.data is None:
        return list(map(find_task, DEMO_TASKS))
    with_files = [task for name, task in TASKS.items() if name not in DEMO_TASKS]
    there = [task for task in with_files if (options.data / task.folder).is_dir()]
    if not there:
        folders = ", ".join(task.folder for task in with_files)
        raise UserError(f"{options.data}: no folder of a task there; give --data a folder with any of {folders}")
    return there


def _told_apart(named: Mapping[str, Task]) -> list[Task]:
    """Return the tasks: directories go by their names, rows of the report by their titles."""
    of_name: dict[str, str] = {}
    of_title: dict[str, str] = {}
    for given, task in named.items():
        if given != task.name and task.name in TASKS:
            raise UserError(f"{given}: '{task.name}' is a task of the paper or the demo; rename your file")
        if (other := of_name.setdefault(task.name, given)) != given:
            raise UserError(f"{other} and {given} are both named '{task.name}'; rename one of the files")
        if (other := of_title.setdefault(task.title, given)) != given:
            raise UserError(f"{other} and {given} both have the title {shown(task.title)}; give one another `title`")
    return list(named.values())
