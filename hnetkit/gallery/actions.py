"""Changes of one network that its page asks for. Each calls the verb of a command, and says that command."""

from __future__ import annotations

import base64
import binascii
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from hnetkit.errors import WHERE_GONE, BadPicture, ChangedMeanwhile, HnetkitError, NotFound, UsageError
from hnetkit.files import is_absent
from hnetkit.formats.conversion import convert as convert_file
from hnetkit.gallery.cards import View, which
from hnetkit.gallery.network_page import name_for_commands
from hnetkit.gallery.pages import Gallery, sent_texts
from hnetkit.inspection import validate_file
from hnetkit.library.records import gone
from hnetkit.library.scan import add_file
from hnetkit.text import argument, counted, listed, shorten

Row = dict[str, Any]
Answer = dict[str, Any]
"""What was done, as ``said``, and the ``command`` that does the same."""

_SET = ("note", "strength", "words")  # actions that set the text of their name
_LINKED = {"there": "already there:"}
_SHOWN = 3  # commands of a change of many networks
_WAIT_S = 3  # for a file manager to come up, or to fail


class Actions:
    """The changes of a gallery's networks."""

    def __init__(self, gallery: Gallery) -> None:
        self._gallery = gallery
        self._actions: Mapping[str, tuple[Callable[..., Answer], tuple[str, ...]]] = {
            "tags": (self._tags, ("add", "remove")),
            "aliases": (self._aliases, ("add", "remove")),
            "note": (self._note, ("note", "before")),
            "strength": (self._strength, ("strength",)),
            "words": (self._words, ("words", "before")),
            "preview": (self._preview, ("file_name", "data", "remove")),
            "validate": (self._validate, ("file",)),
            "convert": (self._convert, ("file", "to")),
            "reveal": (self._reveal, ("file",)),
            "link": (self._link, ("directory", "layout")),
        }

    def do(self, content_hash: str, action: str, given: Any) -> Answer:
        """Changes a network, or does something with its files.

        Args:
            content_hash: of the network.
            action: what to do.
            given: the values that the page sends: texts by their names.

        Raises:
            NotFound: there is no such network, action or file.
            UsageError: the values are not those of the action.
            HnetkitError: as the verb raises it.
        """
        if action not in self._actions:
            raise NotFound(f"{shorten(action)}: no change of a network", hint="reload the page")
        if self._gallery.cards.card(content_hash) is None:
            raise gone(self._gallery.library.registry, content_hash)
        act, names = self._actions[action]
        texts = sent_texts(given, names)
        if action in _SET and action not in texts:  # an empty text takes away what is there
            raise UsageError(f"no {action} was sent", hint="reload the page")
        row = self._gallery.library.record(content_hash)
        return act(row, name_for_commands(self._gallery, row), **texts)

    def tag_all(self, given: Any) -> Answer:
        """Adds tags to all networks that a view shows, or removes them.

        Args:
            given: the address of the ``view``, ``which`` networks it showed, the ``tags`` with commas between them, and
                what to ``do``: ``"add"`` or ``"remove"``.

        Raises:
            UsageError: the values are others, or name no tag.
            ChangedMeanwhile: the view shows other networks by now.
        """
        texts = sent_texts(given, ("view", "which", "tags", "do"))
        tags, is_removal = listed([texts.get("tags", "")]), texts.get("do") == "remove"
        if not tags:
            raise UsageError("no tag was named", hint="type one")
        contents = self._gallery.cards.contents(View.of(dict(parse_qsl(texts.get("view", "").removeprefix("?")))))
        if which(contents) != texts.get("which"):
            message = f"these filters show other networks by now, {len(contents):,} in all"
            raise ChangedMeanwhile(message, now=str(len(contents)), hint="reload the page")
        library = self._gallery.library
        words = " ".join(_option("--remove", tag) if is_removal else argument(tag) for tag in tags)
        changed = library.tag_all(contents, remove=tags) if is_removal else library.tag_all(contents, *tags)
        names = [argument(name_for_commands(self._gallery, library.record(content))) for content in changed[:_SHOWN]]
        commands = [f"hnetkit tag {name} {words}" for name in names]
        more = ["..."] if len(changed) > len(names) else []
        said = f"{'Untagged' if is_removal else 'Tagged'} {counted(len(changed), 'network')}"
        return {"said": f"{said}: {shorten(', '.join(tags))}", "command": "; ".join([*commands, *more])}

    # --- what a person says of it: `hnetkit tag`

    def _tag(self, name: str, options: str, said: str, *tags: str, **values: Any) -> Answer:
        self._gallery.library.tag(name, *tags, **values)
        return {"said": said, "command": f"hnetkit tag {argument(name)} {options}"}

    def _tags(self, row: Row, name: str, *, add: str = "", remove: str = "") -> Answer:
        if remove:
            options, said = _option("--remove", remove), f"Removed the tag {shorten(remove)}"
            return self._tag(name, options, said, remove=[remove])
        tags = listed([add])
        if not tags:
            raise UsageError("no tag to add", hint="type one")
        return self._tag(name, " ".join(map(argument, tags)), f"Tagged: {shorten(', '.join(tags))}", *tags)

    def _aliases(self, row: Row, name: str, *, add: str = "", remove: str = "") -> Answer:
        if remove:
            options, said = _option("--remove-alias", remove), f"Removed the alias {shorten(remove)}"
            return self._tag(name, options, said, remove_aliases=[remove])
        return self._tag(name, _option("--alias", add), f"Added the alias {shorten(add)}", alias=add)

    def _note(self, row: Row, name: str, *, note: str = "", before: str = "") -> Answer:
        said = "Saved the note" if note.strip() else "Removed the note"
        note = note.replace("\r\n", "\n") if note.strip() else ""
        return self._tag(name, _option("--note", note), said, note=note, expected={"note": before})

    def _strength(self, row: Row, name: str, *, strength: str = "") -> Answer:
        said = f"Suggested strength: {shorten(strength)}" if strength else "No strength is suggested"
        return self._tag(name, _option("--strength", strength), said, strength=strength)

    def _words(self, row: Row, name: str, *, words: str = "", before: str = "") -> Answer:
        words = words.replace("\r\n", "\n").strip()
        said = "Saved the trigger words" if words else "Removed the trigger words"
        options = _option("--trigger-words", words)
        return self._tag(name, options, said, trigger_words=words, expected={"trigger_words": before})

    def _preview(self, row: Row, name: str, *, data: str = "", remove: str = "", file_name: str = "") -> Answer:
        if remove:
            return self._tag(name, '--preview ""', "Removed the preview", preview="")
        if not data:
            raise UsageError("no picture was chosen", hint="choose a file")
        try:
            picture = base64.b64decode(data, validate=True)
        except (binascii.Error, ValueError) as error:
            raise UsageError("the picture was not sent whole", hint="reload the page") from error
        own_name = file_name or "IMAGE"
        with tempfile.TemporaryDirectory(prefix="hnetkit-") as folder:
            path = Path(folder) / "picture"  # whatever its name is, no path is made of it
            path.write_bytes(picture)
            try:
                return self._tag(name, _option("--preview", own_name), "Saved the preview", preview=path)
            except BadPicture as error:
                message = str(error).replace(str(path), shorten(own_name))
                raise BadPicture(message, hint=error.command_hint) from error

    # --- what is done with its files

    def _validate(self, row: Row, name: str, *, file: str = "") -> Answer:
        path = _file_of(row, file)
        found, failure = validate_file(path)
        if failure is not None:
            raise failure
        warnings = "; ".join(found["warnings"])
        said = f"Every value was read: {'with warnings: ' + warnings if warnings else 'sound'}"
        return {"said": said, "command": f"hnetkit validate {argument(path, is_path=True)}"}

    def _convert(self, row: Row, name: str, *, file: str = "", to: str = "") -> Answer:
        source = _file_of(row, file)
        if to not in ("safetensors", "pt"):
            raise UsageError(f"{shorten(to)}: no format to convert to", hint="use one of safetensors, pt")
        target = source.with_suffix(f".{to}")
        made = convert_file(source, target)
        registry = self._gallery.library.registry
        around = [root.path for root in registry.files.roots() if target.is_relative_to(root.path)]
        add_file(registry, max(around, key=lambda path: len(path.parts), default=target.parent), target)
        left = f", without {', '.join(made.not_carried)}" if made.not_carried else ""
        places = " ".join(argument(path, is_path=True) for path in (source, target))
        return {"said": f"Wrote {target.name}{left}", "command": f"hnetkit convert {places}"}

    def _reveal(self, row: Row, name: str, *, file: str = "") -> Answer:
        path = _file_of(row, file)
        if is_absent(path):
            raise NotFound(f"{path}: not there any more", hint=WHERE_GONE)
        words = _file_manager(path)
        if shutil.which(words[0]) is None:
            raise NotFound(f"no file manager: {words[0]} is not installed", hint=f"open {path.parent} yourself")
        nothing = subprocess.DEVNULL
        shown = subprocess.Popen(words, stdin=nothing, stdout=nothing, stderr=nothing, start_new_session=True)
        try:
            failed = shown.wait(_WAIT_S) and words[0] != "explorer"  # which always says that it failed
        except subprocess.TimeoutExpired:  # it is up, and stays
            failed = False
        if failed:
            raise HnetkitError(f"{words[0]} opened nothing", hint=f"open {path.parent} yourself")
        return {"said": f"Opened {path.parent}", "command": " ".join(argument(word) for word in words)}

    def _link(self, row: Row, name: str, *, directory: str = "", layout: str = "") -> Answer:
        if not directory.strip():
            raise UsageError("no folder to link into", hint="type the folder of a program")
        folder = Path(os.path.expanduser(directory.strip()))
        if not folder.is_absolute():
            raise UsageError(f"{shorten(directory)}: not the whole path of a folder", hint="begin at / or ~")
        try:
            changes = self._gallery.library.link(folder, layout=layout or None, names=[name])
        except UsageError as error:
            if layout or "--layout" not in (error.command_hint or ""):
                raise
            raise UsageError(str(error), hint="choose the program beside it") from error
        refused = [change for change in changes if change.what in ("skipped", "kept")]
        done = [change for change in changes if change not in refused]
        if refused and not done:
            raise HnetkitError(f"{refused[0].path}: {refused[0].reason}", hint="hnetkit link says more")
        program = f" --layout {layout}" if layout else ""
        command = f"hnetkit link {argument(folder, is_path=True)}{program} {argument(name)}"
        words = ", ".join(
            dict.fromkeys(f"{_LINKED.get(change.what, change.what)} {change.path}" for change in done[:2])
        )
        return {"said": f"In {folder}: {words or 'nothing to do'}", "command": command}


def _option(flag: str, text: str) -> str:
    """Returns an option with its value as one types them, also where the value begins like an option."""
    quoted = argument(text)
    return f"{flag}={quoted.removeprefix('-- ')}" if text.startswith("-") else f"{flag} {quoted}"


def _file_of(row: Row, path: str) -> Path:
    """Returns one of the files that hold a network.

    Raises:
        NotFound: it is none of them.
    """
    if path not in {file["path"] for file in row["files"]}:
        raise NotFound("no file of this network", hint="reload the page")
    return Path(path)


def _file_manager(path: Path) -> list[str]:
    """Returns the program that shows a file in its folder, and its arguments; no shell reads them."""
    if sys.platform == "darwin":
        return ["open", "-R", str(path)]
    if os.name == "nt":
        return ["explorer", f"/select,{path}"]
    return ["xdg-open", str(path.parent)]
