"""The toybox's world: what is drawn is what the truth says, the same seed draws the same, held-out stays held out."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dreamlit.toybox import subjects
from dreamlit.toybox.backgrounds import BACKGROUNDS, PHRASES
from dreamlit.toybox.drawing import Points, box, capsule, circle, polygon
from dreamlit.toybox.making.data import draw_all
from dreamlit.toybox.scenes import COLOURS, HELD_OUT, PATTERNS, SIZES, draw_scene, render
from dreamlit.toybox.shapes import BADGES, SHAPES
from dreamlit.toybox.subjects import SUBJECTS, photographs, write_photos


def test_the_world_is_as_rich_as_promised():
    assert len(SHAPES) >= 8 and len(COLOURS) >= 8 and len(BACKGROUNDS) >= 8
    assert len(SUBJECTS) >= 4 and len(SIZES) >= 3
    assert set(PHRASES) == set(BACKGROUNDS) and len(HELD_OUT) == 256


@given(st.integers(0, 10**9))
@settings(max_examples=15, deadline=None)
def test_the_same_seed_is_the_same_scene_and_another_is_another(seed):
    one, again, other = draw_scene(seed), draw_scene(seed), draw_scene(seed + 1)
    assert one.caption == again.caption and np.array_equal(one.picture, again.picture)
    assert one.picture.shape != other.picture.shape or not np.array_equal(one.picture, other.picture)


def test_no_training_scene_shows_a_held_out_combination():
    scenes = [draw_scene(seed, size=(16, 16)) for seed in range(1500)]
    shown = {(s.individual.kind, s.individual.colour, s.background) for s in scenes}
    assert not shown & HELD_OUT and len(shown) > 450
    held = [draw_scene(seed, held_out=True, size=(16, 16)) for seed in range(50)]
    assert {(s.individual.kind, s.individual.colour, s.background) for s in held} <= HELD_OUT


def test_every_class_colour_and_background_is_trained_with_every_other():
    """Held out are triples only: each pair is seen, so that a triple can be put together."""
    kept = [c for c in [(k, c, b) for k in SHAPES for c in COLOURS for b in BACKGROUNDS] if c not in HELD_OUT]
    assert {(k, c) for k, c, _ in kept} == {(k, c) for k in SHAPES for c in COLOURS}
    assert {(k, b) for k, _, b in kept} == {(k, b) for k in SHAPES for b in BACKGROUNDS}
    assert {(c, b) for _, c, b in kept} == {(c, b) for c in COLOURS for b in BACKGROUNDS}


@pytest.mark.parametrize("kind", SHAPES)
def test_the_mask_is_where_the_thing_is(kind):
    """Another individual of another colour changes pixels inside either mask only."""
    scene = next(s for s in (draw_scene(seed, size=(64, 64)) for seed in range(400)) if s.individual.kind == kind)
    other = dataclasses.replace(scene.individual, colour="blue" if scene.individual.colour != "blue" else "red")
    one = render(scene.individual, scene.pose, scene.background, 5, (64, 64))
    two = render(other, scene.pose, scene.background, 5, (64, 64))
    changed = (one.picture != two.picture).any(-1)
    assert changed[one.mask == 0].sum() == 0
    assert changed[one.mask == 255].mean() > 0.1 and 0.04 < (one.mask > 127).mean() < 0.6


def test_a_scene_of_twice_the_size_is_the_same_scene():
    """Shapes are distances, not pixels: halved again, the larger picture is close to the smaller one."""
    scene = draw_scene(3, size=(64, 64))
    large = render(scene.individual, scene.pose, "bricks", 1, (256, 256))
    small = render(scene.individual, scene.pose, "bricks", 1, (64, 64))
    halved = Image.fromarray(large.mask).resize((64, 64), Image.Resampling.BOX)
    assert np.abs(np.asarray(halved, float) - small.mask).mean() < 4


@pytest.mark.parametrize("seed", range(40))
def test_the_caption_says_nothing_but_the_truth(seed):
    scene = draw_scene(seed, size=(16, 16))
    one, words = scene.individual, scene.caption.replace(",", " ").split()
    said = {colour for colour in COLOURS if colour in words}
    assert one.kind in words
    assert said <= {one.colour, one.badge_colour if one.badge else one.colour}
    assert {p for p in PATTERNS if p in words} <= {one.pattern}
    assert {b for b in BADGES if b in words} <= {one.badge}
    places = [name for name, phrase in PHRASES.items() if phrase in scene.caption]
    assert places in ([], [scene.background])


def test_the_number_of_workers_changes_nothing():
    alone, together = draw_all(600, 50, 1), draw_all(600, 50, 2)
    assert alone.keys() == together.keys() and sum(len(s) for s in alone.values()) == 600
    for size, scenes in alone.items():
        assert np.array_equal(scenes.pictures, together[size].pictures)
        assert scenes.captions == together[size].captions


@pytest.mark.parametrize("name", SUBJECTS)
def test_photos_of_a_subject_pair_with_their_masks_and_are_in_different_places(name, tmp_path):
    write_photos(tmp_path, SUBJECTS[name])
    photos, masks = sorted((tmp_path / name).glob("*.png")), sorted((tmp_path / f"{name}_masks").iterdir())
    assert [p.name for p in photos] == [m.name for m in masks] and len(photos) == subjects.PHOTOS
    for photo, mask in zip(photos, masks, strict=True):
        assert Image.open(photo).size == Image.open(mask).size and Image.open(mask).mode == "L"
    truth = json.loads((tmp_path / f"{name}.json").read_text())
    assert len({p["background"] for p in truth["photos"]}) == 5 and len(SUBJECTS[name].unseen) >= 5
    captions = sorted((tmp_path / name).glob("*.txt"))
    for caption, photo, told in zip(captions, photos, truth["photos"], strict=True):
        assert caption.stem == photo.stem and caption.read_text().strip().endswith(PHRASES[told["background"]])
    before = {p: p.read_bytes() for p in (*photos, *captions, *masks)}
    write_photos(tmp_path, SUBJECTS[name])
    assert before == {p: p.read_bytes() for p in before}


def test_no_training_scene_looks_like_a_subject():
    """Nothing of its class has its pattern, badge and colours together, in a sample of the training scenes."""
    looks = {dataclasses.replace(s.individual, genes=0) for s in SUBJECTS.values()}
    drawn = {dataclasses.replace(draw_scene(seed, size=(16, 16)).individual, genes=0) for seed in range(1000, 4000)}
    assert not looks & drawn


def test_photos_of_another_seed_or_place_show_the_same_subject_elsewhere():
    bolt = SUBJECTS["bolt"]
    busy = photographs(bolt, backgrounds=("bricks",) * 5)
    assert {scene.background for scene in busy} == {"bricks"}
    assert {scene.individual for scene in busy} == {bolt.individual}
    assert not np.array_equal(photographs(bolt, seed=1)[0].picture, photographs(bolt)[0].picture)


def test_distances_agree_with_a_count_of_points():
    """The signed distance of a shape is the distance to the nearest point of its outline, found by brute force."""
    y, x = np.mgrid[-1.5:1.5:31j, -1.5:1.5:31j]
    p = Points(x.astype(np.float32), y.astype(np.float32))
    corners = [(-0.7, -0.6), (0.8, -0.4), (0.2, 0.1), (0.6, 0.9), (-0.5, 0.6)]
    edge = np.concatenate([np.linspace(a, b, 400) for a, b in zip(corners, corners[1:] + corners[:1], strict=True)])
    brute = np.min(np.hypot(x[..., None] - edge[:, 0], y[..., None] - edge[:, 1]), -1)
    assert np.abs(np.abs(polygon(p, corners)) - brute).max() < 5e-3
    assert polygon(p, corners)[15, 15] < 0 < polygon(p, corners)[0, 0]
    np.testing.assert_allclose(circle(p, 0.1, 0.2, 0.5), np.hypot(x - 0.1, y - 0.2) - 0.5, atol=1e-5)
    square = polygon(p, [(-0.5, -0.4), (0.5, -0.4), (0.5, 0.4), (-0.5, 0.4)])
    np.testing.assert_allclose(box(p, 0, 0, 0.5, 0.4), square, atol=1e-5)
    np.testing.assert_allclose(capsule(p, 0.2, 0, 0.2, 0, 0.3), circle(p, 0.2, 0, 0.3), atol=1e-5)
