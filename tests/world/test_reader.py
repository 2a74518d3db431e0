"""The reader is right on clean renderings, silent where there is no sprite, and follows two sprites."""

import pytest
import torch

from st2v_lib.errors import InputError, WeightsError
from st2v_lib.world import degrade
from st2v_lib.world.measure_reader import conditions, frame_errors, measure, table
from st2v_lib.world.reader import MIN_VISIBLE, Reader, detect, load_reader, read_motion, read_video, save_reader
from st2v_lib.world.render import render
from st2v_lib.world.scene import COLOURS, MOTIONS, PATTERNS, SHAPES, sample_scene

N = 192


def _errors(reader, num_sprites, damage=lambda x: x, size=64):
    scenes = [sample_scene(77, i, "dev", num_sprites=num_sprites) for i in range(N)]
    frames, truth = render(scenes, 1, [5 * i for i in range(N)], size, truth="masks")
    if size == 128:
        frames = torch.nn.functional.interpolate(frames[:, 0], 64, mode="area")[:, None]
    return frame_errors(reader, damage(frames[:, 0]), scenes, truth.position[:, 0], truth.visible[:, 0])


@pytest.mark.parametrize("num_sprites", [1, 2])
def test_clean_renderings_are_read_right(reader, num_sprites):
    errors = _errors(reader, num_sprites)
    assert errors["found"] >= (0.99 if num_sprites == 1 else 0.95)  # two that nearly coincide are read as one
    assert errors["invented"] <= 0.015
    for part in ("shape", "colour", "pattern", "background", "background_colour", "pillar"):
        assert errors[part] >= 0.97, part
    assert errors["position"] < 1.0 and errors["shade"] < 0.06 and errors["background_shade"] < 0.06


@pytest.mark.parametrize(
    ("damage", "size"),
    [
        (lambda x: degrade.blur(x, torch.full((len(x),), 0.8)), 64),
        (lambda x: degrade.noise(x, torch.full((len(x),), 0.1), torch.Generator().manual_seed(0)).clamp(-1, 1), 64),
        (lambda x: degrade.quantise(x, torch.full((len(x),), 0.04)).clamp(-1, 1), 64),
        (lambda x: x, 128),
    ],
    ids=["blurred", "noisy", "quantised", "128 px"],
)
def test_slight_damage_does_little(reader, damage, size):
    errors = _errors(reader, 1, damage, size)
    assert errors["found"] >= 0.98 and errors["invented"] <= 0.015
    for part in ("shape", "colour", "pattern", "background", "background_colour"):
        assert errors[part] >= 0.95, part
    assert errors["position"] < 1.2 and errors["shade"] < 0.08


def test_nothing_is_seen_where_nothing_is(reader):
    scenes = [sample_scene(5, i, "dev", motion=m) for i in range(40) for m in ("cross", "hide")]
    video, truth = render(scenes, 40, 0, 64, truth="masks")
    empty = video[truth.visible.amax(-1) == 0][::9]
    assert len(empty) > 60
    assert (detect(reader, empty)[0]["confidence"] > 0).float().sum() <= 0.01 * len(empty)
    static = torch.randn(32, 3, 64, 64, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    flat = torch.linspace(-1, 1, 32).view(-1, 1, 1, 1).expand(-1, 3, 64, 64)
    assert (detect(reader, torch.cat([static, flat]))[0]["confidence"] > 0).sum() == 0


def test_a_video_is_read_frame_by_frame(reader):
    scene = sample_scene(3, 1, "dev", motion="cross")
    video, truth = render(scene, 120, 0, 64, truth="masks")
    reading = read_video(video[0], reader)
    sprite, visible = scene.sprites[0], truth.visible[0, :, 0]
    seen = reading.seen[:, 0]
    assert len(reading) == 120 and reading.positions.shape == (120, 2, 2)
    assert seen[visible > 0.4].float().mean() > 0.97 and not seen[visible < 0.05].any()
    assert not reading.seen[:, 1].any() and reading.positions[~seen, 0].isnan().all()
    whole = visible > 0.9
    assert ((reading.positions - truth.position[0])[whole, 0].norm(dim=-1) * 64).mean() < 1
    for part, names in (("shape", SHAPES), ("colour", COLOURS), ("pattern", PATTERNS)):
        hit = getattr(reading, part)[whole, 0].argmax(-1) == names.index(getattr(sprite, part))
        assert hit.float().mean() > 0.95, part
    assert torch.equal(reading[10:20].count, reading.count[10:20])


def test_layouts_and_batches_agree(reader):
    video = render(sample_scene(3, 2), 10, 0, 64)[0]
    bytes_ = ((video + 1) * 127.5).round().byte().permute(0, 2, 3, 1)
    a, b, c = read_video(video, reader), read_video(bytes_, reader), read_video(video, reader, batch_size=3)
    assert torch.allclose(a.positions, b.positions, atol=2e-3, equal_nan=True)
    assert torch.allclose(a.positions, c.positions, atol=1e-5, equal_nan=True)
    large = read_video(render(sample_scene(3, 2), 10, 0, 96)[0], reader)
    assert ((large.positions - a.positions)[:, 0].norm(dim=-1) * 64).nanmean() < 1


def test_two_sprites_keep_their_tracks(reader):
    kept = []
    for i in range(8):
        scene = sample_scene(4, i, "dev", num_sprites=2)
        video, truth = render(scene, 64, 0, 64, truth="masks")
        reading = read_video(video[0], reader)
        away = torch.stack([
            (p - truth.position[0]).norm(dim=-1) for p in (reading.positions, reading.positions.flip(1))
        ])  # fmt: skip
        straight, crossed = (a[~a.isnan()] * 64 for a in away)
        best = straight if straight.mean() < crossed.mean() else crossed
        kept.append((best < 4).float().mean())
    assert sum(kept) / len(kept) > 0.95


def test_motion_is_named(reader):
    right = []
    for motion in MOTIONS:
        for i in range(12):
            video, truth = render(sample_scene(6, i, "dev", motion=motion, num_sprites=1), 16, 9 * i, 64, truth="masks")
            if (truth.visible[0, :, 0] > MIN_VISIBLE).sum() >= 8:
                named = read_motion(read_video(video[0], reader, 1), reader)
                right.append(named[0, 0].argmax().item() == MOTIONS.index(motion))
    assert sum(right) / len(right) >= 0.9


def test_an_unseen_motion_is_nan(reader):
    assert read_motion(read_video(-torch.ones(16, 3, 64, 64), reader), reader).isnan().all()
    with pytest.raises(InputError, match="16 frames"):
        read_motion(read_video(-torch.ones(15, 3, 64, 64), reader), reader)


@pytest.mark.parametrize(
    "video",
    [torch.zeros(3, 64, 64), torch.zeros(2, 64, 64, 3), torch.zeros(2, 3, 64, 32), torch.zeros(2, 3, 64, 64).int()],
)
def test_wrong_videos_are_named(reader, video):
    with pytest.raises(InputError, match="square video"):
        read_video(video, reader)


def test_wrong_counts_are_named(reader):
    with pytest.raises(InputError, match="1 or 2 sprites"):
        read_video(torch.zeros(2, 3, 64, 64), reader, num_sprites=3)
    with pytest.raises(InputError, match="need a frame"):
        read_video(torch.zeros(0, 3, 64, 64), reader)


def test_weights_go_to_disk_and_back(tmp_path):
    made = Reader()
    save_reader(made, tmp_path)
    assert sum(f.stat().st_size for f in tmp_path.iterdir()) < 1e6
    for a, b in zip(made.parameters(), load_reader("cpu", tmp_path).parameters()):
        assert torch.allclose(a, b, atol=1e-3)
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(WeightsError, match="cannot be loaded"):
        load_reader("cpu", tmp_path)
    with pytest.raises(WeightsError, match="cannot be loaded"):
        load_reader("cpu", tmp_path / "nowhere")


def test_the_measurement_runs(reader):
    results = measure(reader, {"clean": conditions()["clean"]}, frames=24, videos=4)
    assert set(results) == {"one sprite", "two sprites"}
    assert "pattern" in table(results)
