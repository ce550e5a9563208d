"""K inputs that are not the text tensor, and attention processors of every kind."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import ControlNetModel
from diffusers.models.attention_processor import (
    AttnProcessor,
    AttnProcessor2_0,
    CustomDiffusionAttnProcessor2_0,
    IPAdapterAttnProcessor2_0,
)
from support.pipelines import SD_CROSS_WIDTH, tiny_sd, unet_call
from support.stacks import relative
from support.unet_truth import plain, run
from torch import Tensor, nn

import hnetkit
from hnetkit.errors import AttachError
from hnetkit.network import Hypernetwork


def slice_attention(unet: Any) -> None:
    unet.set_attention_slice("max")


PROCESSORS = {
    "sdpa": lambda unet: unet.set_attn_processor(AttnProcessor2_0()),
    "plain": lambda unet: unet.set_attn_processor(AttnProcessor()),
    "default": lambda unet: unet.set_default_attn_processor(),
    "sliced": slice_attention,
}


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("processor", PROCESSORS)
def test_every_attention_processor(pipe: Any, ink: Hypernetwork, tint: Hypernetwork, processor: str, when: str) -> None:
    truth = plain(pipe, [(ink, 0.8), (tint, 0.5)])
    if when == "before":
        PROCESSORS[processor](pipe.unet)
    hnetkit.load_hypernetwork(pipe, ink, strength=0.8)
    hnetkit.load_hypernetwork(pipe, tint, strength=0.5)
    run(pipe)
    if when == "after":
        PROCESSORS[processor](pipe.unet)
    assert relative(run(pipe), truth) <= 1e-5


class CopyingProcessor(AttnProcessor2_0):
    """Projects a copy of the text: the same values in another tensor."""

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, **rest: Any
    ) -> Any:
        text = None if encoder_hidden_states is None else encoder_hidden_states.clone()
        return super().__call__(attn, hidden_states, text, **rest)


def test_a_layer_whose_k_input_is_another_tensor_applies_the_stack_itself(
    pipe: Any, ink: Hypernetwork, wash: Hypernetwork
) -> None:
    truth = plain(pipe, [(ink, 0.8), (wash, 0.5)])
    hnetkit.load_hypernetwork(pipe, ink, strength=0.8)
    hnetkit.load_hypernetwork(pipe, wash, strength=0.5)
    pipe.unet.set_attn_processor(CopyingProcessor())
    assert relative(run(pipe), truth) <= 1e-5


def with_ip_adapter(pipe: Any) -> Any:
    """Puts IP-Adapter's processors in, with an image of 3 tokens that comes as a part of the text."""
    torch.manual_seed(3)
    processors = {}
    for name, processor in pipe.unet.attn_processors.items():
        attention = pipe.unet.get_submodule(name.removesuffix(".processor"))
        is_cross = name.endswith("attn2.processor")
        processors[name] = (
            IPAdapterAttnProcessor2_0(attention.to_k.out_features, SD_CROSS_WIDTH, num_tokens=(3,))
            if is_cross
            else processor
        )
    pipe.unet.set_attn_processor(processors)
    return pipe


def layer_by_layer(pipe: Any, network: Hypernetwork) -> Any:
    """Applies the network with `Stack` in front of every `to_k` and `to_v`, whatever comes there."""
    stack = hnetkit.Stack([(network, 1.0)])
    for name, module in pipe.unet.named_modules():
        if name.endswith(("to_k", "to_v")):
            side = ("to_k", "to_v").index(name[-4:])
            module.register_forward_pre_hook(lambda _, context, side=side: (stack(context[0])[side],))
    return pipe


def test_ip_adapter_slices_the_text_off(pipe: Any, ink: Hypernetwork) -> None:
    """The image's tokens are no text: they go to K and V of their own, which no hypernetwork changes."""
    hnetkit.load_hypernetwork(with_ip_adapter(pipe), ink)
    assert relative(run(pipe), run(layer_by_layer(with_ip_adapter(tiny_sd()), ink))) <= 1e-6


def test_ip_adapter_with_the_image_beside_the_text(pipe: Any, ink: Hypernetwork) -> None:
    """The UNet gives layers the pair of text and image, and the text is the very tensor that it was given."""

    class Images(nn.Module):
        def forward(self, images: list[Tensor]) -> list[Tensor]:
            return images

    fresh = layer_by_layer(tiny_sd(), ink)
    for one in (pipe, fresh):
        with_ip_adapter(one)
        one.unet.encoder_hid_proj = Images()
        one.unet.register_to_config(encoder_hid_dim_type="ip_image_proj")
    hnetkit.load_hypernetwork(pipe, ink)
    images = {"image_embeds": [torch.randn(2, 3, SD_CROSS_WIDTH, generator=torch.Generator().manual_seed(1))]}
    assert relative(run(pipe, added_cond_kwargs=images), run(fresh, added_cond_kwargs=images)) <= 1e-6


def test_a_text_that_the_unet_projects_first(pipe: Any, ink: Hypernetwork) -> None:
    """The layers' K input is the projection; what the UNet was given is no context of theirs."""
    torch.manual_seed(0)
    projection = nn.Linear(SD_CROSS_WIDTH, SD_CROSS_WIDTH)
    pipe.unet.encoder_hid_proj = projection
    pipe.unet.register_to_config(encoder_hid_dim_type="text_proj")
    hnetkit.load_hypernetwork(pipe, ink)
    fresh = tiny_sd()
    hnetkit.load_hypernetwork(fresh, ink)
    call = unet_call(fresh)
    with torch.no_grad():
        call["encoder_hidden_states"] = projection(call["encoder_hidden_states"])
        truth = fresh.unet(**call, return_dict=False)[0]
    assert relative(run(pipe), truth) <= 1e-6


def test_the_tokens_may_be_many_or_one(pipe: Any, ink: Hypernetwork) -> None:
    hnetkit.load_hypernetwork(pipe, ink)
    for tokens in (1, 154):
        call = {**unet_call(pipe), "encoder_hidden_states": torch.randn(2, tokens, SD_CROSS_WIDTH)}
        with torch.no_grad():
            assert torch.isfinite(pipe.unet(**call).sample).all()


def test_controlnets_are_left_alone(pipe: Any, ink: Hypernetwork) -> None:
    controlnet = ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=(4, 4))
    hooks = [len(module._forward_pre_hooks) for module in controlnet.modules()]
    hnetkit.load_hypernetwork(pipe, ink)
    assert [len(module._forward_pre_hooks) for module in controlnet.modules()] == hooks
    after = ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=(4, 4))
    assert not any(module._forward_pre_hooks for module in after.modules())


def test_fused_projections_are_refused_at_the_load(pipe: Any, ink: Hypernetwork) -> None:
    pipe.fuse_qkv_projections()
    with pytest.raises(AttachError, match="fused") as refused:
        hnetkit.load_hypernetwork(pipe, ink)
    assert refused.value.hint == "pipe.unfuse_qkv_projections()"
    assert not any(module._forward_pre_hooks for module in pipe.unet.modules())
    pipe.unfuse_qkv_projections()
    hnetkit.load_hypernetwork(pipe, ink)
    run(pipe)


def custom_diffusion(pipe: Any) -> dict[str, Any]:
    """Attention processors of Custom Diffusion: cross-attention has projections of its own for keys and values."""
    found = dict(pipe.unet.attn_processors)
    for name in (name for name in found if "attn2" in name):
        attention = pipe.unet.get_submodule(name.removesuffix(".processor"))
        widths = attention.to_q.in_features, attention.to_k.in_features
        found[name] = CustomDiffusionAttnProcessor2_0(hidden_size=widths[0], cross_attention_dim=widths[1])
    return found


@pytest.mark.parametrize("is_first", [True, False])
def test_projections_of_a_processors_own_are_refused(pipe: Any, ink: Hypernetwork, is_first: bool) -> None:
    hnetkit.load_hypernetwork(pipe, ink)
    styled = run(pipe)
    if is_first:
        hnetkit.unload_hypernetworks(pipe)
    pipe.unet.set_attn_processor(custom_diffusion(pipe))
    with pytest.raises(AttachError, match="attn2: its processor has projections of its own") as refused:
        hnetkit.load_hypernetwork(pipe, ink) if is_first else run(pipe)
    assert refused.value.hint == "pipe.unet.set_attn_processor(AttnProcessor2_0())"
    pipe.unet.set_attn_processor(AttnProcessor2_0())
    if is_first:
        hnetkit.load_hypernetwork(pipe, ink)
    assert torch.equal(run(pipe), styled)


def test_projections_fused_later_are_noticed_at_the_next_call(pipe: Any, ink: Hypernetwork) -> None:
    hnetkit.load_hypernetwork(pipe, ink)
    styled = run(pipe)
    pipe.fuse_qkv_projections()
    for _ in range(2):
        with pytest.raises(AttachError, match="fused"):
            run(pipe)
    pipe.unfuse_qkv_projections()
    assert torch.equal(run(pipe), styled)


def test_networks_can_be_unloaded_while_projections_are_fused(pipe: Any, ink: Hypernetwork) -> None:
    hnetkit.load_hypernetwork(pipe, ink)
    pipe.fuse_qkv_projections()
    hnetkit.unload_hypernetworks(pipe)
    assert hnetkit.get_active_hypernetworks(pipe) == []
