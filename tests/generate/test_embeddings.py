"""Textual inversions by their names: found in prompts, read without a pickle being run, added to the vocabulary."""

from __future__ import annotations

import pickle
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support.deep_folders import deep_tree, unreadable
from support.pipelines import SD_CROSS_WIDTH, SDXL_CROSS_WIDTH, tiny_sd, tiny_sdxl
from torch import Tensor

from hnetkit.errors import AmbiguousName, FileRefused, ModelNotUsable, NotFound, UnsafeFile, UsageError
from hnetkit.generate.loading.extra_networks import (
    find_embeddings,
    find_unread_embeddings,
    load_embeddings,
    read_vectors,
)
from hnetkit.generate.sampling.encoding import TextEncoder
from hnetkit.prompts.chunks import token_of


def vectors(number: int = 3, width: int = SD_CROSS_WIDTH) -> Tensor:
    return torch.randn(number, width, generator=torch.Generator().manual_seed(number))


FORMS: dict[str, Any] = {
    "a1111.pt": {"string_to_token": {"*": 265}, "string_to_param": {"*": vectors()}, "name": "a1111", "step": 5},
    "parameters.pt": {
        "string_to_token": {"*": torch.tensor(265)},
        "string_to_param": torch.nn.ParameterDict({"*": torch.nn.Parameter(vectors())}),
    },
    "diffusers.bin": {"<word>": vectors()},
    "one.pt": {"<word>": vectors()[0]},
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_gives_its_vectors(tmp_path: Path, name: str) -> None:
    torch.save(FORMS[name], tmp_path / name)
    expected = vectors()[:1] if name == "one.pt" else vectors()
    assert torch.equal(read_vectors(tmp_path / name)["clip_l"], expected)


def test_a_safetensors_file_gives_its_vectors(tmp_path: Path) -> None:
    save_file({"emb_params": vectors()}, tmp_path / "a.safetensors")
    assert torch.equal(read_vectors(tmp_path / "a.safetensors")["clip_l"], vectors())


@pytest.mark.parametrize(
    ("text", "is_found"),
    [
        *(("a My-Style", True), ("my - style of old", True), ("by\nmy-style2", True), ("_my-style_v2", True)),
        *(("my style", False), ("my-styles", False), ("enmy-style", False), ("my", False), ("", False)),
        ("\uff2dy-style", True),
    ],
)
def test_names_are_found_by_the_words_that_clip_makes_of_them(tmp_path: Path, text: str, is_found: bool) -> None:
    """A1111 looks for a name's tokens: blanks between words do not count, and a number begins another word."""
    (tmp_path / "My-style.pt").touch()
    assert bool(find_embeddings([text], str(tmp_path))) == is_found


@pytest.mark.parametrize("text", ["a mine_2 b", "a mine2 b", "a mine's b", "mine  mine\nold b", "undermined, mines"])
def test_what_is_found_is_what_stands_for_vectors(tmp_path: Path, text: str) -> None:
    """Of several names the longest counts; within a word there is none."""
    numbers = {"mine": 2, "mine mine old": 3, "undermined": 0, "mines": 0}
    for name, number in numbers.items():
        if number:
            save_file({"emb_params": vectors(number)}, tmp_path / f"{name}.safetensors")
    pipe = tiny_sd()
    load_embeddings(pipe, sorted(tmp_path.iterdir()))
    known, rows = len(tiny_sd().tokenizer), list[int]()
    pipe.text_encoder.register_forward_pre_hook(lambda module, arguments: rows.extend(arguments[0].flatten().tolist()))
    with torch.no_grad():
        TextEncoder(pipe).encode(text)
    expected = 0 if text.startswith("under") else 3 if "old" in text else 2
    assert len([token for token in rows if token >= known]) == expected


def test_names_are_found_as_whole_words_in_any_case(tmp_path: Path) -> None:
    for name in ("Old-Style.pt", "art.safetensors", "notes.txt"):
        (tmp_path / name).touch()
    found = find_embeddings(["a cat, (old-style:1.2)", "smart notes"], str(tmp_path))
    assert [path.name for path in found] == ["Old-Style.pt"]
    assert find_embeddings(["art"], None) == []
    with pytest.raises(NotFound, match="absent"):
        find_embeddings(["art"], str(tmp_path / "absent"))


def test_no_folder_below_hides_those_around_it(tmp_path: Path) -> None:
    (tmp_path / "z").mkdir()
    (tmp_path / "z" / "Mine.pt").touch()
    (tmp_path / "loop").symlink_to("loop")
    told: list[str] = []
    with deep_tree(tmp_path), unreadable(tmp_path / "hidden"):
        assert [path.name for path in find_embeddings(["by mine"], str(tmp_path), told.append)] == ["Mine.pt"]
    assert any(
        "could not be read (File name too long): textual inversions there are plain text" in line for line in told
    )


def test_a_name_in_a_prompt_stands_for_its_vectors(tmp_path: Path) -> None:
    torch.save(FORMS["a1111.pt"], tmp_path / "Mine.pt")
    pipe = tiny_sd()
    load_embeddings(pipe, [tmp_path / "Mine.pt"])
    seen: list[Tensor] = []
    pipe.text_encoder.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    with torch.no_grad():
        TextEncoder(pipe).encode("a (MINE:1.2) b")
    embedded = pipe.text_encoder.get_input_embeddings()(seen[0][0, 2:5])
    assert torch.equal(embedded, vectors())


def test_vectors_that_do_not_fit_behind_a_text_are_in_the_next_chunk(tmp_path: Path) -> None:
    torch.save({"*": vectors(8)}, tmp_path / "eight.pt")
    pipe = tiny_sd()
    load_embeddings(pipe, [tmp_path / "eight.pt"])
    seen: list[Tensor] = []
    pipe.text_encoder.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    with torch.no_grad():
        TextEncoder(pipe).encode("a " * 70 + "(eight:1.2) b")
    assert torch.equal(pipe.text_encoder.get_input_embeddings()(seen[0][1, 1:9]), vectors(8))


def test_pictures_that_may_hold_vectors_are_named(tmp_path: Path) -> None:
    for name in ("charm.png", "old.webp", "art.png", "art.pt", "other.png"):
        (tmp_path / name).touch()
    found = find_unread_embeddings(["a (Charm:1.2) of old art"], str(tmp_path))
    assert [path.name for path in found] == ["charm.png", "old.webp"]
    assert find_unread_embeddings(["charm"], None) == []


def test_sdxl_takes_vectors_for_both_of_its_encoders(tmp_path: Path) -> None:
    half = SDXL_CROSS_WIDTH // 2
    save_file({"clip_l": vectors(2, half), "clip_g": vectors(3, half)}, tmp_path / "both.safetensors")
    pipe = tiny_sdxl()
    load_embeddings(pipe, [tmp_path / "both.safetensors"])
    assert f"{token_of('both')}_1" in pipe.tokenizer.get_vocab()
    assert f"{token_of('both')}_2" in pipe.tokenizer_2.get_vocab()


def test_vectors_of_another_base_model_are_refused(tmp_path: Path) -> None:
    save_file({"emb_params": vectors(2, 7)}, tmp_path / "other.safetensors")
    with pytest.raises(ModelNotUsable, match=f"{SD_CROSS_WIDTH} wide; it has vectors of width 7"):
        load_embeddings(tiny_sd(), [tmp_path / "other.safetensors"])


def test_a_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return (pickle.loads, (b"",))

    torch.save({"string_to_param": {"*": vectors()}, "x": Bomb()}, tmp_path / "bomb.pt")
    with pytest.raises(FileRefused):
        read_vectors(tmp_path / "bomb.pt")
    torch.save({"a": vectors(), "b": vectors()}, tmp_path / "two.pt")
    with pytest.raises(ModelNotUsable, match="2 matrices"):
        read_vectors(tmp_path / "two.pt")


def test_tensors_that_share_their_bytes_are_not_read_again_and_again(tmp_path: Path) -> None:
    whole = torch.zeros(1 << 16)
    torch.save({f"a{number}": whole.view(256, 256) for number in range(50)}, tmp_path / "views.pt")
    with pytest.raises(UnsafeFile, match=r"views\.pt: its tensors together .* are larger than the file"):
        read_vectors(tmp_path / "views.pt")


@pytest.mark.parametrize(
    "content",
    [
        {"*": torch.tensor(1.0)},
        {"clip_g": torch.tensor(1.0)},
        {"clip_g": torch.zeros(2, 2, 2)},
        {"*": torch.zeros(0, 4)},
    ],
    ids=["one number", "one number of the second encoder", "a block", "nothing"],
)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_tensors_of_no_such_shape_are_no_vectors(content: dict[str, Tensor], suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"word{suffix}"
    save_file(content, path) if suffix == ".safetensors" else torch.save(content, path)
    with pytest.raises(ModelNotUsable, match="no textual inversion"):
        read_vectors(path)


def test_more_vectors_than_any_prompt_holds_are_refused(tmp_path: Path) -> None:
    save_file({"emb_params": torch.zeros(5000, 4)}, tmp_path / "many.safetensors")
    with pytest.raises(ModelNotUsable, match="5000 vectors"):
        read_vectors(tmp_path / "many.safetensors")


def test_a_folder_of_that_name_is_no_textual_inversion(tmp_path: Path) -> None:
    (tmp_path / "word.pt").mkdir()
    assert find_embeddings(["a word"], str(tmp_path)) == []


@pytest.mark.parametrize("name", ["legacy, tar", "safetensors, tar"])
def test_a_file_that_is_something_else_to_torch_is_refused(name: str, tmp_path: Path) -> None:
    block = bytearray(
        (b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19." if "legacy" in name else b"\0\2" + bytes(6) + b"{").ljust(
            1024, b"\0"
        )
    )
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block[:512])
    (tmp_path / "word.pt").write_bytes(block)
    with pytest.raises(UnsafeFile, match="is a tar archive as well"):
        read_vectors(tmp_path / "word.pt")


def test_two_files_of_one_name_are_named_before_anything_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for place in ("zork.safetensors", "sub/Zork.pt"):
        (tmp_path / place).touch()
    with pytest.raises(AmbiguousName, match=r"zork.*Zork\.pt|Zork.*zork\.safetensors"):
        find_embeddings(["a zork"], str(tmp_path))


@pytest.mark.parametrize("number", [1, 3])
def test_a_name_that_the_vocabulary_has_stands_for_its_vectors(tmp_path: Path, number: int) -> None:
    pipe = tiny_sd()
    word = next(token for token in pipe.tokenizer.get_vocab() if token.isalpha())
    save_file({"emb_params": vectors(number)}, tmp_path / f"{word}.safetensors")
    load_embeddings(pipe, [tmp_path / f"{word}.safetensors"])
    seen: list[Tensor] = []
    pipe.text_encoder.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    with torch.no_grad():
        TextEncoder(pipe).encode(f"{word} b")
    assert torch.equal(pipe.text_encoder.get_input_embeddings()(seen[0][0, 1 : 1 + number]), vectors(number))


def test_vectors_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    save_file({"emb_params": vectors() * float("inf")}, tmp_path / "inf.safetensors")
    with pytest.raises(ModelNotUsable, match="not finite"):
        read_vectors(tmp_path / "inf.safetensors")


def test_vectors_that_are_named_very_often_are_refused_before_they_are_there(tmp_path: Path) -> None:
    """Such a prompt may be a stranger's, packed in a picture: its tokens would take gigabytes."""
    pipe = tiny_sd()
    save_file({"emb_params": vectors(300)}, tmp_path / "zq.safetensors")
    load_embeddings(pipe, [tmp_path / "zq.safetensors"])
    begun = time.process_time()
    for text in ("zq " * 50_000, "(zq:1.1)" * 20_000):
        with pytest.raises(UsageError, match="more than 100 chunks"):
            TextEncoder(pipe).chunks_of(text)
    assert time.process_time() - begun < 20
