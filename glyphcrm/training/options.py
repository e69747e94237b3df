"""What the options of any training have in common: reading them from a command line, and checking them."""

from __future__ import annotations

import math
import sys
from argparse import SUPPRESS, Action, HelpFormatter
from collections.abc import Mapping, Sequence
from dataclasses import field, fields, replace
from pathlib import Path
from typing import Any, Self, TypeVar

from glyphcrm.command_line import refuse_unknown_options
from glyphcrm.errors import UserError
from glyphcrm.training.recipe_file import SUFFIXES, read_recipe

AnyRecipe = TypeVar("AnyRecipe", bound=Any)  # a frozen dataclass
ATTENTIONS = ("sdpa", "eager", "flash_attention_2")
BF16 = ("auto", "on", "off")
LARGEST = 10**11  # of whole numbers that have no smaller bound
SEEDS = 2**32  # as many as NumPy's generators have
REPORT_TO = "where losses and scores are reported: tensorboard wandb mlflow trackio comet_ml ..., several, or none"


class WithoutEffect(UserError):
    """An option, the message's first word, that changes nothing of what is trained; a recipe may hold it."""


class _Help(HelpFormatter):
    """Tells the defaults that there are, as one would type them, and the choices of a list in words."""

    def _get_help_string(self, action: Action) -> str | None:
        if (name := next(iter(action.option_strings), "")).startswith("--no-"):
            return f"the opposite of --{name.removeprefix('--no-')}"
        text, default = action.help or "", action.default
        if action.nargs == "+" and action.choices:
            text += f": {', '.join(action.choices)}"
        if default is True:
            return f"{text} (the default)"
        if default is None or default is False or default in ([], SUPPRESS):
            return text
        values = default if isinstance(default, list) else [default]
        return f"{text} (default: {' '.join(f'{v:g}' if isinstance(v, float) else str(v) for v in values)})"

    def _format_args(self, action: Action, default_metavar: str) -> str:
        if isinstance(action.default, bool) and action.nargs == "?":
            return ""  # a word of yes or no may follow; nobody needs it
        if action.nargs == "+" and action.choices:
            return f"{default_metavar} [{default_metavar} ...]"
        return super()._format_args(action, default_metavar)


def option(default: Any, help: str, choices: Sequence[str] = ()) -> Any:
    """Return a dataclass field that is an option of a command line; with `MISSING` as `default` it must be given."""
    metadata = {"help": help, **({"choices": list(choices)} if choices else {})}
    if isinstance(default, list):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


class CommandLineOptions:
    """Base of the dataclasses whose fields are options; the docstring of a subclass describes its command."""

    output_dir: str | Path | None

    @property
    def run_dir(self) -> Path:
        """Where the run lives."""
        return Path(str(self.output_dir))

    @classmethod
    def parse(cls, words: Sequence[str] | None = None, prog: str | None = None) -> Self:
        """Read a command line (default: this process's) of the program `prog`.

        Its first word may be a recipe, a YAML file of options; those on the command line win. What is without effect
        for the model that is asked for is left out of a recipe, and refused on the command line.

        Raises:
            UserError: a value is out of its range, or the recipe is none.
            SystemExit: there is nothing to run: ``--help``, or words that are no options.
        """
        from transformers import HfArgumentParser

        words = sys.argv[1:] if words is None else list(words)
        parser = HfArgumentParser(
            cls,  # type: ignore[arg-type]
            prog=prog,
            usage="%(prog)s [RECIPE.yaml] [--OPTION VALUE ...]",
            description=cls.__doc__,
            formatter_class=_Help,
        )
        parser.add_argument(
            "recipe", nargs="?", metavar="RECIPE.yaml", help="a file of options, NAME: VALUE; comes first"
        )
        for action in parser._actions:  # each has two names, --x_y and --x-y; usage, help and errors shall tell one
            action.option_strings = [name for name in action.option_strings if "_" not in name]
        recipe = read_recipe(Path(words[0]), parser) if words and words[0].endswith(SUFFIXES) else None
        if recipe is not None:
            parser.set_defaults(**recipe.values)
            for action in parser._actions:
                action.required &= action.dest not in recipe.values
        given = words[recipe is not None :]
        refuse_unknown_options(parser, given)
        while True:
            try:
                options, rest, unknown = parser.parse_args_into_dataclasses(
                    given, return_remaining_strings=True, look_for_args_file=False
                )
                break
            except UserError as error:
                flag = str(error).split()[0]
                name = flag.removeprefix("--").replace("-", "_")
                if recipe is None or name not in recipe.values or any(word.startswith(flag) for word in words):
                    raise
                if not isinstance(error, WithoutEffect):
                    raise UserError(f"{recipe.place_of(name)}: {error}") from None
                del recipe.values[name]
                parser.set_defaults(**{name: None})
        if words := [*([] if rest.recipe is None else [rest.recipe]), *unknown]:
            parser.error(f"unknown: {' '.join(words)}; a recipe comes first, and ends in {' or '.join(SUFFIXES)}")
        return options

    def over(self, defaults: AnyRecipe) -> AnyRecipe:
        """Return `defaults` with the options that were given in place of its fields of the same names."""
        given = {f.name: getattr(self, f.name) for f in fields(defaults)}
        return replace(defaults, **{name: value for name, value in given.items() if value is not None})


def check_ranges(values: Mapping[str, Any], ranges: Mapping[tuple[float, float], Sequence[str]]) -> None:
    """Raise `UserError` for one of `values` that is out of its range; `ranges` is (lowest, highest) -> names.

    None is no value.
    """
    for (low, high), names in ranges.items():
        for name in names:
            value = values[name]
            most = min(high, LARGEST) if isinstance(value, int) else high
            if value is not None and (not low <= value <= most or value == math.inf):
                is_open = high == math.inf and not most < value < math.inf
                allowed = f"{low:.12g} or more" if is_open else f"{low:.12g} to {most:.12g}"
                raise UserError(f"--{name.replace('_', '-')} is {value}; give {allowed}")


def accumulation(batch_size: int, micro_batch_size: int, processes: int) -> int:
    """Return how many micro-batches each process adds up for a step; raise `UserError` if it does not divide evenly."""
    if batch_size % (micro_batch_size * processes):
        raise UserError(
            f"a batch of {batch_size} sequences cannot be made of {processes} processes x micro-batches of "
            f"{micro_batch_size}; choose --batch-size as a multiple of both, or another --micro-batch-size"
        )
    return batch_size // (micro_batch_size * processes)


def check_length(max_length: int | None, positions: int) -> None:
    """Raise `UserError` for sequences that a model has no positions for."""
    if max_length is not None and max_length > positions:
        raise UserError(f"--max-length is {max_length}; the model has {positions} positions")
