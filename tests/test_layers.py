"""The structure holds: imports point down, no file imports itself by a detour, no name hides a module."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# From the ground up; rooms of one floor know nothing of each other.
FLOORS = (
    ("command_line", "errors", "version"),
    ("charsmap", "files", "normalization", "config_values", "loader_file", "tokens"),
    ("config_file", "configuration", "glyphs", "tokenization", "vocabulary"),
    ("data",),
    ("atlas_sources",),
    ("tasks",),
    ("modeling",),
    ("checkpoint",),
    ("conversion", "fill_mask_pipeline"),
    ("registration",),
    ("training",),
    ("pretraining", "finetuning"),
    ("answers",),
    ("reproduce", "web"),
    ("cli",),
)
# One floor, but not strangers: a vocabulary is of characters that fonts draw, a row has the id of a token.
NEIGHBOURS = ({"glyphs", "tokenization", "vocabulary"},)


def modules(package: Path) -> dict[str, Path]:
    """Return the files of a package by the names of their modules."""
    names = {}
    for path in package.rglob("*.py"):
        parts = path.relative_to(package.parent).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


def imports(path: Path, known: dict[str, Path]) -> Iterator[str]:
    """Yield the modules among `known` that a file imports, wherever in it; not those for type checkers alone."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for_types_alone = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in for_types_alone:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                if inner in known:
                    yield inner
                elif node.module in known:
                    yield node.module


KNOWN = modules(ROOT / "glyphcrm")
GRAPH = {name: set(imports(path, KNOWN)) - {name} for name, path in KNOWN.items()}
ROOMS = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def test_every_room_has_a_floor() -> None:
    assert {room(module) for module in KNOWN} - {""} - {"__main__"} == set(ROOMS)


@pytest.mark.parametrize("name", sorted(ROOMS))
def test_no_import_points_up(name: str) -> None:
    for module, imported in GRAPH.items():
        for other in imported if room(module) == name else ():
            assert other != "glyphcrm", f"{module} imports the whole package"
            same = room(other) == name or any({name, room(other)} <= rooms for rooms in NEIGHBOURS)
            assert same or ROOMS[room(other)] < ROOMS[name], f"{module} imports {other}, which stands above it"


@pytest.mark.parametrize("package", ["glyphcrm", "kernels/glyphcrm_kernels"])
def test_no_file_imports_itself_by_a_detour(package: str) -> None:
    known = modules(ROOT / package)
    graph = {name: set(imports(path, known)) - {name} for name, path in known.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


PACKAGES = ("glyphcrm", "kernels/glyphcrm_kernels", "bench")


@pytest.mark.parametrize("package", PACKAGES)
def test_no_module_shares_its_name_with_what_it_defines(package: str) -> None:
    definitions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    for module, path in modules(ROOT / package).items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {node.name for node in tree.body if isinstance(node, definitions)}
        assert module.rpartition(".")[2] not in names, f"{path} defines its own name"


@pytest.mark.parametrize("package", PACKAGES)
def test_no_package_binds_the_name_of_one_of_its_modules(package: str) -> None:
    """`package.name` would be the module or the other thing, by what was imported last."""
    names = set(modules(ROOT / package))
    for path in (ROOT / package).rglob("__init__.py"):
        module = ".".join(path.parent.relative_to((ROOT / package).parent).parts)
        for bound in bindings(ast.parse(path.read_text(encoding="utf-8"))):
            assert f"{module}.{bound}" not in names, f"{path} binds {bound}, the name of a module beside it"


def bindings(tree: ast.Module) -> Iterator[str]:
    """Yield the names that a module binds: imported, defined, or assigned."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from (alias.asname or alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
