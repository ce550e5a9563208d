"""What is known about ComfyUI's nodes: their settings in order, what says nothing, and A1111's names for theirs."""

from __future__ import annotations

from collections.abc import Mapping

# ComfyUI's name -> A1111's
SAMPLERS = {
    "euler": "Euler",
    "euler_ancestral": "Euler a",
    "heun": "Heun",
    "dpm_2": "DPM2",
    "dpm_2_ancestral": "DPM2 a",
    "lms": "LMS",
    "dpm_fast": "DPM fast",
    "dpm_adaptive": "DPM adaptive",
    "dpmpp_2s_ancestral": "DPM++ 2S a",
    "dpmpp_sde": "DPM++ SDE",
    "dpmpp_sde_gpu": "DPM++ SDE",
    "dpmpp_2m": "DPM++ 2M",
    "dpmpp_2m_sde": "DPM++ 2M SDE",
    "dpmpp_2m_sde_gpu": "DPM++ 2M SDE",
    "dpmpp_2m_sde_heun": "DPM++ 2M SDE Heun",
    "dpmpp_2m_sde_heun_gpu": "DPM++ 2M SDE Heun",
    "dpmpp_3m_sde": "DPM++ 3M SDE",
    "dpmpp_3m_sde_gpu": "DPM++ 3M SDE",
    "ddim": "Euler",  # which it is there, on the levels of any scheduler
    "uni_pc": "UniPC",
    "lcm": "LCM",
}
_NOISE_OF_THE_GPU = "takes its noise from the GPU, and here from the CPU"
_ONE_LEVEL_MORE = "samples at the level before the last, which A1111 leaves out"
SAMPLED_OTHERWISE = {
    "dpmpp_sde_gpu": _NOISE_OF_THE_GPU,
    "dpmpp_2m_sde_gpu": _NOISE_OF_THE_GPU,
    "dpmpp_2m_sde_heun_gpu": _NOISE_OF_THE_GPU,
    "dpmpp_3m_sde": _ONE_LEVEL_MORE,
    "dpmpp_3m_sde_gpu": f"{_NOISE_OF_THE_GPU}; it {_ONE_LEVEL_MORE}",
    "uni_pc": "samples at the levels of its scheduler, and in A1111 at its own",
}
"""ComfyUI's name of a sampler -> what it does otherwise than A1111's of the name."""

SCHEDULERS = {
    "normal": "Normal",
    "karras": "Karras",
    "exponential": "Exponential",
    "sgm_uniform": "SGM Uniform",
    "simple": "Simple",
    "ddim_uniform": "DDIM",
    "beta": "Beta",
    "kl_optimal": "KL Optimal",
}
LATENT_UPSCALERS = {
    "bilinear": "Latent",
    "nearest-exact": "Latent (nearest-exact)",
    "bicubic": "Latent (bicubic)",
}
IMAGE_UPSCALERS = {"lanczos": "Lanczos", "nearest-exact": "Nearest"}

WIDGETS: Mapping[str, tuple[str, ...]] = {
    "KSampler": ("seed", "", "steps", "cfg", "sampler_name", "scheduler", "denoise"),
    "KSamplerAdvanced": (
        "add_noise",
        "noise_seed",
        "",
        "steps",
        "cfg",
        "sampler_name",
        "scheduler",
        "start_at_step",
        "end_at_step",
        "return_with_leftover_noise",
    ),
    "SamplerCustom": ("add_noise", "noise_seed", "", "cfg"),
    "SamplerCustomAdvanced": (),
    "RandomNoise": ("noise_seed",),
    "KSamplerSelect": ("sampler_name",),
    "BasicScheduler": ("scheduler", "steps", "denoise"),
    "CFGGuider": ("cfg",),
    "CLIPTextEncode": ("text",),
    "CLIPTextEncodeSDXL": ("width", "height", "crop_w", "crop_h", "target_width", "target_height", "text_g", "text_l"),
    "ConditioningCombine": (),
    "ConditioningConcat": (),
    "CheckpointLoaderSimple": ("ckpt_name",),
    "CheckpointLoader": ("config_name", "ckpt_name"),
    "UNETLoader": ("unet_name", "weight_dtype"),
    "HypernetworkLoader": ("hypernetwork_name", "strength"),
    "HnetkitHypernetworkLoader": (
        "hypernetwork_name",
        "strength",
        "k",
        "v",
        "self_attention",
        "cross_attention",
        "start",
        "end",
        "blocks",
    ),
    "HnetkitHypernetworkStack": tuple(
        f"{name}_{number}" for number in range(1, 6) for name in ("hypernetwork", "strength")
    ),
    "HnetkitHypernetworksFromTags": ("text",),
    "LoraLoader": ("lora_name", "strength_model", "strength_clip"),
    "LoraLoaderModelOnly": ("lora_name", "strength_model"),
    "CLIPSetLastLayer": ("stop_at_clip_layer",),
    "EmptyLatentImage": ("width", "height", "batch_size"),
    "LatentUpscale": ("upscale_method", "width", "height", "crop"),
    "LatentUpscaleBy": ("upscale_method", "scale_by"),
    "ImageScale": ("upscale_method", "width", "height", "crop"),
    "ImageScaleBy": ("upscale_method", "scale_by"),
    "ImageUpscaleWithModel": (),
    "UpscaleModelLoader": ("model_name",),
    "LoadImage": ("image",),
    "LoadImageOutput": ("image",),
    "LoadImageMask": ("image", "channel"),
    "VAELoader": ("vae_name",),
    "VAEEncode": (),
    "SetLatentNoiseMask": (),
    "VAEDecode": (),
    "ControlNetLoader": ("control_net_name",),
    "ControlNetApply": ("strength",),
    "ControlNetApplyAdvanced": ("strength", "start_percent", "end_percent"),
    "SaveImage": ("filename_prefix",),
    "SaveImageAdvanced": ("filename_prefix", "format"),
    "PreviewImage": (),
    "Reroute": (),
    "PrimitiveNode": ("value",),
    "PrimitiveInt": ("value",),
    "PrimitiveFloat": ("value",),
    "PrimitiveBoolean": ("value",),
    "PrimitiveString": ("value",),
    "PrimitiveStringMultiline": ("value",),
    "StringConcatenate": ("string_a", "string_b", "delimiter"),
}
"""Class of a node that is taken over -> its widgets in the editor, in order; "" is one that is not an input.

On the way to an image, a node of another class is listed as not taken over.
"""

NEUTRAL: Mapping[str, Mapping[str, tuple[object, ...]]] = {
    "SamplerCustom": {"add_noise": (True, "enable")},
    "UNETLoader": {"weight_dtype": ("default",)},
    "EmptyLatentImage": {"batch_size": (1,)},
    "CLIPTextEncodeSDXL": {"crop_w": (0,), "crop_h": (0,)},
    "LatentUpscale": {"crop": ("disabled", "center")},
    "ImageScale": {"crop": ("disabled",)},
}
"""Class -> input without equivalent -> the values with which it changes nothing; others are listed."""
