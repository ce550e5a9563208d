"""Inputs that grow, one for each way in which a small file once cost much; and what a person does with each.

`make(folder, factor)` writes the input, `factor` times its smallest size, and returns what is then done with it.
"""

from __future__ import annotations

import io
import json
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from support import hostile_files

Action = Callable[[], object]
Make = Callable[[Path, int], Action]


@dataclass(frozen=True, slots=True)
class Case:
    """One input.

    Attributes:
        carrier: the kind of file, as docs/security.md lists them.
        make: writes it, `factor` times its smallest size, and returns what is done with it.
        needs: modules that are imported before anything is measured.
    """

    carrier: str
    make: Make
    needs: tuple[str, ...]

    def prepare(self) -> None:
        for name in self.needs:
            __import__(name)


CASES: dict[str, Case] = {}


def case(carrier: str, *needs: str) -> Callable[[Make], Make]:
    def add(make: Make) -> Make:
        CASES[make.__name__] = Case(carrier, make, needs)
        return make

    return add


def command(*arguments: object) -> Action:
    """A command of hnetkit's; what it refuses is an outcome like another."""

    def act() -> None:
        from hnetkit.cli import cli

        cli.main([str(argument) for argument in arguments], prog_name="hnetkit", standalone_mode=False)

    return act


def shown(path: Path, data: bytes) -> Action:
    """The file is written, and inspected with everything that is in it."""
    path.write_bytes(data)
    return command("inspect", path, "--json")


FILES = ("hnetkit.cli.files", "hnetkit.cli.drawing", "hnetkit.generate.image_settings")
LIBRARY = ("hnetkit.cli.library", "hnetkit.library.sidecars")

# --- pickles: in a zip, and stacked


def memo(value: bytes, times: int) -> bytes:
    """A list that names one value so many times."""
    return b"](" + value + b"q\x07" + b"h\x07" * times + b"e"


@case("pickle", *LIBRARY)
def a_note_that_names_one_text_again_and_again(folder: Path, factor: int) -> Action:
    (folder / "a.pt").write_bytes(
        hostile_files.zip_of(hostile_files.meta(memo(hostile_files.text("x" * 30_000 * factor), 9900)))
    )
    return command("scan", folder)


@case("pickle", *FILES)
def a_key_that_names_one_text_again_and_again(folder: Path, factor: int) -> Action:
    long = memo(hostile_files.text("x" * 30_000 * factor), 9000)
    keys = ("activation_func", "is_layer_norm", "dropout_structure", "layer_structure")
    for key in keys:
        (folder / f"{key}.pt").write_bytes(hostile_files.zip_of(hostile_files.meta(long, key)))
    return command("inspect", *(folder / f"{key}.pt" for key in keys), "--json")


@case("pickle", *FILES)
def an_activation_of_many_letters(folder: Path, factor: int) -> Action:
    return shown(
        folder / "a.pt",
        hostile_files.zip_of(hostile_files.meta(hostile_files.text("relu" * 200_000 * factor), "activation_func")),
    )


def wide_network(width: int, metadata: bytes) -> tuple[bytes, bytes]:
    """The pickle and the one storage of a network ``[1, 1]`` of one weight that is seen by K and V."""
    weight = hostile_files.tensor("0", width * width, 0, (width, width), (width, 1))
    side = hostile_files.ORDERED_DICT + b"(" + hostile_files.text("linear.0.weight") + weight + b"u"
    pickle = b"\x80\x02}(M" + struct.pack("<H", width) + hostile_files.items(side, side) + metadata + b"u."
    return pickle, b"\0" * (4 * width * width)


@case("pickle", *FILES)
def a_layer_structure_of_text(folder: Path, factor: int) -> Action:
    structure = hostile_files.text("layer_structure") + b"](" + hostile_files.text("7" * 100_000 * factor) * 2 + b"e"
    pickle, storage = wide_network(500, structure)
    return shown(folder / "a.pt", hostile_files.zip_of(pickle, storages=(storage,)))


@case("pickle", *FILES)
def tensors_named_by_bytes(folder: Path, factor: int) -> Action:
    count = 1_000
    key = b"B" + struct.pack("<I", 250_000 * factor) + b"\xff" * (250_000 * factor)
    first = hostile_files.items(b"}(" + key + b"q\x07" + b"Nu", b"}")
    others = (b"M" + struct.pack("<H", 3 + n) + hostile_files.items(b"}(h\x07Nu", b"}") for n in range(count))
    return shown(folder / "a.pt", hostile_files.zip_of(b"\x80\x02}(K\x02" + first + b"".join(others) + b"u."))


@case("pickle", *FILES)
def many_widths(folder: Path, factor: int) -> Action:
    side = hostile_files.side() + b"q\x07"
    first = b"K\x02" + hostile_files.items(side, b"h\x07")
    others = (hostile_files.number(3 + n) + hostile_files.items(b"h\x07", b"h\x07") for n in range(3_000 * factor))
    return shown(folder / "a.pt", hostile_files.zip_of(b"\x80\x02}(" + first + b"".join(others) + b"u."))


@case("pickle", *FILES)
def many_stages(folder: Path, factor: int) -> Action:
    stages = b"".join(
        hostile_files.text(f"linear.{n}.weight") + hostile_files.tensor("0", 4, 0, (2, 2), (2, 1))
        for n in range(600 * factor)
    )
    side = hostile_files.ORDERED_DICT + b"(" + stages + b"uq\x07"
    pickle = b"\x80\x02}(K\x02" + hostile_files.items(side, b"h\x07") + b"u."
    return shown(folder / "a.pt", hostile_files.legacy_of(pickle, keys=("0",), numels=(8,)))


@case("pickle", *FILES)
def many_keys_of_metadata(folder: Path, factor: int) -> Action:
    metadata = b"".join(hostile_files.text(f"key {n}") + b"]" for n in range(20_000 * factor))
    return shown(folder / "a.pt", hostile_files.legacy_of(hostile_files.network(metadata=metadata)))


# --- zips


@case("zip", *FILES)
def a_directory_of_many_lines_with_lying_sizes(folder: Path, factor: int) -> Action:
    count = 4_000 * factor
    extra = struct.pack("<2H", 1, 0xFFFF)
    line = struct.pack(
        "<4s6H3L5H2L", b"PK\1\2", 45, 45, 0, 0, 0, 0, 0, *(0xFFFFFFFF,) * 2, 1, len(extra), 0, 0, 0, 0, 0xFFFFFFFF
    )
    directory = (line + b"x" + extra) * count
    head = struct.pack("<4s5H3L2H", b"PK\3\4", 45, 0, 0, 0, 0, 0, 0, 0, 1, 0) + b"x"
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, count, count, len(directory), len(head), 0)
    return shown(folder / "a.pt", head + directory + end)


@case("zip", *FILES)
def a_zip_of_many_members(folder: Path, factor: int) -> Action:
    extra = {f"data/{n}": b"" for n in range(2, 4_000 * factor)}
    return shown(folder / "a.pt", hostile_files.zip_of(hostile_files.network(), extra))


# --- safetensors


@case("safetensors", *FILES)
def a_shape_of_many_numbers(folder: Path, factor: int) -> Action:
    header = b'{"a":{"dtype":"F32","shape":[' + b"2," * 100_000 * factor + b'2],"data_offsets":[0,8]}}'
    return shown(folder / "a.safetensors", hostile_files.safetensors_of(header, b"\0" * 8))


@case("safetensors", *FILES)
def a_header_of_many_tensors(folder: Path, factor: int) -> Action:
    header = {
        f"2.k.linear.{n}.weight": {"dtype": "F32", "shape": [0, 2], "data_offsets": [0, 0]}
        for n in range(6_000 * factor)
    }
    return shown(folder / "a.safetensors", hostile_files.safetensors_of({**hostile_files.ours(), **header}, b""))


@case("safetensors", *FILES)
def an_activation_of_many_letters_in_a_header(folder: Path, factor: int) -> Action:
    header = hostile_files.ours(a=[0, 16], b=[16, 32])
    header["__metadata__"]["activation_func"] = json.dumps("relu" * 200_000 * factor)  # type: ignore[index]
    return shown(folder / "a.safetensors", hostile_files.safetensors_of(header, b"\0" * 32))


@case("safetensors", *FILES)
def a_note_of_many_lists(folder: Path, factor: int) -> Action:
    return shown(folder / "a.safetensors", hostile_files.good_safetensors("[" + "[]," * 200_000 * factor + "0]"))


# --- embeddings, checkpoints, LoRAs


@case("embedding", "hnetkit.generate.loading.extra_networks", "torch")
def an_embedding_of_many_views(folder: Path, factor: int) -> Action:
    numel = 60_000 * factor
    views = b"".join(
        hostile_files.text(f"v{n}") + hostile_files.tensor("0", numel, 0, (1, numel), (numel, 1))
        for n in range(500 * factor)
    )
    data = hostile_files.zip_of(b"\x80\x02}(" + views + b"u.", storages=(b"\0" * 4 * numel,))
    (folder / "word.pt").write_bytes(data)

    def act() -> None:
        from hnetkit.generate.loading.extra_networks import read_vectors

        read_vectors(folder / "word.pt")

    return act


@case("checkpoint", "hnetkit.generate.loading.checkpoints", "diffusers", "torch")
def a_checkpoint_whose_tensors_span_the_file(folder: Path, factor: int) -> Action:
    numel = 60_000 * factor
    spans = b"".join(
        hostile_files.text(f"model.diffusion_model.v{n}") + hostile_files.tensor("0", numel, 0, (2,), (numel - 1,))
        for n in range(500 * factor)
    )
    data = hostile_files.zip_of(b"\x80\x02}(" + spans + b"u.", storages=(b"\0" * 4 * numel,))
    (folder / "a.ckpt").write_bytes(data)

    def act() -> None:
        import torch

        from hnetkit.generate.loading.checkpoints import read_state_dict

        read_state_dict(folder / "a.ckpt").part("model.diffusion_model.", torch.float16)

    return act


@case("LoRA", "hnetkit.generate.loading.extra_networks", "torch")
def a_lora_of_many_tensors(folder: Path, factor: int) -> Action:
    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_k"
    header = {
        f"{name}_{n}.lora_down.weight": {"dtype": "F32", "shape": [0, 1 << 40], "data_offsets": [0, 0]}
        for n in range(4_000 * factor)
    }
    (folder / "a.safetensors").write_bytes(hostile_files.safetensors_of(header, b""))

    def act() -> None:
        from hnetkit.generate.loading.extra_networks import read_lora

        read_lora(folder / "a.safetensors")

    return act


@case("LoRA", "hnetkit.generate.loading.extra_networks", "torch")
def a_lora_that_says_much_of_itself(folder: Path, factor: int) -> Action:
    tensor = {"dtype": "F32", "shape": [1, 1], "data_offsets": [0, 4]}
    said = {"lora_adapter_metadata": '{"unet.alpha_pattern":{"a":[' + "{}," * 100_000 * factor + "{}]}}"}
    header = {"__metadata__": said, "unet.a.lora_A.weight": tensor}
    (folder / "a.safetensors").write_bytes(hostile_files.safetensors_of(header, b"\0" * 4))

    def act() -> None:
        from hnetkit.generate.loading.extra_networks import read_lora

        read_lora(folder / "a.safetensors")

    return act


def model_folder(folder: Path, changed: str, data: str) -> Action:
    """A good model, of which one file is another's."""
    model = Path(shutil.copytree(demo_model(), folder / "model"))
    (model / changed).write_text(data)

    def act() -> None:
        from hnetkit.generate.model import load_model

        load_model(str(model), device="cpu")

    return act


MODEL = ("hnetkit.generate.model", "hnetkit.generate.loading.diffusers_folder", "diffusers", "transformers")


@case("model folder", *MODEL)
def a_model_of_many_parts(folder: Path, factor: int) -> Action:
    index = json.loads((demo_model() / "model_index.json").read_text())
    index |= {f"part{n}": ["transformers", "CLIPProcessor"] for n in range(20_000 * factor)}
    return model_folder(folder, "model_index.json", json.dumps(index))


@case("model folder", *MODEL)
def a_model_whose_scheduler_has_many_numbers(folder: Path, factor: int) -> Action:
    config = json.loads((demo_model() / "scheduler/scheduler_config.json").read_text())
    config["trained_betas"] = [0.1] * 300_000 * factor
    return model_folder(folder, "scheduler/scheduler_config.json", json.dumps(config))


@case("model folder", *MODEL)
def a_model_whose_unet_has_many_blocks(folder: Path, factor: int) -> Action:
    config = json.loads((demo_model() / "unet/config.json").read_text())
    config["down_block_types"] = config["down_block_types"] * 20_000 * factor
    return model_folder(folder, "unet/config.json", json.dumps(config))


@case("model folder", *MODEL)
def a_tokenizer_of_many_merges(folder: Path, factor: int) -> Action:
    merges = "".join(f"a{n} b{n}\n" for n in range(20_000 * factor))
    return model_folder(folder, "tokenizer/merges.txt", merges)


@case("model folder", *MODEL)
def a_tokenizer_of_many_added_tokens(folder: Path, factor: int) -> Action:
    added = {f"x{n}": 100_000 + n for n in range(50_000 * factor)}
    return model_folder(folder, "tokenizer/added_tokens.json", json.dumps(added))


@case("model folder", "hnetkit.generate.loading.tokenizer")
def a_tokenizer_whose_merges_are_a_chain(folder: Path, factor: int) -> Action:
    chain = ["x" + "a" * n for n in range(900 * factor + 1)]
    vocabulary = {token: number for number, token in enumerate(["a", "a</w>", *chain])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("".join(f"{token} a\n" for token in chain[:-1]))

    def act() -> None:
        from hnetkit.generate.loading.tokenizer import read_counting_tokenizer

        read_counting_tokenizer(str(folder)).tokens("x" + "a" * 8_000 * factor)

    return act


def demo_model() -> Path:
    import hnetkit.demo

    return hnetkit.demo.model_folder()


# --- pictures, and what stands in them


def png(*chunks: tuple[bytes, bytes], width: int = 1, height: int = 1, depth: int = 1) -> bytes:
    """A PNG; its pixels are one piece of zeros."""
    rows = b"\0" * (1 + (width * depth + 7) // 8) * height
    header = (b"IHDR", struct.pack(">2L5B", width, height, depth, 0, 0, 0, 0))
    every = [header, *chunks, (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b"")]
    pieces = (struct.pack(">L", len(d)) + n + d + struct.pack(">L", zlib.crc32(n + d)) for n, d in every)
    return b"\x89PNG\r\n\x1a\n" + b"".join(pieces)


def tiff(entries: int, block: int) -> bytes:
    """EXIF data whose directory names one block again and again."""
    lines = b"".join(struct.pack("<2H2L", 0x10E, 2, block, 8) for _ in range(entries))
    return b"II*\0" + struct.pack("<L", 8) + struct.pack("<H", entries) + lines + struct.pack("<L", 0) + b"x" * block


@case("PNG", *FILES)
def a_png_of_empty_chunks(folder: Path, factor: int) -> Action:
    return shown(folder / "a.png", png(*[(b"teST", b"")] * 40_000 * factor))


@case("graph", *FILES)
def a_packed_graph_of_many_objects(folder: Path, factor: int) -> Action:
    graph = b'{"1":[' + b"{}," * 500_000 * factor + b"{}]}"
    return shown(folder / "a.png", png((b"zTXt", b"prompt\0\0" + zlib.compress(graph, 9))))


@case("PNG", *FILES)
def a_png_of_many_packed_texts(folder: Path, factor: int) -> Action:
    texts = [(b"zTXt", b"note %d\0\0" % n + zlib.compress(b"x" * 1_000_000, 9)) for n in range(100 * factor)]
    return shown(folder / "a.png", png(*texts))


@case("WebP", *FILES)
def a_webp_whose_exif_names_one_block_again_and_again(folder: Path, factor: int) -> Action:
    exif = tiff(60_000, 300_000 * factor)
    chunk = b"EXIF" + struct.pack("<L", len(exif)) + exif + b"\0" * (len(exif) % 2)
    body = b"WEBP" + b"VP8X" + struct.pack("<L", 10) + b"\x08" + b"\0" * 9 + chunk
    return shown(folder / "a.webp", b"RIFF" + struct.pack("<L", len(body)) + body)


@case("JPEG", *FILES)
def a_jpeg_of_many_exif_parts(folder: Path, factor: int) -> Action:
    exif = b"Exif\0\0" + tiff(2_000, 40_000)
    part = b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif
    return shown(folder / "a.jpg", b"\xff\xd8" + part * 10 * factor + b"\xff\xd9")


@case("AVIF", "hnetkit.cli.train_data", "PIL.Image")
def an_avif_that_is_damaged(folder: Path, factor: int) -> Action:
    from PIL import Image

    out = io.BytesIO()
    Image.effect_noise((200 * factor, 200), 60).convert("RGB").save(out, "AVIF")
    data = bytearray(out.getvalue())
    data[len(data) // 2 :: 97] = b"\xff" * len(data[len(data) // 2 :: 97])
    (folder / "a.avif").write_bytes(data)
    return command("train", "review", folder)


@case("PNG", "hnetkit.cli.train_data", "PIL.Image")
def a_png_of_many_pixels(folder: Path, factor: int) -> Action:
    (folder / "a.png").write_bytes(png(width=11_000, height=2_000 * factor))
    return command("train", "review", folder)


@case("PNG", "hnetkit.cli.train_data", "PIL.Image")
def a_long_thin_png_that_is_split(folder: Path, factor: int) -> Action:
    (folder / "in").mkdir()
    (folder / "in" / "a.png").write_bytes(png(width=1, height=2_000 * factor))
    return command("train", "prepare", folder / "in", "--out", folder / "out", "--split", "--size", "64")


def graph_of(nodes: dict[str, object]) -> bytes:
    return png((b"tEXt", b"prompt\0" + json.dumps(nodes).encode()))


@case("graph", *FILES)
def a_graph_of_many_samplers_on_one_chain(folder: Path, factor: int) -> Action:
    """Every sampler's latents come through the same 197 nodes, each of which has the settings of one helper."""
    helper = {"class_type": "Helper", "inputs": {f"setting {n}": n for n in range(500)}}
    helped = {"noise": ["helper", 0], "guider": ["helper", 0], "sigmas": ["helper", 0]}
    nodes: dict[str, object] = {"helper": helper}
    for n in range(197):
        onward = {**helped, "samples": [f"c{n + 1}" if n < 196 else "last", 0]}
        nodes[f"c{n}"] = {"class_type": "Latent", "inputs": onward}
    text = {"positive": ["text", 0], "seed": 1}
    nodes["last"] = {"class_type": "KSampler", "inputs": text}
    for n in range(200 * factor):
        inputs = {**text, **helped, "latent_image": ["c0", 0], "samples": ["c0", 0]}
        nodes[str(n)] = {"class_type": "KSampler", "inputs": inputs}
    return shown(folder / "a.png", graph_of(nodes))


@case("graph", *FILES)
def a_graph_that_is_one_long_chain(folder: Path, factor: int) -> Action:
    count = 3_000 * factor
    nodes: dict[str, object] = {
        str(n): {
            "class_type": "HypernetworkLoader",
            "inputs": {"model": [str(n + 1), 0], "hypernetwork_name": "a.pt", "strength": 1.0},
        }
        for n in range(1, count)
    }
    nodes["0"] = {"class_type": "KSampler", "inputs": {"model": ["1", 0], "seed": 1, "steps": 20}}
    return shown(folder / "a.png", graph_of(nodes))


@case("graph", *FILES)
def a_graph_whose_nodes_name_one_text(folder: Path, factor: int) -> Action:
    encoders = {str(n): {"class_type": "CLIPTextEncode", "inputs": {"text": ["t", 0]}} for n in range(60 * factor)}
    all_of_them = {f"conditioning_{n}": [n, 0] for n in encoders}
    nodes: dict[str, object] = {
        **encoders,
        "t": {"class_type": "String", "inputs": {"value": "x" * 200_000 * factor}},
        "c": {"class_type": "ConditioningCombine", "inputs": all_of_them},
        "last": {"class_type": "KSampler", "inputs": {"positive": ["c", 0], "seed": 1, "steps": 20}},
    }
    return shown(folder / "a.png", graph_of(nodes))


def infotext(text: str) -> bytes:
    return png((b"iTXt", b"parameters\0\0\0\0\0" + text.encode()))


@case("infotext", *FILES)
def an_infotext_of_many_tags(folder: Path, factor: int) -> Action:
    tags = " ".join(f"<hypernet:n{n}:0.5>" for n in range(2_000 * factor))
    return shown(folder / "a.png", infotext(f"a star {tags}\nSteps: 20, Sampler: Euler a, Seed: 1, Size: 64x64"))


@case("infotext", *FILES)
def an_infotext_of_many_settings(folder: Path, factor: int) -> Action:
    settings = ", ".join(f'Key{n}: "{{\\"a: b"' for n in range(10_000 * factor))
    return shown(folder / "a.png", infotext(f"a star\nSteps: 20, Sampler: Euler a, Seed: 1, {settings}"))


@case("infotext", "hnetkit.cli.prompt")
def a_prompt_of_many_alternations(folder: Path, factor: int) -> Action:
    (folder / "prompt.txt").write_text("[|]" * 5_000 * factor)
    return command("prompt", "[|]" * 5_000 * factor, "--steps", 1000)


@case("infotext", "hnetkit.cli.prompt")
def a_prompt_of_many_brackets(folder: Path, factor: int) -> Action:
    (folder / "prompt.txt").write_text("[(" * 5_000 * factor)
    return command("prompt", "[(" * 5_000 * factor, "--steps", 1000)


@case("infotext", "hnetkit.cli.prompt", "hnetkit.generate.loading.tokenizer")
def a_prompt_of_many_accents_on_one_letter(folder: Path, factor: int) -> Action:
    prompt = "a" + "\u0301" * 20_000 * factor + "\u0316" * 20_000 * factor
    (folder / "prompt.txt").write_text(prompt)

    def act() -> None:
        from hnetkit.prompts.chunks import as_read

        as_read(prompt)

    return act


@case("infotext", "hnetkit.cli.prompt", "hnetkit.generate.loading.extra_networks", "hnetkit.library.walking")
def a_prompt_of_many_words_beside_many_embeddings(folder: Path, factor: int) -> Action:
    for n in range(1_000):
        (folder / f"style{n}.pt").touch()
    prompt = "word, " * 10_000 * factor
    (folder / "prompt.txt").write_text(prompt)

    def act() -> None:
        from hnetkit.generate.loading.extra_networks import find_embeddings

        find_embeddings([prompt], str(folder))

    return act


# --- tables, lines, sidecars, recipes, training


@case("CSV", "hnetkit.cli.train_data", "PIL.Image")
def a_table_of_many_rows(folder: Path, factor: int) -> Action:
    (folder / "pictures").mkdir()
    (folder / "pictures" / "a.png").write_bytes(png())
    rows = "".join(f"b{n}.png,1,1,a star,\n" for n in range(20_000 * factor))
    (folder / "table.csv").write_text("file,width,height,caption,warnings\n" + rows)
    return command("train", "review", folder / "pictures", "--apply", folder / "table.csv")


@case("CSV", "hnetkit.cli.train_data", "PIL.Image")
def a_table_of_rows_that_say_nothing(folder: Path, factor: int) -> Action:
    rows = "".join(f"{n:x},\n" for n in range(400_000 * factor))
    (folder / "table.csv").write_text("file,caption\n" + rows)
    return command("train", "review", folder, "--apply", folder / "table.csv")


@case("CSV", "hnetkit.cli.train_data", "PIL.Image")
def a_table_of_many_columns(folder: Path, factor: int) -> Action:
    columns = "".join(f",{n:x}" for n in range(400_000 * factor))
    (folder / "table.csv").write_text(f"file,caption{columns}\n{',' * 400_000 * factor}\n")
    return command("train", "review", folder, "--apply", folder / "table.csv")


@case("names", "hnetkit.library.layouts")
def many_networks_of_one_name(folder: Path, factor: int) -> Action:
    (folder / "names.txt").write_text("ink\n" * 1_500 * factor)

    def act() -> None:
        from hnetkit.library.layouts import TakenNames

        taken = TakenNames()
        for name in (folder / "names.txt").read_text().split():
            taken.add(taken.free(name))

    return act


HEADER = '{"kind": "hnetkit", "version": 1}\n'


@case("JSON lines", "hnetkit.cli.library", "hnetkit.sources.export")
def a_line_of_many_objects(folder: Path, factor: int) -> Action:
    (folder / "a.jsonl").write_text(HEADER + '{"kind":"network","tags":[' + "{}," * 500_000 * factor + "{}]}\n")
    return command("import", folder / "a.jsonl")


@case("JSON lines", "hnetkit.cli.library", "hnetkit.sources.export")
def many_lines(folder: Path, factor: int) -> Action:
    line = '{"kind": "subscription", "name": "n%d", "filters": {"creator": "x"}}\n'
    (folder / "a.jsonl").write_text(HEADER + "".join(line % n for n in range(5_000 * factor)))
    return command("import", folder / "a.jsonl")


@case("JSON lines", "hnetkit.cli.library", "hnetkit.sources.export")
def many_networks(folder: Path, factor: int) -> Action:
    network = {
        **{"kind": "network", "name": "a", "widths": [768], "layer_structure": [1, 2, 1], "activation": "relu"},
        **{"layer_norm": False, "activate_output": True, "dropout": [0, 0, 0], "dtype": "fp16", "parameters": 8},
        **{"base_model": "sd1", "step": 1, "sd_checkpoint": None, "sd_checkpoint_name": None, "metadata": {}},
    }
    lines = (
        {**network, "content_hash": f"h1:{n:064x}", "tags": ["a", "b"], "note": "n", "aliases": [f"alias{n}"]}
        for n in range(500 * factor)
    )
    (folder / "a.jsonl").write_text(HEADER + "".join(json.dumps(line) + "\n" for line in lines))
    return command("import", folder / "a.jsonl")


@case("sidecar", *LIBRARY)
def sidecars_of_many_objects(folder: Path, factor: int) -> Action:
    (folder / "a.pt").write_bytes(hostile_files.good())
    for suffix in (".civitai.info", ".json", ".metadata.json", ".cm-info.json"):
        (folder / f"a{suffix}").write_text('{"a":[' + "{}," * 500_000 * factor + "{}]}")
    return command("scan", folder)


@case("sidecar", *LIBRARY)
def a_sidecar_of_many_accents_on_one_letter(folder: Path, factor: int) -> Action:
    (folder / "a.pt").write_bytes(hostile_files.good())
    text = "a" + "\u0301" * 20_000 * factor + "\u0316" * 20_000 * factor
    (folder / "a.civitai.info").write_text(
        json.dumps({"id": 1, "modelId": 1, "description": text, "trainedWords": [text]})
    )
    return command("scan", folder)


@case("recipe", "hnetkit.cli.train", "hnetkit.train.recipe")
def a_recipe_of_many_objects(folder: Path, factor: int) -> Action:
    (folder / "recipe.json").write_text('{"structure":[' + "{}," * 500_000 * factor + "{}]}")

    def act() -> None:
        from hnetkit.train.recipe import read_recipe

        read_recipe(folder / "recipe.json")

    return act


@case("checkpoint of a training", "hnetkit.train.checkpoints", "safetensors.torch")
def a_training_state_of_many_objects(folder: Path, factor: int) -> Action:
    at = folder / "states" / "00000001"
    at.mkdir(parents=True)
    (at / "tensors.safetensors").write_bytes(hostile_files.safetensors_of({}, b""))
    (at / "state.json").write_text('{"content":[' + "{}," * 500_000 * factor + "{}]}")

    def act() -> None:
        from hnetkit.train.checkpoints import Checkpoints

        Checkpoints(folder / "states").read()

    return act


# --- archives and answers of sites


@case("archive", "hnetkit.sources.archives")
def an_archive_of_many_members(folder: Path, factor: int) -> Action:
    with zipfile.ZipFile(folder / "a.zip", "w") as archive:
        for n in range(20_000 * factor):
            archive.writestr(f"{n}.txt", b"")

    def act() -> None:
        from hnetkit.sources.archives import extract_models, holds_models

        holds_models(folder / "a.zip")
        list(extract_models(folder / "a.zip", folder / "out"))

    return act


@case("archive", "hnetkit.sources.archives")
def an_archive_that_unpacks_to_much(folder: Path, factor: int) -> Action:
    with zipfile.ZipFile(folder / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for n in range(4 * factor):
            archive.writestr(f"{n}.pt", b"\0" * 20_000_000)

    def act() -> None:
        from hnetkit.sources.archives import extract_models

        list(extract_models(folder / "a.zip", folder / "out"))

    return act


@case("API answer", "hnetkit.sources.civitai_models")
def a_description_of_unclosed_signs(folder: Path, factor: int) -> Action:
    texts = [sign * (40_000 * factor // len(sign)) for sign in ("<!--", "<a ", "<![", "</", '<a b="')]
    (folder / "answer.json").write_text(json.dumps(texts))

    def act() -> None:
        from hnetkit.sources.civitai_models import plain_text

        for text in texts:
            plain_text(text)

    return act


@case("API answer", "hnetkit.sources.civitai_models")
def a_model_of_many_odd_versions(folder: Path, factor: int) -> Action:
    version = {"id": 1, "files": [{"id": 1, "name": "a.pt", "hashes": {}}], "images": [{}]}
    model = {"id": 1, "name": "a", "type": "Hypernetwork", "modelVersions": [version] * 3_000 * factor}
    (folder / "answer.json").write_text(json.dumps(model))

    def act() -> None:
        from hnetkit.sources.civitai_models import parse_model

        parse_model(model)

    return act
