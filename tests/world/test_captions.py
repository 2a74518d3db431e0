"""Captions agree with the scene and can be read back; the vocabulary covers them."""

import random
import warnings

import pytest

from st2v_lib.errors import UserError
from st2v_lib.training.data import Captioner
from st2v_lib.world.captions import (
    DENSE_ONLY,
    DETAILS,
    HELD_OUT_WORDINGS,
    TEXT_LEN,
    WORDINGS,
    check_prompt,
    dense_caption,
    detailed_caption,
    make_tokenizer,
    parse_prompt,
    sparse_caption,
    tokenize,
    vocabulary,
)
from st2v_lib.world.scene import MOTIONS, sample_scene

SCENES = [
    *(sample_scene(0, i, split) for i in range(60) for split in ("train", "dev", "test")),
    *(sample_scene(0, i, motion=m, num_sprites=2) for i in range(10) for m in MOTIONS[:3]),
    *(sample_scene(0, i, background="plain", num_sprites=n) for i in range(10) for n in (1, 2)),
]


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


@pytest.mark.parametrize(
    ("wording", "held_out"), [(i, h) for h, w in ((False, WORDINGS), (True, HELD_OUT_WORDINGS)) for i in range(len(w))]
)
def test_every_wording_tells_the_truth(wording, held_out):
    for scene in SCENES:
        truth = parse_prompt(sparse_caption(scene, wording, held_out))
        assert truth.sprites == tuple((s.colour, s.shape) for s in scene.sprites)
        assert truth.motion == scene.motion
        assert (truth.background, truth.background_colour) == (scene.background.kind, scene.background.colour)


def test_held_out_wordings_are_not_among_the_others():
    for scene in SCENES:
        seen = {sparse_caption(scene, i) for i in range(len(WORDINGS))}
        assert not seen & {sparse_caption(scene, i, held_out=True) for i in range(len(HELD_OUT_WORDINGS))}
        assert sparse_caption(scene, 0) == sparse_caption(scene, len(WORDINGS))


def test_vocabulary_covers_all_captions(tokenizer):
    rng = random.Random(0)
    unknown = tokenizer.convert_tokens_to_ids("<unknown>")
    texts = [sparse_caption(s, i, held) for i, s in enumerate(SCENES) for held in (False, True)]
    for scene in SCENES:
        where = [(rng.random(), rng.random()) for _ in range(2)]
        texts += [dense_caption(scene, where, [v, v]) for v in (0.0, 0.5, 1.0)]
        texts.append(dense_caption(scene, where, [1.0, 1.0], rng))
    ids = tokenizer(texts).input_ids
    assert max(map(len, ids)) <= TEXT_LEN
    assert not any(unknown in row for row in ids)
    assert tokenize(tokenizer, texts[:3]).shape == (3, TEXT_LEN)
    assert len(tokenizer) == len(vocabulary()) == len(set(vocabulary()))


def test_sparse_captions_leave_identity_out():
    for i, scene in enumerate(SCENES):
        assert not set(sparse_caption(scene, i).split()) & {*DENSE_ONLY, *DETAILS}


def test_detailed_captions_say_the_same_and_more(tokenizer):
    rng, unknown = random.Random(0), tokenizer.convert_tokens_to_ids("<unknown>")
    for i, scene in enumerate(SCENES):
        assert detailed_caption(scene, i, rng, share=0.0) == sparse_caption(scene, i)
        text = detailed_caption(scene, i, rng, share=1.0)
        assert not set(text.split()) & set(DENSE_ONLY)
        assert parse_prompt(text) == parse_prompt(sparse_caption(scene, i))
        for sprite in scene.sprites:
            assert f"{sprite.pattern} {sprite.colour} {sprite.shape}" in text
        ids = tokenizer(text).input_ids
        assert len(ids) <= TEXT_LEN and unknown not in ids


def test_a_share_of_training_captions_is_detailed():
    captions, plain = Captioner(detailed=0.5), Captioner()
    scene, rng = SCENES[0], random.Random(0)
    told = [bool(set(captions.caption(scene, rng).split()) & set(DETAILS)) for _ in range(400)]
    assert 0.4 < sum(told) / 400 < 0.55
    assert not any(set(plain.caption(scene, rng).split()) & set(DETAILS) for _ in range(50))


def test_dense_captions_name_what_the_frame_shows():
    scene = sample_scene(0, 3, pattern="dotted", num_sprites=1, motion="hide")
    sprite = scene.sprites[0]
    text = dense_caption(scene, [(0.1, 0.9)], [1.0])
    assert f"dotted {sprite.colour} {sprite.shape} at bottom left" in text and text.endswith("with pillar")
    assert dense_caption(scene, [(0.1, 0.9)], [0.0]).startswith("nothing over")
    assert dense_caption(scene, [(0.1, 0.9)], [0.5]).startswith("part")


def test_what_a_prompt_does_not_say_is_none():
    truth = parse_prompt("a circle")
    assert truth.sprites == () and truth.motion is truth.background is truth.background_colour is None
    assert parse_prompt("A RED circle, bouncing").sprites == (("red", "circle"),)


def test_check_prompt_warns_and_refuses():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert check_prompt("  a red circle bounces over green stripes ") == "a red circle bounces over green stripes"
        check_prompt("a huge dotted red circle bounces over dim green stripes")
    with pytest.warns(UserWarning, match="no word for: elephant"):
        check_prompt("a red elephant bounces")
    with pytest.warns(UserWarning, match="train CLIP.*: left"):
        check_prompt("a red circle at left bounces")
    for empty in ("", "   "):
        with pytest.raises(UserError, match="empty"):
            check_prompt(empty)
