"""The loss tells what a memory is worth: nothing for a fresh one, and the same clips and noise for all."""

import pytest
import torch

from st2v_lib.evaluation import memory_gain
from st2v_lib.loading import load


@pytest.fixture
def pipe(random_weights):
    pipe = load("tiny", "cpu", random_weights / "weights" / "tiny")
    pipe.cfg = pipe.cfg.replace(apm=None)
    return pipe


def test_a_memory_that_adds_nothing_leaves_all_of_the_loss(pipe):
    clips = memory_gain.make_clips(pipe, 3)
    assert clips.cond.shape == (3, 8, 3, 64, 64) and clips.latents.shape[2] == 16
    with_memory = memory_gain.losses(pipe, clips, (500,))
    without = memory_gain.losses(pipe, clips, (500,), memory=False)
    assert with_memory != without and with_memory == memory_gain.losses(pipe, clips, (500,))
    for injector in pipe.cam.injectors:
        torch.nn.init.zeros_(injector.proj_out.weight)
    assert memory_gain.losses(pipe, clips, (500,)) == without
    rows = memory_gain.left_over(without, without)["500"]
    assert rows == {"carried": [1.0] * 3, "new": [1.0] * 3}
    again = memory_gain.make_clips(pipe, 3)
    assert torch.equal(again.cond, clips.cond) and torch.equal(again.noise, clips.noise)


def test_what_is_left_is_a_share_of_the_loss_without():
    without = {800: {"carried": [1.0, 3.0], "new": [2.0, 2.0]}}
    found = {800: {"carried": [0.5, 1.5], "new": [2.0, 2.0]}}
    rows = memory_gain.left_over(found, without)["800"]
    assert rows["carried"][0] == pytest.approx(0.5) and rows["new"][0] == pytest.approx(1.0)
