"""Scores against the sprite world's truth in the table, the small CLIP's two folders, the floor at small sizes."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from st2v_lib.errors import InputError, UserError, WeightsError
from st2v_lib.manifest import weights_dir
from st2v_lib.metrics import cli
from st2v_lib.metrics.clip_score import area_preprocess, clip_score, embed_frames, join_towers, load_clip
from st2v_lib.metrics.mawe import MOTION_FLOOR, floor_at, mawe
from st2v_lib.metrics.overlap import overlap_fidelity, stream_overlap
from st2v_lib.metrics.table import format_table, measure
from st2v_lib.metrics.truth import (
    BATCH,
    TruthScores,
    identity_scale,
    seams_of,
    truth_scores,
    world_chance,
    world_truth,
)
from st2v_lib.video_io import from_uint8, read_video, to_uint8, write_video
from st2v_lib.world import reader as reading_of
from st2v_lib.world.captions import sparse_caption
from st2v_lib.world.reader import load_reader
from st2v_lib.world.render import render
from st2v_lib.world.scene import positions, sample_scene
from st2v_lib.world.scores import Identity, identity, reader_error, seam_residual

TINY = weights_dir("tiny")
SCENE = sample_scene(5, 2, "dev", num_sprites=1, motion="bounce", pan=False)
PROMPT = sparse_caption(SCENE)


@pytest.fixture(scope="module")
def clean():
    return render(SCENE, 48)[0]


@pytest.fixture(scope="module")
def reader():
    return load_reader()


def towers(image_size=16):
    """Two untrained towers of a small CLIP."""
    from transformers import (
        CLIPTextConfig,
        CLIPTextModelWithProjection,
        CLIPVisionConfig,
        CLIPVisionModelWithProjection,
    )

    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = CLIPTextConfig(**small, vocab_size=100, max_position_embeddings=24, eos_token_id=3, projection_dim=8)
    image = CLIPVisionConfig(**small, image_size=image_size, patch_size=8, projection_dim=8)
    return CLIPTextModelWithProjection(text).eval(), CLIPVisionModelWithProjection(image).eval()


# ------------------------------------------------------------------------------------------------------- floor


def test_the_floor_is_the_same_motion_at_every_size_until_noise_reaches_it():
    assert floor_at(720, 720) == MOTION_FLOOR and floor_at(256, 256) == pytest.approx(MOTION_FLOOR * 256 / 720)
    assert floor_at(64, 128) == floor_at(64, 64) == 0.02


def test_the_slowest_sprite_is_no_static_pair_and_a_frozen_video_is(clean):
    native = mawe(clean, size=None)
    assert native.protocol["motion_floor_px"] == floor_at(64, 64)
    assert not native.protocol["static_pairs"]
    frozen = clean[:1].repeat(10, 1, 1, 1)
    noisy = to_uint8(frozen).astype(int) + np.random.default_rng(0).integers(-1, 2, (10, 64, 64, 3))
    for still in (frozen, noisy.clip(0, 255).astype(np.uint8)):
        result = mawe(still, size=None)
        assert len(result.protocol["static_pairs"]) == 9 and math.isnan(result.value)


# -------------------------------------------------------------------------------------------------------- CLIP


def test_towers_saved_apart_give_the_model_that_was_saved(tmp_path, clean):
    from st2v_lib.world.captions import make_tokenizer

    text, image = towers()
    text.save_pretrained(tmp_path / "text_encoder")
    image.save_pretrained(tmp_path / "image_encoder")
    with pytest.raises(WeightsError, match="tokenizer missing"):
        load_clip(tmp_path)
    make_tokenizer().save_pretrained(tmp_path / "tokenizer")
    model, tokenizer = load_clip(tmp_path)
    pixels = area_preprocess(to_uint8(clean[:3]), 16)
    want = torch.nn.functional.normalize(image(pixel_values=pixels).image_embeds, dim=-1)
    got = embed_frames(to_uint8(clean[:3]), model, lambda frames: area_preprocess(frames, 16))
    torch.testing.assert_close(got, want)
    same = join_towers(text, image, "mine")
    assert same.name_or_path == "mine"
    torch.testing.assert_close(embed_frames(to_uint8(clean[:3]), same, lambda f: area_preprocess(f, 16)), want)
    (tmp_path / "image_encoder" / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(WeightsError, match="cannot be loaded"):
        load_clip(tmp_path)


def test_area_preprocess_is_that_of_the_training(clean):
    from st2v_lib.training.clip import normalize

    frames = to_uint8(clean[:2])
    torch.testing.assert_close(area_preprocess(frames), normalize(torch.tensor(frames).movedim(-1, 1) / 127.5 - 1))
    twice = frames.repeat(2, axis=1).repeat(2, axis=2)
    torch.testing.assert_close(area_preprocess(twice), area_preprocess(frames))


def test_the_small_clip_tells_colours_and_shapes_but_not_motions(clean):
    model, tokenizer = load_clip(TINY)
    sprite = SCENE.sprites[0]
    score = {t: clip_score(clean, t, model, tokenizer, area_preprocess) for t in (
        PROMPT, PROMPT.replace(sprite.colour, "purple" if sprite.colour != "purple" else "red"),
        PROMPT.replace("bounces", "orbits"),
    )}  # fmt: skip
    right, colour, motion = (result.value for result in score.values())
    assert right > colour + 5 and abs(right - motion) < right - colour
    assert score[PROMPT].protocol["preprocess"].startswith("area-resized")


# ------------------------------------------------------------------------------------------------------- truth


def test_prompts_of_the_world():
    assert world_truth(PROMPT).sprites == ((SCENE.sprites[0].colour, SCENE.sprites[0].shape),)
    assert world_truth("a panda eats bamboo") is None
    assert world_truth("a red circle and a blue star and a green square bounce over plain cyan") is None


def test_seams_from_metadata_or_the_default():
    assert seams_of(48) == [16, 24, 32, 40]
    assert seams_of(48, {"stride": 12}) == [16, 28, 40]
    assert seams_of(48, {"seams": [10, 30, 90]}) == [10, 30]
    assert seams_of(16) == []


def test_each_damage_is_found_by_its_score(clean, reader):
    def of(video):
        return {name: result.value for name, result in truth_scores(video, PROMPT, reader).items()}

    good = of(clean)
    assert abs(good["seam_residual"]) < 0.5 and good["object_permanence"] > 0.95
    assert good["motion_kept"] == pytest.approx(1, abs=0.3)
    assert min(good[f"world_{part}"] for part in ("colour", "shape", "background", "background_colour")) > 0.9
    jumps = torch.cat([clean[:16], *(render(SCENE, 8, start=37 * t)[0] for t in (16, 24, 32, 40))])
    frames = torch.cat([torch.arange(16), *(37 * t + torch.arange(8) for t in (16, 24, 32, 40))])
    asked = seam_residual(positions(SCENE.sprites[0], frames), [16, 24, 32, 40]).value
    assert asked > 2 and of(jumps)["seam_residual"] == pytest.approx(asked, abs=0.7)
    frozen = torch.cat([clean[:16], clean[15:16].repeat(32, 1, 1, 1)])
    assert of(frozen)["motion_kept"] < 0.1
    empty = torch.cat([clean[:24], torch.zeros(24, 3, 64, 64)])
    assert of(empty)["object_permanence"] <= 0.6


def test_large_frames_are_read_small_and_oblong_ones_refused(clean, reader):
    twice = to_uint8(clean).repeat(2, axis=1).repeat(2, axis=2)
    small, large = (truth_scores(v, PROMPT, reader) for v in (to_uint8(clean), twice))
    assert {k: r.value for k, r in small.items()} == pytest.approx({k: r.value for k, r in large.items()}, nan_ok=True)
    with pytest.raises(InputError, match="square"):
        truth_scores(twice[:, :, :100], PROMPT, reader)
    with pytest.raises(InputError, match="sprite world"):
        TruthScores("a panda", reader)


def test_table_with_truth(clean, reader):
    error = {"noise": {"second_difference": 0.31}}
    found = measure(to_uint8(clean[:24]), size=None, truth=TruthScores(PROMPT, reader, {"stride": 4}, error))
    text = format_table(found)
    assert "0.31 px" in text and "seams: frames 16, 20" in text
    assert found["seam_residual"].protocol["seams"] == [16, 20]
    assert found["mawe_code"].protocol["motion_floor_px"] == floor_at(64, 64)


def test_frames_are_read_as_they_come_and_not_kept(clean, reader):
    scores = TruthScores(PROMPT, reader)
    frames = to_uint8(torch.cat([clean, clean, clean[:40]]))
    for count, frame in enumerate(frames, 1):
        scores.add(frame)
        assert len(scores.frames) < BATCH and len(scores.parts) == count // BATCH
    whole = reading_of.read_video(torch.as_tensor(frames), reader, 1)
    torch.testing.assert_close(scores.reading().positions, whole.positions, equal_nan=True)
    assert torch.equal(scores.reading().count, whole.count)


# ----------------------------------------------------------------------------------- identity between two marks


def test_chance_of_a_random_sprite_is_its_mean_distance():
    anchor = Identity(
        torch.tensor([[0.0, 1, 0, 0], [1, 0, 0, 0]]), torch.tensor([0.3, math.nan]), torch.tensor([0, 1.0])
    )
    chance = world_chance(anchor)
    draws = torch.rand(20_000, generator=torch.Generator().manual_seed(0))
    assert chance["shade"] == pytest.approx((draws - 0.3).abs().mean().item(), abs=0.01)
    assert chance["pattern"] == 0.75 and chance["size"] == pytest.approx(0.5)


def test_identity_stands_between_the_readers_floor_and_shuffled_anchors(reader):
    # three sprites that differ in everything: keeping them is at the floor, taking another's place is at chance
    looks = [("plain", 0.1, 0.28), ("striped", 0.5, 0.33), ("dotted", 0.9, 0.38)]
    sprites = [replace(SCENE.sprites[0], pattern=p, shade=a, size=b) for p, a, b in looks]
    videos = [render(replace(SCENE, sprites=(sprite,)), 32)[0] for sprite in sprites]
    kept = identity_scale([reading_of.read_video(v, reader, 1) for v in videos])
    lost = [torch.cat([videos[i][:16], videos[(i + 1) % 3][16:]]) for i in range(3)]
    lost = identity_scale([reading_of.read_video(v, reader, 1) for v in lost])
    floor = reader_error()["results"]["one sprite"]["clean"]
    for part in ("pattern", "shade", "size"):
        result = kept[f"identity_{part}"]
        assert result.value == pytest.approx(0, abs=0.1) and len(result.per_video) == 3
        assert abs(result.protocol["position"]) < 0.3 and lost[f"identity_{part}"].protocol["position"] > 0.7
        assert result.protocol["floor"] == pytest.approx(1 - floor[part] if part == "pattern" else floor[part])
    assert kept["identity_pattern"].protocol["chance"] == pytest.approx(1, abs=0.05)
    assert kept["identity_shade"].protocol["chance"] == pytest.approx((0.4 + 0.4 + 0.8) / 3, abs=0.06)
    with pytest.raises(ValueError, match="two or more"):
        identity_scale([reading_of.read_video(videos[0], reader, 1)])


def test_one_video_has_floor_and_chance_beside_its_identity(clean, reader):
    protocol = truth_scores(clean, PROMPT, reader)["identity_shade"].protocol
    anchor = identity(reading_of.read_video(clean[:16], reader, 1))
    assert protocol["chance"] == pytest.approx(world_chance(anchor)["shade"], abs=0.02)
    assert protocol["floor"] == reader_error()["results"]["one sprite"]["clean"]["shade"]
    assert "floor" not in truth_scores(clean, PROMPT, reader, error={})["identity_shade"].protocol


# --------------------------------------------------------------------------------------------- overlap fidelity


def test_overlap_fidelity_of_a_faithful_and_a_forgetful_chunk(clean, reader):
    past = [clean[8:16], clean[16:24]]
    same = overlap_fidelity(past, past, reader)
    assert same["overlap_psnr"].value == math.inf and same["overlap_position"].value == 0
    assert same["overlap_found"].value == 1
    late = overlap_fidelity([clean[12:20], clean[20:28]], past, reader)
    frames = torch.arange(8, 24)
    moved = (positions(SCENE.sprites[0], frames + 4) - positions(SCENE.sprites[0], frames)).norm(dim=-1).mean() * 64
    assert late["overlap_position"].value == pytest.approx(moved.item(), abs=0.4)
    assert late["overlap_psnr"].value < 30 and len(late["overlap_psnr"].protocol["per_chunk"]) == 2
    json.loads(same["overlap_psnr"].to_json())
    with pytest.raises(ValueError, match="one carried part"):
        overlap_fidelity(past, past[:1], reader)


def test_overlap_of_a_stream_is_that_of_the_slots_it_throws_away(random_weights, quick_config, reader):
    from st2v_lib.loading import load
    from st2v_lib.sampling import Contexts  # noqa: F401  (the loops are importable beside the metrics)
    from st2v_lib.streaming import start_stream

    pipe = load("tiny", "cpu", random_weights / "weights" / "tiny")
    pipe.cfg = quick_config
    first = torch.rand(1, 16, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    models, text, null = pipe.models(), pipe.encode_text(PROMPT), pipe.encode_text("")
    found, frames = stream_overlap(models, start_stream(models, first), text, null, quick_config.sampling, 2, reader)
    assert frames.shape == (1, 16, 3, 64, 64) and len(found["overlap_psnr"].protocol["per_chunk"]) == 2
    assert 0 < found["overlap_psnr"].value < 30  # untrained nets repeat nothing


# ----------------------------------------------------------------------------------------------------- command


def arguments(video, prompt=None, as_json=True, **more):
    return SimpleNamespace(video=str(video), prompt=prompt, json=as_json, **more)


def test_small_videos_are_measured_as_they_are(tmp_path, clean, capsys):
    path = write_video(tmp_path / "v.mp4", clean[:6])
    assert cli.run(arguments(path)) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["mawe_code"]["protocol"]["measured_at"] == "native"
    assert record["mawe_code"]["protocol"]["motion_floor_px"] == pytest.approx(floor_at(64, 64))
    assert cli.run(arguments(path, as_json=False)) == 0
    assert "measured at native" in capsys.readouterr().out


def test_a_prompt_of_the_world_gives_all_scores(tmp_path, clean, capsys):
    path = write_video(tmp_path / "v.mp4", clean[:32], metadata={"prompt": PROMPT, "seams": [20]})
    assert cli.run(arguments(path, PROMPT)) == 0
    record = json.loads(capsys.readouterr().out)
    for name in ("clip_score", "world_colour", "world_motion", "object_permanence", "motion_kept", "identity_pattern"):
        assert name in record, name
    assert record["seam_residual"]["protocol"]["seams"] == [20]
    assert cli.run(arguments(path, "a panda")) == 0
    captured = capsys.readouterr()
    assert "no word for: panda" in captured.err and "seam_residual" not in json.loads(captured.out)


def test_a_file_of_the_generator_tells_its_seams_and_overlaps(tmp_path, clean, capsys):
    config = {"enhancer": {"size": 64, "chunk_frames": 24, "overlap_frames": 8}}
    path = write_video(tmp_path / "v.mp4", clean, metadata={"chunk_frames": 16, "stride": 8, "config": config})
    assert cli.run(arguments(path)) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["xt_seam"]["protocol"]["seams"] == [16, 24, 32, 40]
    # chunks of 24 that share 8 start at 0, 16 and 24: the last one moves back, and shares 16
    assert record["high_pass_correlation"]["protocol"]["overlaps"] == [[16, 24], [24, 40]]
    assert {"inside_overlaps", "elsewhere"} <= set(record["flow_deviation"]["protocol"])
    assert cli.overlaps_of(48, {"config": config}, 128) == [] == cli.overlaps_of(48, {}, 64)
    other = write_video(tmp_path / "other.mp4", clean)
    assert cli.run(arguments(other)) == 0
    assert "xt_seam" not in json.loads(capsys.readouterr().out)


def test_folders_and_arrays_are_read_as_videos_are(tmp_path, clean, capsys):
    import cv2

    frames = to_uint8(clean[:5])
    (tmp_path / "frames").mkdir()
    for i, frame in enumerate(frames):
        cv2.imwrite(str(tmp_path / "frames" / f"{i}.png"), frame[..., ::-1])
    np.save(tmp_path / "v.npy", frames)
    records = {}
    for name in ("frames", "v.npy"):
        assert cli.run(arguments(tmp_path / name)) == 0
        records[name] = json.loads(capsys.readouterr().out)
    assert records["frames"]["warp_error"]["protocol"].pop("source") == "images"
    assert records["frames"]["warp_error"] == records["v.npy"]["warp_error"]
    assert records["v.npy"]["warp_error"]["value"] == measure(frames, size=None)["warp_error"].value


def test_damaged_files_are_one_clear_message(tmp_path, clean):
    path = write_video(tmp_path / "v.mp4", clean)
    data = path.read_bytes()
    for name, content, message in (("cut.mp4", data[: len(data) // 2], "truncated|no frame"), ("no.mp4", b"", "empty")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=f"{name}: .*({message})"):
            cli.run(arguments(tmp_path / name))
    with pytest.raises(UserError, match="min-scene-len"):
        cli.run(arguments(path, min_scene_len=0))


def test_an_mp4_says_how_it_keeps_colour(tmp_path, clean):
    half = write_video(tmp_path / "half.mp4", clean[:12])
    full = write_video(tmp_path / "full.mp4", clean[:12], pixel_format="yuv444p")
    exact = to_uint8(clean[:12]).astype(float)
    lost = {path: np.abs(read_video(path) - exact).mean() for path in (half, full)}
    assert lost[full] < 0.6 * lost[half]
    found = {path: measure(path, size=None) for path in (half, full)}
    assert found[half]["mawe_code"].protocol["source"] == "h264, yuv420p"
    assert found[full]["mawe_code"].protocol["source"] == "h264, yuv444p"
    assert "source" not in measure(from_uint8(read_video(full)), size=None)["mawe_code"].protocol
    want = measure(to_uint8(clean[:12]), size=None)["warp_error"].value
    assert abs(found[full]["warp_error"].value - want) < abs(found[half]["warp_error"].value - want)
    assert "half the resolution" in format_table(found[half])
    with pytest.raises(ValueError, match="pixel format"):
        write_video(tmp_path / "odd.mp4", clean[:2], pixel_format="rgb24")


def test_missing_weights_are_one_clear_message(tmp_path, clean, monkeypatch):
    path = write_video(tmp_path / "v.mp4", clean[:4])
    monkeypatch.setenv("ST2V_DATA", str(tmp_path / "nothing"))
    with pytest.raises(UserError, match="text_encoder, image_encoder, tokenizer missing"):
        cli.run(arguments(path, PROMPT))
