"""Scenes: splits, shares, motions and wrong arguments."""

from itertools import product

import pytest
import torch

from st2v_lib.world.scene import (
    BACKGROUNDS,
    COLOURS,
    GRAIN_SHARE,
    HIDING_MOTIONS,
    MAX_GAP,
    MIN_GAP,
    MOTIONS,
    PAN_SHARE,
    PATTERNS,
    SHAPES,
    SIZE_RANGE,
    TWO_SPRITE_SHARE,
    positions,
    sample_scene,
    split_of,
)

SCENES = [sample_scene(0, i) for i in range(3000)]


def test_same_seed_and_index_give_the_same_scene():
    assert sample_scene(3, 5) == sample_scene(3, 5)
    assert len({sample_scene(s, i, split) for s in (0, 1) for i in range(20) for split in ("train", "test")}) == 80


def test_splits_are_disjoint_and_cover_all_triples():
    triples = list(product(SHAPES, COLOURS, BACKGROUNDS, COLOURS))
    homes = [split_of(*t) for t in triples]
    assert set(homes) == {"train", "dev", "test"}
    for name, share in (("train", 0.78), ("dev", 0.10), ("test", 0.12)):
        assert abs(homes.count(name) / len(triples) - share) < 0.05
    assert homes == [split_of(*t) for t in triples]  # a pure function: one home each


@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_scenes_keep_to_their_split(split):
    for i in range(400):
        scene = sample_scene(1, i, split)
        g = scene.background
        homes = [split_of(s.shape, s.colour, g.kind, g.colour) for s in scene.sprites]
        assert homes[0] == split and set(homes) <= {split, "train"}
        assert len({g.colour, *(s.colour for s in scene.sprites)}) == 1 + len(scene.sprites)


def test_shares_are_as_stated():
    n = len(SCENES)
    assert abs(sum(s.background.grain > 0 for s in SCENES) / n - GRAIN_SHARE) < 0.04
    assert abs(sum(len(s.sprites) == 2 for s in SCENES) / n - TWO_SPRITE_SHARE) < 0.03
    may_pan = [s for s in SCENES if s.motion != "hide"]
    assert abs(sum(s.background.pan != (0.0, 0.0) for s in may_pan) / len(may_pan) - PAN_SHARE) < 0.03
    assert all(s.background.pan == (0.0, 0.0) for s in SCENES if s.motion == "hide")
    for motion in MOTIONS:
        assert 0.14 < sum(s.motion == motion for s in SCENES) / n < 0.27
    for pattern in PATTERNS:
        assert abs(sum(s.sprites[0].pattern == pattern for s in SCENES) / n - 0.25) < 0.04
    assert all(SIZE_RANGE[0] <= p.size <= SIZE_RANGE[1] for s in SCENES for p in s.sprites)


@pytest.mark.parametrize("motion", MOTIONS)
def test_motions_are_smooth_and_never_end(motion):
    for i in range(20):
        sprite = sample_scene(2, i, motion=motion).sprites[0]
        t = torch.arange(5000)
        path = positions(sprite, t)
        step = path.diff(dim=0).norm(dim=-1) * 64
        assert step.max() < 5.2
        assert (path[-600:].std(0) * 64).max() > 3  # still under way
        if motion in ("bounce", "orbit", "zigzag"):
            assert path.min() > 0 and path.max() < 1


def test_hiding_motions_state_their_gap():
    assert MIN_GAP >= 16 and set(HIDING_MOTIONS) == {"cross", "hide"}
    for s in SCENES:
        if s.motion in HIDING_MOTIONS:
            assert MIN_GAP <= s.sprites[0].motion.gap <= MAX_GAP and len(s.sprites) == 1


def test_fixed_values_are_kept():
    fixed = {"motion": "orbit", "shape": "star", "background": "dots", "num_sprites": 1, "grain": True, "pan": True}
    scene = sample_scene(0, 0, "test", **fixed)
    assert (scene.motion, scene.sprites[0].shape, scene.background.kind) == ("orbit", "star", "dots")
    assert len(scene.sprites) == 1
    assert scene.background.grain > 0 and scene.background.pan != (0.0, 0.0)
    assert sample_scene(0, 0, pattern="dotted").sprites[0].pattern == "dotted"
    assert len(sample_scene(0, 0, num_sprites=2).sprites) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"split": "validation"}, "choose train, dev or test"),
        ({"motion": "jump"}, "unknown motion 'jump'"),
        ({"colour": "pink"}, "unknown colour 'pink'"),
        ({"speed": 2}, "cannot fix 'speed'"),
        ({"motion": "hide", "num_sprites": 2}, "two sprites do not hide"),
        ({"colour": "red", "background_colour": "red"}, "no \\(shape, colour, background\\) triple"),
    ],
)
def test_wrong_arguments_are_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        sample_scene(0, 0, **arguments)
