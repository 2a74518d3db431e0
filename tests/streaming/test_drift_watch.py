"""The drift watch says what is wrong with videos whose fault is known, and is silent on a sound one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from st2v_lib.drift_watch import DriftLimits, chunk_look, drift_warnings


def scene(chunks=6, change=lambda frame, t: frame, speed=1.0):
    """A bright square that moves on stripes; ``change`` acts on a float frame in 0..255, ``t`` runs from 0 to 1."""
    total, out = 8 * chunks, []
    for k in range(total):
        frame = np.zeros((48, 48, 3))
        frame[:] = np.where((np.arange(48) // 6 % 2)[None, :, None], (115, 135, 115), (105, 110, 130))
        x = int(4 + 2 * speed * k) % 28
        frame[12:32, x : x + 20] = np.array((165, 100, 100)) - 1.5 * np.arange(20)[:, None]
        out.append(np.clip(change(frame, k / (total - 1)), 0, 255).astype(np.uint8))
    return [np.stack(out[i : i + 8]) for i in range(0, total, 8)]


def grey(frame):
    return frame.mean(2, keepdims=True)


def said(chunks, **limits):
    looks = [chunk_look(c, chunks[i - 1][-1] if i else None) for i, c in enumerate(chunks)]
    return [drift_warnings(looks[: i + 1], DriftLimits(**limits)) for i in range(len(looks))]


def test_a_sound_video_is_not_warned_of():
    assert said(scene()) == [[]] * 6


@pytest.mark.parametrize(
    ("change", "speed", "word"),
    [
        (lambda frame, t: frame, 0, "stagnation"),
        (lambda frame, t: 128 + (frame - 128) * (1 + 5 * t), 1, "burn-in: contrast"),
        (lambda frame, t: grey(frame) + (frame - grey(frame)) * (1 + 6 * t), 1, "colour"),
        (lambda frame, t: 128 + (frame - 128) * (1 - t) ** 2, 1, "fading: contrast"),
    ],
)  # fmt: skip
def test_known_faults_are_named(change, speed, word):
    warned = said(scene(change=change, speed=speed))
    assert any(word in line for line in warned[-1]), warned
    assert warned[0] == warned[1] == [], "patience"


def test_distance_to_the_anchor():
    anchor, frames = torch.tensor([1.0, 0.0]), np.zeros((4, 16, 16, 3), np.uint8)
    near = chunk_look(frames, None, torch.tensor([[2.0, 0.0]] * 4), anchor)
    far = chunk_look(frames, None, torch.tensor([[0.0, 3.0]] * 4), anchor)
    assert near["clip_distance"] == pytest.approx(0) and far["clip_distance"] == pytest.approx(1)
    assert any("anchor" in line for line in drift_warnings([near] + [far] * 3))
    assert not any("anchor" in line for line in drift_warnings([near] + [far] * 2 + [near]))


def test_motion_counts_the_step_over_the_boundary():
    still = np.zeros((4, 48, 48, 3), np.uint8)
    still[:, 10:30, 10:30] = np.arange(20, dtype=np.uint8)[:, None, None] * 12
    before = np.roll(still[0], 3, axis=1)
    assert chunk_look(still)["motion"] < 0.01 < chunk_look(still, before)["motion"]
    assert chunk_look(still[:1])["motion"] == 0
