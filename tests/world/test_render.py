"""Renderings: deterministic, at any resolution, and with flow and visibility that are true of the pixels."""

import pytest
import torch
import torch.nn.functional as F

from st2v_lib.world.render import render
from st2v_lib.world.scene import HIDING_MOTIONS, MIN_GAP, MOTIONS, positions, sample_scene

SCENES = [sample_scene(7, i) for i in range(24)]


def _warp(frames, flow):
    """Frames looked up where the flow points to."""
    rows = torch.arange(frames.shape[-1])
    x, y = rows + flow[:, 0], rows[:, None] + flow[:, 1]
    grid = (torch.stack([x, y], -1) + 0.5) * 2 / frames.shape[-1] - 1
    return F.grid_sample(frames, grid, align_corners=False, padding_mode="border")


@pytest.mark.parametrize("direction", [1, -1])
def test_true_flow_warps_a_frame_onto_its_neighbour(direction):
    video, truth = render(SCENES, 5, 3, 64, truth="flow")
    here, there = (slice(0, 4), slice(1, 5)) if direction == 1 else (slice(1, 5), slice(0, 4))
    flow, hidden = (truth.flow, truth.occluded) if direction == 1 else (truth.backward_flow, truth.backward_occluded)
    frame, neighbour = video[:, here].flatten(0, 1), video[:, there].flatten(0, 1)
    clear = ~hidden[:, here].flatten(0, 1)
    error = (_warp(neighbour, flow[:, here].flatten(0, 1)) - frame).abs().mean(1)
    still = (neighbour - frame).abs().mean(1)
    label = truth.instances[:, here].flatten(0, 1)
    sprites = clear & ((label == 1) | (label == 2))
    assert clear.float().mean() > 0.9
    assert error[clear].mean() < 0.01
    assert error[sprites].mean() < 0.25 * still[sprites].mean() + 0.02
    assert error[sprites].median() < 0.02


def test_same_arguments_same_bytes_whatever_the_batch_and_the_start():
    video, truth = render(SCENES, 6, 10, 64, truth="masks")
    assert torch.equal(video, render(SCENES, 6, 10, 64))
    for i in (0, 5, 23):
        alone, alone_truth = render(SCENES[i], 6, 10, 64, truth="masks")
        assert torch.equal(alone[0], video[i])
        assert torch.equal(alone_truth.instances[0], truth.instances[i])
        assert torch.equal(render(SCENES[i], 1, 13, 64)[0, 0], video[i, 3])
    mixed = render(SCENES[:3], 1, [10, 12, 15], 64)
    assert torch.equal(mixed[:, 0], torch.stack([video[0, 0], video[1, 2], video[2, 5]]))
    long = render(SCENES[0], 1, 100_000, 64)
    assert long.isfinite().all()


def test_output_is_in_range_and_any_size():
    for size in (8, 33, 64, 128):
        video = render(SCENES[:4], 2, 0, size)
        assert video.shape == (4, 2, 3, size, size) and video.min() >= -1 and video.max() <= 1


def test_resolutions_agree_but_for_grain_and_outline():
    scenes = [sample_scene(8, i, grain=False) for i in range(16)]
    small, large = render(scenes, 2, 5, 64), render(scenes, 2, 5, 128)
    assert (F.avg_pool2d(large.flatten(0, 1), 2) - small.flatten(0, 1)).abs().mean() < 0.01


def test_grain_shows_at_128_and_not_at_64():
    for size, low, high in ((64, 0.0, 0.004), (128, 0.01, 0.1)):
        with_grain = render([sample_scene(9, i, grain=True) for i in range(8)], 1, 0, size)
        without = render([sample_scene(9, i, grain=False) for i in range(8)], 1, 0, size)
        assert low <= (with_grain - without).abs().mean() < high


@pytest.mark.parametrize("motion", HIDING_MOTIONS)
def test_hidden_for_sixteen_frames_or_more(motion):
    scenes = [sample_scene(9, i, motion=motion) for i in range(12)]
    _, truth = render(scenes, 200, 0, 32, truth="masks")
    for visible in truth.visible[..., 0]:
        hidden = torch.cat([torch.ones(1), (visible > 0).float(), torch.ones(1)])
        edges = hidden.diff()
        starts, stops = (edges < 0).nonzero()[:, 0], (edges > 0).nonzero()[:, 0]
        inner = [(b - a).item() for a, b in zip(starts, stops) if a > 0 and b < 200]
        assert inner and min(inner) >= MIN_GAP
        assert (visible > 0.9).float().mean() > 0.1  # and back, whole


def test_truth_of_position_and_visibility():
    scenes = [sample_scene(10, i, motion=m, num_sprites=1) for i, m in enumerate(MOTIONS * 3)]
    video, truth = render(scenes, 4, 20, 64, truth="masks")
    grid = (torch.arange(64) + 0.5) / 64
    for i, scene in enumerate(scenes):
        true = positions(scene.sprites[0], torch.arange(20, 24)).float()
        assert torch.allclose(truth.position[i, :, 0], true)
        assert (truth.visible[i, :, 1] == 0).all()
        for f in range(4):
            if truth.visible[i, f, 0] > 0.97 and scene.sprites[0].shape == "circle":
                mask = (truth.instances[i, f] == 1).float()
                centre = torch.stack([(mask.sum(0) * grid).sum(), (mask.sum(1) * grid).sum()]) / mask.sum()
                assert (centre - true[f]).norm() * 64 < 0.6
    still = [i for i, s in enumerate(scenes) if s.motion in ("bounce", "orbit", "zigzag")]
    assert truth.visible[still][..., 0].min() > 0.9
    assert ((truth.instances == 3).any() & torch.tensor(scenes[4].has_pillar)).item()


@pytest.mark.parametrize("arguments", [([], 1, 0, 64), (SCENES[:1], 0, 0, 64), (SCENES[:1], 1, 0, 4)])
def test_wrong_arguments_are_named(arguments):
    with pytest.raises(ValueError, match="need a scene, a frame and 8 pixels"):
        render(*arguments)
