"""Scores on paths and readings whose answer is known, and on renderings."""

import math
from dataclasses import replace

import pytest
import torch

from st2v_lib.errors import InputError
from st2v_lib.world import scores
from st2v_lib.world.captions import sparse_caption
from st2v_lib.world.reader import read_video
from st2v_lib.world.render import render
from st2v_lib.world.scene import MOTIONS, positions, sample_scene

SEAMS = [16, 24, 32, 40, 48, 56]


def _line(frames=64, speed=(1.5, -0.7)):
    return torch.tensor([0.2, 0.8]) + torch.arange(frames)[:, None] * torch.tensor(speed) / 640


def _jump(path, seams, pixels):
    path = path.clone()
    for s in seams:
        path[s:] += torch.tensor([0.6, 0.8]) * pixels / 64
    return path


@pytest.mark.parametrize("pixels", [0.0, 1.0, 5.0, 12.0])
def test_a_jump_at_the_seam_is_its_length(pixels):
    found = scores.seam_residual(_jump(_line(), SEAMS[::2], pixels), SEAMS[::2])
    assert found.value == pytest.approx(pixels, abs=1e-3)
    assert found.inside == pytest.approx(0, abs=1e-3) and len(found.per_seam) == 3


def test_a_jump_elsewhere_lowers_the_residual():
    assert scores.seam_residual(_jump(_line(), [20], 5.0), SEAMS).value < 0


def test_seams_of_two_sprites_and_gaps():
    path = torch.stack([_jump(_line(), SEAMS, 4.0), _line()], 1)
    assert scores.seam_residual(path, SEAMS).value == pytest.approx(2, abs=1e-3)
    path[14:19, 0] = torch.nan
    assert scores.seam_residual(path, SEAMS).per_seam[0] == pytest.approx(0, abs=1e-3)
    path[:] = torch.nan
    assert math.isnan(scores.seam_residual(path, SEAMS).value)


@pytest.mark.parametrize("motion", MOTIONS)
def test_true_paths_have_no_residual(motion):
    values, turns = [], []
    for i in range(40):
        path = positions(sample_scene(1, i, motion=motion, num_sprites=1).sprites[0], torch.arange(200)).float()
        values.append(scores.seam_residual(path, range(16, 200, 8)).value)
        turns.append(scores.bounces(path).float().mean())
    assert abs(torch.tensor(values).mean()) < 0.05 and max(map(abs, values)) < 1
    assert sum(turns) / 40 < 0.5
    if motion == "orbit":
        assert max(turns) < 0.25  # where it turns round in x or y


@pytest.mark.parametrize("motion", MOTIONS[:3])
def test_jumps_in_true_paths_are_found(motion):
    found = []
    for i in range(20):
        path = positions(sample_scene(1, i, motion=motion, num_sprites=1).sprites[0], torch.arange(64)).float()
        found.append(scores.seam_residual(_jump(path, SEAMS, 6.0), SEAMS).value)
    assert 4 < torch.tensor(found).nanmean() < 7


@pytest.mark.parametrize("positions_", [torch.zeros(64), torch.zeros(64, 3), torch.zeros(1, 64, 2, 2)])
def test_wrong_paths_are_named(positions_):
    with pytest.raises(InputError, match="positions are"):
        scores.seam_residual(positions_, [16])


@pytest.mark.parametrize("seam", [0, 64, -1])
def test_wrong_seams_are_named(seam):
    with pytest.raises(InputError, match="seams lie between"):
        scores.seam_residual(_line(), [seam])


def test_read_paths_of_renderings_have_no_residual(reader):
    values = []
    for i in range(10):
        video = render(sample_scene(2, i, "dev", motion=MOTIONS[i % 3], num_sprites=1), 64, 0, 64)[0]
        values.append(scores.seam_residual(read_video(video, reader, 1).positions, SEAMS).value)
    assert abs(torch.tensor(values).mean()) < 0.3


@pytest.mark.parametrize("motion", MOTIONS)
def test_scores_of_renderings_are_perfect(reader, motion):
    scene = sample_scene(11, 1, "dev", motion=motion, num_sprites=1)
    reading = read_video(render(scene, 96, 0, 64)[0], reader)
    accuracy = scores.caption_accuracy(reading, sparse_caption(scene), reader)
    assert min(accuracy[k] for k in ("colour", "shape", "background", "background_colour")) > 0.9, accuracy
    assert accuracy["motion"] >= 0.6
    assert scores.object_permanence(reading, sparse_caption(scene))["kept"] > 0.95
    anchor = scores.identity(reading)
    errors = scores.identity_error(reading, anchor)
    assert errors["pattern"] < 0.03 and errors["shade"] < 0.1 and errors["size"] < 0.15
    if motion in MOTIONS[:3]:
        assert 0.7 < scores.motion_kept(reading.positions)["kept"] < 1.4


def test_two_captioned_sprites_match_in_either_order(reader):
    scene = sample_scene(12, 3, "dev", num_sprites=2)
    reading = read_video(render(scene, 32, 0, 64)[0], reader)
    swapped = replace(scene, sprites=scene.sprites[::-1])
    for s in (scene, swapped):
        accuracy = scores.caption_accuracy(reading, sparse_caption(s), reader)
        assert accuracy["colour"] > 0.9 and accuracy["shape"] > 0.85
    assert scores.object_permanence(reading, sparse_caption(scene))["kept"] > 0.9


def test_a_wrong_prompt_scores_nothing(reader):
    scene = sample_scene(11, 2, "dev", motion="bounce", num_sprites=1, shape="circle", colour="red")
    reading = read_video(render(scene, 32, 0, 64)[0], reader)
    accuracy = scores.caption_accuracy(reading, "a blue star orbits", reader)
    assert accuracy["colour"] == accuracy["shape"] == 0 and accuracy["motion"] < 0.5
    assert math.isnan(accuracy["background"])
    assert scores.object_permanence(reading, "a red circle and a blue star bounce")["kept"] < 0.1
    blank = read_video(-torch.ones(20, 3, 64, 64), reader)
    accuracy = scores.caption_accuracy(blank, "a red circle bounces over green stripes", reader)
    assert accuracy["colour"] == accuracy["motion"] == 0
    assert scores.object_permanence(blank, "a red circle bounces over green stripes")["kept"] == 0


def test_another_identity_is_noticed(reader):
    def reading(pattern, shade):
        scene = sample_scene(13, 4, "dev", motion="orbit", num_sprites=1)
        sprite = replace(scene.sprites[0], pattern=pattern, shade=shade)
        return read_video(render(replace(scene, sprites=(sprite,)), 16, 0, 64)[0], reader)

    anchor = scores.identity(reading("dotted", 0.1))
    same = scores.identity_error(reading("dotted", 0.1), anchor)
    other = scores.identity_error(reading("striped", 0.8), anchor)
    assert same["pattern"] < 0.05 and same["frames"] >= 14
    assert other["pattern"] > 0.95 and other["shade"] == pytest.approx(0.7, abs=0.15)


def test_a_sprite_gone_for_too_long_is_lost(reader):
    scene = sample_scene(14, 0, "dev", motion="orbit", num_sprites=1)
    reading = read_video(render(scene, 48, 0, 64)[0], reader)
    gone = replace(reading, count=torch.where(torch.arange(48) < 24, reading.count, 0))
    found = scores.object_permanence(gone, sparse_caption(scene))
    assert found["kept"] == pytest.approx(0.5, abs=0.05) and found["longest_loss"] >= 23


def test_overlap_fidelity_knows_shifts_and_losses(reader):
    scene = sample_scene(15, 0, "dev", motion="bounce", num_sprites=1)
    video = render(scene, 12, 0, 64)[0]
    same = scores.overlap_fidelity(video[:8], video[:8], reader)
    assert same == {"psnr": math.inf, "position": 0.0, "found": 1.0}
    speed = (positions(scene.sprites[0], torch.arange(12)).diff(dim=0).norm(dim=-1) * 64).mean()
    late = scores.overlap_fidelity(video[4:12], video[:8], reader)
    assert late["position"] == pytest.approx(4 * float(speed), rel=0.4) and 8 < late["psnr"] < 40
    lost = scores.overlap_fidelity(torch.full_like(video[:8], -0.3), video[:8], reader)
    assert lost["found"] == 0 and math.isnan(lost["position"])
    with pytest.raises(InputError, match="alike"):
        scores.overlap_fidelity(video[:4], video[:8], reader)


def test_motion_kept():
    path = _line(80, speed=(10.0, 0.0))
    assert scores.motion_kept(path)["kept"] == pytest.approx(1, abs=1e-3)
    path[40:] = path[40]
    slow = scores.motion_kept(path)
    assert slow["kept"] == 0 and slow["early"] == pytest.approx(1, abs=1e-3)
    assert math.isnan(scores.motion_kept(torch.full((40, 2), torch.nan))["kept"])


def test_the_recorded_error_of_the_reader_is_there():
    recorded = scores.reader_error()
    assert {"position", "second_difference", "step"} <= recorded["noise"].keys()
    assert set(recorded["results"]) == {"one sprite", "two sprites"}
