"""The epoch plan: every row once, the same steps on any hardware, micro-batches within the budget."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glm_lightning.data.plan import Plan, evaluation_batches, padded_lengths
from glm_lightning.types import UserError


def make(lengths, **knobs):
    lengths = np.array(lengths, dtype=np.int32)
    defaults = {"batch_size": 8, "max_tokens": 256, "pad_to_multiple": 8, "seed": 0}
    return Plan(lengths=lengths, num_supervised=np.maximum(lengths // 2, 1), **(defaults | knobs))


plans = st.builds(
    make,
    st.lists(st.integers(1, 120), min_size=1, max_size=60),
    batch_size=st.integers(1, 20),
    world_size=st.integers(1, 3),
    accumulate=st.integers(1, 4),
    pad_to_multiple=st.sampled_from([1, 8, 64]),
    seed=st.integers(0, 5),
    group_steps=st.integers(1, 5),
    packed=st.none() | st.integers(120, 300),
)


def samples_of(batch):
    return [sample for row in batch.rows for sample in row]


def fitting(plan):
    return replace(plan, accumulate=max(plan.accumulate, plan.needed(2)))


@settings(deadline=None)
@given(plans)
def test_an_epoch_has_every_row_once_within_the_budget(plan):
    plan = fitting(plan)
    ranks = [list(plan.micro_batches(1, rank=rank)) for rank in range(plan.world_size)]
    assert {len(batches) for batches in ranks} == {plan.num_micro_batches}
    batches = list(itertools.chain(*ranks))
    assert sorted(sample for batch in batches for sample in samples_of(batch)) == list(range(len(plan.lengths)))
    for batch in batches:
        assert plan.packed or all(len(row) == 1 for row in batch.rows)
        assert all(batch.rows)
        if batch.rows:
            filled = np.array([plan.lengths[list(row)].sum() for row in batch.rows])
            assert padded_lengths(filled, plan.pad_to_multiple).max() * len(batch.rows) <= plan.max_tokens


@settings(deadline=None)
@given(plans)
def test_steps_do_not_depend_on_the_hardware(plan):
    plan = fitting(plan)
    other = fitting(replace(plan, world_size=plan.world_size + 1, accumulate=2 * plan.accumulate))

    def rows_of_steps(plan):
        per_step = plan.accumulate
        ranks = [list(plan.micro_batches(0, rank=rank)) for rank in range(plan.world_size)]
        for step in range(plan.num_steps):
            share = [batch for rank in ranks for batch in rank[step * per_step : (step + 1) * per_step]]
            yield sorted(s for batch in share for s in samples_of(batch)), {batch.step_tokens for batch in share}

    assert list(rows_of_steps(plan)) == list(rows_of_steps(other))


def test_every_micro_batch_knows_the_tokens_of_its_step():
    plan = fitting(make(range(1, 60)))
    for rows, batch in zip(
        plan.steps(0), itertools.islice(plan.micro_batches(0), 0, None, plan.accumulate), strict=True
    ):
        assert batch.step_tokens == plan.num_supervised[rows].sum()


def test_starting_later_is_skipping():
    plan = fitting(make(range(1, 60), accumulate=2))
    whole = list(plan.micro_batches(3))
    for start in range(len(whole) + 1):
        assert list(plan.micro_batches(3, start=start)) == whole[start:]


def test_epochs_and_seeds_differ_and_are_reproducible():
    plan = make(range(1, 60))
    orders = {tuple(np.concatenate(p.steps(epoch))) for p in (plan, replace(plan, seed=1)) for epoch in (0, 1)}
    assert len(orders) == 4
    assert all((a == b).all() for a, b in zip(plan.steps(5), plan.steps(5), strict=True))


def test_grouping_lessens_padding_and_keeps_steps_in_random_order():
    rng = np.random.default_rng(0)
    plan = make(rng.integers(1, 200, 256), max_tokens=10**6)

    def padding(plan):
        rows = [samples_of(batch) for batch in plan.micro_batches(0)]
        return sum(int(plan.lengths[r].max()) * len(r) - int(plan.lengths[r].sum()) for r in rows)

    grouped = replace(plan, group_steps=8)
    assert padding(grouped) < padding(plan) / 3
    means = [plan.lengths[rows].mean() for rows in grouped.steps(0)]
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.5


def test_packed_rows_are_nearly_full_and_of_like_length():
    rng = np.random.default_rng(0)
    plan = make(rng.integers(5, 100, 400), batch_size=64, max_tokens=512, pad_to_multiple=8, packed=256)
    plan = replace(plan, accumulate=plan.needed(1))
    for batch in plan.micro_batches(0):
        filled = [plan.lengths[list(row)].sum() for row in batch.rows]
        assert sum(filled) > 0.85 * len(filled) * max(filled)


def test_packing_spreads_a_small_step_over_all_ranks():
    plan = make([20] * 8, packed=256, world_size=4)
    assert [len(samples_of(next(plan.micro_batches(0, rank=rank)))) for rank in range(4)] == [2, 2, 2, 2]


def test_no_step_is_much_smaller_than_the_others():
    sizes = {len(rows) for rows in make(range(1, 18)).steps(0)}
    assert sizes == {5, 6}


@settings(deadline=None)
@given(st.lists(st.integers(1, 64), min_size=2, max_size=7), st.integers(1, 4))
def test_the_split_has_least_padding_of_all_splits(lengths, groups):
    plan = make(lengths, batch_size=100, max_tokens=10**6, pad_to_multiple=1, accumulate=groups)
    ours = sum(plan.lengths[np.array(rows)].max() * len(rows) for rows in plan.split(np.arange(len(lengths))) if rows)
    best = min(
        sum(max(group) * len(group) for group in partition if group)
        for assignment in itertools.product(range(groups), repeat=len(lengths))
        if (partition := [[n for n, g in zip(lengths, assignment, strict=True) if g == k] for k in range(groups)])
    )
    assert ours == best


def test_too_small_a_budget_says_what_is_needed():
    with pytest.raises(UserError, match=r"longest sample takes 304 positions"):
        make([300]).check(1)
    plan = make([100] * 8)
    assert plan.needed(1) == 4
    with pytest.raises(UserError, match=r"accumulate_grad_batches is 1: .* need 4 micro-batches"):
        plan.check(1)
    replace(plan, accumulate=4).check(1)
    assert replace(plan, world_size=2).needed(1) == 2


@settings(deadline=None)
@given(st.lists(st.integers(1, 100), min_size=1, max_size=50), st.integers(1, 4))
def test_evaluation_counts_every_row_once_on_equally_many_batches(lengths, world_size):
    batches = evaluation_batches(np.array(lengths, np.int32), max_tokens=128, pad_to_multiple=8, world_size=world_size)
    assert sorted(sample for batch in batches for (sample,) in batch) == list(range(len(lengths)))
    assert len(batches) % world_size == 0
