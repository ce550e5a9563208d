"""What the UNet is told beside the noisy latents: prompts, encoded once each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.utils.rnn import pad_sequence

from hnetkit.generate.sampling.encoding import Encoded

if TYPE_CHECKING:
    from hnetkit.generate.model import Model

_KEPT = 4096  # encoded prompts
_KEPT_TOKENS = 315_000  # of all of them: as many of one chunk each; 1 GB with SD 1


class Prompts:
    """Prompts as the UNet reads them. While none is new, the text encoder is not needed.

    Args:
        model: with its text encoder on the device while there are new prompts.
        clip_skip: as in `hnetkit.generate`.
    """

    def __init__(self, model: Model, clip_skip: int = 1) -> None:
        self._encoder = model.text_encoder(clip_skip, "original")
        self._kept: dict[str, Encoded] = {}
        self._tokens = 0

    @property
    def is_full(self) -> bool:
        """Whether the next prompt takes the place of another."""
        return len(self._kept) >= _KEPT or self._tokens >= _KEPT_TOKENS

    def require_short(self, prompt: str) -> None:
        """Raises UsageError where a prompt is too long to be encoded."""
        self._encoder.require_short(prompt)

    @torch.no_grad()
    def encode(self, prompt: str) -> Encoded:
        """Returns one prompt, encoded, on the CPU."""
        if prompt not in self._kept:
            while self.is_full:
                self._tokens -= len(self._kept.pop(next(iter(self._kept))).hidden)
            encoded = self._encoder.encode(prompt)
            pooled = None if encoded.pooled is None else encoded.pooled.cpu()
            self._kept[prompt] = Encoded(encoded.hidden.cpu(), pooled)
            self._tokens += len(encoded.hidden)
        return self._kept[prompt]

    def encode_all(self, prompts: Iterable[str]) -> bool:
        """Encodes prompts ahead; returns whether all of them are kept."""
        for prompt in prompts:
            if self.is_full:
                return False
            self.encode(prompt)
        return True


def conditions(texts: Sequence[Encoded], size: tuple[int, int], device: Any, dtype: torch.dtype) -> dict[str, Any]:
    """Returns what a UNet takes beside latents and time steps.

    Texts of unlike length are filled up to the longest, and a mask hides what was filled in: company changes nothing.

    Args:
        size: (width, height) in pixels of the pictures, which SDXL reads.
    """
    hidden = pad_sequence([text.hidden for text in texts], batch_first=True)
    told: dict[str, Any] = {"encoder_hidden_states": hidden.to(device, dtype)}
    lengths = torch.tensor([len(text.hidden) for text in texts])
    if lengths.min() < hidden.shape[1]:
        mask = torch.arange(hidden.shape[1]) < lengths[:, None]
        told["encoder_attention_mask"] = mask.to(device, dtype)
    pooled = [text.pooled for text in texts if text.pooled is not None]
    if pooled:
        height_width = size[1], size[0]
        ids = torch.tensor([*height_width, 0, 0, *height_width], device=device, dtype=torch.float32)
        told["added_cond_kwargs"] = {
            "text_embeds": torch.stack(pooled).to(device, dtype),
            "time_ids": ids.expand(len(texts), -1),
        }
    return told
