"""Which room may import which: the picture that keeps data flowing one way."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from rooms import ROOMS, allowed

REPOSITORY = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "diffusers", "transformers", "accelerate", "PIL", "rich", "requests", "triton")  # numpy: sqlite-utils

BY_NAME = ("", "cli.groups")
"""Modules that load others when their names are used."""


def modules() -> Iterator[tuple[str, Path]]:
    """Every module as (dotted name below hnetkit, file)."""
    for folder, prefix in (("hnetkit", ""), ("kernels", "kernels."), ("registry", "registry.")):
        root = REPOSITORY / folder
        for path in sorted(root.rglob("*.py")):
            dotted = ".".join(path.relative_to(root).with_suffix("").parts)
            yield prefix + dotted.removesuffix("__init__").rstrip("."), path


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, also inside functions; type-checking blocks are left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            module = node.module or ""
            if module == "hnetkit":
                yield from (f"hnetkit.{alias.name}" for alias in node.names)
            else:
                yield module


def room_of(dotted: str) -> str:
    return dotted.split(".")[0]


@pytest.mark.parametrize("room", ROOMS)
def test_modules_import_only_what_their_room_may(room: str) -> None:
    packages = ROOMS[room].packages
    for dotted, path in modules():
        if room_of(dotted) != room:
            continue
        ours = {name.removeprefix("hnetkit.") for name in imports(path) if name.startswith("hnetkit.")}
        others = {name.split(".")[0] for name in imports(path) if not name.startswith("hnetkit")}
        assert {room_of(name) for name in ours} <= allowed(room), dotted
        if packages is not None:
            assert others - set(sys.stdlib_module_names) <= packages, dotted
        assert "triton" not in others or dotted.startswith("kernels.gpu"), dotted


def test_no_room_may_import_one_below_it() -> None:
    order = {room: position for position, room in enumerate(ROOMS)}
    assert [(room, other) for room in ROOMS for other in allowed(room) if order[other] > order[room]] == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    known = {f"hnetkit.{dotted}": path for dotted, path in modules() if dotted not in BY_NAME}
    above = {
        name: {found for found in imports_of_modules(path, known) if found != name} for name, path in known.items()
    }
    while free := [name for name, others in above.items() if not others]:
        for name in free:
            del above[name]
        for others in above.values():
            others.difference_update(free)
    assert above == {}, "modules in circles, and those that import them"


def imports_of_modules(path: Path, known: dict[str, Path]) -> Iterator[str]:
    """Every module of ours that a file imports, for whatever reason; of `from package import module` the module."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (
                name if name in known else str(node.module) for name in whole if {name, node.module} & set(known)
            )


def test_every_room_is_on_the_map() -> None:
    assert {room_of(dotted) for dotted, _ in modules()} - {"", "cli", "__main__"} == set(ROOMS)


def test_nobody_imports_the_command_line() -> None:
    for dotted, path in modules():
        if room_of(dotted) not in ("cli", "__main__"):
            assert not any(name.startswith("hnetkit.cli") for name in imports(path)), dotted


SQL = re.compile(
    r"\b(SELECT|WHERE|NOTNULL|NOT NULL|IS NULL|ORDER BY|INSERT INTO|DELETE FROM|PRAGMA)\b|= \?|\bIN \("
    r"|\b(files|networks|models|versions|remote_files|jobs|installs|links)\.\w+ (=|!=|<|>|IN|NOT|LIKE|GLOB)"
)


def test_the_registry_takes_no_sql() -> None:
    for dotted, path in modules():
        if room_of(dotted) == "registry":
            for where, function in public_functions(ast.parse(path.read_text(encoding="utf-8")), dotted):
                taken = {argument.arg for argument in ast.walk(function.args) if isinstance(argument, ast.arg)}
                assert not taken & {"sql", "where", "condition", "order", "parameters", "select", "statement"}, where


def test_no_sql_is_written_outside_of_the_registry() -> None:
    for dotted, path in modules():
        if room_of(dotted) != "registry":
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                text = node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
                assert not SQL.search(text), f"{dotted}: {text}"
                assert not (isinstance(node, ast.Attribute) and node.attr == "_db"), dotted


def test_the_name_of_a_class_means_one_class() -> None:
    named = Counter(
        node.name
        for _, path in modules()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
    )
    assert [name for name, count in named.items() if count > 1] == []


def test_a_list_is_written_as_one_list() -> None:
    """No ``*("a", "b"), *("c",)`` and no ``**{"a": 1}`` inside of another literal or a call."""
    spliced = {
        dotted
        for dotted, path in modules()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if any(is_written_out(part) for part in spliced_parts(node))
    }
    assert spliced == set()


def is_written_out(part: ast.expr) -> bool:
    """Whether a part is a literal whose items could stand in what takes it in; keys that are computed could not."""
    if isinstance(part, ast.Dict):
        return any(isinstance(key, ast.Constant) for key in part.keys)
    return isinstance(part, ast.Tuple | ast.List | ast.Set)


def spliced_parts(node: ast.AST) -> Iterator[ast.expr]:
    """What a literal or a call takes in with ``*`` or ``**``."""
    if isinstance(node, ast.Starred):
        yield node.value
    elif isinstance(node, ast.Dict):
        yield from (value for key, value in zip(node.keys, node.values, strict=True) if key is None)
    elif isinstance(node, ast.Call):
        yield from (keyword.value for keyword in node.keywords if keyword.arg is None)


def public_functions(tree: ast.AST, inside: str) -> Iterator[tuple[str, ast.FunctionDef]]:
    """Every function and method, with its dotted name, in which no part is private; `__init__` is not."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not re.match(r"_(?!_)", node.name):
            name = f"{inside}.{node.name}"
            if isinstance(node, ast.FunctionDef):
                yield name, node
            else:
                yield from public_functions(node, name)


def test_no_file_is_given_to_pickle_or_torch_load() -> None:
    for dotted, path in modules():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        calls = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
        assert not calls & {"torch.load", "pickle.load", "pickle.loads", "pickle.Unpickler"}, dotted
        assert not {"pickle", "_pickle", "dill", "joblib", "shelve", "marshal"} & set(imports(path)), dotted


@pytest.mark.parametrize(
    "code",
    [
        "from hnetkit.cli import run; run(['--help'])",
        "from hnetkit.cli import run; run(['list'])",
        "import hnetkit, hnetkit.registry, hnetkit.kernels",
        "import hnetkit; hnetkit.train.prepare, hnetkit.train.train, hnetkit.train.sweep",
        "import hnetkit, sys; library = hnetkit.Library(sys.argv[1]); library.networks(); library.close()",
        "from hnetkit.registry import Registry; import sys, os; Registry(os.path.join(sys.argv[1], 'r.db')).close()",
    ],
)
def test_what_must_be_quick_imports_nothing_heavy(code: str, tmp_path: Path) -> None:
    probe = f"{code}\nimport sys; print('loaded:', [name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-P", "-c", probe, str(tmp_path)], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "loaded: []"


def test_a_list_opens_no_file_and_loads_nothing_that_does() -> None:
    """The registry answers; the readers of files, and numpy with them, take as long as all the rest."""
    subprocess.run([sys.executable, "-P", "-m", "hnetkit", "list"], capture_output=True, check=True)  # makes it
    code = (
        "import sys; from hnetkit.cli import run; run(['list']); "
        "print([name for name in ('numpy', 'hnetkit.formats') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_command_begins_with_few_of_our_modules() -> None:
    code = "import sys; before = set(sys.modules); import hnetkit.cli; print(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    ours = {name for name in done.stdout.split() if name.startswith("hnetkit.") and not name.startswith("hnetkit.cli")}
    assert ours == {"hnetkit.base_models", "hnetkit.errors", "hnetkit.paths", "hnetkit.text"}
