"""Whether the parts of a pipeline fit each other: each may be whole, and of another model than its neighbours."""

from __future__ import annotations

from typing import Any

from hnetkit.errors import ModelNotUsable

_HINT = "get the model again; its folder mixes parts of several models"
_FEWEST_TOKENS = 3  # a begin, an end, and one between


def require_fitting(pipe: Any, place: str) -> None:
    """Holds what each part of a pipeline takes against what the part before it gives.

    A tokenizer that says nothing of its window, as many do, gets that of its text encoder.

    Args:
        place: of the pipeline, for messages.

    Raises:
        ModelNotUsable: two parts do not fit; the message names them.
    """
    is_xl = hasattr(pipe, "text_encoder_2")
    encoders = [pipe.text_encoder, pipe.text_encoder_2] if is_xl else [pipe.text_encoder]
    tokenizers = [pipe.tokenizer, pipe.tokenizer_2] if is_xl else [pipe.tokenizer]
    for encoder, tokenizer in zip(encoders, tokenizers, strict=True):
        _require_window(tokenizer, encoder.config.max_position_embeddings, place)
    unet, vae = pipe.unet.config, pipe.vae.config
    _require_conditions(unet, encoders, place)
    width = sum(encoder.config.hidden_size for encoder in encoders)
    wanted = unet.cross_attention_dim if unet.encoder_hid_dim is None else unet.encoder_hid_dim
    if any(side != width for side in (wanted if isinstance(wanted, list | tuple) else [wanted])):
        raise _unfit(place, f"its text encoder gives {width} values, its UNet takes {wanted}")
    if vae.latent_channels != unet.out_channels:
        raise _unfit(place, f"its autoencoder has {vae.latent_channels} channels, its UNet {unet.out_channels}")
    if unet.in_channels not in (unet.out_channels, 2 * unet.out_channels + 1):  # the second of inpainting
        raise _unfit(place, f"its UNet takes {unet.in_channels} channels and gives {unet.out_channels}")


def _require_window(tokenizer: Any, window: int, place: str) -> None:
    stated = tokenizer.model_max_length
    if not isinstance(stated, int | float) or stated < _FEWEST_TOKENS or window < _FEWEST_TOKENS:
        raise _unfit(place, f"its tokenizer's model_max_length cannot be {str(stated)[:40]}")
    if type(stated) is not int or stated > window:
        tokenizer.model_max_length = window


def _require_conditions(unet: Any, encoders: list[Any], place: str) -> None:
    """What is told to a UNet beside its context: SDXL's sizes and pooled text, and nothing else."""
    added, hidden = unet.addition_embed_type, unet.encoder_hid_dim_type
    if hidden not in (None, "text_proj"):
        raise _unfit(place, f"its UNet takes {str(hidden)[:40]}, which no prompt gives")
    if len(encoders) == 1:
        if added not in (None, "text"):
            raise _unfit(place, f"its UNet takes {str(added)[:40]}, which only SDXL's pipeline gives")
        return
    if added != "text_time":
        raise _unfit(place, "its UNet is not SDXL's")
    if not hasattr(encoders[1], "text_projection"):
        raise _unfit(place, "its second text encoder has no projection")
    given = 6 * unet.addition_time_embed_dim + encoders[1].config.projection_dim
    if given != unet.projection_class_embeddings_input_dim:
        wanted = unet.projection_class_embeddings_input_dim
        raise _unfit(place, f"its second text encoder and the sizes give {given} values, its UNet takes {wanted}")


def _unfit(place: str, reason: str) -> ModelNotUsable:
    return ModelNotUsable(f"{place}: parts that do not fit: {reason}", hint=_HINT)
