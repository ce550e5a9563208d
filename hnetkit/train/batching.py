"""Which image each training sample uses: seeded, endless, and the same for any number of processes.

A run is a stream of samples, numbered from 0, cut into batches of images of one size. Every size has a stream of its
own: one seeded permutation of its images after another, so that nothing is dropped when an epoch does not end with a
batch. Which size a batch has is decided in rounds of as many batches as there are images. In a round each size comes up
once for each of its images: after a round, all images were seen equally often.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Hashable, Sequence
from functools import lru_cache


def random_for(seed: int, purpose: str, number: int) -> random.Random:
    """Returns a generator that depends on nothing but its arguments."""
    return random.Random(f"{seed}/{purpose}/{number}")


def seed_for(seed: int, purpose: str, number: int = 0) -> int:
    """Returns a seed for torch, 0 to 2^63 - 1, that depends on nothing but its arguments."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{number}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


class BatchOrder:
    """The images of each batch of a run.

    Args:
        sizes: of each image, anything that is equal for images that may share a batch.
        batch_size: samples in a batch.
        seed: of the run.
    """

    def __init__(self, sizes: Sequence[Hashable], batch_size: int, seed: int) -> None:
        groups: dict[Hashable, list[int]] = {}
        for image, size in enumerate(sizes):
            groups.setdefault(size, []).append(image)
        self._groups = list(groups.values())
        self._images, self._batch_size, self._seed = len(sizes), batch_size, seed
        self._permutation = lru_cache(maxsize=2 * len(self._groups) + 2)(self._permuted)
        self._round = lru_cache(maxsize=2)(self._make_round)

    def batch(self, number: int) -> list[int]:
        """Returns the images of the run's batch `number`, counted from 0."""
        cycle, position = divmod(number, self._images)
        group, before = self._round(cycle)[position]
        size = len(self._groups[group])
        start = (cycle * size + before) * self._batch_size
        return [self._permutation(group, i // size)[i % size] for i in range(start, start + self._batch_size)]

    def _permuted(self, group: int, epoch: int) -> list[int]:
        images = list(self._groups[group])
        random_for(self._seed, f"order of size {group}", epoch).shuffle(images)
        return images

    def _make_round(self, number: int) -> list[tuple[int, int]]:
        """Returns for each batch of a round its size's group, and how many batches of that group come before it."""
        groups = [group for group, images in enumerate(self._groups) for _ in images]
        if len(self._groups) > 1:
            random_for(self._seed, "sizes", number).shuffle(groups)
        counts = [0] * len(self._groups)
        batches = []
        for group in groups:
            batches.append((group, counts[group]))
            counts[group] += 1
        return batches
