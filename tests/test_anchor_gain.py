"""The loss tells whether an anchor is listened to: never at α = 0, and to a module that is awake anchors differ."""

import pytest
import torch

from st2v_lib.evaluation import anchor_gain, louder_anchor
from st2v_lib.evaluation.scoring import read
from st2v_lib.loading import load
from st2v_lib.world.reader import load_reader


@pytest.fixture
def pipe(random_weights):
    return load("tiny", "cpu", random_weights / "weights" / "tiny")


def test_another_anchor_changes_the_loss_only_through_alpha(pipe):
    found = anchor_gain.losses(pipe, clips=3, levels=(500,))
    assert len(found[500]["true"]) == 3 and found[500]["true"] != found[500]["wrong"] != found[500]["grey"]
    assert found == anchor_gain.losses(pipe, clips=3, levels=(500,)), "same segments and noise each time"
    for mix in pipe.apm.mixes.values():
        torch.nn.init.zeros_(mix.alpha)
    deaf = anchor_gain.losses(pipe, clips=3, levels=(500,))[500]
    assert deaf["true"] == deaf["grey"] == deaf["wrong"]


def test_gains_are_shares_of_the_true_anchors_loss():
    rows = anchor_gain.gains({700: {"true": [1.0] * 8, "grey": [1.2] * 8, "wrong": [0.9] * 8}})
    assert rows["700"]["loss"] == [1.0]
    assert rows["700"]["grey"] == pytest.approx([0.2] * 3) and rows["700"]["wrong"] == pytest.approx([-0.1] * 3)


def test_true_frames_without_the_sprite_are_carried_and_what_returns_is_read(pipe, quick_config, monkeypatch):
    given = []
    make = louder_anchor.continue_videos
    monkeypatch.setattr(louder_anchor, "continue_videos", lambda *a: given.append(a) or make(*a))
    monkeypatch.setattr(louder_anchor, "CHUNKS", 1)
    pipe.cfg, reader = quick_config, load_reader()
    found = louder_anchor.returns(pipe, reader, [0, 1])
    assert found.keys() >= {"early", "early_true", "returned"} and found["early_true"].keys() == {0, 1}
    ((_, _, first, _, frames, anchor),) = given
    assert frames == 24 and anchor.shape[1] == 1
    for video, shown in zip(first, anchor, strict=True):
        assert not read(video[8:], reader).count.any() and read(shown, reader).count.all()
