"""A folder that `share` made: its record, its files, and its upload to a repository of the hub.

The record, a hidden file, tells such a folder from others, and the files that belong to it from those that a person put
there: only the former are replaced, removed and uploaded. A record may be a stranger's, so a file belongs to it only
with the content that it states.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hnetkit import hub
from hnetkit.errors import BadPicture, FileRefused, HnetkitError, NotFound, OutputExists
from hnetkit.files import (
    TEMPORARY,
    is_file_at,
    is_folder_at,
    is_there,
    new_file,
    new_folder,
    read_regular,
    refuse_links,
    sync_folder,
    temporary_folder,
)
from hnetkit.formats import load
from hnetkit.formats.open_file import sha256_at
from hnetkit.images import image_size
from hnetkit.limits import MAX_JSON, read_json
from hnetkit.sharing.card import SOMEWHERE
from hnetkit.text import counted, shorten, size_text

CARD, RECORD = "README.md", ".hnetkit-share.json"
_MOST_CARD = 4 << 20  # bytes; the one that we write has a few kilobytes
PICTURES = "images"
"""The folder of pictures in a share."""

_FORMAT = "hnetkit.share/1"
_NAMED = 5  # files in a question
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NETWORK, _PICTURE = re.compile(r"[^/]+\.(?:safetensors|pt)"), re.compile(rf"{PICTURES}/\d+\.(?:jpg|png)")


@dataclass(frozen=True, slots=True)
class ShareFolder:
    """A folder that `share` made.

    Attributes:
        path: of the folder.
        contents: content hashes of its networks.
        files: name in the folder, with ``/`` -> sha256 as it was written. `RECORD` is not among them.
    """

    path: Path
    contents: tuple[str, ...]
    files: Mapping[str, str]

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> ShareFolder:
        """Returns the folder at a path.

        Raises:
            NotFound: there is no folder.
            OutputExists: it is not one that `share` made.
        """
        folder = Path(path)
        if not is_folder_at(folder):
            raise NotFound(f"{folder}: no such folder", hint="hnetkit share NAME --out FOLDER makes one")
        record = _read_record(folder)
        if record is None:
            message = f"{folder}: a folder that `hnetkit share` did not make"
            raise OutputExists(message, hint="choose another name, or an empty folder")
        return record

    @property
    def size_bytes(self) -> int:
        """Of its files, as they are now."""
        return sum(path.stat().st_size for path in self.paths().values())

    def paths(self) -> dict[str, Path]:
        """Returns name -> path of its files.

        Raises:
            NotFound: one of them is gone, or is a folder or behind a link by now.
        """
        paths = {name: self.path / name for name in self.files}
        for path in paths.values():
            is_linked = path.is_symlink() or (path.parent != self.path and path.parent.is_symlink())
            if is_linked or not is_file_at(path):
                raise NotFound(f"{path}: no longer there as a file", hint="--overwrite makes the folder anew")
        return paths

    def own(self) -> set[str]:
        """Returns the names of the files beside the card that are as they were written, and that `share` writes.

        The record may be a stranger's, with the hashes of any files: `share` writes networks and pictures alone.
        """
        there = (name for name in self.files if name != CARD and is_file_at(self.path / name))
        as_written = (name for name in there if sha256_at(self.path / name) == self.files[name])
        return {name for name in as_written if self._can_be_shared(name)}

    def require_own(self) -> None:
        """Raises OutputExists where one of its files is not its own; the card is the person's to edit.

        Raises:
            NotFound: as `paths`.
        """
        if others := self.paths().keys() - self.own() - {CARD}:
            message = f"{self.path / min(others)}: not the file that `hnetkit share` wrote"
            raise OutputExists(message, hint="move it away, and make the folder anew with --overwrite")

    def _can_be_shared(self, name: str) -> bool:
        """Whether a file is one of the networks of the record, or a picture, by its name and its content."""
        try:
            if _NETWORK.fullmatch(name):
                return load(self.path / name).content_hash in self.contents
            return _PICTURE.fullmatch(name) is not None and min(image_size(self.path / name)) > 0
        except (FileRefused, BadPicture, NotFound):
            return False

    def hashes(self) -> dict[str, str]:
        """Returns name -> sha256 of its files; that of the card as it is now."""
        return {**self.files, CARD: sha256_at(self.path / CARD)}

    def others(self) -> list[str]:
        """Returns the names of what else is in the folder, which stays there and is not uploaded."""
        own = {RECORD, *self.files, *(name.partition("/")[0] for name in self.files if "/" in name)}
        names = sorted(name for name in os.listdir(self.path) if name not in own and not name.endswith(TEMPORARY))
        if any(name.startswith(f"{PICTURES}/") for name in self.files):
            inside = (f"{PICTURES}/{name}" for name in sorted(os.listdir(self.path / PICTURES)))
            names += [name for name in inside if name not in self.files]
        return names

    def is_edited(self) -> bool:
        """Whether somebody changed the card since it was written."""
        card = self.path / CARD
        return is_file_at(card) and sha256_at(card) != self.files.get(CARD)

    def upload(self, repo: str, *, private: bool = False, token: hub.Token = None, bars: bool = False) -> str | None:
        """Uploads its files; see `Upload.carry_out`. An upload that was interrupted is continued by the same call."""
        return self.uploading(repo, private=private, token=token).carry_out(bars=bars)

    def uploading(self, repo: str, *, private: bool = False, token: hub.Token = None) -> Upload:
        """Returns what `upload` would do; the arguments are the same.

        Args:
            repo: ``owner/repo``, which is created if it is not there.
            private: create a private one; the account needs room for it.
            token: see `hnetkit.hub.Token`.

        Raises:
            UsageError: `repo` cannot be the name of a repository, or is public and `private` is set.
            AuthRequired: there is no token, it is not valid, or it may only read.
            NetworkFailed, RateLimited: the hub did not answer.
            NotFound: a file of the folder is gone.
            OutputExists: one is another file than was written.
        """
        self.require_own()
        return Upload(self, hub.repository(repo, private=private, token=token))


@dataclass(frozen=True, slots=True)
class Upload:
    """An upload that is about to be made."""

    folder: ShareFolder
    repository: hub.Repository

    @property
    def question(self) -> str:
        """What is uploaded, where, how large, and who will see it."""
        to, files = self.repository, self.folder.files
        what = f"{counted(len(files), 'file')}, {size_text(self.folder.size_bytes)}"
        visible = "private" if to.is_private else "public"
        if not to.is_there:
            return f"Upload {what}, to {to.url}, a new {visible} repository?"
        replaced = [shorten(name) for name in files if name in to.files]
        more = f" and {len(replaced) - _NAMED} more" if len(replaced) > _NAMED else ""
        there = f" {', '.join(replaced[:_NAMED])}{more} there would be replaced." if replaced else ""
        return f"Upload {what}, to {to.url}, which is {visible}?{there}"

    def carry_out(self, *, bars: bool = False) -> str | None:
        """Creates the repository if needed, and uploads the files in one commit.

        The card names the repository from here on. Large files that were uploaded before are not uploaded again.

        Args:
            bars: show progress on a terminal.

        Returns:
            The address of the commit; None if the repository had all of it already.

        Raises:
            NoAccess: the token or its account may not write there.
            StorageFull: the account has no room left.
            FileRefused, UsageError: the card is no file of its size, or the hub does not accept it.
            NetworkFailed, RateLimited: the hub did not take it; the same call goes on.
        """
        self._name_repository()
        return hub.upload(self.repository, self.folder.paths(), message="Upload hypernetworks", bars=bars)

    def _name_repository(self) -> None:
        card = self.folder.path / CARD
        try:
            text = read_regular(card, most=_MOST_CARD)
        except ValueError as error:
            raise FileRefused(f"{card}: {error}: no card that a hub takes", hint="edit it, and run it again") from error
        named = text.replace(SOMEWHERE.encode(), self.repository.name.encode())
        if named != text:
            is_edited = self.folder.is_edited()
            with new_file(card, overwrite=True) as file:
                file.write(named)
            if not is_edited:
                with new_file(self.folder.path / RECORD, overwrite=True) as file:
                    file.write(_as_record(self.folder.contents, self.folder.hashes()))


@contextmanager
def writing(
    out: str | os.PathLike[str],
    contents: tuple[str, ...],
    *,
    overwrite: bool,
    without: Callable[[ShareFolder | None], Iterable[str]],
) -> Iterator[Path]:
    """Yields a folder to write a share into, which becomes the one at `out` at a clean exit.

    A folder that is there already gets the new files one by one, each whole; then what is to go of an earlier share is
    removed, and all else stays.

    Args:
        contents: content hashes of the networks.
        overwrite: update a folder that `share` made before.
        without: the names of what is to go of such a folder's files.

    Raises:
        OutputExists: there is something that may not be replaced.
        NotFound: the folder that `out` is to be in does not exist.
    """
    target = Path(out)
    earlier = require_writable(target, overwrite=overwrite)
    if not is_there(target):
        with new_folder(target) as made:
            yield made
            _write_record(made, contents)
        return
    with temporary_folder(target / "share") as made:
        yield made
        _write_record(made, contents)
        _move(made, target, {} if earlier is None else earlier.files, without(earlier))


def made_before(out: str | os.PathLike[str], contents: tuple[str, ...]) -> ShareFolder | None:
    """Returns the share of these very networks that is at `out`; None where there is none."""
    if not is_folder_at(out):
        return None
    record = _read_record(Path(out))
    return record if record is not None and set(record.contents) == set(contents) else None


def require_writable(out: str | os.PathLike[str], *, overwrite: bool) -> ShareFolder | None:
    """Returns the share that is at `out` already; None where there is nothing, or an empty folder.

    Raises:
        OutputExists: there is something that may not be replaced.
        NotFound: the folder that `out` is to be in does not exist.
    """
    target = Path(out)
    if not is_there(target):
        if not is_folder_at(target.parent):
            raise NotFound(f"{target.parent}: no such folder")
        return None
    if not is_folder_at(target):
        raise OutputExists(f"{target}: not a folder", hint="choose another name")
    if not any(not name.endswith(TEMPORARY) for name in os.listdir(target)):
        return None
    earlier = ShareFolder.read(target)
    if not overwrite:
        raise OutputExists(f"{target}: the folder of an earlier share", hint="add --overwrite to update it")
    if earlier.is_edited():
        message = f"{target / CARD}: changed since it was written, and would be replaced"
        raise OutputExists(message, hint="move it away, and copy what you wrote into the new one")
    return earlier


def _move(made: Path, target: Path, earlier: Mapping[str, str], going: Iterable[str]) -> None:
    """Gives the files of a new share their places in a folder; the card and the record come last.

    What an update replaced before it was killed has the new content already, and the earlier record.
    """
    names = [name for name in _names_in(made) if name not in (CARD, RECORD)]
    places = {name: target / name for name in names}
    refuse_links([target / PICTURES])
    for name, place in places.items():
        if is_there(place) and not (name in earlier and sha256_at(place) in (earlier[name], sha256_at(made / name))):
            raise OutputExists(f"{place}: there, and not of an earlier share", hint="move it away")
    for name, place in places.items():
        place.parent.mkdir(exist_ok=True)
        os.replace(made / name, place)
    for name in going:
        os.unlink(target / name)
    if is_folder_at(target / PICTURES) and not os.listdir(target / PICTURES):
        os.rmdir(target / PICTURES)
    for name in (CARD, RECORD):
        os.replace(made / name, target / name)
    sync_folder(target)


def _names_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _write_record(folder: Path, contents: tuple[str, ...]) -> None:
    files = {name: sha256_at(folder / name) for name in _names_in(folder)}
    with new_file(folder / RECORD) as file:
        file.write(_as_record(contents, files))


def _as_record(contents: tuple[str, ...], files: Mapping[str, str]) -> bytes:
    record = {"format": _FORMAT, "networks": list(contents), "files": dict(files)}
    return json.dumps(record, ensure_ascii=False, indent=1).encode()


def _read_record(folder: Path) -> ShareFolder | None:
    """Returns what the record of a folder says; None where it has none, or another program's."""
    try:
        record = read_json(folder / RECORD, most=MAX_JSON)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise HnetkitError(f"{folder / RECORD}: cannot be read ({error})", hint="choose another name") from error
    if not isinstance(record, dict) or record.get("format") != _FORMAT:
        return None
    contents, files = record.get("networks"), record.get("files")
    if not isinstance(contents, list) or not isinstance(files, dict) or CARD not in files:
        return None
    if not all(map(_is_entry, files.items())):
        return None
    return ShareFolder(folder, tuple(map(str, contents)), files)


def _is_entry(entry: tuple[object, object]) -> bool:
    """Whether a name and a hash can be those of a share's file: never one outside of it."""
    name, sha256 = entry
    parts = name.split("/") if isinstance(name, str) else []
    is_place = len(parts) == 1 or (len(parts) == 2 and parts[0] == PICTURES)
    is_name = all(part not in ("", ".", "..") and "\\" not in part for part in parts)
    return is_place and is_name and isinstance(sha256, str) and _SHA256.fullmatch(sha256) is not None
