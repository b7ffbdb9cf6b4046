"""The epoch plan: every row once, the same steps on any hardware, micro-batches within the budget."""

import functools
import itertools
import math
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glm_lightning.data import plan as plan_module
from glm_lightning.data.packing import first_fit
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


@settings(deadline=None)
@given(plans)
def test_the_largest_micro_batch_is_the_largest(plan):
    plan = fitting(plan)
    all_of_them = (
        batch.rows for rank in range(plan.world_size) for batch in plan.micro_batches(0, rank=rank) if batch.rows
    )
    assert plan.size(plan.largest()) == max(map(plan.size, all_of_them))


def time_of(plan, sizes):
    """Sum over rounds of the largest micro-batch."""
    return sum(sorted(sizes, reverse=True)[:: plan.world_size])


@settings(deadline=None)
@given(plans)
def test_several_ranks_take_no_longer_than_with_the_least_padding(plan):
    plan = fitting(replace(plan, packed=None))
    for samples in plan.steps(0):
        padded = np.sort(padded_lengths(plan.lengths[samples], plan.pad_to_multiple))[::-1]
        groups = plan.world_size * plan.accumulate
        cut = plan_module._least_padding(padded, groups, plan.max_tokens)
        now = time_of(plan, [plan.size(group) for group in plan.split(samples) if group])
        assert now <= time_of(plan, [int(padded[start]) * (stop - start) for start, stop in cut])


@pytest.mark.parametrize(("world_size", "accumulate"), [(2, 1), (2, 4), (4, 2), (3, 2)])
def test_what_a_rank_waits_is_the_difference_to_the_slowest(world_size, accumulate):
    rng = np.random.default_rng(0)
    lengths = rng.integers(10, 120, 256)
    plan = make(
        lengths, batch_size=32, max_tokens=4096, world_size=world_size, accumulate=accumulate, pad_to_multiple=1
    )
    sizes = np.zeros((world_size, plan.num_micro_batches))
    for rank in range(world_size):
        for number, batch in enumerate(plan.micro_batches(0, rank=rank)):
            sizes[rank, number] = max(lengths[sample] for (sample,) in batch.rows) * len(batch.rows)
    in_step = 1 - sizes.mean(0).sum() / sizes.max(0).sum()
    of_steps = sizes.reshape(world_size, -1, accumulate).sum(2)
    at_end = 1 - of_steps.mean(0).sum() / of_steps.max(0).sum()
    assert plan.waiting(in_step=True) == pytest.approx(in_step)
    assert plan.waiting(in_step=False) == pytest.approx(at_end)
    assert at_end <= in_step < 0.15
    assert make(lengths, max_tokens=4096).waiting(in_step=True) == 0


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
        make([300]).needed(1)
    plan = make([100] * 8)
    assert plan.needed(1) == 4
    with pytest.raises(UserError, match=r"accumulate_grad_batches is 1: .* need 4 micro-batches"):
        plan.check(plan.needed(1))
    replace(plan, accumulate=4).check(4)
    assert replace(plan, world_size=2).needed(1) == 2


@settings(deadline=None)
@given(st.lists(st.integers(1, 100), min_size=1, max_size=50), st.integers(1, 4))
def test_evaluation_counts_every_row_once_on_equally_many_batches(lengths, world_size):
    batches = evaluation_batches(np.array(lengths, np.int32), max_tokens=128, pad_to_multiple=8, world_size=world_size)
    assert sorted(sample for batch in batches for (sample,) in batch) == list(range(len(lengths)))
    assert len(batches) % world_size == 0


def naive_steps(plan, epoch):
    """The rows of each step, one step after the other."""
    rng = np.random.default_rng([plan.seed, epoch])
    steps = np.array_split(rng.permutation(len(plan.lengths)), plan.num_steps)
    if plan.group_steps > 1:
        windows = [steps[start : start + plan.group_steps] for start in range(0, len(steps), plan.group_steps)]
        steps = []
        for window in windows:
            rows = sorted(np.concatenate(window), key=lambda row: plan.lengths[row])
            steps += np.split(np.array(rows), np.cumsum([len(step) for step in window])[:-1])
        steps = [steps[index] for index in rng.permutation(len(steps))]
    return [step.tolist() for step in steps]


def naive_needed(plan, epochs):
    """Micro-batches of a rank by filling those of every step."""

    def fewest(rows):
        if plan.packed is not None:
            capacity = min(-(-plan.packed // plan.pad_to_multiple) * plan.pad_to_multiple, plan.max_tokens)
            return math.ceil(len(first_fit(plan.lengths[rows].tolist(), capacity)) / (plan.max_tokens // capacity))
        padded = padded_lengths(plan.lengths[rows], plan.pad_to_multiple)
        return naive_groups(sorted(padded.tolist(), reverse=True), plan.max_tokens)

    most = max(fewest(rows) for epoch in range(epochs) for rows in naive_steps(plan, epoch))
    return math.ceil(most / plan.world_size)


def naive_cut(descending, groups, max_tokens):
    """The cut of least padded size into runs: of equally good ones the longest last run, then the one before it."""

    @functools.cache
    def best(stop, runs):
        if runs == 0:
            return (0, ()) if stop == 0 else (math.inf, ())
        found = (math.inf, ())
        for start in range(stop):
            size = descending[start] * (stop - start)
            if size <= max_tokens and best(start, runs - 1)[0] + size < found[0]:
                found = (best(start, runs - 1)[0] + size, (*best(start, runs - 1)[1], (start, stop)))
        return found

    return list(best(len(descending), min(groups, len(descending)))[1])


@settings(deadline=None)
@given(plans, st.integers(0, 3))
def test_steps_and_what_they_need_are_those_of_the_naive_way(plan, epoch):
    assert [rows.tolist() for rows in plan.steps(epoch)] == naive_steps(plan, epoch)
    assert plan.needed(2) == naive_needed(plan, 2)


@settings(deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(1, 6), st.integers(9, 60), st.integers(1, 64))
def test_cuts_are_those_of_the_naive_way_however_much_is_held_at_once(lengths, groups, max_tokens, block):
    descending = sorted((8 * length for length in lengths), reverse=True)
    groups, max_tokens = max(groups, naive_groups(descending, 8 * max_tokens)), 8 * max_tokens
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan_module, "_BLOCK", block)
        ours = plan_module._least_padding(np.array(descending), groups, max_tokens)
    assert ours == naive_cut(tuple(descending), groups, max_tokens)


def naive_groups(descending, max_tokens):
    groups = start = 0
    while start < len(descending):
        groups, start = groups + 1, start + max_tokens // descending[start]
    return groups


def test_memory_of_a_cut_grows_with_its_rows_and_not_with_their_square():
    descending = np.sort(np.random.default_rng(0).integers(1, 17, 4096) * 64)[::-1]
    tracemalloc.start()
    plan_module._least_padding(descending, 2, 10**9)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4096**2 * 8 / 2
