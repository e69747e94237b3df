"""Recipes: YAML files whose keys are the options of a command."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from glyphcrm.errors import UserError, listed, shown
from glyphcrm.files import write_atomically

SUFFIXES = (".yaml", ".yml")
RECIPE_BYTES = 1 << 16
KINDS = {int: "a whole number", float: "a number"}  # else true or false
NOTHING = ("", "~", "null")
TEXT, LIST, MAPPING = (f"tag:yaml.org,2002:{kind}" for kind in ("str", "seq", "map"))


@dataclass(frozen=True)
class RecipeFile:
    """What a recipe says: the values of options, and the lines that they stand in."""

    path: Path
    values: dict[str, Any]
    lines: dict[str, int]

    def place_of(self, name: str) -> str:
        """Return where an option stands, as FILE:LINE."""
        return f"{self.path}:{self.lines[name]}"


def read_recipe(path: Path, parser: ArgumentParser) -> RecipeFile:
    """Read a recipe for the command that `parser` reads the options of.

    Values are read as on a command line, so that ``1e-4`` is a number, and ``off`` the word. Tags and aliases make
    nothing: a file that anybody wrote may be read.

    Raises:
        UserError: it is no YAML, an option is unknown or there twice, or a value is none of its kind.
        OSError: the file cannot be read.
    """
    with open(path, "rb") as file:
        content = file.read(RECIPE_BYTES + 1)
    if len(content) > RECIPE_BYTES:
        raise UserError(f"{path}: more than {RECIPE_BYTES} bytes; is it a recipe?")
    try:
        root = yaml.compose(content, yaml.BaseLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}:{mark.line + 1}" if mark is not None else str(path)
        raise UserError(f"{place}: no YAML ({getattr(error, 'problem', None) or error})") from None
    except RecursionError:
        raise UserError(f"{path}: nested too deep; give a line for each option, NAME: VALUE") from None
    if not isinstance(root, yaml.MappingNode):
        raise UserError(f"{path}: no recipe; give a line for each option, NAME: VALUE")
    actions = {action.dest: action for action in reversed(parser._actions)}  # of --x and --no-x, the former
    del actions["help"], actions["recipe"]
    recipe = RecipeFile(path, {}, {})
    for key, value in root.value:
        name = _text(key, f"{path}:{key.start_mark.line + 1}: the name of an option").replace("-", "_")
        place = f"{path}:{key.start_mark.line + 1}: {name}"
        if name not in actions:
            raise UserError(f"{path}:{key.start_mark.line + 1}: there is no option {shown(name)}; --help lists them")
        if name in recipe.lines:
            raise UserError(f"{place} is in line {recipe.lines[name]}, too; leave one out")
        recipe.lines[name] = key.start_mark.line + 1
        if isinstance(value, yaml.ScalarNode) and value.style is None and value.value in NOTHING:
            continue  # as if it were not there
        action = actions[name]
        if action.nargs == "+" and value.tag == LIST:
            recipe.values[name] = [_value(action, node, place) for node in value.value]
        else:
            one = _value(action, value, place)
            recipe.values[name] = [one] if action.nargs == "+" else one
    return recipe


def write_recipe(path: Path, values: Mapping[str, Any]) -> None:
    """Write the options that have a value, whole or not at all."""
    given = {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}
    given = {name: value for name, value in given.items() if value is not None and value != []}
    words = [word for value in given.values() for word in (value if isinstance(value, list) else [str(value)])]
    readable = "".join(words).isprintable()  # PyYAML reads back another text than U+0085 unless it is escaped
    write_atomically(path, yaml.safe_dump(given, allow_unicode=readable, sort_keys=False).encode())


def _text(node: yaml.Node, place: str) -> str:
    if node.tag not in (TEXT, LIST, MAPPING):
        raise UserError(f"{place} has a tag, {shown(node.tag)}; leave it out")
    if node.tag != TEXT:
        raise UserError(f"{place}: a {'list' if node.tag == LIST else 'mapping'} where one value is wanted")
    return str(node.value)


def _value(action: Any, node: yaml.Node, place: str) -> Any:
    text = _text(node, place)
    try:
        value = text if action.type is None else action.type(text)
    except Exception:  # argparse's own kind among them
        raise UserError(f"{place} is {shown(text)}; give {KINDS.get(action.type, 'true or false')}") from None
    if action.choices is not None and value not in action.choices:
        raise UserError(f"{place} is {shown(text)}; give one of {listed(action.choices)}")
    return value
