"""What outsiders rely on, one line for each thing: names, options, exit codes, keys, columns, variables.

Run as a program it prints the lines of the hnetkit that is installed.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import inspect
import io
import json
import os
import re
import sqlite3
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click

import hnetkit
from hnetkit import errors, settings
from hnetkit.cli import cli, run
from hnetkit.registry import Registry
from support.fake_sites import Sites, World
from support.networks import a1111_network, save_pt
from support.pipelines import SD_CROSS_WIDTH, SELF_WIDTHS, tiny_sd
from support.training import make_pictures

_OPEN = frozenset({"metadata", "settings", "pictures", "optional_info", "optimizer_options"})
"""Keys whose own keys come from a file, a picture or a person."""

_KINDS = {"filename": "path", "file": "path", "directory": "path"}
"""What a parameter is, whichever of click's types reads it."""

_VARIABLE = re.compile(r"(?:HNETKIT|CIVITAI|HF)_[A-Z_]+")


def lines(folder: Path) -> set[str]:
    """Returns all lines; `folder` is empty, and HNETKIT_HOME is already another one."""
    return {
        *_names(),
        *_errors(),
        *_commands(cli, ()),
        *_variables(),
        *(f"setting {key}" for key in settings.KEYS),
        *_schema(folder / "empty.db"),
        *_written(folder),
    }


def _names() -> Iterator[str]:
    for name in hnetkit.__all__:
        value = getattr(hnetkit, name)
        if inspect.isclass(value):
            yield f"python hnetkit.{name}{_signature(value)}"
            yield from _members(f"hnetkit.{name}", value)
        elif callable(value):
            yield f"python hnetkit.{name}{_signature(value)}"
    for name in hnetkit.train.__all__:
        yield f"python hnetkit.train.{name}{_signature(getattr(hnetkit.train, name))}"
    yield f"python hnetkit.registry.Registry{_signature(Registry)}"
    yield from _members("hnetkit.registry.Registry", Registry)


def _members(where: str, kind: type) -> Iterator[str]:
    for name in sorted({name for base in kind.__mro__[:-1] for name in vars(base)} | set(_fields(kind))):
        if name.startswith("_") and name not in ("__call__", "__len__", "__iter__", "__getitem__"):
            continue
        value = inspect.getattr_static(kind, name, None)
        value = value.__func__ if isinstance(value, classmethod | staticmethod) else value
        yield f"python {where}.{name}{_signature(value) if inspect.isfunction(value) else ''}"


def _fields(kind: type) -> Iterable[str]:
    return getattr(kind, "__dataclass_fields__", ())


def _signature(value: Any) -> str:
    """Names, kinds and defaults of parameters: how a type is called is not what a caller relies on."""
    signature = inspect.signature(value)
    plain = [_without_annotation(parameter) for parameter in signature.parameters.values()]
    return re.sub(
        r" at 0x[0-9a-f]+", "", str(signature.replace(parameters=plain, return_annotation=inspect.Parameter.empty))
    )


def _without_annotation(parameter: inspect.Parameter) -> inspect.Parameter:
    return parameter.replace(annotation=inspect.Parameter.empty)


def _errors() -> Iterator[str]:
    for name, kind in vars(errors).items():
        if inspect.isclass(kind) and issubclass(kind, errors.HnetkitError):
            yield f"error {name} exit {kind.exit_code}"
            if code := getattr(kind, "code", None):
                yield f"error {name} code {code}"
            for base in kind.__mro__[1:]:
                if issubclass(base, errors.HnetkitError):
                    yield f"error {name} is {base.__name__}"


def _commands(group: click.Group, path: tuple[str, ...]) -> Iterator[str]:
    context = click.Context(group)
    for name in group.list_commands(context):
        found = group.get_command(context, name)
        assert found is not None
        here = (*path, name)
        yield f"command {' '.join(here)}"
        if isinstance(found, click.Group):
            yield from _commands(found, here)
        for parameter in found.params:
            yield from _parameter(" ".join(here), parameter)


def _parameter(command: str, parameter: click.Parameter) -> Iterator[str]:
    kind = parameter.type
    about = f"{_KINDS.get(kind.name, kind.name)} nargs={parameter.nargs}"
    if isinstance(parameter, click.Option):
        about = "flag" if parameter.is_flag else about
        about += " multiple" if parameter.multiple else ""
        about += f" {parameter.envvar}" if parameter.envvar else ""
    about += " required" if parameter.required else ""
    default = parameter.get_default(click.Context(click.Command("x")), call=False)
    default = None if "UNSET" in repr(default).upper() or default in (False, ()) else default
    if isinstance(parameter, click.Option):
        for spelling in (*parameter.opts, *parameter.secondary_opts):
            yield f"option {command} {spelling} {about} default={default!r}"
    else:
        yield f"argument {command} {about}"
    if isinstance(kind, click.Choice):
        spellings = [spelling for spelling in parameter.opts if not re.match("-[^-]", spelling)]
        choices = (*kind.choices, *getattr(kind, "means", ()))  # words that help shows, and others that mean them
        yield from (f"choice {command} {spelling} {choice}" for spelling in spellings for choice in choices)


def _variables() -> Iterator[str]:
    roots = {
        Path(importlib.import_module(name).__file__ or "").parent
        for name in ("hnetkit", "hnetkit.registry", "hnetkit.kernels")
    }
    for path in sorted(path for root in roots for path in root.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and _VARIABLE.fullmatch(node.value):
                yield f"variable {node.value}"


def _schema(path: Path) -> Iterator[str]:
    with Registry(path):
        pass
    with contextlib.closing(sqlite3.connect(path)) as connection:
        for table, kind in connection.execute(
            "SELECT name, type FROM sqlite_master WHERE name NOT LIKE 'sqlite_%'"
        ).fetchall():
            if kind == "index":
                columns = ",".join(str(row[2]) for row in connection.execute(f"PRAGMA index_info('{table}')"))
                yield f"schema index {table} {columns}"
            if kind != "table" or table.startswith("network_text_"):
                continue
            for _, column, type_, notnull, default, pk in connection.execute(f"PRAGMA table_info('{table}')"):
                yield f"schema {table}.{column} {type_}{' not null' * notnull}{' key' * bool(pk)} default={default}"


# --- what commands print and write, on a library of a few files


def _written(folder: Path) -> Iterator[str]:
    home = Path.cwd()
    os.chdir(folder)
    try:
        yield from sorted(_Session(folder).lines())
    finally:
        os.chdir(home)


class _Session:
    """A day with hnetkit, in which every command that prints rows does so."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.found = folder, set[str]()

    def lines(self) -> set[str]:
        self._files()
        self._sites()
        self._drawing()
        self._training()
        return self.found

    def do(self, command: str, *arguments: str, ok: int = 0) -> str:
        """Returns what a command prints."""
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = run([*command.split(), *arguments])
        assert code == ok, f"{command} {arguments}: {code}: {err.getvalue()}"
        return out.getvalue()

    def rows(self, command: str, *arguments: str, ok: int = 0) -> list[dict[str, Any]]:
        """Returns the rows that a command prints, and notes their keys."""
        found: list[dict[str, Any]] = json.loads(self.do(command, *arguments, "--json", ok=ok))
        assert found, f"{command} {arguments}: no rows"
        self._keys(f"json {command}", found)
        return found

    def _keys(self, where: str, value: Any) -> None:
        if isinstance(value, list):
            for item in value:
                self._keys(where, item)
        elif isinstance(value, Mapping):
            for key, item in value.items():
                self.found.add(f"{where} {key}")
                if key not in _OPEN:
                    self._keys(f"{where} {key}", item)

    def _files(self) -> None:
        files = self.folder / "files"
        files.mkdir()
        widths = (*SELF_WIDTHS, SD_CROSS_WIDTH)
        for seed, name in enumerate(("ink", "wash")):
            save_pt(a1111_network(widths, activation="relu", seed=seed, scale=0.3), files / f"{name}.pt")
        (files / "notes.pt").write_bytes(b"nothing")
        self.rows("inspect", str(files / "ink.pt"))
        self.rows("validate", str(files / "ink.pt"), str(files / "notes.pt"), ok=7)
        self.rows("convert", str(files / "ink.pt"), "--to", "safetensors", "--out-dir", "converted")
        self._header(Path("converted/ink.safetensors"))
        self.rows("scan", str(files))
        self.rows("list")
        self.rows("tag", "ink", "lines", "--alias", "slim", "--note", "best at 0.6")
        for command in ("show", "search"):
            self.rows(command, "ink")
        Path("ComfyUI/models").mkdir(parents=True)
        self.rows("link", "ComfyUI", "--layout", "comfyui")
        self.do("config", "device", "cpu")
        self.rows("config")
        self.rows("prompt", "a cat <hypernet:ink:0.5>")
        self.rows("doctor")
        save_pt(a1111_network((320,), activation="relu", scale=0.3), files / "wide.pt")
        self.rows(
            "bench",
            "files/wide.pt",
            "--size",
            "64",
            "--batch",
            "1",
            "--seconds",
            "0.1",
            "--path",
            "eager",
            "--device",
            "cpu",
        )
        self.do("export", "all.jsonl")
        for line in Path("all.jsonl").read_text().splitlines():
            self._keys("export", json.loads(line))
        self.rows("import", "all.jsonl")
        self.rows("remove", "wash", "-y")
        self.rows("remove", "--undo")
        self.rows("forget", "wash", "-y")

    def _header(self, path: Path) -> None:
        data = path.read_bytes()
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        for key in header.pop("__metadata__"):
            self.found.add(f"safetensors metadata {key}")
        for name in header:
            self.found.add("safetensors tensor " + re.sub(r"\d+", "N", name))

    def _sites(self) -> None:
        with Sites(World.make(12, plain=True)) as sites:
            os.environ["HNETKIT_CIVITAI_URL"] = sites.civitai_url
            try:
                self.rows("browse")
                self.rows("sync", "--dry-run")
                self.rows("sync", "-y", "--nsfw", "--all-versions")
                self.rows("pull", f"model:{sites.world.ids()[0]}")
                known = self.rows("identify")
                Path(str(known[0]["path"])).unlink()
                self.rows("repair", "--dry-run")
                self.rows("repair")
                self.rows("show", Path(str(known[1]["path"])).stem)
                sites.world.add_version(sites.world.ids()[0])
                self.rows("updates")
            finally:
                del os.environ["HNETKIT_CIVITAI_URL"]

    def _drawing(self) -> None:
        tiny_sd().save_pretrained(self.folder / "tiny")
        (self.folder / "tiny" / "hnetkit.json").write_text(
            json.dumps({"steps": 2, "cfg_scale": 4.0, "sampler": "DDIM"})
        )
        plain = ("--model", "tiny", "--device", "cpu", "--width", "16", "--height", "16")
        self.rows("generate", "a cat", *plain, "--seed", "1", "-n", "ink:0.5", "--out", "one.png")
        self.rows("inspect", "one.png")
        self.rows(
            "grid", "--prompt", "a cat", *plain, "--seed", "1", "--x", "strength=0,1", "-n", "ink", "--out", "grid.png"
        )
        for line in Path("grid.jsonl").read_text().splitlines():
            self._keys("grid.jsonl", json.loads(line))

    def _training(self) -> None:
        tiny_sd(least=True).save_pretrained(self.folder / "least")
        make_pictures(self.folder / "raw", 3, sizes=((24, 24),))
        self.rows("train prepare", "raw", "--out", "pictures", "--size", "16")
        self.rows("train review", "pictures")
        few = ("--max-steps", "2", "--save-every", "1", "--preview-every", "0", "--no-guards", "--device", "cpu")
        self.rows("train run", "pictures", "--model", "least", "--name", "thin", "--rate", "1e-2", *few)
        self.rows("show", "thin")
        self.rows("train sweep", "pictures", "--model", "least", "--name", "many", *few, "--vary", "rate=1e-2|1e-3")
        self.rows("train schedule", "1e-2:2, 1e-3:4")
        self._keys("recipe.json", json.loads(Path("training/thin/recipe.json").read_text()))


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HNETKIT_HOME"] = str(Path(folder) / "home")
        (Path(folder) / "work").mkdir()
        found = lines(Path(folder) / "work")
    sys.stdout.write("".join(f"{line}\n" for line in sorted(found)))


if __name__ == "__main__":
    main()
