"""LoRAs and textual inversions of strangers: only tensors reach a library, and a folder is no file."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support.deep_folders import deep_tree, unreadable
from support.pipelines import tiny_sd
from support.unet_truth import lora, run

from hnetkit.errors import FileChanged, FileRefused, ModelNotUsable, NotFound
from hnetkit.generate.backend_errors import quiet_libraries
from hnetkit.generate.loading.extra_networks import (
    attach_loras,
    find_embeddings,
    find_loras,
    lora_hashes,
    read_lora,
)
from hnetkit.prompts.tags import split_tags


def put_on(pipe: Any, folder: Path, prompt: str = "<lora:style:1>") -> None:
    attach_loras(pipe, find_loras(split_tags(prompt).loras, str(folder)), [].append)


def test_a_folder_called_like_a_lora_is_none(tmp_path: Path) -> None:
    marker = tmp_path / "ran"

    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return open, (str(marker), "w")

    inside = tmp_path / "style.safetensors"
    inside.mkdir()
    torch.save(Payload(), inside / "pytorch_lora_weights.bin")
    save_file(lora(tiny_sd()), inside / "pytorch_lora_weights.safetensors")
    with pytest.raises(NotFound):
        put_on(tiny_sd(), tmp_path)
    assert not marker.exists()


def test_no_folder_below_hides_those_around_it(tmp_path: Path) -> None:
    (tmp_path / "z").mkdir()
    (tmp_path / "z" / "style.safetensors").touch()
    (tmp_path / "loop").symlink_to("loop")
    with deep_tree(tmp_path), unreadable(tmp_path / "hidden"):
        (found,) = find_loras(split_tags("<lora:style:1>").loras, str(tmp_path))
    assert found.path == tmp_path / "z" / "style.safetensors"


def test_a_pickle_called_safetensors_is_refused(tmp_path: Path) -> None:
    torch.save(lora(tiny_sd()), tmp_path / "style.safetensors")
    with pytest.raises(FileRefused):
        put_on(tiny_sd(), tmp_path)


def test_a_lora_is_what_diffusers_makes_of_its_file(tmp_path: Path) -> None:
    tensors = lora(tiny_sd())
    ours, theirs = tiny_sd(), tiny_sd()
    save_file(tensors, tmp_path / "style.safetensors")
    bare = run(ours)
    put_on(ours, tmp_path)
    theirs.load_lora_weights(tmp_path, weight_name="style.safetensors")
    assert torch.equal(run(ours), run(theirs))
    assert not torch.equal(run(ours), bare)


@pytest.mark.parametrize("rslora", [False, True])
def test_the_scale_that_diffusers_writes_beside_the_tensors_counts(tmp_path: Path, rslora: bool) -> None:
    from peft import LoraConfig

    trained = tiny_sd()
    torch.manual_seed(0)
    config = {"r": 4, "lora_alpha": 6, "use_rslora": rslora, "init_lora_weights": False}
    trained.unet.add_adapter(LoraConfig(target_modules=["to_k", "to_v"], alpha_pattern={}, **config))
    if not hasattr(trained.unet, "save_lora_adapter"):
        pytest.skip("this diffusers has no save_lora_adapter, which writes the file that is tried")
    trained.unet.save_lora_adapter(tmp_path / "raw")
    raw = next((tmp_path / "raw").iterdir())
    from safetensors import safe_open

    with safe_open(raw, "pt") as file:
        said = json.loads(file.metadata()["lora_adapter_metadata"])
        tensors = {f"unet.{name}": file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    metadata = {"lora_adapter_metadata": json.dumps({f"unet.{key}": value for key, value in said.items()})}
    save_file(tensors, tmp_path / "style.safetensors", metadata)
    ours, theirs = tiny_sd(), tiny_sd()
    shutil.rmtree(tmp_path / "raw")
    put_on(ours, tmp_path)
    theirs.load_lora_weights(tmp_path, weight_name="style.safetensors")
    assert torch.allclose(run(ours), run(theirs), rtol=0, atol=1e-5)
    assert torch.allclose(run(ours), run(trained), rtol=0, atol=1e-5)


@pytest.mark.parametrize("alpha", [torch.tensor(2.0), torch.tensor(2), torch.tensor([2], dtype=torch.int32)])
def test_kohyas_names_and_scales_count(tmp_path: Path, alpha: torch.Tensor) -> None:
    own, kohya = tiny_sd(), {}
    for name, tensor in lora(tiny_sd()).items():
        module, _, rest = name.removeprefix("unet.").rpartition(".lora_")
        key = f"lora_unet_{module.replace('.', '_')}"
        kohya[f"{key}.lora_{'down' if rest.startswith('A') else 'up'}.weight"] = tensor
        kohya[f"{key}.alpha"] = alpha.clone()
    save_file(kohya, tmp_path / "style.safetensors")
    put_on(own, tmp_path)
    expected = tiny_sd()
    expected.load_lora_weights({name: tensor.float() for name, tensor in kohya.items()})
    assert torch.equal(run(own), run(expected))


A = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_k.lora_A.weight"
B = A.replace("lora_A", "lora_B")


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({A: torch.zeros(4, 8), B: torch.zeros(8, 5)}, {}),
        ({A: torch.zeros(4, 8)}, {}),
        ({A: torch.zeros(8), B: torch.zeros(8)}, {}),
        ({A: torch.zeros(1 << 40, 0), B: torch.zeros(0, 1 << 40)}, {}),
        ({f"unet.({'a+)+' * 20}.lora_A.weight": torch.zeros(1, 8)}, {}),
        ({f"unet.{'a' * 1000}.lora_A.weight": torch.zeros(1, 8)}, {}),
        ({A: torch.zeros(4, 8), B: torch.zeros(8, 4)}, {"unet.lora_alpha": "x"}),
        ({A: torch.zeros(4, 8), B: torch.zeros(8, 4)}, {"unet.lora_alpha": float("inf")}),
        ({A: torch.zeros(4, 8), B: torch.zeros(8, 4)}, {"unet.lora_alpha": 10**400}),
        ({A: torch.zeros(4, 8), B: torch.zeros(8, 4), "x.alpha": torch.tensor(float("nan"))}, {}),
        ({A: torch.zeros(4, 8), B: torch.zeros(8, 4), "x.alpha": torch.zeros(2)}, {}),
    ],
)
def test_what_no_lora_says_is_refused_in_one_line(
    tmp_path: Path, tensors: dict[str, torch.Tensor], said: dict[str, Any]
) -> None:
    save_file(tensors, tmp_path / "style.safetensors", {"lora_adapter_metadata": json.dumps(said)})
    with pytest.raises(ModelNotUsable, match=r"style\.safetensors: no LoRA") as refusal:
        read_lora(tmp_path / "style.safetensors")
    assert "\n" not in str(refusal.value)


def test_a_rank_in_the_metadata_makes_nothing(tmp_path: Path) -> None:
    said = {"unet.r": 10**9, "unet.lora_alpha": 4, "unet.target_modules": ".*", "unet.auto_mapping": {"a": "b"}}
    save_file(lora(tiny_sd()), tmp_path / "style.safetensors", {"lora_adapter_metadata": json.dumps(said)})
    pipe = tiny_sd()
    put_on(pipe, tmp_path)
    assert pipe.unet.peft_config["hnetkit_0"].r < 100


def test_a_lora_of_another_model_is_refused_by_its_name(tmp_path: Path) -> None:
    elsewhere = {name.replace("attn1", "attn9"): torch.zeros(4, 4) for name in (A, B)}
    for tensors in ({A: torch.zeros(4, 7), B: torch.zeros(8, 4)}, elsewhere):
        save_file(tensors, tmp_path / "style.safetensors")
        with pytest.raises(ModelNotUsable, match=r"style\.safetensors: cannot be put on this model"):
            put_on(tiny_sd(), tmp_path)


@pytest.mark.parametrize("count", [300, 5000])
def test_a_lora_of_layers_that_no_model_has_is_refused_at_once_in_one_line(
    count: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    names = (f"unet.down_blocks.0.x{number}.lora_{side}.weight" for number in range(count) for side in "AB")
    save_file({name: torch.zeros(1, 1) for name in names}, tmp_path / "style.safetensors")
    pipe = tiny_sd()
    capfd.readouterr()
    begun = time.process_time()
    with quiet_libraries(), pytest.raises(ModelNotUsable, match="cannot be put on this model") as caught:
        put_on(pipe, tmp_path)
    assert time.process_time() - begun < 5
    assert len(str(caught.value)) < 1000
    assert capfd.readouterr() == ("", "")


def test_a_folder_called_like_an_embedding_ends_no_drawing(tmp_path: Path) -> None:
    (tmp_path / "word.pt").mkdir()
    (tmp_path / "star.pt").touch()
    assert find_embeddings(["a word, a star"], str(tmp_path)) == [tmp_path / "star.pt"]


def test_a_lora_with_a_textual_inversion_inside_says_so(tmp_path: Path) -> None:
    save_file(
        {A: torch.zeros(4, 8), "bundle_emb.word.string_to_param.*": torch.zeros(2, 8)}, tmp_path / "a.safetensors"
    )
    with pytest.raises(ModelNotUsable, match="a textual inversion inside"):
        read_lora(tmp_path / "a.safetensors")


def test_a_lora_that_belongs_on_the_model_in_part_is_told_with_how_much(tmp_path: Path) -> None:
    tensors = lora(tiny_sd())
    ups = [name for name in tensors if name.endswith("lora_A.weight")]
    layer = ups[0].partition(".lora_")[0]
    other = {name.replace(layer, layer.replace("_blocks.0", "_blocks.7")): one for name, one in tensors.items()}
    for name, content in (("whole", tensors), ("part", tensors | other)):
        save_file({key: one.clone() for key, one in content.items()}, tmp_path / f"{name}.safetensors")
    notes: list[str] = []
    for name in ("whole", "part"):
        attach_loras(tiny_sd(), find_loras(split_tags(f"<lora:{name}:1>").loras, str(tmp_path)), notes.append)
    assert len(notes) == 1
    assert f"part.safetensors: 1 of its {len(ups) + 1} layers are not in this model" in notes[0]


def test_a_lora_of_another_kind_of_model_is_refused(tmp_path: Path) -> None:
    names = ("transformer.x.lora_A.weight", "transformer.x.lora_B.weight")
    save_file(dict(zip(names, (torch.zeros(2, 8), torch.zeros(8, 2)), strict=True)), tmp_path / "style.safetensors")
    with pytest.raises(ModelNotUsable, match=r"none of its layers is in it|cannot be put on this model"):
        put_on(tiny_sd(), tmp_path)


def test_values_that_are_not_finite_are_no_loras(tmp_path: Path) -> None:
    tensors = lora(tiny_sd())
    tensors[next(iter(tensors))] *= float("nan")
    save_file(tensors, tmp_path / "style.safetensors")
    with pytest.raises(ModelNotUsable, match="not finite"):
        put_on(tiny_sd(), tmp_path)


def test_a_lora_that_was_replaced_since_it_was_asked_for_is_not_put_on(tmp_path: Path) -> None:
    tensors = lora(tiny_sd())
    save_file(tensors, tmp_path / "style.safetensors")
    loras = find_loras(split_tags("<lora:style:1>").loras, str(tmp_path))
    assert lora_hashes(loras)
    save_file({name: tensor * 2 for name, tensor in tensors.items()}, tmp_path / "style.safetensors")
    with pytest.raises(FileChanged, match="another one than before"):
        attach_loras(tiny_sd(), loras, [].append)
