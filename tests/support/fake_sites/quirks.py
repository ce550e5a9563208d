"""The oddities of the catalogue: which models have which, and how many files of which kind each holds.

Model number i has oddity i modulo 39. Two of three models hold one file of type Model, the third holds two;
where one has none (`training primary`), its neighbour has three, so that 300 models hold 400.
"""

from __future__ import annotations

from typing import Any

Model = dict[str, Any]
Layout = tuple[tuple[str, ...], ...]  # versions, each with its files' kinds
ONE: Layout = (("pt",),)
TWO: Layout = (("pt",), ("pt",))

QUIRKS: tuple[tuple[str, Layout], ...] = (
    ("plain", ONE),
    ("numeric username", ONE),
    ("out of order", TWO),
    ("no creator", ONE),
    ("null username", ONE),
    ("same name", (("pt", "pt"),)),
    ("collision", ONE),
    ("collision", ONE),
    ("same content", TWO),
    ("awkward name", ONE),
    ("emoji", ONE),
    ("two formats", (("pt", "safetensors"),)),
    ("uploaded name", ONE),
    ("training primary", (("training",),)),
    ("three files", (("pt", "pt", "safetensors"),)),
    ("archive", (("pt",), ("archive",))),
    ("training data", (("pt", "training"),)),
    ("two versions", TWO),
    ("no hashes", ONE),
    ("vae", (("vae",),)),
    ("trained words", TWO),
    ("html", (("html",),)),
    ("hypernet meta", ONE),
    ("video", TWO),
    ("null stats", ONE),
    ("archived", ONE),
    ("out of order", TWO),
    ("taken down", ONE),
    ("early access", ONE),
    ("early access over", TWO),
    ("private", ONE),
    ("generation only", ONE),
    ("two versions", TWO),
    ("poi", ONE),
    ("explicit", ONE),
    ("symbol versions", TWO),
    ("no images", ONE),
    ("odd base", ONE),
    ("two versions", TWO),
)
# What World.make(plain=True) puts in place of the models that nobody could list, fetch or load.
UNUSABLE = frozenset(
    {"training primary", "vae", "html", "archived", "taken down", "early access", "private", "generation only", "poi"}
)

NAMES = {
    "collision": "Glass Orchard",
    "awkward name": 'Ink: wash/etch * "what?" <x> | y\\z',
    "emoji": "Fox 🦊 Fire 🔥",
    "uploaded name": "最終の水彩",
    "symbol versions": "Akina Mix",
}
UPLOADED = "最終 版/final$.pt"
_LICENCES: tuple[Any, ...] = (["Image", "RentCivit"], "{Image,RentCivit}", "Sell", None, ["Sell"], "None", [], "{None}")
_META = {"Model hash": "deadbeef", "seed": 1, "steps": 20, "sampler": "Euler a", "cfgScale": 7}


def quirk_of(index: int, *, plain: bool) -> tuple[str, Layout]:
    """The oddity and the files of model number `index`."""
    name, layout = QUIRKS[index % len(QUIRKS)]
    if plain and (name in UNUSABLE or name == "three files"):
        return "plain", TWO if index % 3 == 2 else ONE
    return name, layout


def licence(index: int) -> dict[str, Any]:
    """The licence in one of its shapes."""
    return {
        "allowNoCredit": index % 6 != 1,
        "allowCommercialUse": _LICENCES[index % len(_LICENCES)],
        "allowDerivatives": index % 10 != 2,
        "allowDifferentLicense": index % 13 != 2,
    }


def change(quirk: str, model: Model, day: str) -> None:
    """Puts an oddity that is plain data into a model; `day` is a date of the past."""
    versions = model["modelVersions"]
    if quirk == "numeric username":
        model["creator"] = {"username": 1234567, "image": None}
    elif quirk == "no creator":
        del model["creator"]
    elif quirk == "null username":
        model["creator"] = {"username": None, "image": None}
    elif quirk == "out of order":  # the order is the creator's own: the newer version comes second
        versions[0]["publishedAt"], versions[1]["publishedAt"] = versions[1]["publishedAt"], versions[0]["publishedAt"]
    elif quirk == "trained words":
        versions[0]["trainedWords"] = ["nwcstyle", "ink wash "]
        del versions[1]["trainedWords"]
    elif quirk == "hypernet meta":
        _give_meta(model)
    elif quirk == "video":
        image = versions[0]["images"][0]
        url = image["url"].rsplit(".", 1)[0] + ".mp4"
        image |= {"type": "video", "url": url, "hash": None, "meta": {}, "hasMeta": False}
    elif quirk == "null stats":
        model["stats"] = {key: None for key in model["stats"]}
        versions[0]["stats"] = None
    elif quirk == "poi":
        model["poi"] = True
    elif quirk == "explicit":
        _set_level(model, 28)
    elif quirk == "no images":
        versions[0]["images"] = []
        model["description"] = None
    elif quirk == "odd base":
        versions[0] |= {"baseModel": "SD 9.9 Turbo-ish", "baseModelType": None}
        model["baseModels"] = ["SD 9.9 Turbo-ish"]
    elif quirk == "early access over":
        versions[0]["earlyAccessDeadline"] = day


def _give_meta(model: Model) -> None:
    for version in model["modelVersions"]:
        stem = version["files"][0]["name"].rpartition(".")[0]
        for image in version["images"]:
            image["hasMeta"] = True
            image["meta"] = {
                "Hypernet": stem,
                "Hypernet strength": "0.8",
                **_META,
                "prompt": f"harbour at night <hypernet:{stem}:0.8>",
            }


def _set_level(model: Model, level: int) -> None:
    model |= {"nsfw": True, "nsfwLevel": level}
    for version in model["modelVersions"]:
        version["nsfwLevel"] = level
        for image in version["images"]:
            image["nsfwLevel"] = 8
