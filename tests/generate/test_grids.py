"""Grids: what each cell draws, which of them share a batch, and what is loaded for that."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from support.drawing import SMALL, drawn
from support.pipelines import tiny_sd

from hnetkit.distributed import Processes
from hnetkit.errors import BadPicture, HnetkitError, NotFound, UsageError
from hnetkit.formats.open_file import OpenFile
from hnetkit.formats.writing import source_sha256
from hnetkit.generate.grids.batches import BatchPlan, plan_batches
from hnetkit.generate.grids.cells import Cell, CellBuilder, CellSpec
from hnetkit.generate.grids.files import FAILURE
from hnetkit.generate.grids.spec import GridSpec, spec_from_axes, spec_from_names
from hnetkit.generate.loading.diffusers_folder import part_weights
from hnetkit.generate.loading.pipeline import fingerprint
from hnetkit.generate.model import Model, load_model
from hnetkit.generate.prompt_networks import NetworkFinder
from hnetkit.prompts import infotext
from hnetkit.prompts.tags import split_tags


@dataclass
class Table:
    """A grid as it was asked for, and what its cells mean."""

    spec: GridSpec
    builder: CellBuilder
    batch_size: int = 1

    def __post_init__(self) -> None:
        if self.spec.has_every_order:
            self.spec = self.spec.in_orders_of(self.builder.stack_of(self.spec.base))

    @property
    def cells(self) -> list[Cell]:
        return list(map(self.builder.cell, self.spec.cell_specs))

    @property
    def plan(self) -> BatchPlan:
        models = {cell.spec.checkpoint: f"model {cell.spec.checkpoint}" for cell in self.cells}
        return plan_batches(self.cells, {}, models, batch_size=self.batch_size)


MakeTable = Callable[..., Table]


@pytest.fixture
def table(network_files: Path) -> MakeTable:
    """Makes grids of ``ink``, ``mist`` and ``wash``."""
    bundled = {name: network_files / f"{name}.pt" for name in ("ink", "mist", "wash")}

    def make(
        *axes: str,
        prompt: str = "a circle",
        names: Sequence[str] = (),
        options: Sequence[str] = (),
        negative: str = "",
        batch_size: int = 1,
        **short: Any,
    ) -> Table:
        if names:
            spec = spec_from_names(names, short.get("prompts", [prompt]), short.get("seeds", [5]), short["strengths"])
        else:
            spec = spec_from_axes([prompt], [5], [*axes, None, None][:3])
        spec = replace(spec, base=replace(spec.base, options=tuple(options), negative_prompt=negative))
        builder = CellBuilder([spec.base, *spec.cell_specs], NetworkFinder(bundled), split_tags)
        return Table(spec, builder, batch_size)

    return make


def written(table: Table) -> list[str]:
    return [cell.prompt.written for cell in table.cells]


def test_the_cells_of_a_grid_are_the_pictures_of_generate(sd: Model, here: Path) -> None:
    prompt = "a circle <hypernet:wash:0.3>"
    grid = drawn(sd, names=["ink", "wash"], prompt=prompt, strengths=[0, 0.5, 1])
    assert [cell["prompt"] for cell in grid.cells] == [
        f"{prompt} <hypernet:{name}:{strength}>" if strength else prompt
        for name in ("ink", "wash")
        for strength in (0, 0.5, 1)
    ]
    shown = [grid.picture(cell).tobytes() for cell in grid.cells]
    assert shown == [sd.draw(cell["prompt"], seed=7, **SMALL)[0].image.tobytes() for cell in grid.cells]
    assert len(set(shown)) == 5


def test_the_short_form_is_rows_of_prompts_seeds_and_networks(table: MakeTable) -> None:
    made = table(names=["ink", "wash"], prompts=["a circle", "a star"], seeds=[5, 6], strengths="0,1")
    grid = made.spec.grid
    assert (len(grid.x), len(grid.y), len(grid.z)) == (2, 8, 1)
    drafts = made.spec.cell_specs
    assert [(spec.prompt, spec.seed, spec.network) for spec in drafts[::2]] == [
        (prompt, seed, name) for prompt in ("a circle", "a star") for seed in (5, 6) for name in ("ink", "wash")
    ]
    assert grid.record_position((1, 3, 0)) == {
        **{"x": 1, "y": 3, "z": 0},
        "coordinates": {"strength": 1.0, "hypernetwork": "wash", "seed": 6, "prompt": "a circle"},
    }


def test_strength_is_of_the_axiss_network_or_of_the_stack_or_of_one_in_it(table: MakeTable) -> None:
    prompt = "<hypernet:ink:1> a circle"
    with_axis = table("strength=0,0.5", "hypernetwork=none,wash:2", prompt=prompt)
    assert written(with_axis) == [prompt, prompt, prompt, f"{prompt} <hypernet:wash:0.5>"]
    of_all = table("strength=0,0.5", prompt=prompt, options=["wash:2"])
    assert written(of_all) == [" a circle", "<hypernet:ink:0.5> a circle <hypernet:wash:0.5>"]
    each = table("strength:ink=0,1", "strength:wash=0,1", prompt=prompt, options=["wash"])
    assert [[tag.name for tag in cell.prompt.tags] for cell in each.cells] == [[], ["ink"], ["wash"], ["ink", "wash"]]
    own = table("hypernetwork=wash:2,mist", prompt="a circle")
    assert written(own) == ["a circle <hypernet:wash:2>", "a circle <hypernet:mist:1>"]


def test_named_parts_of_a_tag_stay_when_its_strength_changes(table: MakeTable) -> None:
    made = table("strength=0,0.5", prompt="a circle <hypernet:ink:1:k=0.3>")
    assert written(made) == ["a circle <hypernet:ink:0:k=0.3>", "a circle <hypernet:ink:0.5:k=0.3>"]


def test_a_network_that_many_prompts_name_is_hashed_once(table: MakeTable, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[Any] = []

    def counted(network: Any) -> str | None:
        hashed.append(network)
        return source_sha256(network)

    monkeypatch.setattr("hnetkit.generate.prompt_networks.source_sha256", counted)
    made = table("prompt=circle,star,square", prompt="a circle <hypernet:ink:0.5>")
    assert len({cell.networks[0].hash for cell in made.cells}) == len(hashed) == 1


def test_order_changes_the_stack_and_where_tags_stand(table: MakeTable) -> None:
    prompt = "a <hypernet:ink:0.5> circle <hypernet:wash:1>"
    made = table("order=all", prompt=prompt, options=["mist:0.2"])
    assert len(made.cells) == 6
    assert {tuple(network.name for network in cell.networks) for cell in made.cells} == {
        tuple(tag.name for tag in cell.prompt.tags) for cell in made.cells
    }
    listed = table("order=ink/wash,wash/ink", prompt=prompt)
    assert written(listed) == [prompt, "a <hypernet:wash:1> circle <hypernet:ink:0.5>"]


def test_a_prompt_axis_replaces_in_both_prompts_and_in_tags(table: MakeTable) -> None:
    made = table("prompt=ink,wash", prompt="ink <hypernet:ink:1>", negative="no ink")
    assert written(made) == ["ink <hypernet:ink:1>", "wash <hypernet:wash:1>"]
    assert [cell.spec.negative_prompt for cell in made.cells] == ["no ink", "no wash"]
    assert [cell.networks[0].name for cell in made.cells] == ["ink", "wash"]


@pytest.mark.parametrize(
    ("axes", "options", "error", "told"),
    [
        (["prompt=square,star"], [], UsageError, "square"),
        (["strength:imk=1"], ["ink"], UsageError, "imk"),
        (["order=all"], ["ink"], UsageError, "no other order"),
        (["order=ink/mist"], ["ink", "wash"], UsageError, "order"),
        (["order=ink"], ["ink", "wash"], UsageError, "leaves out wash"),
        (["hypernetwork=imk"], [], NotFound, "imk"),
        (["order=all", "hypernetwork=ink"], [], UsageError, "same stack"),
        (["steps=1,2", "steps=3"], [], UsageError, "two axes"),
    ],
)
def test_what_no_cell_can_mean_is_an_error(
    table: MakeTable, axes: list[str], options: list[str], error: type[HnetkitError], told: str
) -> None:
    with pytest.raises(error, match=told):
        table(*axes, options=options).cells  # noqa: B018


def test_a_picture_that_occurs_twice_is_drawn_once_and_stands_in_the_record_twice(sd: Model, here: Path) -> None:
    told: list[tuple[float, float]] = []
    grid = drawn(sd, names=["ink", "wash", "mist"], strengths="0,1,1", progress=lambda *at: told.append(at))
    assert told[-1] == (4, 4)  # none, and each of three networks
    assert told == sorted(told)
    keys = {cell["key"] for cell in grid.cells}
    assert (len(grid.cells), len(keys), len(list(Path("grid-cells").glob("*.png")))) == (9, 4, 4)


def test_cells_that_differ_in_their_seed_share_a_batch(table: MakeTable) -> None:
    made = table("seed=1-5", "strength=0.5,1", options=["ink"], batch_size=2)
    assert [batch.seeds for batch in made.plan.batches] == [(1, 2), (3, 4), (5,), (1, 2), (3, 4), (5,)]
    single = table("seed=1-5", "strength=0.5,1", options=["ink"]).plan
    assert set(single.keys).isdisjoint(made.plan.keys) is False  # the ones that are alone are the same pictures
    assert len(set(single.keys) & set(made.plan.keys)) == 2
    alone = table("prompt=circle,star", "steps=1,2", "cfg=4,7", batch_size=8).plan
    assert all(len(batch.cells) == 1 for batch in alone.batches)


def test_batches_are_drawn_by_checkpoint_and_by_stack(table: MakeTable) -> None:
    made = table("checkpoint=one,two", "hypernetwork=ink,wash", "strength=0.5,1")
    order = [(batch.checkpoint, batch.cells[0].networks[0].name) for batch in made.plan.batches]
    assert order == [(model, name) for model in ("one", "two") for name in ("ink", "ink", "wash", "wash")]


def test_processes_share_batches_whole_and_each_once(table: MakeTable) -> None:
    batches = table("seed=1-7", "strength=0.5,1", options=["ink"], batch_size=2).plan.batches
    for processes in (1, 2, 3, 10):
        shares = [Processes(process, processes).slice_of(batches) for process in range(processes)]
        assert [batch for share in shares for batch in share] == list(batches)


def test_pictures_of_a_batch_are_what_the_record_says(sd: Model, here: Path) -> None:
    grid = drawn(sd, {"seed": [9, 4], "strength": [0.5]}, networks=["ink"], batch_size=2)
    assert [(cell["seed"], cell["batch"]) for cell in grid.cells] == [(9, [9, 4]), (4, [9, 4])]
    for cell in grid.cells:
        with Image.open(cell["picture"]) as picture:
            assert picture.info["parameters"] == cell["infotext"]
        read = infotext.parse(cell["infotext"])
        assert (read.parameters["Seed"], read.prompt) == (str(cell["seed"]), "a circle <hypernet:ink:0.5>")
        assert cell["hypernetworks"] == [
            {"name": "ink", "strength": 0.5, "hash": read.hashes["hypernet:ink"], "tag": "<hypernet:ink:0.5>"}
        ]


class Counted:
    """How often the things are done that a change of strength must not need."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from hnetkit.generate import drawing, prompt_networks
        from hnetkit.kernels import executor, weights
        from hnetkit.kernels.gpu import op
        from hnetkit.runtime import buffers, stack

        self.times: Counter[str] = Counter()
        self.at: list[Counter[str]] = []
        self._count(monkeypatch, OpenFile, "_read_some", "read")
        self._count(monkeypatch, OpenFile, "__init__", "open")
        self._count(monkeypatch, prompt_networks, "load", "load")
        for module, name in ((executor, "pack"), (op, "merge"), (weights, "_pack_stage"), (buffers, "pack_pair")):
            self._count(monkeypatch, module, name, f"repack by {name}")
        self._count(monkeypatch, buffers, "read_mlp", "read weights")
        self._count(monkeypatch, stack, "read_mlp", "read weights")
        self._count(monkeypatch, buffers.LayerGroupStack, "__init__", "group stack")
        self._count(monkeypatch, drawing, "draw_batch", "")

    def _count(self, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, what: str) -> None:
        original = getattr(owner, name)

        def counting(*args: Any, **kwargs: Any) -> Any:
            self.times[what] += 1
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, counting)


@pytest.mark.parametrize(
    ("path", "prompt", "count"),
    [
        ("auto", "a circle", 10),
        ("auto", "a circle <hypernet:mist:0.7>", 10),
        ("fused", "a circle <hypernet:ink:0.7>", 2),  # both are one launch
    ],
)
def test_ten_strengths_of_one_network_read_load_and_repack_nothing(
    sd: Model, here: Path, monkeypatch: pytest.MonkeyPatch, path: str, prompt: str, count: int
) -> None:
    monkeypatch.setenv("HNETKIT_KERNEL", path)
    if path == "fused":  # Triton's interpreter is slow
        tiny_sd(least=True).save_pretrained("least")
        sd = load_model("least", device="cpu")
    counted = Counted(monkeypatch)
    seen: list[Counter[str]] = []
    strengths = [number / 10 for number in range(1, count + 1)]
    assert sd.hash  # of the UNet, and of what is beside it: read once for all infotexts
    assert sd.parts_hash
    encoded = Counter[str]()
    sd.pipe.text_encoder.register_forward_hook(lambda *_: encoded.update(["text"]))

    def after(done: float, total: float) -> None:
        if done == int(done):
            seen.append(Counter(counted.times))

    drawn(sd, names=["ink"], prompt=prompt, strengths=strengths, steps=1, width=8, height=8, progress=after)
    assert len(seen) == count
    assert seen[0]["read"] > 0
    assert seen[-1] - seen[0] == Counter()
    assert encoded["text"] == 2  # the prompt, and the empty negative one


def test_a_grid_tells_its_networks_and_strengths(sd: Model, here: Path) -> None:
    grid = drawn(sd, names=["ink"], strengths=[0, 0.5])
    read = infotext.parse(grid.infotext)
    assert (read.parameters["Grid networks"], read.parameters["Grid strengths"]) == ("ink", "0, 0.5")
    assert read.hashes["hypernet:ink"] == grid.cells[1]["hypernetworks"][0]["hash"]
    assert grid.image.width > 2 * SMALL["width"]


def test_one_bad_cell_fails_alone(sd: Model, here: Path) -> None:
    grid = drawn(sd, names=["ink"], strengths="0,99999999999999999999999999999999999999")
    good, bad = grid.cells
    assert FAILURE not in good
    assert "came out" in bad[FAILURE]
    assert grid.failed == [bad]
    assert infotext.parse(grid.infotext).prompt == "a circle"


def test_one_bad_picture_of_a_batch_fails_alone(sd: Model, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hnetkit.generate import drawing

    sound = drawing._ImageBatch._fault
    monkeypatch.setattr(
        drawing._ImageBatch,
        "_fault",
        lambda self, pixels, seed: BadPicture("black") if seed == 2 else sound(self, pixels, seed),
    )
    grid = drawn(sd, {"seed": [1, 2, 3]}, batch_size=3)
    assert [FAILURE in cell for cell in grid.cells] == [False, True, False]


def test_a_network_of_another_base_fails_where_it_applies(sd: Model, here: Path) -> None:
    from support.networks import a1111_network, save_pt

    save_pt(a1111_network((320, 768), activation="relu", seed=1, name="other"), here / "other.pt")
    grid = drawn(sd, ["hypernetwork=none,other.pt,ink", "strength=0,1"])
    assert [FAILURE in cell for cell in grid.cells] == [False, False, False, False, True, False]


def test_a_key_knows_everything_that_a_picture_depends_on(table: MakeTable) -> None:
    def key(*axes: str, **more: Any) -> str:
        return table(*(axes or ("steps=2",)), **{"options": ["ink:0.5"], **more}).plan.keys[0]

    keys = [
        *(key(), key("steps=3"), key("cfg=5"), key("sampler=Euler"), key("seed=6"), key("strength=0.6")),
        *(key(prompt="a star"), key(negative="red"), key(options=["ink:0.5", "wash"]), key(options=["wash:0.5"])),
        *(key(options=["ink:0.5", "wash"], prompt="a circle"), key("seed=5,6", batch_size=2)),
    ]
    assert len(set(keys)) == len(keys) - 1
    spec = CellSpec("a circle", "", 5, options=("ink:0.5",))
    assert replace(spec, steps=2).changed([]) == replace(spec, steps=2)
    made = table("steps=2", options=["ink:0.5"])
    other = plan_batches(made.cells, {"dtype": "bf16"}, {None: "model None"}, batch_size=1)
    another = plan_batches(made.cells, {}, {None: "another"}, batch_size=1)
    assert len({made.plan.keys[0], other.keys[0], another.keys[0]}) == 3


def test_a_model_is_known_by_its_files(sd_folder: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "model"
    shutil.copytree(sd_folder, copy)
    assert fingerprint(copy) == fingerprint(sd_folder)
    (copy / "notes.txt").mkdir()
    assert fingerprint(copy) == fingerprint(sd_folder)
    config = copy / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text().replace("0.012", "0.011") + "\n")
    assert fingerprint(copy) != fingerprint(sd_folder)
    with pytest.raises(NotFound) as caught:
        fingerprint(tmp_path / "modle")
    assert "model" in str(caught.value.hint)


def test_links_to_what_no_name_can_be_are_no_part_of_a_model(sd_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(sd_folder, tmp_path / "model"))
    before = fingerprint(folder)
    for name in ("odd", "unet/odd.json", "unet/diffusion_pytorch_model.fp16.safetensors"):
        (folder / name).symlink_to("n" * 300)
    assert fingerprint(folder) == before
    assert len(part_weights(folder / "unet")) == 1
