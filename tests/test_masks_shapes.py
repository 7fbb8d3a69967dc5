"""The arithmetic of `dreamlit masks` against plain loops, and what is done in which order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from dreamlit.masking.finishing import Finish, Region
from dreamlit.masking.shapes import grown, intersection_over_union, largest_part, softened

REGIONS = arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=16))
MASKS = arrays(np.uint8, (7, 9))


def parts(region: np.ndarray) -> list[set[tuple[int, int]]]:
    """Connected parts by flood fill, in reading order."""
    left = {(int(y), int(x)) for y, x in np.argwhere(region)}
    found = []
    for start in sorted(left):
        if start not in left:
            continue
        part, edge = set(), {start}
        while edge:
            part |= edge
            around = {(y + dy, x + dx) for y, x in edge for dy in (-1, 0, 1) for dx in (-1, 0, 1)}
            edge = (around & left) - part
        left -= part
        found.append(part)
    return found


@given(REGIONS)
@settings(max_examples=200, deadline=None)
def test_the_largest_part_is_the_one_that_flood_fill_finds(region):
    expected = max(parts(region), key=len, default=set())
    assert {(int(y), int(x)) for y, x in np.argwhere(largest_part(region))} == expected


def test_a_part_that_winds_through_the_whole_picture_is_one():
    snake = np.zeros((201, 200), bool)
    snake[::2] = True
    snake[1::4, -1], snake[3::4, 0] = True, True
    assert (largest_part(snake) == snake).all()


@given(REGIONS, st.floats(0, 20))
@settings(max_examples=200, deadline=None)
def test_a_region_grows_to_all_pixels_within_the_radius(region, radius):
    y, x = np.mgrid[: region.shape[0], : region.shape[1]]
    expected = np.zeros_like(region)
    for row, column in np.argwhere(region):
        expected |= (y - row) ** 2 + (x - column) ** 2 <= radius**2
    assert (grown(region, radius) == expected).all()
    assert (grown(~region, -radius) == ~expected).all()  # shrinking is growing of what is around


@given(MASKS, MASKS)
@settings(deadline=None)
def test_intersection_over_union_is_symmetric_and_one_for_equal_masks_alone(one, other):
    a, b = one / 255, other / 255
    score = intersection_over_union(a, b)
    assert 0 <= score <= 1 and score == intersection_over_union(b, a) and intersection_over_union(a, a) == 1
    assert (score == 1) == bool((one == other).all())


@given(arrays(bool, (6, 8)), arrays(bool, (6, 8)))
@settings(deadline=None)
def test_of_hard_masks_it_is_overlap_over_union(a, b):
    union = (a | b).sum()
    assert intersection_over_union(a, b) == pytest.approx((a & b).sum() / union if union else 1.0)


@pytest.mark.parametrize("wrong", [np.zeros((2, 3)), np.full((3, 3), 255), np.full((3, 3), np.nan)])
def test_masks_that_cannot_be_compared_are_refused(wrong):
    with pytest.raises(ValueError):
        intersection_over_union(wrong, np.zeros((3, 3)))


@given(st.integers(0, 255), st.floats(0, 30))
@settings(deadline=None)
def test_a_plain_mask_stays_plain_when_it_is_softened(value, sigma):
    plain = np.full((20, 30), value, np.uint8)
    assert (softened(plain, sigma) == plain).all()


def region(name: str, rows: slice, columns: slice) -> Region:
    values = np.zeros((50, 100), np.uint8)
    values[rows, columns] = 255
    return Region(name, values, 0.9)


DOG, TAG = region("dog", slice(10, 40), slice(20, 60)), region("tag", slice(0, 50), slice(38, 42))
NOTHING = region("dog", slice(0, 0), slice(0, 0))


def test_subtracting_comes_before_the_largest_part_and_growing():
    """The tag cuts the dog into two: of 18 columns each, and the left one is kept and grown."""
    mask, warnings = Finish(largest_only=True, padding=0.02).mask([DOG], [TAG])
    assert mask[20].nonzero()[0].tolist() == list(range(18, 40)) and warnings == []


def test_the_order_of_prompts_does_not_matter():
    finish = Finish(padding=0.03, blur=0.01)
    one, other = finish.mask([DOG, TAG], []), finish.mask([TAG, DOG], [])
    assert (one[0] == other[0]).all()


@pytest.mark.parametrize(
    ("finish", "wanted", "unwanted", "said"),
    [
        (Finish(), [NOTHING], [], "nothing found ('dog' at best 0.90)"),
        (Finish(invert=True), [NOTHING], [], "nothing found"),
        (Finish(), [DOG], [region("all", slice(None), slice(None))], "nothing is left without 'all'"),
        (Finish(padding=-0.3), [DOG], [], "nothing is left after --padding"),
        (Finish(invert=True), [region("all", slice(None), slice(None))], [], "nothing is left after --invert"),
    ],
)
def test_a_mask_under_which_nothing_counts_is_white_and_says_why(finish, wanted, unwanted, said):
    mask, warnings = finish.mask(wanted, unwanted)
    assert (mask == 255).all() and len(warnings) == 1
    assert said in warnings[0] and "the whole image counts" in warnings[0]


def test_very_small_and_very_large_masks_are_worth_a_look():
    assert "only 0.02%" in Finish().mask([region("dog", slice(3, 4), slice(3, 4))], [])[1][0]
    assert "98% of the image" in Finish().mask([region("dog", slice(1, 50), slice(None))], [])[1][0]
