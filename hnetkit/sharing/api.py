"""`share`: networks of the library as a folder that can be uploaded as a repository of the hub."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hnetkit.errors import (
    WHERE_GONE,
    BadPicture,
    FileChanged,
    FileRefused,
    HnetkitError,
    NoSettings,
    NotFound,
    OutputExists,
    UsageError,
)
from hnetkit.files import is_link_elsewhere, is_model_name, new_file
from hnetkit.formats.open_file import OpenFile
from hnetkit.formats.reading import load, loads_in_a1111, read_network
from hnetkit.formats.writing import save, source_sha256
from hnetkit.hashes import hash_file
from hnetkit.image_text import as_infotext, read_infotext, write_image
from hnetkit.images import has_more, open_rgb, read_image
from hnetkit.library.layouts import folded, stem_for_layout
from hnetkit.library.placing import holds
from hnetkit.sharing.card import CardFile, CardNetwork, CardPicture, card_text
from hnetkit.sharing.folder import CARD, PICTURES, ShareFolder, writing
from hnetkit.sharing.licenses import (
    UNKNOWN,
    License,
    common_license,
    license_of,
    objections,
    only_told,
    require_license,
)
from hnetkit.text import is_text, several

if TYPE_CHECKING:
    from hnetkit.library.library import Library
    from hnetkit.network import Hypernetwork

Row = Mapping[str, Any]
AnyPath = str | os.PathLike[str]
Progress = Callable[[int, int], None]
"""Called with the number of networks written, and of all."""

_CHUNK = 4 << 20  # bytes
_LONGEST_IN_JPEG = 30_000  # letters of an infotext; its segment has 64 kB
# the folders of a path that programs note among the settings: of a web address, and of a hub's name, it is none
_FOLDERS = re.compile(
    r"""
    (?: \b(?:file|smb|s?ftp|nfs|afp|ssh|scp|(?:web)?davs?):/+ | (?<![\w:/\\])//
        | (?<![\w/\\~.$%}])(?:~\w*|\.{1,2}|\$\{?\w+\}?|%\w+%)?/ )
        (?:[^/\s"][^/"]*/)+
    | (?<![\w/\\~.])
        (?: [A-Za-z]:(?:[\\/]|(?=\w[\w .-]{0,100}\\)) | \\\\ | (?:%\w+%|\$\w+:\w+)[\\/] | (?:~\w*|\.\.?)\\(?![()\[\]]) )
        (?:[^\\/"]*[\\/])*
    | (?<![\w/\\~.$%}])(?:~\w*|\.{1,2})?(?:\\/)+(?:[^\\/"]*(?:\\/)+)*
    | (?<![\w/\\~.$%:])\\?\w[\w.-]{0,100}\\(?:\w[\w .-]{0,100}\\){0,40}(?=\w[\w .-]{0,100}\.\w{2,11}(?!\w))
    """,
    re.VERBOSE,
)
_PROMPTS = ("Hires prompt", "Hires negative prompt")


@dataclass(frozen=True, slots=True)
class SharedPicture:
    """A picture to share: the file, its place in the folder, its prompt (None without one), and its infotext."""

    source: Path
    name: str
    prompt: str | None
    infotext: str


@dataclass(frozen=True, slots=True)
class Share:
    """What is about to be shared.

    Attributes:
        networks: with what is known of them.
        pictures: to show them by.
        license: that the card states.
        doubts: why they may not be for sharing, one line each, which a person is to agree to.
        notes: what a person should know besides, one line each.
        held: content hash of each network that the library knows -> paths of its files.
    """

    networks: tuple[CardNetwork, ...]
    pictures: tuple[SharedPicture, ...]
    license: License
    doubts: tuple[str, ...]
    notes: tuple[str, ...]
    held: Mapping[str, Sequence[str]] = field(repr=False)

    @property
    def contents(self) -> tuple[str, ...]:
        """The content hashes of its networks."""
        return tuple(network.row["content_hash"] for network in self.networks)

    def card(self, networks: Sequence[CardNetwork] | None = None) -> str:
        """Returns the text of the card; files that are not written yet are left out of it."""
        pictures = [CardPicture(picture.name, picture.prompt) for picture in self.pictures]
        return card_text(networks or self.networks, pictures, self.license)

    def files(self) -> list[str]:
        """Returns the names of the files that the folder will have."""
        of_networks = [file.name for network in self.networks for file in network.files]
        return [*of_networks, *(picture.name for picture in self.pictures), CARD]

    def without(self, earlier: ShareFolder | None) -> list[str]:
        """Returns the names of an earlier share's files that `write` removes from the folder, as they are in it.

        Raises:
            OutputExists: it would replace the last file of another network that the library knows.
        """
        if earlier is None:
            return []
        for name in sorted(earlier.own() & set(self.files())):
            if self._is_last(earlier, name) and load(earlier.path / name).content_hash in self.held:
                raise OutputExists(
                    f"{earlier.path / name}: the last file of another network that the library knows",
                    hint="move it into a folder of the library, then hnetkit scan, and share again",
                )
        return [name for name in self._left_out(earlier) if not self._is_last(earlier, name)]

    def kept(self, earlier: ShareFolder | None) -> list[str]:
        """Returns the names of an earlier share's files that `write` leaves in the folder, though it does not share
        them: no other file of the library holds their networks.
        """
        return [] if earlier is None else [name for name in self._left_out(earlier) if self._is_last(earlier, name)]

    def _left_out(self, earlier: ShareFolder) -> list[str]:
        return sorted(earlier.own() - set(self.files()))

    def _is_last(self, earlier: ShareFolder, name: str) -> bool:
        if not is_model_name(name):
            return False
        try:
            content = load(earlier.path / name).content_hash
        except (FileRefused, NotFound):  # no network that `share` wrote, whatever a record says
            return True
        folder = os.path.realpath(earlier.path)
        others = (
            path for path in self.held.get(content, ()) if not Path(os.path.realpath(path)).is_relative_to(folder)
        )
        return content not in self.contents and not any(holds(path, content) for path in others)

    def write(
        self, out: AnyPath, *, overwrite: bool = False, progress: Progress = lambda done, total: None
    ) -> ShareFolder:
        """Writes the folder, completely or not at all.

        Args:
            out: the folder; it may be there if it is empty.
            overwrite: update a folder that `share` made before.

        Raises:
            OutputExists: there is something at `out` that may not be replaced, or `without` raises it.
            NotFound: a file of a network is gone, or the folder that `out` is to be in does not exist.
            FileRefused: a file holds another network by now.
            DiskFull: there is no room.
        """
        with writing(out, self.contents, overwrite=overwrite, without=self.without) as folder:
            made = []
            for number, network in enumerate(self.networks):
                progress(number, len(self.networks))
                made.append(_write_network(network, folder))
            for picture in self.pictures:
                _write_picture(picture, folder)
            with new_file(folder / CARD) as file:
                file.write(self.card(made).encode())
        return ShareFolder.read(out)


def share(
    library: Library,
    names: str | Sequence[str],
    out: AnyPath,
    *,
    pictures: Iterable[AnyPath] = (),
    license: str | None = None,
    agreed: bool = False,
    overwrite: bool = False,
) -> ShareFolder:
    """Makes a folder of networks that can be uploaded as a repository of the hub, and returns it.

    Each network is in it as ``.safetensors`` and as ``.pt``, beside a model card with what is known of them.

    Args:
        library: that has the networks.
        names: of networks, as `Library.record` takes them.
        out: the folder; it may be there if it is empty.
        pictures: image files to show; the prompt in each is its text. Without any, the networks' previews are taken.
        license: an id of the hub's list, in place of what is known.
        agreed: share also what has no known license, or whose record does not want it shared.
        overwrite: update a folder that `share` made before.

    Raises:
        UsageError: not agreed, or no such license; or two networks of one name.
        NotFound, AmbiguousName, FileRefused: as `Library.record`, and for files.
        BadPicture: one of `pictures` cannot be read.
        OutputExists, DiskFull: as `Share.write`.
    """
    plan = plan_share(library, names, pictures=pictures, license=license)
    if plan.doubts and not agreed:
        raise UsageError(
            "; ".join(plan.doubts), hint="--license ID, or add -y to agree", python="license=..., or agreed=True"
        )
    return plan.write(out, overwrite=overwrite)


def plan_share(
    library: Library, names: str | Sequence[str], *, pictures: Iterable[AnyPath] = (), license: str | None = None
) -> Share:
    """Returns what `share` would make; the arguments and errors are the same."""
    chosen = License(require_license(license)) if license is not None else None
    rows = list({row["content_hash"]: row for row in map(library.record, several(names))}.values())
    if not rows:
        raise UsageError("say what to share", hint="hnetkit share NAME --out FOLDER")
    notes: list[str] = []
    networks = [_planned(row, chosen, notes) for row in rows]
    _require_names_of_their_own(networks)
    given = [_picture(Path(path), number, notes) for number, path in enumerate(pictures, 1)]
    shown = given or _previews(rows, notes)
    return Share(
        tuple(networks),
        tuple(shown),
        common_license(network.license for network in networks),
        tuple(_doubts(networks, license)),
        tuple(notes),
        _held(library),
    )


def _held(library: Library) -> dict[str, list[str]]:
    held: dict[str, list[str]] = {content: [] for content in library.registry.networks.fileless()}
    for row in library.registry.files.of_networks():
        held.setdefault(row["content_hash"], []).append(row["path"])
    return held


def _planned(row: Row, chosen: License | None, notes: list[str]) -> CardNetwork:
    name = row["name"]
    stem = stem_for_layout(name)
    if stem != name:
        notes.append(f"{name} is called {stem} there: its own name would not do in every prompt and on every disk")
    source = _source(row)
    files = CardFile(f"{stem}.safetensors"), CardFile(f"{stem}.pt", is_original=loads_in_a1111(source))
    if not files[1].is_original and source.format != "safetensors":
        notes.append(f"{name}: its file is converted, because A1111 does not load it as it is")
    return CardNetwork(stem, row, chosen or license_of(row["sites"]), files)


def _source(row: Row) -> Hypernetwork:
    """Returns a network from the best of its files that are here: one that A1111 loads, then any other torch file.

    Raises:
        NotFound: none is here.
        FileRefused: none holds the network any more.
    """
    failures: list[HnetkitError] = []
    found: list[Hypernetwork] = []
    for file in row["files"]:
        if file["there"]:
            try:
                net = load(file["path"])
            except (FileRefused, NotFound) as error:
                failures.append(error)
            else:
                found.append(net)
    if found:
        return min(found, key=lambda net: (not loads_in_a1111(net), net.format == "safetensors"))
    if failures:
        raise failures[0]
    raise NotFound(f"{row['name']}: no file of it is here", hint=WHERE_GONE)


def _require_names_of_their_own(networks: Sequence[CardNetwork]) -> None:
    seen: dict[str, CardNetwork] = {}
    for network in networks:
        other = seen.setdefault(folded(network.stem), network)
        if other is not network:
            raise UsageError(
                f"{other.row['name']} and {network.row['name']} would have files of one name",
                hint="share each in a folder of its own",
            )


def _doubts(networks: Sequence[CardNetwork], license: str | None) -> Iterable[str]:
    unknown = [network.stem for network in networks if network.license.id in (None, UNKNOWN)]
    if unknown and license is None:
        yield f"no license is known of {', '.join(unknown)}, so the card says `license: {UNKNOWN}`"
        for network in networks:
            yield from (f"{network.stem}: {told}" for told in dict.fromkeys(only_told(network.row["sites"])))
    for network in networks:
        for reason in dict.fromkeys(objections(network.row["sites"], license)):
            yield f"{network.stem}: {reason}"


# --- pictures


def _previews(rows: Iterable[Row], notes: list[str]) -> list[SharedPicture]:
    """Returns the picture beside a file of each network; one that cannot be read, or lies elsewhere, is left out."""
    found: list[SharedPicture] = []
    for row in rows:
        beside = (sidecar.get("preview") for sidecar in row["sidecars"])
        preview = next((Path(path) for path in beside if path is not None), None)
        if preview is None:
            continue
        files = (path for file in row["files"] if (path := Path(file["path"])).parent == preview.parent)
        if all(is_link_elsewhere(preview, file) for file in files):
            notes.append(f"left out: {preview}: a link to a file elsewhere")
            continue
        try:
            found.append(_picture(preview, len(found) + 1, notes))
        except (BadPicture, NotFound) as error:
            notes.append(f"left out: {error}")
    return found


def _picture(path: Path, number: int, notes: list[str]) -> SharedPicture:
    """Returns a picture with its prompt.

    Raises:
        NotFound, BadPicture: there is none that can be read.
    """
    data = read_image(path)
    open_rgb(path, data)
    if has_more(path, data):
        notes.append(f"{path}: of several pictures in it, the first is shared")
    prompt, text = _settings(path, notes)
    is_jpeg = data.startswith(b"\xff\xd8") and len(text) <= _LONGEST_IN_JPEG
    return SharedPicture(path, f"{PICTURES}/{number}.{'jpg' if is_jpeg else 'png'}", prompt, text)


def _settings(path: Path, notes: list[str]) -> tuple[str | None, str]:
    """Returns the prompt of a picture and its infotext, as A1111 writes one; None and an empty text without any."""
    try:
        with OpenFile(path) as file:
            found = read_infotext(file)
    except NoSettings:
        return None, ""
    except FileRefused as error:
        notes.append(f"without its prompt: {error}")
        return None, ""
    named = found.parameters
    bare = {key: text if key in _PROMPTS else without_folders(text) for key, text in named.items()}
    if bare != named:
        notes.append(f"{path}: its settings name files, which are shared without their folders")
    text = as_infotext(found._replace(parameters=bare))
    if not is_text(text):
        notes.append(f"{path}: without its prompt, which is not text")
        return None, ""
    return found.prompt.strip() or None, text


def without_folders(text: str) -> str:
    """Returns a setting with the last name alone of each path in it."""
    return _FOLDERS.sub("", text)


def _write_picture(picture: SharedPicture, folder: Path) -> None:
    """Writes what is seen of a picture, with its infotext and nothing else of its file."""
    (folder / PICTURES).mkdir(exist_ok=True)
    image = open_rgb(picture.source)
    image.info.clear()
    write_image(folder / picture.name, image, picture.infotext)


# --- networks


def _write_network(network: CardNetwork, folder: Path) -> CardNetwork:
    """Writes a network's files, reads them again, and returns it with their hashes.

    Raises:
        FileChanged: the library's file holds another network by now.
    """
    source, (safetensors, pt) = _source(network.row), network.files
    save(source, folder / safetensors.name)
    if pt.is_original and loads_in_a1111(source):
        _copy(source, folder / pt.name)
    else:
        save(source, folder / pt.name)
        pt = replace(pt, is_original=False)
    files = _written(safetensors, network, folder), _written(pt, network, folder)
    return replace(network, files=files, source_sha256=None if pt.is_original else source_sha256(source))


def _copy(source: Hypernetwork, target: Path) -> None:
    """Writes the bytes of the file that a network was read from."""
    original = source.source
    assert original is not None
    with new_file(target) as file:
        for offset in range(0, original.size, _CHUNK):
            file.write(original.read_at(offset, min(_CHUNK, original.size - offset)))


def _written(file: CardFile, network: CardNetwork, folder: Path) -> CardFile:
    """Returns a file with what it is on the disk; raises FileChanged if it is not this network."""
    with OpenFile(folder / file.name) as written:
        hashes = hash_file(written, read_network(written))
    if hashes.content_hash != network.row["content_hash"]:
        raise FileChanged(f"{network.row['name']}: its file holds another network by now", hint="hnetkit scan")
    return replace(file, size_bytes=written.size, sha256=hashes.sha256)
