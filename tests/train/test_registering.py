"""The library knows how a network came to be that was trained here."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

import hnetkit
from hnetkit import paths
from hnetkit.cli import run
from hnetkit.library.scan import scan
from hnetkit.registry import Registry
from hnetkit.train.build import Build
from hnetkit.train.export import register_files, save_trained, to_hypernetwork
from hnetkit.train.network import TrainedNetwork

RECIPE = {"name": "ink", "rates": "5e-5:100, 5e-6:1500", "batch_size": 2, "pictures": "cats", "guards": {"window": 10}}


def train(folder: Path, name: str, start: Path | None = None, seed: int = 0) -> list[Path]:
    """Stands for a run: a network, other than what it begins with, in two files."""
    network = (
        TrainedNetwork.from_hypernetwork(hnetkit.load(start)) if start else TrainedNetwork(Build(), [8], seed=seed)
    )
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 1
    folder.mkdir(exist_ok=True)
    return save_trained(to_hypernetwork(network, name=name, step=9, model_name="dreams", model_hash="ab" * 5), folder)


def shown(name: str, capsys: pytest.CaptureFixture[str]) -> tuple[dict, str]:  # type: ignore[type-arg]
    capsys.readouterr()
    assert run(["show", name, "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert run(["show", name]) == 0
    return row, capsys.readouterr().out


def test_a_trained_network_is_shown_with_its_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Registry(paths.registry_file()) as registry:
        hashes = register_files(
            registry, train(tmp_path, "ink"), recipe=RECIPE, model_name="dreams", model_hash="abababab"
        )
        assert len(set(hashes)) == 1
    row, card = shown("ink", capsys)
    assert row["training"]["recipe"] == RECIPE
    assert (row["training"]["model_name"], row["training"]["model_hash"]) == ("dreams", "abababab")
    assert (row["training"]["started_from"], row["training"]["lineage"]) == (None, [])
    assert len(row["files"]) == 2
    assert "  recipe         rates 5e-5:100, 5e-6:1500, batch size 2, pictures cats\n" in card
    assert "begun with" not in card


def test_what_a_network_was_trained_from_is_known_over_generations(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files, hashes = [train(tmp_path, "ink")], []
    files += [train(tmp_path, "wet-ink", files[0][0])]
    files += [train(tmp_path, "rain", files[1][1])]
    with Registry(paths.registry_file()) as registry:
        for own in files:
            hashes += register_files(registry, own, recipe=RECIPE, started_from=hashes[-1] if hashes else None)[:1]
    row, card = shown("rain", capsys)
    assert [ancestor["content_hash"] for ancestor in row["training"]["lineage"]] == hashes[1::-1]
    assert "  begun with     wet-ink < ink\n" in card


def test_what_another_was_trained_from_stays_known_when_its_file_is_replaced(tmp_path: Path) -> None:
    with Registry(paths.registry_file()) as registry:
        (old, _) = register_files(registry, train(tmp_path, "ink"), recipe=RECIPE)
        (other, _) = register_files(registry, train(tmp_path, "mist", seed=5), recipe=RECIPE)
        (new, _) = register_files(
            registry, train(tmp_path, "ink", tmp_path / "ink.pt"), recipe=RECIPE, started_from=old
        )
        register_files(registry, train(tmp_path, "mist", seed=6), recipe=RECIPE)
        assert registry.trainings.lineage(new) == [old]
        assert registry.trainings.of(old) is not None
        assert registry.trainings.of(other) is None
        assert other not in {row["content_hash"] for row in registry.networks.rows()}  # its training went on


def test_a_network_that_is_its_own_ancestor_ends_the_list(tmp_path: Path) -> None:
    with Registry(paths.registry_file()) as registry:
        (own, _) = register_files(registry, train(tmp_path, "ink"), recipe=RECIPE)
        register_files(registry, train(tmp_path, "ink"), recipe=RECIPE, started_from=own)
        assert registry.trainings.lineage(own) == [own]


def test_a_network_that_was_not_trained_here_is_shown_without_a_recipe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tmp_path / "library", "ink")
    run(["scan", str(tmp_path / "library")])
    row, card = shown("ink", capsys)
    assert row["training"] is None
    assert "recipe" not in card


def test_a_file_under_a_root_joins_it_and_any_other_folder_becomes_one(tmp_path: Path) -> None:
    with Registry(paths.registry_file()) as registry:
        register_files(registry, train(tmp_path / "library", "ink"), recipe=RECIPE)
        register_files(registry, train(tmp_path / "library" / "ours", "mist", seed=5), recipe=RECIPE)
        assert [root.path for root in registry.files.roots()] == [tmp_path / "library"]
        assert {Path(row["path"]).name for row in registry.files.rows()} == {
            *("ink.pt", "ink.safetensors", "mist.pt", "mist.safetensors")
        }


def test_how_a_network_was_trained_is_known_when_its_disk_comes_back(tmp_path: Path) -> None:
    with Registry(paths.registry_file()) as registry:
        (trained, _) = train(tmp_path / "disk", "ink")
        ((content_hash),) = set(register_files(registry, [trained], recipe=RECIPE))
        away = trained.rename(tmp_path / "away.safetensors")
        (other, _) = train(tmp_path / "other", "ink", seed=5)
        other.rename(trained)  # another disk, with a network of the same name, where the first one was
        list(scan(registry))
        assert registry.trainings.of(content_hash) is not None
        away.replace(trained)
        os.utime(trained)
        list(scan(registry))
        assert registry.trainings.of(content_hash).recipe == RECIPE  # type: ignore[union-attr]
