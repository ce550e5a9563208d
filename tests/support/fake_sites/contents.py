"""The bytes behind every file of the made-up catalogue: real hypernetwork files, made when first asked for."""

from __future__ import annotations

import hashlib
import io
import tempfile
import threading
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

import hnetkit
from support import networks
from support.fake_sites.pictures import picture

FileKind = Literal["network", "safetensors", "networks zip", "training zip", "vae", "html", "lora"]
_COMMON_BYTES = 1 << 17
_common: dict[tuple[Recipe, tuple[int, ...], tuple[float, ...]], bytes] = {}
"""Small files that were made: the worlds of one process have most of them in common."""

HTML_LOOKALIKE = b"<!DOCTYPE html><html><head><title>Sign in</title></head><body>Please log in</body></html>\n" * 8


@dataclass(frozen=True)
class Recipe:
    """All that decides a file's bytes. Two files of one recipe are one content."""

    kind: FileKind
    seed: int
    name: str = "net"
    revision: int = 0


@dataclass(frozen=True)
class Facts:
    """What the site states of a file's bytes: true hashes, upper-case."""

    size: int
    hashes: Mapping[str, str]

    @classmethod
    def of(cls, content: bytes) -> Facts:
        sha256 = hashlib.sha256(content).hexdigest().upper()
        hashes = {}
        if len(content) >= 2 << 20:  # the site's scanner leaves AutoV1 out below
            hashes["AutoV1"] = hashlib.sha256(content[0x100000:0x110000]).hexdigest()[:8].upper()
        hashes |= {"AutoV2": sha256[:10], "SHA256": sha256, "CRC32": f"{zlib.crc32(content):08X}"}
        return cls(len(content), hashes)


class Contents:
    """File id -> bytes and facts. Bytes are kept in memory up to `cache_bytes`, facts for ever."""

    def __init__(self, widths: Sequence[int], structure: Sequence[float], cache_bytes: int = 1 << 30) -> None:
        self._widths = tuple(widths)
        self._structure = tuple(structure)
        self._cache_bytes = cache_bytes
        self._lock = threading.RLock()
        self._recipes: dict[int, Recipe] = {}
        self._cache: OrderedDict[Recipe, bytes] = OrderedDict()
        self._facts: dict[Recipe, Facts] = {}

    def define(self, file_id: int, recipe: Recipe) -> None:
        self._recipes[file_id] = recipe

    def copy(self, source: int, target: int) -> None:
        """Gives `target` the bytes of `source`."""
        self._recipes[target] = self._recipes[source]

    def put(self, file_id: int, content: bytes) -> None:
        """Gives a file bytes of a test's own, with true facts."""
        recipe = Recipe("network", -1 - file_id, "own")
        with self._lock:
            self._recipes[file_id], self._cache[recipe] = recipe, content
            self._facts[recipe] = Facts.of(content)

    def replace(self, file_id: int) -> None:
        """Other bytes under the same id."""
        with self._lock:
            recipe = self._recipes[file_id]
            self._recipes[file_id] = replace(recipe, seed=recipe.seed + 500_000, revision=recipe.revision + 1)

    def __contains__(self, file_id: object) -> bool:
        return file_id in self._recipes

    def __getitem__(self, file_id: int) -> bytes:
        with self._lock:
            recipe = self._recipes[file_id]
            if recipe not in self._cache:
                self._cache[recipe] = self._make(recipe)
                self._facts.setdefault(recipe, Facts.of(self._cache[recipe]))
                while len(self._cache) > 1 and sum(map(len, self._cache.values())) > self._cache_bytes:
                    self._cache.popitem(last=False)
            self._cache.move_to_end(recipe)
            return self._cache[recipe]

    def facts(self, file_id: int) -> Facts:
        with self._lock:
            recipe = self._recipes[file_id]
            if recipe not in self._facts:
                self[file_id]
            return self._facts[recipe]

    def _make(self, recipe: Recipe) -> bytes:
        of_all = (recipe, self._widths, self._structure)
        content = _common.get(of_all) or self._made(recipe)
        if len(content) <= _COMMON_BYTES:
            _common[of_all] = content
        return content

    def _made(self, recipe: Recipe) -> bytes:
        makers = {
            "network": self._network,
            "safetensors": self._safetensors,
            "networks zip": self._networks_zip,
            "training zip": self._training_zip,
            "vae": self._vae,
            "html": lambda _: HTML_LOOKALIKE,
            "lora": self._lora,
        }
        return makers[recipe.kind](recipe)

    def _network(self, recipe: Recipe) -> bytes:
        with torch.random.fork_rng(devices=[]):  # a test's own draws stay what they would have been
            content = networks.a1111_network(
                self._widths,
                self._structure,
                ("linear", "relu", "swish", "mish")[recipe.seed % 4],
                seed=recipe.seed,
                name=recipe.name,
            )
        # The global generator may be used by another thread meanwhile: the weights are drawn again from an own one.
        generator = torch.Generator().manual_seed(recipe.seed)
        for tensor in _tensors(content):
            tensor.normal_(0.0, 0.1, generator=generator)
        return _saved(content)

    def _safetensors(self, recipe: Recipe) -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "net.pt")
            source.write_bytes(self._network(recipe))
            target = Path(folder, "net.safetensors")
            hnetkit.save(hnetkit.load(source), target)
            return target.read_bytes()

    def _networks_zip(self, recipe: Recipe) -> bytes:
        parts = {
            f"{recipe.name}-{step}.pt": self._network(Recipe("network", recipe.seed + step, f"{recipe.name}-{step}"))
            for step in (1, 2)
        }
        return _zipped({**parts, "preview.png": picture(recipe.seed, (48, 48), "PNG")})

    def _training_zip(self, recipe: Recipe) -> bytes:
        pictures = {f"{index:02}.png": picture(recipe.seed + index, (32, 32), "PNG") for index in range(3)}
        return _zipped({**pictures, "00.txt": f"a picture by {recipe.name}".encode()})

    def _vae(self, recipe: Recipe) -> bytes:
        generator = torch.Generator().manual_seed(recipe.seed)
        keys = ("encoder.conv_in.weight", "decoder.conv_in.weight", "quant_conv.weight", "post_quant_conv.weight")
        return _saved({"state_dict": {key: torch.randn(4, 4, 3, 3, generator=generator) for key in keys}})

    def _lora(self, recipe: Recipe) -> bytes:
        generator = torch.Generator().manual_seed(recipe.seed)
        stem = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_k"
        shapes = {f"{stem}.lora_down.weight": (4, 8), f"{stem}.lora_up.weight": (8, 4)}
        return _saved({key: torch.randn(shape, generator=generator) for key, shape in shapes.items()})


def _tensors(content: Mapping[Any, Any]) -> Iterator[torch.Tensor]:
    for width, sides in content.items():
        if isinstance(width, int):
            for side in sides:
                yield from side.values()


def _saved(content: Any) -> bytes:
    target = io.BytesIO()
    torch.save(content, target)
    return target.getvalue()


def _zipped(members: Mapping[str, bytes]) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name, (2023, 2, 10, 18, 0, 0)), content)
    return target.getvalue()
