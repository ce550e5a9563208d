"""What an image is drawn again with that its settings do not say, or say otherwise: one line for each difference."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from hnetkit.formats.open_file import OpenFile
from hnetkit.generate.image_settings import ImageSettings, RecordedFile
from hnetkit.generate.loading.pipeline import LoadedPipeline
from hnetkit.generate.options import SECOND_DENOISING, SECOND_PASS, DrawOptions
from hnetkit.generate.prompt_networks import ResolvedNetwork
from hnetkit.hashes import autov1_of
from hnetkit.library.known_hashes import hash_of_file
from hnetkit.network import Hypernetwork
from hnetkit.prompts.chunks import WordsOf
from hnetkit.prompts.schedule import split_and
from hnetkit.prompts.tags import Tag, excerpt, split_tags

if TYPE_CHECKING:
    from hnetkit.generate.sampling.encoding import TextEncoder

_ACTIVATIONS_OF_COMFYUI = frozenset(
    {"linear", "relu", "leakyrelu", "elu", "swish", "tanh", "sigmoid", "softsign", "mish"}
)
_OF_THE_MODEL = {"steps": "steps", "sampler": "sampler", "cfg_scale": "CFG scale", "width": "size"}


def unsaid(recorded: ImageSettings, options: DrawOptions, prompt: str | None, seed: int | None) -> Iterator[str]:
    """Yields what is drawn with because neither the image's settings nor the options say it.

    Args:
        options: with those of the image.
        prompt: that is drawn instead of the image's.
        seed: that was asked for.
    """
    if prompt is None and recorded.prompt is not None and not split_tags(recorded.prompt).text.strip():
        yield "its prompt is empty"
    missing = [label for name, label in _OF_THE_MODEL.items() if getattr(options, name) is None]
    if missing:
        yield f"it does not say: {', '.join(missing)}; the model's own are used"
    if options.has_second_pass and options.denoising is None and not SECOND_PASS.isdisjoint(recorded.options):
        unsaid_strength = "it does not say how strongly its second pass repaints the first"
        yield f"{unsaid_strength}: {SECOND_DENOISING} is used, --denoising N"
    if "variation_strength" in recorded.options and options.variation_strength and options.variation_seed is None:
        yield "it does not say its variation seed; 0 is used: --variation-seed N"
    if recorded.seed is None and seed is None:
        yield "it says no seed; a random one is used"


def other_second_pass(recorded: ImageSettings, options: DrawOptions, prompt: str | None) -> Iterator[str]:
    """Yields what becomes of the image's second pass beside other options.

    Args:
        options: without those of the image.
        prompt: that is drawn instead of the image's.
    """
    if SECOND_PASS.isdisjoint(recorded.options):
        return
    if options.image is not None:
        yield "its second pass is left out: --image begins with a picture"
        return
    given = {"prompt": prompt, "negative_prompt": options.negative_prompt, "steps": options.steps}
    for name, value in given.items():
        own = recorded.options.get(f"hires_{name}")
        if value is not None and getattr(options, f"hires_{name}") is None and own not in (None, 0):
            option = f"--hires-{name.replace('_', '-')} {'N' if name == 'steps' else 'TEXT'}"
            yield f"its second pass keeps its own {name.replace('_', ' ')}: {option}"
    size = recorded.options.get("hires_size")
    first = [(getattr(options, side), recorded.options.get(side)) for side in ("width", "height")]
    if size and not options.has_second_pass and any(given not in (None, own) for given, own in first):
        yield f"its second pass keeps its own size, {size[0]}x{size[1]}: --hires-size or --hires-scale"


def networks_replaced(recorded: ImageSettings, prompt: str, tags: Iterable[Tag]) -> Iterator[str]:
    """Yields which networks and LoRAs of the image go with its prompt, in whose place is another.

    Args:
        prompt: that is drawn, with tags.
        tags: of the networks that are drawn with it.
    """
    if recorded.prompt is None or prompt == recorded.prompt:
        return
    own, drawn = split_tags(recorded.prompt), {tag.name for tag in tags}
    loras = {lora.name for lora in split_tags(prompt).loras}
    gone = [tag.name for tag in own.tags if tag.name not in drawn]
    gone += [lora.name for lora in own.loras if lora.name not in loras]
    if gone:
        listed = ", ".join(map(excerpt, dict.fromkeys(gone)))
        yield f"PROMPT is drawn in place of its own, so without its networks: {listed}; add their tags to PROMPT"


def other_first_picture(recorded: ImageSettings, options: DrawOptions) -> Iterator[str]:
    """Yields in what image-to-image begins otherwise."""
    image, mask = recorded.files.get("image"), recorded.files.get("mask")
    if image is None:
        return
    if options.image is None:
        masked = " --mask FILE" if mask is not None else ""
        named = ", ".join(str(file) for file in (image, mask) if file is not None and str(file))
        yield (
            f"it was drawn over another picture{f' ({named})' if named else ''}, which is not in it: "
            f"--image FILE{masked}. Without it, it is drawn from noise alone"
        )
        return
    if _is_another(image, options.image):
        yield f"made over {image}; {options.image} is another file"
    if mask is not None and options.mask is None:
        yield "it was repainted under a mask, which is not in it: --mask FILE"
    elif mask is not None and options.mask is not None and _is_another(mask, options.mask):
        yield f"made under the mask {mask}; {options.mask} is another file"


def other_model(recorded: ImageSettings, loaded: LoadedPipeline) -> Iterator[str]:
    """Yields with which other model and autoencoder it is drawn."""
    model, vae, parts = (recorded.files.get(name) for name in ("model", "vae", "parts"))
    if model is not None and not _is_same_model(model, loaded):
        made_with = model if model.name else f"the model {model}"
        yield f"made with {made_with}, drawn with {loaded.name} [{loaded.hash}]"
    elif (
        parts
        and loaded.parts_hash
        and (vae is None) == (loaded.vae is None)  # else the model's own is in one of the hashes alone
        and not _agree(parts.hash, loaded.parts_hash)
    ):
        others = f"its text encoder, tokenizer{', autoencoder' if vae is None else ''} or scheduler"
        yield f"made with {model or loaded.name}, of which other files are here: {others} may be another"
    if vae is None:
        if loaded.vae is not None:
            yield f"it names no VAE, drawn with {loaded.vae.name} [{loaded.vae.hash}]"
    elif loaded.vae is None:
        yield f"made with the VAE {vae}, drawn with the model's own: --vae FILE"
    elif vae.hash and not _agree(vae.hash, loaded.vae.hash):
        yield f"made with the VAE {vae}, drawn with {loaded.vae.name} [{loaded.vae.hash}]"


def other_chunks(recorded: ImageSettings, encoder: TextEncoder, texts: Iterable[str]) -> Iterator[str]:
    """Yields whether an image's own prompts are longer than a chunk, which ComfyUI and its like end elsewhere.

    Args:
        texts: prompts of the image that are drawn, without tags.
    """
    if recorded.program and any(encoder.is_divided(part) for text in texts for part, _ in split_and(text)):
        where = f"{recorded.program} ends a chunk of its tokens at a word, and A1111 at a comma"
        yield f"its prompt is longer than a chunk: {where}, so the picture may differ"


def networks_of_comfyui(recorded: ImageSettings, networks: Iterable[ResolvedNetwork]) -> Iterator[str]:
    """Yields what ComfyUI's own loader made of the image's networks otherwise than A1111; docs/comfyui.md has a table.

    Source: comfyanonymous/ComfyUI comfy_extras/nodes_hypernetwork.py (behavior only).
    """
    for network in networks:
        if network.name in recorded.loaded_by_comfyui and (what := made_by_comfyui(network.network)):
            yield f"ComfyUI's own loader {what} of {excerpt(network.name)}: the picture will differ"


def made_by_comfyui(network: Hypernetwork) -> str | None:
    """Returns what ComfyUI's own loader makes otherwise of a network; None if it makes the same."""
    stated = network.metadata
    activation = stated.get("activation_func", "linear")
    if activation not in _ACTIVATIONS_OF_COMFYUI:
        return f"knows no activation {activation}, and makes nothing"
    layers = (len(network.layer_structure) - 1) * (2 if network.layer_norm else 1)
    if stated.get("use_dropout") and (layers > 2 or stated.get("last_layer_dropout")):
        return "keeps the dropout"
    ends_in_activation = bool(stated.get("activate_output", False)) or network.layer_norm
    if activation != "linear" and ends_in_activation != network.activate_output:
        return f"{'adds an' if ends_in_activation else 'omits the'} activation at the end"
    return None


def other_embeddings(recorded: ImageSettings, found: Mapping[str, str], texts: Iterable[str]) -> Iterator[str]:
    """Yields in which textual inversions an image's own prompts are read otherwise.

    Args:
        found: stem -> beginning of the sha256 of each file that the prompts name.
        texts: what the text encoder reads of those prompts that are drawn.
    """
    read = WordsOf(texts)
    drawn = {stem.casefold(): stem for stem in found if read.have(stem)}
    made = {name.casefold(): name for name in recorded.embeddings}
    if absent := [name for key, name in made.items() if key not in drawn and read.have(name)]:
        names = ", ".join(map(excerpt, absent))
        yield f"made with the textual inversions {names}, drawn as plain words: hnetkit config embeddings FOLDER"
    for key, stem in drawn.items():
        then = recorded.hashes.get(f"embed:{made[key]}", "") if key in made else ""
        if then and not _agree(then, found[stem]):
            yield f"made with the textual inversion {excerpt(stem)} [{then[:10]}], drawn with another [{found[stem]}]"
    if added := [stem for key, stem in drawn.items() if key not in made]:
        names = ", ".join(map(excerpt, added))
        yield f"drawn with the textual inversions {names}, which it does not name: words of it are read as them"


def _is_same_model(model: RecordedFile, loaded: LoadedPipeline) -> bool:
    if not model.hash:
        return model.name.casefold() in (loaded.name.casefold(), loaded.weights.name.casefold())
    if len(model.hash) > 8:
        return _agree(model.hash, loaded.hash)
    with OpenFile(loaded.weights) as file:
        return model.hash == autov1_of(file)


def _is_another(recorded: RecordedFile, path: str | os.PathLike[str]) -> bool:
    return bool(recorded.hash) and not _agree(recorded.hash, hash_of_file(path))


def _agree(one: str, other: str) -> bool:
    return one.startswith(other) or other.startswith(one)
