from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glm_lightning.data import splitting
from glm_lightning.types import UserError

CONTENTS = st.lists(st.integers(0, 12).map(lambda i: i * 7919), min_size=4, max_size=30)


def words(contents: Sequence[int]) -> splitting.Words:
    return np.array(contents, np.uint64)


@settings(max_examples=100, deadline=None)
@given(digests=CONTENTS, counts=st.tuples(st.integers(0, 3), st.integers(0, 3)), seed=st.integers(), order=st.randoms())
def test_seeded_sides_share_no_content_and_ignore_the_order(
    digests: list[int], counts: tuple[int, int], seed: int, order: np.random.Generator
) -> None:
    groups = splitting.seeded(words(digests), counts, seed=seed)
    sides = [{digests[i] for i in group} for group in groups]
    assert sum(map(len, sides)) == len(set(digests))
    assert sorted(int(i) for group in groups for i in group) == list(range(len(digests)))
    assert all(len(group) <= count for group, count in zip(groups[1:], counts, strict=True))
    shuffled = list(digests)
    order.shuffle(shuffled)
    again = splitting.seeded(words(shuffled), counts, seed=seed)
    assert [{shuffled[i] for i in group} for group in again] == sides


def one_by_one(digests: Sequence[int], counts: Sequence[int], seed: int) -> list[list[int]]:
    """Contents in the order of their ranks, each asked for by every group in turn."""
    ranked = [int(i) for i in np.argsort(splitting.ranks(words(digests), str(seed)), kind="stable")]
    side = dict.fromkeys(digests, 0)
    for number, left in enumerate(counts, start=1):
        for content in dict.fromkeys(digests[i] for i in ranked):
            if side[content] == 0 and digests.count(content) <= left:
                side[content] = number
                left -= digests.count(content)
    return [[i for i, each in enumerate(digests) if side[each] == number] for number in range(len(counts) + 1)]


@settings(max_examples=200, deadline=None)
@given(
    digests=CONTENTS, counts=st.lists(st.integers(0, 9), max_size=3), seed=st.integers(0, 9), margin=st.integers(1, 9)
)
def test_seeded_is_what_all_rows_one_by_one_give(digests: list[int], counts: list[int], seed: int, margin: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(splitting, "_MARGIN", margin)
        groups = splitting.seeded(words(digests), counts, seed=seed)
    assert [group.tolist() for group in groups] == one_by_one(digests, counts, seed)


def test_seeded_takes_exactly_the_count_of_distinct_rows_and_depends_on_the_seed() -> None:
    digests = list(range(200))
    picks = [set(splitting.seeded(words(digests), [20], seed=seed)[1].tolist()) for seed in (0, 0, 1)]
    assert len(picks[0]) == 20
    assert picks[0] == picks[1] != picks[2]


def test_other_rows_do_not_change_who_is_ahead() -> None:
    digests = list(range(200))
    few = {digests[i] for i in splitting.seeded(words(digests), [20], seed=0)[1]}
    more = {digests[:150][i] for i in splitting.seeded(words(digests[:150]), [20], seed=0)[1]}
    assert few & set(digests[:150]) <= more


def test_last_takes_the_last_rows_and_drops_their_copies_from_the_rest() -> None:
    digests = words([1, 2, 3, 9, 4, 5, 9])
    rest, val, test = splitting.last(digests, [2, 1])
    assert val.tolist() == [4, 5]
    assert test.tolist() == [6]
    assert rest.tolist() == [0, 1, 2], "row 3 says what row 6 says"
    assert splitting.last(digests, [])[0].tolist() == list(range(7))


@pytest.mark.parametrize("size", [0, -1, 10, 11, 0.0, 1.0, 1.5, 0.01])
def test_a_size_that_leaves_a_side_empty_is_refused(size: int | float) -> None:
    with pytest.raises(UserError, match=f"data.val={size}"):
        splitting.number_of_rows(size, key="data.val", num_rows=10)


def test_sizes_are_counts_or_shares() -> None:
    assert splitting.number_of_rows(3, key="data.val", num_rows=10) == 3
    assert splitting.number_of_rows(0.25, key="data.val", num_rows=10) == 2
