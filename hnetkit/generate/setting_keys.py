"""The keys in an infotext that say nothing about how to draw the image, and other names of those that do.

Every other key shaped the image: `hnetkit.generate.image_settings` takes it over, or lists it in a warning. A key that
no table knows is listed.

Source: AUTOMATIC1111/stable-diffusion-webui 1.10 (modules/processing.py, shared_options.py), vladmandic/automatic
(modules/processing_info.py), lllyasviel/stable-diffusion-webui-forge, adieyal/sd-dynamic-prompts, Civitai (behavior
only).
"""

from __future__ import annotations

from collections.abc import Mapping

OTHER_NAMES: Mapping[str, str] = {
    "Variation strength": "Variation seed strength",
    "Sampler eta delta": "ENSD",
    "Hires scale": "Hires upscale",
    "Hires size": "Hires resize",
}
"""SD.Next's name of a key -> A1111's, which goes first."""

EMBEDDINGS = ("Used embeddings", "Embeddings")
"""The names of textual inversions: A1111's key of 2022, in which ComfyUI's graphs are read too, and SD.Next's."""

COMFYUI_LOADER = "ComfyUI loader"
"""The names of the networks of a graph that ComfyUI's own loader applied, which computes some of them otherwise."""

WITHOUT_EFFECT = frozenset(
    {
        # read by `hnetkit.prompts.infotext`: networks, hashes, and the prompt before its wildcards were filled in
        "Hashes",
        "Hypernet",
        "Hypernet hash",
        "Hypernet hashes",
        "Hypernet strength",
        "Hypernetwork strength",
        "Hypernetworks",
        "Hypernetworks Strengths",
        "Lora hashes",
        "Negative Template",
        "Raw negative prompt",
        "Raw prompt",
        "TI hashes",
        "Template",
        "Wildcard negative prompt",
        "Wildcard prompt",
        # compared with the files that draw
        "Model",
        "Model hash",
        "Model parts hash",
        "VAE",
        "VAE hash",
        *EMBEDDINGS,
        COMFYUI_LOADER,
        # by whom, when and with which program; its place in a batch, whose seed is the image's own
        "App",
        "Backend",
        "Batch",
        "Batch pos",
        "Batch size",
        "Civitai metadata",
        "Civitai resources",
        "Created Date",
        "Index",
        "LoRA tags",
        "Operations",
        "Pipeline",
        "Second pass",
        "Styles",
        "Sys VRAM",
        "Time taken",
        "Torch active/reserved",
        "User",
        "Version",
    }
)
"""Keys that shape nothing, or that are read elsewhere."""

IDLE_VALUES: Mapping[str, frozenset[str]] = {
    key: frozenset(values)
    for key, values in {
        "Conditional mask weight": ("1", "1.0"),
        "Face restoration": ("None", "False"),
        "FP8 weight": ("Disable",),
        "Hires checkpoint": ("Use same checkpoint",),
        "Hires sampler": ("Use same sampler",),
        "Hires schedule type": ("Use same scheduler",),
        "Inpaint area": ("Whole picture",),
        "Noise multiplier": ("1", "1.0"),
        "Parser": ("A1111", "Full parser", "a1111"),
        "Refiner": ("None",),
        "Seed resize from": ("0x0", "-1x-1"),
        "Tiling": ("False",),
        "VAE Decoder": ("Full",),
        "VAE Encoder": ("Full",),
    }.items()
}
"""Key -> the values at which it changes nothing."""
