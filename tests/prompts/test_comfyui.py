"""What ComfyUI stores with a picture, in A1111's words."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hnetkit.errors import UnsafeFile
from hnetkit.limits import Budget
from hnetkit.prompts import comfyui
from hnetkit.prompts.comfyui.nodes import WIDGETS
from hnetkit.prompts.infotext import hypernetworks_of
from hnetkit.prompts.schedule import split_and
from hnetkit.prompts.tags import plain_number

Graph = dict[str, dict[str, Any]]


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def usual() -> Graph:
    """Text to picture with two hypernetworks: ``wash`` sits next to the checkpoint, ``ink`` behind it."""
    return {
        "3": node(
            "KSampler",
            **{"seed": 42, "steps": 25, "cfg": 7.5, "sampler_name": "euler_ancestral", "scheduler": "karras"},
            **{"denoise": 1.0, "model": ["11", 0], "positive": ["6", 0], "negative": ["7", 0]},
            latent_image=["5", 0],
        ),
        "4": node("CheckpointLoaderSimple", ckpt_name="sd/v1-5.safetensors"),
        "5": node("EmptyLatentImage", width=512, height=768, batch_size=1),
        "6": node("CLIPTextEncode", text="a (red:1.2) cat", clip=["4", 1]),
        "7": node("CLIPTextEncode", text="blurry", clip=["4", 1]),
        "8": node("VAEDecode", samples=["3", 0], vae=["4", 2]),
        "9": node("SaveImage", images=["8", 0]),
        "10": node("HypernetworkLoader", hypernetwork_name="old\\wash.pt", strength=0.5, model=["4", 0]),
        "11": node("HypernetworkLoader", hypernetwork_name="lines/ink.v2.safetensors", strength=-1, model=["10", 0]),
        "12": node("HypernetworkLoader", hypernetwork_name="unused.pt", strength=1.0, model=["4", 0]),
    }


OWN = {"ComfyUI loader": "wash, ink.v2", "Version": "ComfyUI"}
WEIGHTS = "its prompt has weights in round brackets, which ComfyUI applies in another way than A1111"


def parse(graph: Any, workflow: Any = None, size: tuple[int, int] | None = None) -> Any:
    return comfyui.parse(json.dumps(graph), json.dumps(workflow), size=size)


def stack(read: Any) -> list[tuple[str, float]]:
    return [(one.name, one.strength) for one in hypernetworks_of(read).networks]


def test_a_number_at_the_end_of_a_prompt_is_no_weight() -> None:
    """Also before the tags of its networks; a negative prompt has no weight of its own in A1111 either."""
    graph = usual()
    graph["6"]["inputs"]["text"], graph["7"]["inputs"]["text"] = "a sign, 16:9", "a clock, 10:30"
    read = parse(graph)
    assert read.prompt == "a sign, 16:9:1<hypernet:wash:0.5><hypernet:ink.v2:-1>"
    assert read.negative_prompt == "a clock, 10:30"


def test_another_output_of_a_node_that_is_not_known_is_not_read_as_its_first() -> None:
    graph = usual() | {"70": node("TwoPrompts", text="a cat", negative="fog"), "71": node("Half", value=8)}
    graph["6"]["inputs"]["text"], graph["7"]["inputs"]["text"] = ["70", 0], ["70", 1]
    graph["3"]["inputs"]["steps"], graph["5"]["inputs"]["height"] = ["71", 0], ["71", 1]
    read = parse(graph)
    assert (read.prompt, read.negative_prompt) == ("a cat<hypernet:wash:0.5><hypernet:ink.v2:-1>", "")
    assert (read.parameters["Steps"], read.parameters.get("Size")) == ("8", None)
    assert read.warnings == (
        "a text of its prompts comes from a TwoPrompts, which is not read: it is left out",
        "not taken over from ComfyUI: Half, TwoPrompts",
    )


def test_an_output_is_told_by_its_number_in_the_editors_graph_too() -> None:
    nodes = [
        {"id": 1, "type": "KSampler", "widgets_values": [5, "fixed", 20, 7, "euler", "normal", 1]},
        {"id": 2, "type": "CLIPTextEncode", "widgets_values": ["a cat"]},
        {"id": 3, "type": "Two texts", "widgets_values": ["fog"]},
        {"id": 4, "type": "CLIPTextEncode", "widgets_values": ["a sky"]},
    ]
    nodes[0]["inputs"] = [{"name": "positive", "link": 1}, {"name": "negative", "link": 2}]
    nodes[3]["inputs"] = [{"name": "text", "link": 3}]
    for slot, negative in ((0, "fog"), (1, "")):
        as_lists = [[1, 2, 0, 1, 1, "X"], [2, 4, 0, 1, 2, "X"], [3, 3, slot, 4, 0, "STRING"]]
        as_objects = [{"id": link[0], "origin_id": link[1], "origin_slot": link[2]} for link in as_lists]
        for links in (as_lists, as_objects):
            assert comfyui.parse(None, json.dumps({"nodes": nodes, "links": links})).negative_prompt == negative


def test_a_number_that_a_node_computes_with_others_is_not_read() -> None:
    graph = usual() | {"70": node("FloatMultiply", value=3, factor=2)}
    graph["3"]["inputs"]["cfg"] = ["70", 0]
    read = parse(graph)
    assert "CFG scale" not in read.parameters
    assert "its cfg comes from a FloatMultiply, which is not read" in read.warnings


@pytest.mark.parametrize(
    ("name", "scheduler", "sampler", "said"),
    [
        ("ddim", "karras", "Euler", ""),
        ("dpmpp_2m_sde", "karras", "DPM++ 2M SDE", ""),
        ("dpmpp_2m_sde_gpu", "karras", "DPM++ 2M SDE", "takes its noise from the GPU, and here from the CPU"),
        ("dpmpp_3m_sde", "normal", "DPM++ 3M SDE", "samples at the level before the last, which A1111 leaves out"),
        ("uni_pc", "karras", "UniPC", "samples at the levels of its scheduler, and in A1111 at its own"),
    ],
)
def test_a_sampler_is_the_one_that_samples_so_or_what_it_does_otherwise_is_said(
    name: str, scheduler: str, sampler: str, said: str
) -> None:
    graph = usual()
    graph["3"]["inputs"] |= {"sampler_name": name, "scheduler": scheduler}
    graph["6"]["inputs"]["text"] = "a cat"
    read = parse(graph)
    assert read.parameters["Sampler"] == sampler
    assert read.parameters["Schedule type"] == {"karras": "Karras", "normal": "Normal"}[scheduler]
    assert read.warnings == ((f"ComfyUI's {name} {said}: the picture will differ",) if said else ())


def test_the_usual_graph_is_read_whole() -> None:
    read = parse(usual())
    assert read.prompt == "a (red:1.2) cat<hypernet:wash:0.5><hypernet:ink.v2:-1>"
    assert read.negative_prompt == "blurry"
    assert read.parameters == {
        **{"Steps": "25", "Sampler": "Euler a", "Schedule type": "Karras", "CFG scale": "7.5", "Seed": "42"},
        **{"Size": "512x768", "Model": "v1-5", "RNG": "CPU", **OWN},
    }
    assert read.warnings == (WEIGHTS,)


def test_hypernetworks_stack_from_the_checkpoint_to_the_sampler() -> None:
    assert stack(parse(usual())) == [("wash", 0.5), ("ink.v2", -1.0)]


def test_what_hnetkits_own_nodes_apply_is_not_by_comfyuis_loader() -> None:
    graph = usual()
    graph["11"] = node("HnetkitHypernetworkLoader", hypernetwork_name="ink.pt", strength=1, model=["10", 0])
    assert parse(graph).parameters["ComfyUI loader"] == "wash"


def test_a_lora_between_two_hypernetworks_becomes_a_tag_between_theirs() -> None:
    graph = usual()
    strengths = {"strength_model": 0.7, "strength_clip": 0.6}
    graph["20"] = node("LoraLoader", lora_name="styles\\glow.safetensors", model=["10", 0], clip=["4", 1], **strengths)
    graph["11"]["inputs"]["model"] = ["20", 0]
    graph["6"]["inputs"]["clip"] = graph["7"]["inputs"]["clip"] = ["20", 1]
    read = parse(graph)
    assert read.prompt == "a (red:1.2) cat<hypernet:wash:0.5><lora:glow:0.6:0.7><hypernet:ink.v2:-1>"
    assert read.warnings == (WEIGHTS,)


def test_values_from_other_nodes_are_followed() -> None:
    graph = usual()
    graph["30"] = node("PrimitiveNode", value=7)
    graph["31"] = node("Text Multiline", text="from afar")
    graph["3"]["inputs"]["seed"] = ["30", 0]
    graph["6"]["inputs"]["text"] = ["31", 0]
    read = parse(graph)
    assert (read.parameters["Seed"], read.prompt.split("<")[0]) == ("7", "from afar")


@pytest.mark.parametrize(
    ("kind", "names", "joined"),
    [
        ("ConditioningCombine", ("conditioning_1", "conditioning_2"), "one:0.5 AND two:0.5"),
        ("ConditioningConcat", ("conditioning_to", "conditioning_from"), "one BREAK two"),
        ("ConditioningAverage", ("conditioning_to", "conditioning_from"), "one, two"),
    ],
)
def test_joined_prompts_are_joined_by_a1111s_word(kind: str, names: tuple[str, str], joined: str) -> None:
    graph = usual()
    graph["40"] = node("CLIPTextEncode", text="one")
    graph["41"] = node("CLIPTextEncode", text="two")
    graph["42"] = node(kind, **dict(zip(names, (["40", 0], ["41", 0]), strict=True)))
    graph["3"]["inputs"]["positive"] = ["42", 0]
    assert parse(graph).prompt.split("<")[0] == joined


def mixed(*texts: str, side: str = "positive") -> Graph:
    """`usual` with a prompt of several texts, the first two of which are mixed first."""
    graph = usual() | {str(40 + number): node("CLIPTextEncode", text=text) for number, text in enumerate(texts)}
    origin = ["40", 0]
    for number in range(1, len(texts)):
        graph[str(50 + number)] = node(
            "ConditioningCombine", conditioning_1=origin, conditioning_2=[str(40 + number), 0]
        )
        origin = [str(50 + number), 0]
    graph["3"]["inputs"][side] = origin
    return graph


def test_mixed_prompts_weigh_as_much_together_as_one() -> None:
    """ComfyUI averages what the model predicts for them; A1111 adds up what each of them adds to the negative one."""
    third = plain_number(round(1 / 3, 6))
    read = parse(mixed("a cat, 16:9", "a dog", ""))
    assert read.prompt.split("<")[0] == f"a cat, 16:9:{third} AND a dog:{third} AND :{third}"
    assert [round(weight, 6) for _, weight in split_and(read.prompt.split("<")[0])] == [0.333333] * 3
    assert read.warnings == ()


def test_a_mixed_negative_prompt_is_one_text_and_said() -> None:
    read = parse(mixed("ugly", "blurry", side="negative"))
    assert read.negative_prompt == "ugly, blurry"
    assert "its negative prompt is a mix of 2 texts; in A1111 they are one text" in read.warnings


def test_what_a_mixed_prompt_goes_through_applies_to_each_text() -> None:
    graph = mixed("one", "two")
    graph["60"] = node("CLIPTextEncode", text="behind")
    graph["61"] = node("ConditioningConcat", conditioning_to=["51", 0], conditioning_from=["60", 0])
    graph["3"]["inputs"]["positive"] = ["61", 0]
    assert parse(graph).prompt.split("<")[0] == "one BREAK behind:0.5 AND two BREAK behind:0.5"


# --- what is not read


def test_texts_that_a_node_joins_are_one_text() -> None:
    graph = usual()
    graph["40"] = node("PrimitiveStringMultiline", value="a red")
    graph["41"] = node("StringConcatenate", string_a=["40", 0], string_b="cat", delimiter=" ")
    graph["42"] = node("StringConcatenate", string_a=["41", 0], string_b=["40", 0], delimiter=", ")
    graph["6"]["inputs"]["text"] = ["42", 0]
    read = parse(graph)
    assert (read.prompt.split("<")[0], read.warnings) == ("a red cat, a red", ())


def test_texts_that_are_joined_again_and_again_take_no_memory() -> None:
    graph = usual() | {"40": node("PrimitiveString", value="x" * 1000)}
    for number in range(41, 90):
        before = [str(number - 1), 0]
        graph[str(number)] = node("StringConcatenate", string_a=before, string_b=before, delimiter="")
    graph["6"]["inputs"]["text"] = ["89", 0]
    with pytest.raises(UnsafeFile):
        parse(graph)


def test_nodes_that_join_each_other_end() -> None:
    graph = usual()
    graph["41"] = node("StringConcatenate", string_a=["42", 0], string_b="cat", delimiter=" ")
    graph["42"] = node("StringConcatenate", string_a=["41", 0], string_b="a", delimiter=" ")
    graph["6"]["inputs"]["text"] = ["42", 0]
    assert parse(graph).prompt.split("<")[0].split() == ["cat", "a"]


@pytest.mark.parametrize("side", ["positive", "negative"])
def test_a_prompt_whose_text_is_not_read_says_why_it_is_empty(side: str) -> None:
    graph = usual()
    graph["40"] = node("WildcardProcessor", prompt="a {red|blue} cat")
    graph["6" if side == "positive" else "7"]["inputs"]["text"] = ["40", 0]
    read = parse(graph)
    assert "a text of its prompts comes from a WildcardProcessor, which is not read: it is left out" in read.warnings


@pytest.mark.parametrize("name", ["steps", "cfg", "denoise", "seed", "sampler_name", "scheduler"])
@pytest.mark.parametrize("which", ["3", "1"])
def test_a_setting_from_a_node_that_is_not_read_is_named(which: str, name: str) -> None:
    graph = two_passes() | {"70": node("MathExpression", expression="a * 0.5", value=[1])}
    sampler = "3" if which == "3" else next(id for id in graph if id != "3" and graph[id]["class_type"] == "KSampler")
    graph[sampler]["inputs"][name] = ["70", 0]
    instead = ": 1 is used" if name == "denoise" else ""
    assert f"its {name} comes from a MathExpression, which is not read{instead}" in parse(graph).warnings


def test_each_side_stays_its_own_through_a_control_net() -> None:
    graph = usual()
    graph["50"] = node("ControlNetApplyAdvanced", positive=["6", 0], negative=["7", 0], strength=1.0)
    graph["3"]["inputs"] |= {"positive": ["50", 0], "negative": ["50", 1]}
    read = parse(graph)
    assert (read.prompt.split("<")[0], read.negative_prompt) == ("a (red:1.2) cat", "blurry")


def test_the_first_of_two_passes_is_the_one_described() -> None:
    graph = usual()
    graph["1"] = node(  # the second pass, with the lower number
        *("KSampler",),
        **{"seed": 1, "steps": 5, "cfg": 3, "sampler_name": "ddim", "scheduler": "normal", "denoise": 0.4},
        **{"model": ["4", 0], "positive": ["7", 0], "negative": ["6", 0], "latent_image": ["60", 0]},
    )
    graph["60"] = node("LatentUpscale", samples=["3", 0], width=1024, height=1536)
    assert parse(graph).parameters["Seed"] == "42"
    assert parse(graph).parameters["Size"] == "512x768"


def test_a_sampler_in_parts_is_read() -> None:
    graph = usual() | {
        "3": node("SamplerCustomAdvanced", **{n: [str(70 + i), 0] for i, n in enumerate(PARTS)}, latent_image=["5", 0]),
        "70": node("RandomNoise", noise_seed=5),
        "71": node("CFGGuider", cfg=4, model=["11", 0], positive=["6", 0], negative=["7", 0]),
        "72": node("KSamplerSelect", sampler_name="dpmpp_2m"),
        "73": node("BasicScheduler", scheduler="exponential", steps=12, denoise=0.75, model=["4", 0]),
    }
    read = parse(graph)
    assert read.parameters | {} == {
        **{"Steps": "12", "Sampler": "DPM++ 2M", "Schedule type": "Exponential", "CFG scale": "4", "Seed": "5"},
        **{"Size": "512x768", "Model": "v1-5", "RNG": "CPU", **OWN},
    }
    assert any("an empty latent at a denoising strength of 0.75" in warning for warning in read.warnings)
    assert stack(read) == [("wash", 0.5), ("ink.v2", -1.0)]


PARTS = ("noise", "guider", "sampler", "sigmas")


def test_clip_skip_is_counted_as_a1111_does() -> None:
    graph = usual()
    graph["80"] = node("CLIPSetLastLayer", stop_at_clip_layer=-2, clip=["4", 1])
    graph["6"]["inputs"]["clip"] = ["80", 0]
    assert parse(graph).parameters["Clip skip"] == "2"


def test_an_unknown_sampler_keeps_its_name() -> None:
    graph = usual()
    graph["3"]["inputs"]["sampler_name"] = "res_multistep"
    assert parse(graph).parameters["Sampler"] == "res_multistep"


def test_a_tag_in_the_text_is_no_network_in_comfyui() -> None:
    graph = usual()
    graph["6"]["inputs"]["text"] = "a cat <hypernet:dots:1>"
    read = parse(graph)
    assert stack(read) == [("wash", 0.5), ("ink.v2", -1.0)]
    assert read.warnings == ("<hypernet:dots:1>: ComfyUI does not read tags; it is left out",)


# --- hnetkit's own nodes


def by_own(kind: str, **inputs: Any) -> Any:
    """The usual graph with one of hnetkit's nodes in place of the hypernetwork next to the sampler."""
    graph = usual()
    graph["11"] = node(kind, model=["10", 0], **inputs)
    graph["6"]["inputs"]["text"] = "a cat"
    return parse(graph)


@pytest.mark.parametrize(
    ("advanced", "said"),
    [
        ({}, "<hypernet:ink:0.8>"),
        ({"k": 1.0, "self_attention": 1.0, "start": 0.0, "end": 1.0, "blocks": ""}, "<hypernet:ink:0.8>"),
        ({"k": 0.5}, "<hypernet:ink:0.8:k=0.4:v=0.8>"),
        ({"k": 0.5, "self_attention": 0.5, "cross_attention": 0.5}, "<hypernet:ink:0.8:k=0.2:v=0.4>"),
        ({"self_attention": 0.0}, "<hypernet:ink:0.8:self=0:cross=0.8>"),
        ({"start": 0.2, "end": 0.6}, "<hypernet:ink:0.8:start=0.2:end=0.6>"),
        ({"blocks": "down, up_blocks.1"}, "<hypernet:ink:0.8:blocks=down,up_blocks.1>"),
    ],
)
def test_hnetkits_own_loader_is_a_tag_with_all_that_it_limits(advanced: dict[str, Any], said: str) -> None:
    read = by_own("HnetkitHypernetworkLoader", hypernetwork_name="lines/ink.pt", strength=0.8, **advanced)
    assert read.prompt == f"a cat<hypernet:wash:0.5>{said}"
    assert read.warnings == ()


@pytest.mark.parametrize(
    ("advanced", "said"),
    [
        ({"k": 0.5, "self_attention": 0.25}, "k 0.5, v 1, self_attention 0.25, cross_attention 1"),
        ({"blocks": "up_blocks.1=0.5"}, "blocks up_blocks.1=0.5"),
    ],
)
def test_what_no_tag_can_say_of_hnetkits_own_loader_is_told(advanced: dict[str, Any], said: str) -> None:
    read = by_own("HnetkitHypernetworkLoader", hypernetwork_name="ink.pt", strength=0.8, **advanced)
    assert read.prompt == "a cat<hypernet:wash:0.5><hypernet:ink:0.8>"
    assert read.warnings == (f"not taken over from ComfyUI: HnetkitHypernetworkLoader with {said}",)


def test_hnetkits_own_stack_is_a_tag_for_each_slot_that_has_a_network() -> None:
    slots = {"hypernetwork_1": "ink.pt", "strength_1": 0.8, "hypernetwork_2": "None", "strength_2": 1.0}
    slots |= {"hypernetwork_3": "glow.safetensors", "strength_3": -0.25, "hypernetwork_4": "bad.pt", "strength_4": "x"}
    read = by_own("HnetkitHypernetworkStack", **slots)
    assert read.prompt == "a cat<hypernet:wash:0.5><hypernet:ink:0.8><hypernet:glow:-0.25>"
    assert read.warnings == ("a HnetkitHypernetworkStack is left out: 'bad' at None",)


def test_tags_that_hnetkits_own_node_applies_are_those_of_the_prompt() -> None:
    graph = usual()
    text = "a cat <hypernet:glow:0.5:end=0.6>, <hypernet:ink:-0.4><lora:other:1> sleeping"
    graph["11"] = node("HnetkitHypernetworksFromTags", model=["10", 0], text=text)
    graph["6"]["inputs"]["text"] = ["11", 1]
    read = parse(graph)
    assert read.prompt == "a cat  ,    sleeping<hypernet:wash:0.5><hypernet:glow:0.5:end=0.6><hypernet:ink:-0.4>"
    assert read.warnings == ("<lora:other:1>: ComfyUI does not read tags; it is left out",)
    graph["3"]["inputs"]["model"] = ["10", 0]  # the text alone goes on
    read = parse(graph)
    assert stack(read) == [("wash", 0.5)]
    assert any(warning.startswith("<hypernet:ink:-0.4>: ComfyUI does not read tags") for warning in read.warnings)


# --- what leads to the prompt


def test_a_lora_on_one_side_alone_has_strength_there_alone() -> None:
    graph = usual()
    loras = {"lora_name": "glow.safetensors", "strength_model": 0.7}
    graph["20"] = node("LoraLoaderModelOnly", model=["11", 0], **loras)
    graph["21"] = node("LoraLoader", model=["4", 0], clip=["4", 1], strength_clip=0.6, **loras | {"lora_name": "te.pt"})
    graph["3"]["inputs"]["model"] = ["20", 0]
    graph["6"]["inputs"]["clip"] = graph["7"]["inputs"]["clip"] = ["21", 1]
    assert parse(graph).prompt.endswith("<lora:glow:0:0.7><lora:te:0.6:0>")


def test_a_negative_prompt_that_is_read_without_the_lora_is_told() -> None:
    graph = usual()
    graph["20"] = node("LoraLoader", lora_name="x.pt", strength_model=1, strength_clip=1, model=["4", 0], clip=["4", 1])
    graph["3"]["inputs"]["model"], graph["6"]["inputs"]["clip"] = ["20", 0], ["20", 1]
    assert any(warning.startswith("its negative prompt is read with other LoRAs") for warning in parse(graph).warnings)


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("a [red] cat", r"a \[red\] cat"),
        (r"a \[red\] cat", r"a \[red\] cat"),
        ("a cat AND a dog BREAK a bird", "a cat and a dog break a bird"),
        ("SAND, BREAKFAST", "SAND, BREAKFAST"),
        ("embedding:old/ink.pt, (embedding:wash:1.2)", "ink, (wash:1.2)"),
        ("a cat <lora:x:1> <anything>", "a cat   <anything>"),
        ("a <hyper<lora:b>net:dots:1>", "a <hyper net:dots:1>"),
        (r"waving, \m/ \(sign\)", r"waving, \\m/ \(sign\)"),
        ("a cat \\", "a cat \\\\"),
    ],
)
def test_a_text_is_written_so_that_a1111_reads_the_same_words(text: str, same: str) -> None:
    graph = usual()
    graph["6"]["inputs"]["text"] = text
    assert parse(graph).prompt.removesuffix("<hypernet:wash:0.5><hypernet:ink.v2:-1>") == same


def test_the_textual_inversions_of_both_prompts_are_named() -> None:
    graph = usual()
    graph["6"]["inputs"]["text"] = "a cat, embedding:old\\soft.pt"
    graph["7"]["inputs"]["text"] = "(embedding:bad:1.2), embedding:soft"
    read = parse(graph)
    assert read.parameters["Used embeddings"] == "soft, bad"
    assert read.negative_prompt == "(bad:1.2), soft"


def test_a_prompt_that_was_zeroed_is_no_prompt() -> None:
    graph = usual()
    graph["40"] = node("ConditioningZeroOut", conditioning=["6", 0])
    graph["3"]["inputs"]["negative"] = ["40", 0]
    read = parse(graph)
    assert read.negative_prompt == ""
    assert "not taken over from ComfyUI: ConditioningZeroOut" in read.warnings


# --- two passes, a picture to begin with, ControlNets


def two_passes(**changes: Any) -> Graph:
    """`usual` enlarged twice and drawn again with a third network."""
    graph = usual()
    graph["30"] = node("LatentUpscale", upscale_method="bilinear", width=1024, height=1536, samples=["3", 0])
    graph["31"] = node("HypernetworkLoader", hypernetwork_name="dots.pt", strength=0.5, model=["11", 0])
    again = {"model": ["31", 0], "latent_image": ["30", 0], "denoise": 0.5, "steps": 10}
    graph["32"] = node("KSampler", **graph["3"]["inputs"] | again | changes)
    graph["8"]["inputs"]["samples"] = ["32", 0]
    return graph


def test_a_second_pass_without_a_negative_prompt_has_none() -> None:
    graph = two_passes(negative=["41", 0])
    graph["41"] = node("CLIPTextEncode", text="", clip=["4", 1])
    assert parse(graph).parameters["Hires negative prompt"] == ""


def test_a_second_pass_without_a_prompt_is_said() -> None:
    graph = two_passes(positive=["41", 0], model=["4", 0])
    graph["41"] = node("CLIPTextEncode", text="", clip=["4", 1])
    read = parse(graph)
    assert "Hires prompt" not in read.parameters
    assert "its second pass has no prompt; in A1111 it has the first one's" in read.warnings


def test_a_second_sampler_is_a1111s_second_pass_with_its_own_networks() -> None:
    read = parse(two_passes())
    assert read.prompt == parse(usual()).prompt
    assert read.parameters == parse(usual()).parameters | {
        **{"Denoising strength": "0.5", "Hires resize": "1024x1536", "Hires steps": "10", "Hires upscaler": "Latent"},
        "Hires prompt": "a (red:1.2) cat<hypernet:wash:0.5><hypernet:ink.v2:-1><hypernet:dots:0.5>",
        "ComfyUI loader": "wash, ink.v2, dots",
    }
    assert read.warnings == (WEIGHTS,)


def test_a_second_pass_like_the_first_says_only_what_differs() -> None:
    read = parse(two_passes(model=["11", 0], steps=25))
    assert read.parameters == parse(usual()).parameters | {
        **{"Denoising strength": "0.5", "Hires resize": "1024x1536", "Hires upscaler": "Latent"},
    }


def test_what_else_a_second_pass_has_of_its_own_is_told() -> None:
    other = {"model": ["33", 0], "sampler_name": "dpmpp_2m", "scheduler": "normal", "cfg": 4, "negative": ["6", 0]}
    graph = two_passes(**other, seed=9) | {"33": node("CheckpointLoaderSimple", ckpt_name="xl.safetensors")}
    read = parse(graph)
    assert (
        read.parameters.items()
        >= {
            **{"Hires checkpoint": "xl", "Hires sampler": "DPM++ 2M", "Hires schedule type": "Normal"},
            **{"Hires CFG Scale": "4", "Hires prompt": "a (red:1.2) cat", "Hires negative prompt": "a (red:1.2) cat"},
        }.items()
    )
    assert "its second pass has its own seed, 9; in A1111 it has the first one's" in read.warnings


@pytest.mark.parametrize(
    ("way", "said"),
    [
        ({"30": node("LatentUpscaleBy", upscale_method="bicubic", scale_by=1.5)}, ("1.5", None, "Latent (bicubic)")),
        ({"30": node("LatentUpscale", upscale_method="bilinear", width=1024, height=0)}, (None, "1024x1536", "Latent")),
        ({"30": node("LatentUpscale", upscale_method="bilinear", width=0, height=0)}, ("1", None, "Latent")),
        ({"30": node("ImageScale", upscale_method="lanczos", width=768, height=1152)}, (None, "768x1152", "Lanczos")),
        ({"30": node("ImageUpscaleWithModel", upscale_model=["98", 0])}, ("4", None, "4x-UltraSharp")),
        (
            {
                "30": node("ImageScaleBy", upscale_method="lanczos", scale_by=0.5, image=["97", 0]),
                "97": node("ImageUpscaleWithModel", upscale_model=["98", 0], image=["3", 0]),
            },
            ("2", None, "Lanczos"),
        ),
        ({}, ("1", None, "Latent")),
    ],
)
def test_each_way_to_enlarge_is_told_by_a1111s_name(way: Graph, said: tuple[str | None, ...]) -> None:
    graph = two_passes(latent_image=["30" if way else "3", 0]) | way
    graph["98"] = node("UpscaleModelLoader", model_name="4x-UltraSharp.pth")
    if len(way) == 1:
        graph["30"]["inputs"]["samples" if graph["30"]["class_type"].startswith("Latent") else "image"] = ["3", 0]
    parameters = parse(graph).parameters
    assert tuple(map(parameters.get, ("Hires upscale", "Hires resize", "Hires upscaler"))) == said


def test_a_method_that_a1111_lacks_is_told_with_the_nearest() -> None:
    graph = two_passes()
    graph["30"]["inputs"]["upscale_method"] = "bislerp"
    read = parse(graph)
    assert read.parameters["Hires upscaler"] == "Latent"
    assert "bislerp, by which it was enlarged, is not in A1111; Latent is the nearest" in read.warnings


def test_a_second_pass_of_unknown_size_is_left_out_and_told_with_its_networks() -> None:
    graph = two_passes()
    graph["30"] = node("ImageUpscaleWithModel", image=["3", 0])
    read = parse(graph)
    assert not any(key.startswith(("Hires", "Denoising")) for key in read.parameters)
    assert any("dots" in warning and "left out" in warning for warning in read.warnings)


def test_a_second_pass_of_another_shape_is_told() -> None:
    graph = two_passes()
    graph["30"]["inputs"]["height"] = 1024
    assert "it was stretched from 512x768 to 1024x1024; A1111 crops instead" in parse(graph).warnings
    graph["30"]["inputs"]["crop"] = "center"
    assert parse(graph).warnings == (WEIGHTS,)


def test_a_size_that_the_graph_does_not_say_is_the_images() -> None:
    graph = two_passes()
    graph["30"] = node("ImageUpscaleWithModel", image=["3", 0])
    assert parse(graph, size=(1024, 1536)).parameters["Hires resize"] == "1024x1536"
    assert parse(drawn_over(), size=(640, 480)).parameters["Size"] == "640x480"


def test_of_several_images_that_a_graph_saves_it_is_the_one_of_the_size() -> None:
    graph = two_passes()
    graph["10"] = node("VAEDecode", samples=["3", 0], vae=["4", 2])
    graph["13"] = node("SaveImage", images=["10", 0])
    graph["3"]["inputs"]["model"] = ["4", 0]
    assert "Hires resize" in parse(graph, size=(1024, 1536)).parameters
    first = parse(graph, size=(512, 768))
    assert "Hires resize" not in first.parameters
    assert (first.warnings, parse(graph, size=(1024, 1536)).warnings) == ((WEIGHTS,), (WEIGHTS,))
    unknown = parse(graph)
    assert "2 images of its graph may be this one; the settings are those of the first" in unknown.warnings


def test_a_prompt_without_guidance_is_read() -> None:
    graph = usual() | {
        "3": node("SamplerCustomAdvanced", **{n: [str(70 + i), 0] for i, n in enumerate(PARTS)}, latent_image=["5", 0]),
        "70": node("RandomNoise", noise_seed=5),
        "71": node("BasicGuider", model=["11", 0], conditioning=["6", 0]),
    }
    assert parse(graph).prompt == "a (red:1.2) cat<hypernet:wash:0.5><hypernet:ink.v2:-1>"


def test_a_node_that_holds_both_prompts_and_no_lora_is_read() -> None:
    graph = usual()
    graph["6"] = graph["7"] = node("Loader", ckpt_name="v1.ckpt", lora_name="None", positive="a cat", negative="blurry")
    graph["3"]["inputs"]["model"] = ["6", 0]
    read = parse(graph)
    assert (read.prompt, read.negative_prompt, read.parameters["Model"]) == ("a cat", "blurry", "v1")


def test_a_sampler_that_goes_on_with_another_model_is_a_refiner() -> None:
    graph = usual()
    graph["3"]["class_type"] = "KSamplerAdvanced"
    graph["3"]["inputs"] |= {"end_at_step": 20, "return_with_leftover_noise": "enable"}
    rest = {"model": ["33", 0], "latent_image": ["3", 0], "add_noise": "disable", "start_at_step": 20}
    graph["32"] = node("KSamplerAdvanced", **graph["3"]["inputs"] | rest | {"end_at_step": 10_000})
    graph["33"] = node("CheckpointLoaderSimple", ckpt_name="refiner.safetensors")
    graph["8"]["inputs"]["samples"] = ["32", 0]
    read = parse(graph)
    assert read.parameters == parse(usual()).parameters | {"Refiner": "refiner", "Refiner switch at": "0.8"}
    assert any(warning.startswith("after step 20 it has other prompts or networks") for warning in read.warnings)


def drawn_over(**changes: Any) -> Graph:
    graph = usual()
    graph["40"] = node("LoadImage", image="old/in.png")
    graph["41"] = node("VAEEncode", pixels=["40", 0], vae=["4", 2])
    graph["3"]["inputs"] |= {"latent_image": ["41", 0], "steps": 20, "denoise": 0.6} | changes
    return graph


@pytest.mark.parametrize(
    ("steps", "denoise", "said"),
    [
        (20, 0.6, ("33", "0.6")),
        (4, 0.4, ("10", "0.399")),
        (20, 0.5, ("40", "0.499")),
        (20, 1.0, ("20", "1")),
        (1, 0.3, ("3", "0.3")),
    ],
)
def test_image_to_image_makes_the_steps_that_comfyui_made(steps: int, denoise: float, said: tuple[str, str]) -> None:
    read = parse(drawn_over(steps=steps, denoise=denoise))
    whole, strength = (read.parameters[key] for key in ("Steps", "Denoising strength"))
    assert (whole, strength) == said
    assert int(min(float(strength), 0.999) * int(whole)) + 1 == steps  # as A1111 counts
    assert read.parameters["Start image"] == "in.png"
    assert "Size" not in read.parameters


def test_a_mask_is_told() -> None:
    graph = drawn_over(latent_image=["42", 0])
    graph["42"] = node("SetLatentNoiseMask", samples=["41", 0], mask=["43", 0])
    graph["43"] = node("LoadImageMask", image="mask.png", channel="alpha")
    parameters = parse(graph).parameters
    assert (parameters["Mask blur"], parameters["Mask image"]) == ("0", "mask.png")
    assert parameters["Start image"] == "in.png"


def test_a_second_pass_over_a_picture_is_left_out_and_told() -> None:
    graph = two_passes() | {key: drawn_over()[key] for key in ("3", "40", "41")}
    read = parse(graph)
    assert read.parameters == parse(drawn_over()).parameters | {"ComfyUI loader": "wash, ink.v2, dots"}
    assert any("dots" in warning and "left out" in warning for warning in read.warnings)


def test_a_control_net_is_told_with_its_picture() -> None:
    graph = usual()
    graph["50"] = node("ControlNetApply", conditioning=["6", 0], control_net=["51", 0], image=["52", 0], strength=0.8)
    graph["51"] = node("ControlNetLoader", control_net_name="sd/canny.pth")
    graph["52"] = node("LoadImage", image="edge.png")
    graph["3"]["inputs"]["positive"] = ["50", 0]
    read = parse(graph)
    said = "Module: none, Model: canny, Weight: 0.8, Guidance Start: 0, Guidance End: 1"
    assert read.parameters["ControlNet 0"] == said
    assert "the ControlNet canny followed edge.png, which is not in the image" in read.warnings
    later = two_passes(positive=["50", 0]) | {key: graph[key] for key in ("50", "51", "52")}
    assert parse(later).parameters["ControlNet 0"] == f"{said}, Hires Option: High res only"


def test_a_vae_of_its_own_is_told() -> None:
    graph = usual()
    graph["60"] = node("VAELoader", vae_name="sd/mse.safetensors")
    graph["8"]["inputs"]["vae"] = ["60", 0]
    assert parse(graph).parameters["VAE"] == "mse.safetensors"


def test_what_enlarges_the_finished_image_is_told() -> None:
    graph = usual()
    graph["61"] = node("ImageScale", upscale_method="lanczos", width=1024, height=1536, image=["8", 0])
    graph["9"]["inputs"]["images"] = ["61", 0]
    parameters = parse(graph).parameters
    assert (parameters["Postprocess upscale to"], parameters["Postprocess upscaler"]) == ("1024x1536", "Lanczos")
    assert parameters["Size"] == "512x768"


def test_all_else_on_the_way_to_the_image_is_listed_in_one_line() -> None:
    graph = usual()
    graph["70"] = node("FreeU", model=["11", 0], b1=1.1, b2=1.2, s1=0.9, s2=0.2)
    graph["3"]["inputs"]["model"] = ["70", 0]
    graph["5"]["inputs"]["batch_size"] = 4
    graph["71"] = node("Sharpen", image=["8", 0], strength=0.3)
    graph["9"]["inputs"]["images"] = ["71", 0]
    graph["72"] = node("Blur", image=["8", 0], strength=0.3)  # leads to no image
    listed = "not taken over from ComfyUI: Sharpen, FreeU, EmptyLatentImage with batch_size 4"
    assert parse(graph).warnings == (WEIGHTS, listed)


def test_of_countless_other_nodes_few_are_listed() -> None:
    graph = usual()
    for number in range(50):
        graph[str(100 + number)] = node("x" * 1000 + str(number), model=[str(101 + number), 0])
    graph["150"] = node("CheckpointLoaderSimple", ckpt_name="a.ckpt")
    graph["3"]["inputs"]["model"] = ["100", 0]
    (listed,) = (warning for warning in parse(graph).warnings if warning.startswith("not taken over"))
    assert len(listed) < 1000


def test_without_a_sampler_that_is_known_the_hypernetworks_are_still_told() -> None:
    graph = usual()
    del graph["3"]
    assert stack(parse(graph)) == [("wash", 0.5), ("ink.v2", -1.0)]


@pytest.mark.parametrize("strength", ["strong", None, float("nan"), float("inf"), True, [1, 2, 3], {}])
def test_a_strength_that_is_no_number_is_warned_of(strength: Any) -> None:
    graph = usual()
    graph["10"]["inputs"]["strength"] = strength
    read = parse(graph)
    assert stack(read) == [("ink.v2", -1.0)]
    assert any("wash" in warning for warning in read.warnings)


def drawn(kind: str, id: int, *widgets: Any, mode: int = 0, **links: int) -> dict[str, Any]:
    inputs = [{"name": name, "type": "*", "link": link} for name, link in links.items()]
    return {"id": id, "type": kind, "mode": mode, "inputs": inputs, "widgets_values": list(widgets)}


def workflow(*, bypassed: bool = False) -> dict[str, Any]:
    """The drawn form of `usual`, with a reroute behind the checkpoint."""
    nodes = [
        drawn("CheckpointLoaderSimple", 4, "sd/v1-5.safetensors"),
        {"id": 90, "type": "Reroute", "inputs": [{"name": "", "type": "*", "link": 1}]},
        drawn("HypernetworkLoader", 10, "wash.pt", 0.5, model=2, mode=4 if bypassed else 0),
        drawn("HypernetworkLoader", 11, "ink.pt", 0.8, model=3),
        drawn("CLIPTextEncode", 6, "a cat", clip=4),
        drawn("CLIPTextEncode", 7, "blurry", clip=5),
        drawn("EmptyLatentImage", 5, 512, 768, 1),
        drawn(
            *("KSampler", 3, 42, "randomize", 25, 7.5, "euler", "normal", 1),
            **{"model": 6, "positive": 7, "negative": 8, "latent_image": 9},
        ),
    ]
    origins = {1: 4, 2: 90, 3: 10, 4: 4, 5: 4, 6: 11, 7: 6, 8: 7, 9: 5}
    return {"nodes": nodes, "links": [[link, origin, 0, 0, 0, "*"] for link, origin in origins.items()]}


def test_the_drawn_graph_is_read_where_nothing_else_is_there() -> None:
    read = comfyui.parse(None, json.dumps(workflow()))
    assert read.prompt == "a cat<hypernet:wash:0.5><hypernet:ink:0.8>"
    assert read.negative_prompt == "blurry"
    assert read.parameters == {
        **{"Steps": "25", "Sampler": "Euler", "Schedule type": "Normal", "CFG scale": "7.5", "Seed": "42"},
        **{"Size": "512x768", "Model": "v1-5", "RNG": "CPU", **OWN | {"ComfyUI loader": "wash, ink"}},
    }


def test_links_that_are_objects_are_read_alike() -> None:
    graph = workflow()
    graph["links"] = [{"id": id, "origin_id": origin, "origin_slot": 0} for id, origin, *_ in graph["links"]]
    assert comfyui.parse("{}", json.dumps(graph)) == comfyui.parse(None, json.dumps(workflow()))


def test_a_bypassed_hypernetwork_did_nothing() -> None:
    assert stack(comfyui.parse(None, json.dumps(workflow(bypassed=True)))) == [("ink", 0.8)]


def test_the_graph_that_ran_goes_before_the_drawn_one() -> None:
    assert stack(parse(usual(), workflow())) == [("wash", 0.5), ("ink.v2", -1.0)]


@pytest.mark.parametrize(
    "text", ["", "null", "[]", "5", "{", "[" * 100_000, '{"a": ' * 5_000, '{"1": {"class_type": 5}}', "9" * 5000]
)
def test_what_is_no_graph_says_nothing(text: str) -> None:
    assert comfyui.parse(text, text) == ("", "", {}, ())


def test_a_graph_that_bites_its_tail_ends() -> None:
    graph = usual()
    graph["10"]["inputs"]["model"] = ["11", 0]
    graph["5"] = node("EmptyLatentImage", width=["5", 0], height=["5", 0], samples=["3", 0])
    graph["6"] = node("ConditioningCombine", conditioning_1=["6", 0], conditioning_2=["7", 0])
    read = parse(graph)
    assert stack(read) == [("wash", 0.5), ("ink.v2", -1.0)]
    assert read.prompt.startswith("blurry")


def samplers_in_a_row(count: int) -> Graph:
    """Each one follows the next, over a way that all of them share, and has its settings from one large helper."""
    ids = [str(i) for i in range(count)]
    links = {"positive": ["helper", 0], "noise": ["helper", 0]}
    row = {id: node("KSampler", seed=1, latent_image=["way 0", 0], **links) for id in ids}
    way = {f"way {i}": node("LatentUpscale", samples=[f"way {i + 1}", 0]) for i in range(150)}
    helper = {"helper": node("Unheard", **{f"input {i}": i for i in range(count)})}
    return row | way | {"way 150": node("KSampler", seed=1, latent_image=["0", 0], **links)} | helper


def conditionings(count: int) -> Graph:
    """Diamonds, one on top of the other, whose sides are several links to the same node."""
    names = [f"conditioning_{i}" for i in range(20)]
    return usual() | {
        str(i): node("ConditioningCombine", **{name: [str(i + 1), 0] for name in names}) for i in range(count)
    }


def loaders(count: int) -> Graph:
    chain = {
        str(i): node("HypernetworkLoader", hypernetwork_name="x", strength=1, model=[str(i + 1), 0])
        for i in range(count)
    }
    return chain | {"last": node("KSampler", seed=1, positive=["0", 0], model=["0", 0])}


@pytest.mark.parametrize("made", [samplers_in_a_row, conditionings, loaders])
def test_the_work_grows_with_the_graph_alone(made: Any) -> None:
    for count in (100, 800):
        graph, budget = made(count), Budget(work=1_000_000)
        comfyui.parse(json.dumps(graph), budget=budget)
        assert 1_000_000 - budget.work_left < 5 * len(graph) + 2_000


def test_a_graph_of_twelve_kilobytes_is_read_at_once() -> None:
    graph = samplers_in_a_row(2_000)
    started = time.process_time()
    assert parse(graph).parameters["Seed"] == "1"
    assert time.process_time() - started < 10


def test_a_text_that_many_nodes_name_is_not_multiplied_without_end() -> None:
    graph = usual()
    graph["text"] = node("String", value="x" * 1_000_000)
    names = [str(i) for i in range(100, 280)]
    graph |= {name: node("CLIPTextEncode", text=["text", 0]) for name in names}
    graph["40"] = node("ConditioningCombine", **{f"conditioning_{name}": [name, 0] for name in names})
    graph["3"]["inputs"]["positive"] = ["40", 0]
    with pytest.raises(UnsafeFile, match="far more memory"):
        parse(graph)


@pytest.mark.parametrize("inner", ["{}", "[]", "1.5", '{"a":1}'])
def test_a_graph_of_countless_values_is_refused_before_they_are_made(inner: str) -> None:
    text = "[" + f"{inner}," * 1_500_000 + "0]"
    with pytest.raises(UnsafeFile, match="far more memory"):
        comfyui.parse(text)
    with pytest.raises(UnsafeFile, match="far more memory"):
        comfyui.parse(None, text)


@pytest.mark.parametrize("count", [100_000])
def test_a_node_of_countless_inputs_and_widgets_is_one_node(count: int) -> None:
    graph = usual()
    graph["6"]["inputs"] |= {f"conditioning {i}": ["7", 0] for i in range(count)}
    assert parse(graph).prompt.startswith("a (red:1.2) cat")
    many = workflow()
    many["nodes"][-1]["widgets_values"] += list(range(count))
    assert comfyui.parse(None, json.dumps(many)).parameters["Steps"] == "25"


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
)
LINKS = st.tuples(st.sampled_from("0123456789"), st.integers(0, 2)).map(list)
KINDS = st.sampled_from([*WIDGETS, "ConditioningCombine", "Reroute", "Unheard"])
NAMES = st.sampled_from(
    [
        *("model", "positive", "negative", "seed", "steps", "cfg", "text", "latent_image", "width", "height", "clip"),
        *("hypernetwork_name", "strength", "conditioning_1", "conditioning_2", "ckpt_name", "noise", "sampler_name"),
        *("denoise", "start_at_step", "end_at_step", "add_noise", "scale_by", "upscale_method", "samples", "pixels"),
        *("lora_name", "strength_clip", "control_net", "image", "mask", "vae", "vae_name", "images"),
    ]
)
GRAPHS = st.dictionaries(
    st.sampled_from("0123456789"),
    st.fixed_dictionaries({"class_type": KINDS, "inputs": st.dictionaries(NAMES, LINKS | LINKS | ANY)}),
)


@given(GRAPHS | ANY, ANY)
def test_no_graph_raises(graph: Any, drawn: Any) -> None:
    for read in (parse(graph, drawn), parse(drawn, {"nodes": drawn, "links": graph}), parse({}, graph)):
        hypernetworks_of(read)
        assert all(isinstance(value, str) for value in read.parameters.values())


def test_two_checkpoints_and_two_clip_skips_are_said() -> None:
    graph = usual()
    graph["20"] = node("CheckpointLoaderSimple", ckpt_name="other.safetensors")
    graph["21"] = node("CLIPSetLastLayer", stop_at_clip_layer=-2, clip=["20", 1])
    graph["6"]["inputs"]["clip"], graph["8"]["inputs"]["vae"] = ["21", 0], ["20", 2]
    assert set(parse(graph).warnings) == {
        WEIGHTS,
        "its positive prompt is read by the text encoder of other; in A1111 by the model's",
        "its negative prompt has another clip skip; in A1111 it has that of the prompt",
        "it is decoded by the VAE of the checkpoint other; in A1111 by the model's",
    }


@pytest.mark.parametrize("kind", ["FaceDetailer", "UltimateSDUpscale"])
def test_what_repaints_parts_of_the_image_is_no_second_pass(kind: str) -> None:
    graph = usual()
    inputs = graph["3"]["inputs"] | {"seed": 9, "denoise": 0.5, "image": ["8", 0]}
    del inputs["latent_image"]
    graph["20"] = node(kind, **inputs)
    graph["9"]["inputs"]["images"] = ["20", 0]
    read = parse(graph)
    assert read.parameters == parse(usual()).parameters
    assert read.warnings == (WEIGHTS, f"not taken over from ComfyUI: {kind}")


@pytest.mark.parametrize(
    ("strengths", "tag"),
    [
        ({"lora_model_strength": 0.3, "lora_clip_strength": 0.2}, "<lora:glow:0.2:0.3>"),
        ({"lora_strength": 0.4}, "<lora:glow:0.4:0.4>"),
        ({"unknown": 0.4}, ""),
    ],
)
def test_a_loaders_lora_has_the_strength_that_it_states_or_is_left_out(strengths: dict[str, float], tag: str) -> None:
    graph = usual()
    graph["4"] = node("Efficient Loader", ckpt_name="a.ckpt", clip_skip=-2, lora_name="glow.safetensors", **strengths)
    read = parse(graph)
    assert read.prompt == f"a (red:1.2) cat{tag}<hypernet:wash:0.5><hypernet:ink.v2:-1>"
    assert read.parameters["Clip skip"] == "2"
    assert any("is left out" in said for said in read.warnings) == (not tag)


@pytest.mark.parametrize(
    ("text", "is_said"), [("a {red|blue} cat", True), ("cat // old", True), ("https://x {a}", False)]
)
def test_choices_and_comments_of_the_drawn_graph_are_said(text: str, is_said: bool) -> None:
    sampler = {"id": 1, "type": "KSampler", "widgets_values": [7, "fixed", 4, 5.0, "euler", "normal", 1.0]}
    sampler["inputs"] = [{"name": "positive", "link": 1}]
    encoder = {"id": 2, "type": "CLIPTextEncode", "widgets_values": [text]}
    read = parse(None, {"nodes": [sampler, encoder], "links": [[1, 2, 0, 1, 0, "CONDITIONING"]]})
    assert any("a choice or a comment" in said for said in read.warnings) == is_said


@pytest.mark.parametrize("number", [10**400, -(10**400), 1e308, -1e308, 5e-324, 0])
@pytest.mark.parametrize("key", ["scale_by", "width", "height", "strength", "seed", "steps", "cfg", "denoise"])
def test_a_number_without_measure_is_no_defect(key: str, number: float) -> None:
    """A picture of a stranger ends neither the look at others nor a share of what it shows."""
    graph = usual()
    for one in graph.values():
        if key in one["inputs"]:
            one["inputs"][key] = number
    before = "8"
    for step in range(400):
        graph[f"u{step}"] = node("ImageScaleBy", image=[before, 0], upscale_method="lanczos", scale_by=8.0)
        before = f"u{step}"
        if key == "scale_by":
            graph[before]["inputs"][key] = number
    graph["w"] = node("ImageScale", image=[before, 0], upscale_method="lanczos", width=64, height=0)
    graph["9"]["inputs"]["images"] = ["w", 0]
    assert parse(graph).parameters["Sampler"] == "Euler a"
    del graph["w"]["inputs"]["width"]
    assert parse(graph).parameters["Sampler"] == "Euler a"
