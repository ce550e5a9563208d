"""The model card: ``README.md`` with the fields that the hub reads, and what a person wants to know of the networks.

Names, descriptions and trigger words come from strangers: in the fields they are YAML scalars, in the text words, and
neither can become anything else. What is not known is left out.

Source: huggingface/hub-docs, modelcard.md and docs/hub/model-cards.md.
"""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias
from urllib.parse import quote

from hnetkit.library.suggestions import suggested_strength
from hnetkit.ratings import is_adult
from hnetkit.sharing.licenses import License, permissions
from hnetkit.text import argument, counted, in_code, in_markdown, in_yaml, size_text, without_markup

Row = Mapping[str, Any]
Yaml: TypeAlias = "str | Sequence[Yaml] | Mapping[str, Yaml]"

SOMEWHERE = "OWNER/REPO"
"""Stands for the repository in a card until it is uploaded."""

NO_PROMPT = "-"
"""The text of a picture whose prompt is not known; the hub wants one, and its own pages write this."""

_FOR = {
    "sd1": "Stable Diffusion 1",
    "sd2": "Stable Diffusion 2",
    "sd1-or-sd2": "Stable Diffusion 1 and 2",
    "sdxl": "Stable Diffusion XL",
    "sdxl-refiner": "the refiner of Stable Diffusion XL",
}
# Civitai's name of a base model, or ours -> its repository. Not there: names that several repositories could be
_REPOSITORIES = {
    "SD 1.4": "CompVis/stable-diffusion-v1-4",
    "SD 1.5": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "SD 2.0 768": "stabilityai/stable-diffusion-2",
    "SD 2.1 768": "stabilityai/stable-diffusion-2-1",
    "sd1": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "sdxl": "stabilityai/stable-diffusion-xl-base-1.0",
    "sdxl-refiner": "stabilityai/stable-diffusion-xl-refiner-1.0",
}
_FITTING = {"SD 1.4": ("sd1", "sd1-or-sd2"), "SD 1.5": ("sd1", "sd1-or-sd2")}
_FITTING |= {"SD 2.0 768": ("sd2", "sd1-or-sd2"), "SD 2.1 768": ("sd2", "sd1-or-sd2")}
_NAMED = 5  # networks in the heading
_SITES = {
    "civitai": ("Civitai", "https://civitai.com/user/"),
    "huggingface": ("Hugging Face", "https://huggingface.co/"),
}


@dataclass(frozen=True, slots=True)
class CardFile:
    """A file of a network.

    Attributes:
        name: in the repository.
        size_bytes, sha256: None while it is not written.
        is_original: whether its bytes are those of the library's file.
    """

    name: str
    size_bytes: int | None = None
    sha256: str | None = None
    is_original: bool = False


@dataclass(frozen=True, slots=True)
class CardNetwork:
    """A network.

    Attributes:
        stem: of its files' names, by which prompts call it.
        row: that of `Library.record`.
        license: that is known of it, or was chosen.
        files: the ``.safetensors`` file, then the ``.pt`` file.
        source_sha256: of the file that both were converted from; None where the ``.pt`` is that file.
    """

    stem: str
    row: Row
    license: License
    files: tuple[CardFile, CardFile]
    source_sha256: str | None = None

    @property
    def words(self) -> list[str]:
        """Its trigger words, as sites and sidecars state them."""
        found = [word for site in self.row["sites"] for word in site["trained_words"] or ()]
        found += [text for sidecar in self.row["sidecars"] if (text := sidecar.get("activation_text"))]
        return list(dict.fromkeys(word.strip() for word in found if word.strip()))

    @property
    def strength(self) -> tuple[float, str] | None:
        """A strength, and whose it is; None where nobody states one."""
        return suggested_strength(self.row)

    @property
    def base_repository(self) -> str | None:
        """The repository of the model that it is for; None where that is not certain."""
        own = self.row["base_model"]
        for site in self.row["sites"]:
            if own in _FITTING.get(site["site_base_model"], ()):
                return _REPOSITORIES[site["site_base_model"]]
        return _REPOSITORIES.get(own)


@dataclass(frozen=True, slots=True)
class CardPicture:
    """A picture: its place in the repository, and its prompt, None where that is not known."""

    url: str
    prompt: str | None


def card_text(
    networks: Sequence[CardNetwork], pictures: Sequence[CardPicture], license: License, *, repo: str = SOMEWHERE
) -> str:
    """Returns the content of ``README.md``.

    Args:
        repo: ``owner/repo``, for the lines that people copy.
    """
    lines: list[str] = ["---", *_yaml_lines(_fields(networks, pictures, license)), "---", ""]
    stems = [network.stem for network in networks[:_NAMED]]
    more = f" and {len(networks) - _NAMED} more" if len(networks) > _NAMED else ""
    lines += [f"# {in_markdown(', '.join(stems) + more)}", "", _what_it_is(networks), ""]
    lines += ["<Gallery />", ""] if pictures else []
    lines += _use(networks, repo)
    for network in networks:
        lines += [f"## {in_markdown(network.stem)}", ""]
        lines += [*_facts(network), "", *_files(network), *_description(network.row["sites"])]
    return "\n".join(lines).rstrip() + "\n"


# --- the fields


def _fields(networks: Sequence[CardNetwork], pictures: Sequence[CardPicture], license: License) -> dict[str, Yaml]:
    bases = list(dict.fromkeys(base for network in networks if (base := network.base_repository)))
    words = networks[0].words if len(networks) == 1 else []
    fields: dict[str, Yaml | None] = {
        **license.fields,
        "library_name": "hnetkit",
        "pipeline_tag": "text-to-image",
        "base_model": bases[0] if len(bases) == 1 else bases,
        "base_model_relation": "adapter" if bases else None,
        "tags": _tags(networks),
        "instance_prompt": ", ".join(words),
        "widget": [{"text": it.prompt or NO_PROMPT, "output": {"url": it.url}} for it in pictures],
    }
    return {key: value for key, value in fields.items() if value}


def _tags(networks: Sequence[CardNetwork]) -> list[str]:
    tags = ["hypernetwork", "stable-diffusion"]
    if any(network.row["base_model"].startswith("sdxl") for network in networks):
        tags.append("stable-diffusion-xl")
    sites = [site for network in networks for site in network.row["sites"]]
    if any(is_adult(site["nsfw_level"]) for site in sites):
        tags.append("not-for-all-audiences")
    # of the hub's own tags, those with a colon are made from the fields of a card
    return list(dict.fromkeys([*tags, *(tag for site in sites for tag in site["tags"] or () if ":" not in tag)]))


def _yaml_lines(value: Yaml, indent: str = "") -> Iterator[str]:
    """Yields the lines of a mapping or a sequence."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if isinstance(item, str):
                yield f"{indent}{key}: {in_yaml(item)}"
            else:
                yield f"{indent}{key}:"
                yield from _yaml_lines(item, indent if not isinstance(item, Mapping) else f"{indent}  ")
    else:
        for item in value:
            if isinstance(item, str):
                yield f"{indent}- {in_yaml(item)}"
            else:
                first, *others = _yaml_lines(item, f"{indent}  ")
                yield f"{indent}- {first.lstrip()}"
                yield from others


# --- the text


def _what_it_is(networks: Sequence[CardNetwork]) -> str:
    known = list(dict.fromkeys(_FOR.get(network.row["base_model"], "Stable Diffusion") for network in networks))
    is_one = len(networks) == 1
    what = "A hypernetwork" if is_one else f"{len(networks)} hypernetworks"
    it = "It changes" if is_one else "They change"
    return (
        f"{what} for {' and '.join(known)}. {it} the contexts of the UNet's attention layers before these project them "
        "to K and V, and so the style of the pictures."
    )


def _use(networks: Sequence[CardNetwork], repo: str) -> Iterator[str]:
    safetensors, pt = (file.name for file in networks[0].files)
    tag = f"<hypernet:{networks[0].stem}:{_plain(networks[0].strength[0] if networks[0].strength else 1.0)}>"
    yield from ["## Use", ""]
    if words := [word for network in networks for word in network.words]:
        yield from [f"Trigger words: {', '.join(in_code(word) for word in dict.fromkeys(words))}", ""]
    yield f"- **AUTOMATIC1111**: put {in_code(pt)} into `models/hypernetworks`, and write {in_code(tag)} in the prompt."
    yield "- **Forge, reForge**: the same, with the extension that `hnetkit link ~/forge --extension` installs."
    yield f"- **ComfyUI**: put {in_code(safetensors)} into `models/hypernetworks`, and use the nodes that"
    yield "  `hnetkit link ~/ComfyUI --node` installs."
    yield from ["", "In Python, with diffusers:", ""]
    base = networks[0].base_repository or "MODEL"
    yield from _fenced(
        "python",
        [
            "import hnetkit",
            "from diffusers import DiffusionPipeline",
            "",
            f"pipe = DiffusionPipeline.from_pretrained({_literal(base)})",
            f"hnetkit.load_hypernetwork(pipe, {_literal(repo)}, weight_name={_literal(safetensors)})",
        ],
    )
    yield from ["", "Into hnetkit's library:", ""]
    which = glob.escape(safetensors) if len(networks) == 1 else "*.safetensors"
    yield from [*_fenced("bash", [f"hnetkit pull {argument(f'hf:{repo}:{which}')}"]), ""]


def _literal(text: str) -> str:
    """Returns a text as Python writes it, in double quotes."""
    return json.dumps(text, ensure_ascii=False)


def _fenced(language: str, lines: Sequence[str]) -> list[str]:
    longest = max((len(run) for line in lines for run in re.findall("`+", line)), default=0)
    fence = "`" * max(3, longest + 1)
    return [f"{fence}{language}", *lines, fence]


def _facts(network: CardNetwork) -> Iterator[str]:
    row = network.row
    facts: list[tuple[str, str | None]] = [
        ("For", _FOR.get(row["base_model"])),
        ("Trigger words", ", ".join(in_code(word) for word in network.words)),
        ("Strength", f"{_plain(network.strength[0])} ({network.strength[1]})" if network.strength else None),
        ("Layer structure", _structure(row)),
        ("Widths", ", ".join(map(str, row["widths"]))),
        ("Weights", f"{row['parameters']:,} in {row['dtype']}"),
        ("Trained", counted(row["step"], "step") if row["step"] is not None else None),
        ("Trained on", in_code(row["trained_on"]) if row["trained_on"] else None),
        *(fact for site in row["sites"] for fact in _site(site)),
        ("License", _license(network)),
        ("Content hash", in_code(row["content_hash"])),
    ]
    yield from (f"- **{label}:** {text}" for label, text in dict.fromkeys(facts) if text)


def _structure(row: Row) -> str:
    build = [f"[{', '.join(f'{part:g}' for part in row['layer_structure'])}] {row['activation']}"]
    build += ["layer norm"] if row["layer_norm"] else []
    build += ["activated output"] if row["activate_output"] and row["activation"] != "linear" else []
    build += [f"dropout {', '.join(f'{part:g}' for part in row['dropout'])}"] if any(row["dropout"]) else []
    return in_markdown(", ".join(build))


def _site(site: Row) -> Iterator[tuple[str, str | None]]:
    name, people = _SITES[site["source"]]
    is_known = site["model_state"] == site["version_state"] == "listed"
    version = "" if site["source"] == "huggingface" else f", {site['version']}"
    title = in_markdown(f"{site['model']}{version}")
    whose = ", as others tell: the site was not asked" if site["is_told"] else ""
    yield "Source", f"[{title}]({site['link']}) at {name}{'' if is_known else ', which is no longer there'}{whose}"
    if site["creator"]:
        creator = in_markdown(site["creator"])
        # who made what somebody else archived on the hub need not be there
        is_owner = site["model_id"].removeprefix("datasets/").startswith(f"{site['creator']}/")
        is_there = not site["is_told"] and (site["source"] != "huggingface" or is_owner)
        yield "Creator", f"[{creator}]({people}{quote(site['creator'], safe='')})" if is_there else creator
    if site["source"] == "civitai" and not site["is_told"] and (said := permissions(site)):
        yield "Permissions", f"{in_markdown(said)} (as stated at {name})"


def _license(network: CardNetwork) -> str:
    known = network.license
    name = in_code(known.name or known.id or "unknown")
    return f"[{name}]({known.link})" if known.link else name


def _files(network: CardNetwork) -> Iterator[str]:
    made = [file for file in network.files if file.sha256 is not None]
    if made:
        yield from ["| file | size | A1111's hash, AutoV2 | sha256 |", "| --- | --- | --- | --- |"]
        for file in made:
            short, sha256 = in_code((file.sha256 or "")[:10]), in_code(file.sha256 or "")
            yield f"| {in_code(file.name)} | {size_text(file.size_bytes or 0)} | {short} | {sha256} |"
        yield ""
    if any(file.is_original for file in network.files):
        yield from [f"{in_code(network.files[1].name)} is the original file, byte for byte.", ""]
    elif network.source_sha256 is not None:
        yield from [f"Both were converted from the file with the sha256 {in_code(network.source_sha256)}.", ""]


def _description(sites: Iterable[Row]) -> Iterator[str]:
    """Yields a site's description as a quotation; the first of several."""
    for site in sites:
        if lines := without_markup(site["description"] or "").splitlines():
            yield from [f"{_SITES[site['source']][0]} says:", ""]
            yield "\n>\n".join(f"> {in_markdown(line)}" for line in lines)
            yield ""
            return


def _plain(number: float) -> str:
    return f"{number:g}"
