"""The order of samples: seeded, complete, of one size in each batch."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from hnetkit.train.batching import BatchOrder, seed_for

sizes = st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=12)


@given(sizes, st.integers(1, 5), st.integers(0, 3))
def test_after_a_round_all_pictures_were_seen_equally_often(kinds: list[str], batch_size: int, seed: int) -> None:
    order = BatchOrder(kinds, batch_size, seed)
    for cycle in range(2):
        first = cycle * len(kinds)
        seen = Counter(picture for number in range(first, first + len(kinds)) for picture in order.batch(number))
        assert seen == {picture: batch_size for picture in range(len(kinds))}


@given(sizes, st.integers(1, 5), st.integers(0, 3), st.integers(0, 60))
def test_a_batch_is_full_and_of_one_size(kinds: list[str], batch_size: int, seed: int, number: int) -> None:
    batch = BatchOrder(kinds, batch_size, seed).batch(number)
    assert len(batch) == batch_size
    assert len({kinds[picture] for picture in batch}) == 1


@given(st.integers(1, 12), st.integers(1, 5), st.integers(0, 3))
def test_every_epoch_has_each_picture_once_although_batches_do_not_end_with_it(
    pictures: int, batch_size: int, seed: int
) -> None:
    order = BatchOrder(["one size"] * pictures, batch_size, seed)
    stream = [picture for number in range(3 * pictures) for picture in order.batch(number)]
    for start in range(0, len(stream) - pictures + 1, pictures):
        assert sorted(stream[start : start + pictures]) == list(range(pictures))


@given(sizes, st.integers(1, 5), st.lists(st.integers(0, 200), max_size=20))
def test_a_batch_depends_on_its_number_alone(kinds: list[str], batch_size: int, numbers: list[int]) -> None:
    order = BatchOrder(kinds, batch_size, 7)
    assert [order.batch(number) for number in numbers] == [BatchOrder(kinds, batch_size, 7).batch(n) for n in numbers]


def test_another_seed_and_another_epoch_give_another_order() -> None:
    first, second = (BatchOrder(["a"] * 50, 50, seed) for seed in (0, 1))
    assert first.batch(0) != second.batch(0)
    assert first.batch(0) != first.batch(1)


def test_every_round_has_an_order_of_its_own() -> None:
    order = BatchOrder(["a"] * 20, 1, 0)
    rounds = [tuple(order.batch(number)[0] for number in range(first, first + 20)) for first in (0, 20, 40)]
    assert len(set(rounds)) == 3


def test_sizes_take_turns_and_do_not_come_one_after_the_other() -> None:
    order = BatchOrder(["a"] * 20 + ["b"] * 20, 1, 0)
    turns = [order.batch(number)[0] < 20 for number in range(40)]
    assert sum(one != following for one, following in pairwise(turns)) > 5


def test_seeds_are_fixed_for_ever() -> None:
    assert seed_for(0, "sample", 0) == 178316582436694654
    assert seed_for(0, "sample", 1) != seed_for(0, "sample", 0)
    assert seed_for(0, "dropout", 0) != seed_for(0, "sample", 0)
