"""Looking back: the pictures in a person's folders, and which networks of the library each was drawn with.

A picture says it itself, in the settings that its program wrote. A hash there decides; where only a name is left, the
name is looked up, and that is said. What a picture states is read once and kept in memory, a little of each; what it
means is looked up when it is shown, because networks come, go and get other names.

Folders are read in the background, the newest picture first. No link is followed. A picture is asked for by its id:
no path that anybody sends is opened.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from hashlib import blake2b
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Literal, NamedTuple

from hnetkit import demo, settings
from hnetkit.errors import (
    AmbiguousName,
    BadPicture,
    DamagedFile,
    HnetkitError,
    NoSettings,
    NotFound,
    UnsafeFile,
    failure_of,
)
from hnetkit.files import is_absence, is_absent, is_folder_at, mtime_of
from hnetkit.formats.open_file import OpenFile
from hnetkit.gallery.paging import neighbours, part_of
from hnetkit.image_text import SUFFIXES, as_infotext, image_format, read_infotext
from hnetkit.inspection import examine
from hnetkit.library.resolve import contents_without_file, fetch_command, find_if_known
from hnetkit.library.walking import is_link
from hnetkit.prompts.infotext import Infotext, hypernetworks_of
from hnetkit.text import argument, counted, is_text, printable, shorten

if TYPE_CHECKING:
    from hnetkit.library.library import Library
    from hnetkit.registry.store import Registry

MOST_PICTURES = 100_000
"""Pictures that are kept in mind; of more, the newest."""

PICTURES_PER_PAGE = 60

Which = Literal["all", "known", "unknown"]
"""All pictures; those drawn with a network that is known; those of which no network is known."""

How = Literal["hash", "name", "several", "unknown"]

_FACTS = ("Seed", "Steps", "Sampler", "Schedule type", "CFG scale", "Size", "Model")
_MOST_PROMPT, _MOST_FACT, _MOST_NAME = 600, 120, 255  # characters that are kept of each picture
_LASTING = (NoSettings, UnsafeFile, DamagedFile, BadPicture)  # the same until the file changes; all else is tried again
_MOST_SAID = 20  # folders that could not be read, by name


@dataclass(frozen=True, slots=True)
class UsedNetwork:
    """A network as a picture states it.

    Attributes:
        name: a file's stem or an alias, where the picture comes from.
        strength: its multiplier.
        hash: 8 to 64 hex digits; None if the picture states none.
        in_second_pass: whether it is one of a second pass with a prompt of its own.
    """

    name: str
    strength: float
    hash: str | None
    in_second_pass: bool


@dataclass(frozen=True, slots=True)
class Meaning:
    """What the name and the hash of a network in a picture mean now.

    Attributes:
        how: whether its hash decided, or only its name; ``"several"`` if they are those of several networks.
        content_hash: of the network, where the library knows it.
        called: its name in the library, or beside the demo model.
        said: what to know about it, in a line; None if that is nothing.
        command: what to type next; None if there is nothing to do.
    """

    how: How
    content_hash: str | None = None
    called: str | None = None
    said: str | None = None
    command: str | None = None

    @property
    def is_known(self) -> bool:
        """Whether it is one network of the library, or of the demo model."""
        return self.how in ("hash", "name")


class Stamp(NamedTuple):
    """What a picture's file, and a text file of its name beside it, look like: the same while neither changes."""

    size_bytes: int
    modified_ns: int
    beside: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class SeenPicture:
    """A picture, as far as it is kept in mind.

    Attributes:
        id: names it in addresses; made of its path, and the same tomorrow.
        path: without links.
        stamp: of its file when it was read.
        prompt: the beginning of it.
        facts: seed, sampler and the like, by A1111's names of them.
        networks: as it states them.
        failure: why it says nothing, in a line; None if it does.
        is_final: whether reading it again would give the same as long as its file does not change.
    """

    id: str
    path: Path
    stamp: Stamp
    prompt: str = ""
    facts: tuple[tuple[str, str], ...] = ()
    networks: tuple[UsedNetwork, ...] = ()
    failure: str | None = None
    is_final: bool = True

    @property
    def name(self) -> str:
        """The name of its file, as it can be shown."""
        return printable(self.path.name)

    @property
    def command(self) -> str | None:
        """Draws it again; None if it has no settings, or a name that cannot be typed."""
        if self.failure is not None or not is_text(str(self.path)):
            return None
        return f"hnetkit generate --from {argument(self.path, is_path=True)}"

    @property
    def modified(self) -> str:
        """When its file was last changed, in local time; empty for a time that no calendar has."""
        try:
            return f"{datetime.fromtimestamp(self.stamp.modified_ns / 1e9):%Y-%m-%d %H:%M}"
        except (OverflowError, OSError, ValueError):
            return ""


@dataclass(frozen=True, slots=True)
class LookedUp:
    """A picture, and what each of its networks means now, in their order."""

    picture: SeenPicture
    networks: tuple[tuple[UsedNetwork, Meaning], ...]


@dataclass(frozen=True, slots=True)
class PicturePage:
    """Some of the pictures, newest first: page `number` of `pages`, of `total` pictures."""

    pictures: tuple[LookedUp, ...]
    total: int
    number: int
    pages: int


@dataclass(frozen=True, slots=True)
class PictureRecord:
    """All that one picture says.

    Attributes:
        found: the picture and its networks.
        info: its settings; empty if it has none.
        warnings: what they leave open, one line each.
        infotext: the settings as A1111 and others read them from the clipboard; empty if it has none.
    """

    found: LookedUp
    info: Infotext
    warnings: tuple[str, ...]
    infotext: str


@dataclass(frozen=True, slots=True)
class LookingBack:
    """How far the reading of the folders is.

    Attributes:
        is_running: whether it goes on.
        done: pictures that were read, of the `of` that had to be.
        said: what is left out and why, one line each.
    """

    is_running: bool = False
    done: int = 0
    of: int = 0
    said: tuple[str, ...] = ()


class PictureFolders:
    """The pictures in folders, and in the folders below them.

    Any number of threads may ask; one reads.

    Args:
        folders: as a person names them.
        library: where networks are looked up; it stays open as long as this.

    Raises:
        NotFound: there is no such folder.
        HnetkitError: a folder cannot be seen.
    """

    def __init__(self, folders: Iterable[str | os.PathLike[str]], library: Library) -> None:
        self.folders = tuple(dict.fromkeys(map(_existing_folder, folders)))
        self._registry = library.registry
        self._pictures: dict[str, SeenPicture] = {}
        self._changing, self._looking = threading.Lock(), threading.Lock()
        self._closed = threading.Event()
        self._progress = LookingBack()
        self._meanings: tuple[object, _Meanings] | None = None

    def __len__(self) -> int:
        """How many pictures are known by now."""
        return len(self._pictures)

    # --- reading

    def look(self) -> None:
        """Reads the pictures that are new or changed, and forgets those that are gone."""
        with self._looking:
            self._progress = LookingBack(is_running=True, said=self._progress.said)
            try:
                self._look()
            except Exception as error:
                self._progress = LookingBack(said=(str(failure_of(error, "looking back")),))

    def begin_look(self, patience_s: float = 0.0) -> None:
        """Begins to `look` in the background, unless that is going on; returns after so long, or at the end of it."""
        if not self.folders or self._looking.locked() or self._closed.is_set():
            return
        look = threading.Thread(target=self.look, name="looking back", daemon=True)
        look.start()
        look.join(patience_s)

    def close(self) -> None:
        """Ends a look that is going on."""
        self._closed.set()
        with self._looking:
            pass

    @property
    def progress(self) -> LookingBack:
        """How far the present look is, or how the last one ended."""
        return self._progress

    def _look(self) -> None:
        walk = _Walk(self._closed.is_set)
        for folder in self.folders:
            walk.enter(folder)
        newest = sorted(walk.found.items(), key=lambda item: (-item[1].modified_ns, item[0]))
        said = tuple(walk.said(MOST_PICTURES))
        there = {_id_of(path): (path, stamp) for path, stamp in newest[:MOST_PICTURES]}
        if self._closed.is_set():
            return
        with self._changing:
            for id, known in list(self._pictures.items()):
                if id not in there and not walk.is_unseen(known.path):
                    del self._pictures[id]
        unread = [(id, path, stamp) for id, (path, stamp) in there.items() if not self._has_read(id, stamp)]
        for done, (id, path, stamp) in enumerate(unread):
            if self._closed.is_set():
                return
            self._progress = LookingBack(True, done, len(unread), said)
            picture, _ = _read(id, path, stamp)
            with self._changing:
                self._pictures[id] = picture
        self._progress = LookingBack(False, len(unread), len(unread), said)

    def _has_read(self, id: str, stamp: Stamp) -> bool:
        known = self._pictures.get(id)
        return known is not None and known.stamp == stamp and known.is_final

    # --- queries

    def page(
        self, *, network: str | None = None, which: Which = "all", number: int = 1, size: int = PICTURES_PER_PAGE
    ) -> PicturePage:
        """Returns some of the pictures, newest first.

        Args:
            network: the content hash of a network: only pictures that were drawn with it.
            which: see `Which`.
            number: of the page, from 1; beyond the last one it is the last.
            size: pictures of a page.
        """
        meanings, chosen = self._current(), self._chosen(network, which)
        part = part_of(len(chosen), number, size)
        shown = tuple(map(meanings.look_up, chosen[part.rows]))
        return PicturePage(shown, len(chosen), part.number, part.last)

    def neighbours(self, id: str, *, network: str | None = None, which: Which = "all") -> tuple[str | None, str | None]:
        """Returns the ids of the pictures before and after one, in the order of `page`; None where there is none."""
        return neighbours([picture.id for picture in self._chosen(network, which)], id)

    def counts(self) -> Counter[str]:
        """Returns the content hash of each network that is known -> how many pictures were drawn with it."""
        meanings = self._current()
        return Counter(content for picture in self._newest_first() for content in meanings.contents(picture))

    def record(self, id: str) -> PictureRecord:
        """Returns all that one picture says, read now.

        Raises:
            NotFound: there is no such picture any more.
        """
        path = self.path_of(id)
        picture, info = _read(id, path, self._pictures[id].stamp)
        mentions = [hypernetworks_of(of) for of in (info, info.second_pass) if of is not None]
        said = (_text(line) for of in mentions for line in of.warnings)
        return PictureRecord(
            found=self._current().look_up(picture),
            info=info,
            warnings=tuple(dict.fromkeys(said)),
            infotext=as_infotext(info) if picture.failure is None else "",
        )

    def path_of(self, id: str) -> Path:
        """Returns the file of a picture, which is where it was when it was found: no link leads elsewhere by now.

        Raises:
            NotFound: there is none.
        """
        picture = self._pictures.get(id)
        if picture is None or os.path.realpath(picture.path) != str(picture.path) or is_absent(picture.path):
            raise NotFound("this picture is not there any more", hint="load the page of pictures again")
        return picture.path

    def _chosen(self, network: str | None, which: Which) -> list[SeenPicture]:
        meanings = self._current()
        return [one for one in self._newest_first() if meanings.is_chosen(one, network, which)]

    def _newest_first(self) -> list[SeenPicture]:
        with self._changing:
            pictures = list(self._pictures.values())
        return sorted(pictures, key=lambda one: (-one.stamp.modified_ns, one.path))

    def _current(self) -> _Meanings:
        """The meanings that hold for the library and the model as they are now."""
        bundled = demo.comes_with(settings.get("model"))
        state = self._registry.state(), tuple(bundled)
        known = self._meanings
        if known is None or known[0] != state:
            known = self._meanings = state, _Meanings(self._registry, bundled)
        return known[1]


class _Meanings:
    """What networks in pictures mean, each looked up once."""

    def __init__(self, registry: Registry, bundled: Mapping[str, Path]) -> None:
        self._registry, self._bundled = registry, bundled
        self._known: dict[tuple[str, str | None], Meaning] = {}

    def of(self, network: UsedNetwork) -> Meaning:
        key = network.name, network.hash
        if key not in self._known:
            self._known[key] = self._find(*key)
        return self._known[key]

    def look_up(self, picture: SeenPicture) -> LookedUp:
        return LookedUp(picture, tuple((network, self.of(network)) for network in picture.networks))

    def contents(self, picture: SeenPicture) -> set[str]:
        return {content for network in picture.networks if (content := self.of(network).content_hash) is not None}

    def is_chosen(self, picture: SeenPicture, network: str | None, which: Which) -> bool:
        if network is not None and network not in self.contents(picture):
            return False
        return which == "all" or any(self.of(one).is_known for one in picture.networks) == (which == "known")

    def _find(self, name: str, stated: str | None) -> Meaning:
        try:
            found = find_if_known(name, stated, lambda: self._registry, self._bundled)
        except HnetkitError as error:  # several networks have this name, or only files that cannot be used
            how: How = "several" if isinstance(error, AmbiguousName) else "unknown"
            return Meaning(how, said=str(error), command=error.command_hint)
        if found is None:
            return self._find_without_file(name, stated)
        said = [] if found.by_hash else ["found by its name alone"]
        said += filter(None, (found.doubt, found.note))
        content: str | None = found.network.content_hash
        if found.is_bundled:
            said.append("comes with the demo model")
            bundled = _content_of(found.files[0])
            content = bundled if self._registry.networks.of_contents([bundled]) else None
        return Meaning("hash" if found.by_hash else "name", content, found.network.name, "; ".join(said) or None)

    def _find_without_file(self, name: str, stated: str | None) -> Meaning:
        command = fetch_command(name, stated)
        rows = self._registry.networks.of_contents(contents_without_file(self._registry, name, stated))
        if not rows:
            return Meaning("unknown", said="not in the library", command=command)
        if len(rows) > 1:
            return Meaning("several", said=f"{len(rows)} networks in no file of the library have this name")
        said = "known, but in no file of the library"
        return Meaning("hash" if stated else "name", rows[0]["content_hash"], rows[0]["name"], said, command)


@cache
def _content_of(bundled: Path) -> str:
    """Returns the content hash of a network that comes with the demo model, which nothing changes."""
    hashes = examine(bundled).hashes
    return str(hashes and hashes.content_hash)


# --- files


def _existing_folder(folder: str | os.PathLike[str]) -> Path:
    try:
        is_there = is_folder_at(folder)
    except OSError as error:
        raise failure_of(error, os.fspath(folder)) from error
    if not is_there:
        raise NotFound(f"{os.fspath(folder)}: no such folder", hint="hnetkit gallery --pictures FOLDER")
    return Path(os.path.realpath(folder))


class _Walk:
    """Looks for pictures in folders.

    Attributes:
        found: the file of each -> its stamp.
    """

    def __init__(self, is_ended: Callable[[], bool]) -> None:
        self.found: dict[Path, Stamp] = {}
        self._is_ended = is_ended
        self._unseen: dict[Path, str] = {}  # file or folder -> why
        self._links = 0

    def enter(self, folder: Path) -> None:
        """Adds the pictures of a folder and of those below it, without hidden ones and without links."""
        waiting = [folder]
        while waiting and not self._is_ended():
            here = waiting.pop()
            try:
                with os.scandir(here) as entries:
                    shown = [entry for entry in entries if not entry.name.startswith(".")]
            except OSError as error:
                if here == folder or not is_absence(error):
                    self._unseen[here] = error.strerror or str(error)
                continue
            waiting += self._look_at(shown)

    def _look_at(self, entries: list[os.DirEntry[str]]) -> list[Path]:
        """Adds the pictures among the entries of a folder; returns the folders."""
        folders = []
        texts = {entry.name: entry for entry in entries if entry.name.lower().endswith(".txt")}
        for entry in entries:
            is_named_so = entry.name.lower().endswith(SUFFIXES)
            try:
                is_folder = entry.is_dir()
                if not is_folder and not is_named_so:
                    continue
                if is_link(entry):
                    self._links += 1
                elif is_folder:
                    folders.append(Path(entry.path))
                elif entry.is_file():
                    text = texts.get(f"{PurePath(entry.name).stem}.txt")
                    self.found[Path(entry.path)] = Stamp(*_look_of(entry), _look_beside(text))
            except OSError as error:
                if not is_absence(error):
                    self._unseen[Path(entry.path)] = error.strerror or str(error)
        return folders

    def is_unseen(self, path: Path) -> bool:
        """Whether a file may be there for all that could be seen: it, or a folder on the way to it, was not."""
        return any(place in self._unseen for place in (path, *path.parents))

    def said(self, most: int) -> list[str]:
        """Returns what is left out, in lines."""
        said = [f"{path}: cannot be read: {why}" for path, why in list(self._unseen.items())[:_MOST_SAID]]
        if len(self._unseen) > _MOST_SAID:
            said.append(f"{len(self._unseen) - _MOST_SAID:,} more cannot be read")
        if self._links:
            said.append(f"{counted(self._links, 'link')} {'is' if self._links == 1 else 'are'} not followed")
        if len(self.found) > most:
            said.append(f"of {len(self.found):,} pictures, the newest {most:,} are shown")
        return list(map(printable, said))


def _look_of(entry: os.DirEntry[str]) -> tuple[int, int]:
    status = entry.stat()
    return status.st_size, mtime_of(status)


def _look_beside(text: os.DirEntry[str] | None) -> tuple[int, int] | None:
    try:
        return _look_of(text) if text is not None else None
    except OSError:  # reading the picture says whether its settings are there
        return None


def _id_of(path: Path) -> str:
    return blake2b(os.fsencode(path), digest_size=12).hexdigest()


def _read(id: str, path: Path, stamp: Stamp) -> tuple[SeenPicture, Infotext]:
    """Returns what a picture says; where nothing can be read, why."""
    try:
        info = _info_at(path)
        networks = tuple(_networks(info))
    except Exception as error:  # one picture never ends the others
        failure = failure_of(error, str(path))
        said = str(failure).removeprefix(f"{printable(str(path))}: ")
        is_final = isinstance(failure, _LASTING)
        return SeenPicture(id, path, stamp, failure=said, is_final=is_final), Infotext("", "", {})
    facts = ((key, info.parameters[key]) for key in _FACTS if info.parameters.get(key))
    return SeenPicture(
        id,
        path,
        stamp,
        prompt=shorten(info.prompt, _MOST_PROMPT),
        facts=tuple((key, shorten(value, _MOST_FACT)) for key, value in facts),
        networks=networks,
    ), info


def _info_at(path: Path) -> Infotext:
    with OpenFile(path) as file:
        if image_format(file.read_at(0, min(12, file.size))) is None:
            raise BadPicture(f"{path}: no PNG, JPEG or WebP picture, whatever its name says")
        info = read_infotext(file)
    parameters = {_text(key): _text(value) for key, value in info.parameters.items()}
    return info._replace(prompt=_text(info.prompt), negative_prompt=_text(info.negative_prompt), parameters=parameters)


def _networks(info: Infotext) -> Iterator[UsedNetwork]:
    for number, of in enumerate((info, info.second_pass)):
        for one in hypernetworks_of(of).networks if of is not None else ():
            yield UsedNetwork(shorten(one.name, _MOST_NAME), one.strength, one.hash, in_second_pass=number > 0)


def _text(text: str) -> str:
    """Returns a text that can be sent: half a letter, as JSON can have it, becomes a question mark."""
    return text.encode("utf-8", "replace").decode()
