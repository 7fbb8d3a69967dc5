"""The plan is a pure, elastic, exactly proportioned function of the batch position."""

import itertools
import time
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dreamlit.datamodules.dreambooth import as_fraction
from dreamlit.datamodules.plan import Draw, Merge, Plan, Stream, permuted
from dreamlit.datamodules.plan_report import PlanReport
from dreamlit.datamodules.samples import Manifest
from dreamlit.errors import CombinationError, DataError


def make_streams(shape: list[tuple[int, int, Fraction]]) -> list[Stream]:
    """Streams from (dataset, bucket, passes) with images numbered as they come; image counts vary with the place."""
    streams, start = [], 0
    for place, (dataset, bucket, passes) in enumerate(shape):
        n = 1 + (place * 7 + dataset * 3) % 9
        members = tuple(range(start, start + n))
        start += n
        streams.append(Stream(f"d{dataset}", (64 * (bucket + 1), 64), members, n * passes))
    return streams


passes = st.fractions(min_value=Fraction(1, 20), max_value=120, max_denominator=20)
shapes = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 4), passes), min_size=1, max_size=8, unique_by=lambda s: (s[0], s[1])
)


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=4), st.integers(0, 20000))
def test_each_share_is_within_one_draw_in_every_prefix(shares, m):
    counts = Merge(shares).counts(m)
    assert sum(counts) == m
    assert all(abs(Fraction(c) - Fraction(m * s, sum(shares))) < 1 for c, s in zip(counts, shares, strict=True))


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(0, 20000))
def test_two_streams_stay_within_half_a_draw(a, b, m):
    assert abs(Fraction(Merge([a, b]).counts(m)[0]) - Fraction(m * a, a + b)) <= Fraction(1, 2)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=9))
def test_locate_agrees_with_counts_and_skips_nothing(shares):
    merge, seen = Merge(shares), [0] * len(shares)
    for m in range(200):
        stream, k = merge.locate(m)
        assert k == seen[stream]
        seen[stream] += 1
        assert seen == merge.counts(m + 1)


@given(st.integers(1, 400), st.integers(0, 2**63 - 1))
def test_a_permutation_reaches_every_place_once(n, key):
    assert sorted(permuted(i, n, key) for i in range(n)) == list(range(n))


def test_permutations_are_close_to_uniform():
    counts = Counter(tuple(permuted(i, 4, key * 2654435761) for i in range(4)) for key in range(24000))
    assert len(counts) == 24
    assert sum((c - 1000) ** 2 / 1000 for c in counts.values()) < 60  # chi-square, 23 degrees of freedom: p ~ 4e-5


@settings(max_examples=60, deadline=None)
@given(shapes, st.integers(1, 5), st.integers(0, 99))
def test_batches_share_a_bucket_and_lose_nothing(shape, batch_size, seed):
    streams = make_streams(shape)
    plan = Plan(streams, batch_size, seed)
    bucket_of_sample = {i: s.bucket for s in streams for i in s.members}
    seen: dict[int, list[int]] = {i: [] for i in bucket_of_sample}
    total = 120
    for p in range(total):
        batch = plan.batch(p)
        assert len(batch) == batch_size
        assert {bucket_of_sample[d.sample] for d in batch} == {plan.bucket_of(p)}
        for draw in batch:
            seen[draw.sample].append(draw.visit)
    draws = plan.draws_of_streams(total)
    for stream, count in zip(plan.streams, draws, strict=True):
        visits = [v for i in stream.members for v in seen[i]]
        assert len(visits) == count
        # Every image is used once in each visit round before any is used again.
        assert all(seen[i] == list(range(len(seen[i]))) for i in stream.members)
        lengths = {len(seen[i]) for i in stream.members}
        assert max(lengths) - min(lengths) <= 1


@settings(max_examples=40, deadline=None)
@given(shapes, st.integers(0, 99))
def test_ranks_see_slices_of_the_same_global_batch(shape, seed):
    plan = Plan(make_streams(shape), 4, seed)
    for p in (0, 1, 17, 12345):
        for world in (1, 2, 4):
            slices = [plan.slice_for(p, rank, world) for rank in range(world)]
            assert list(itertools.chain(*slices)) == plan.batch(p)


def test_order_of_streams_does_not_matter():
    streams = make_streams([(0, 0, Fraction(3)), (1, 0, Fraction(1)), (0, 1, Fraction(2))])
    assert [Plan(streams, 3, 5).batch(p) for p in range(50)] == [Plan(streams[::-1], 3, 5).batch(p) for p in range(50)]


def test_seeds_change_the_order_and_not_the_shares():
    streams = make_streams([(0, 0, Fraction(3)), (1, 0, Fraction(1))])
    one, two = Plan(streams, 2, 1), Plan(streams, 2, 2)
    assert [one.batch(p) for p in range(30)] != [two.batch(p) for p in range(30)]
    assert one.draws_of_streams(30) == two.draws_of_streams(30)


def test_batch_one_million_is_found_in_under_a_millisecond():
    streams = [
        Stream(f"d{d}", (64 * b, 64), tuple(range(1000)), Fraction(1000 * (d + 1))) for d in range(4) for b in range(10)
    ]
    plan = Plan(streams, 8, 0)
    timings = []
    for p in range(1_000_000, 1_000_020):
        start = time.perf_counter()
        plan.batch(p)
        timings.append(time.perf_counter() - start)
    assert min(timings) < 1e-3


def test_a_photo_alone_in_its_bucket_still_trains():
    lonely = Stream("a", (64, 128), (0,), Fraction(1))
    crowd = Stream("a", (64, 64), tuple(range(1, 10)), Fraction(9))
    plan = Plan([lonely, crowd], 4, 0)
    assert any(d == Draw(0, 0) for p in range(20) for d in plan.batch(p))


def test_an_epoch_is_the_rounded_number_of_batches_in_a_pass():
    streams = [Stream("a", (64, 64), tuple(range(10)), Fraction(10 * 3))]
    assert [Plan(streams, b, 0).batches_per_epoch() for b in (1, 4, 7, 100)] == [30, 8, 4, 1]


def test_accumulation_windows_are_never_cut_by_the_end_of_an_epoch():
    plan = Plan([Stream("a", (64, 64), tuple(range(10)), Fraction(10))], 1, 0)
    assert [plan.batches_per_epoch(accumulate) for accumulate in (1, 3, 4, 40)] == [10, 9, 8, 40]


@pytest.mark.parametrize("value", [1, 0.5, 9, 1e-7, 0.1234567, 1e20])
def test_repeats_and_probability_are_taken_exactly_as_written(value):
    assert as_fraction(value) == Fraction(repr(value)) > 0


@pytest.mark.parametrize(
    ("max_steps", "max_epochs", "steps"),
    [(1000, 2, 12), (5, 2, 5), (-1, 2, 12), (7, None, 7), (7, -1, 7), (-1, None, 6)],
)
def test_a_run_ends_at_whichever_limit_comes_first(max_steps, max_epochs, steps):
    plan = Plan([Stream("a", (64, 64), tuple(range(6)), Fraction(12))], batch_size=1, seed=0)
    manifest = Manifest([], [], [], [], [], [])
    report = PlanReport(manifest, plan, accumulate=2, max_steps=max_steps, max_epochs=max_epochs)
    assert (report.steps, report.batches) == (steps, 2 * steps)


def test_unequal_slices_are_refused_with_what_would_fit():
    plan = Plan([Stream("a", (64, 64), (0,), Fraction(1))], 3, 0)
    with pytest.raises(CombinationError, match=r"batch_size is 3.*2 processes.*multiple of 2"):
        plan.slice_for(0, 0, 2)


def test_nothing_to_train_on_is_an_error():
    with pytest.raises(DataError, match="no dataset has a usable image"):
        Plan([], 1, 0)
