"""What ``st2v download`` plans, refuses and assembles, without a network; and where a first chunk can come from."""

from __future__ import annotations

import dataclasses
import json
import types
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from test_convert import SMALL, official_names, vid2vid_state, write_lightning
from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModelWithProjection

from st2v_lib import cli, download
from st2v_lib.backbone import make_unet, make_vae
from st2v_lib.bases import fit, separate_unet
from st2v_lib.bases.diffusers_pipeline import from_diffusers
from st2v_lib.bases.own_frames import from_file
from st2v_lib.config import TINY, VaeConfig
from st2v_lib.errors import InputError, OutputError, UserError, WeightsError
from st2v_lib.loading import load
from st2v_lib.pipeline import StreamingT2VPipeline
from st2v_lib.video_io import write_video
from st2v_lib.world.captions import make_tokenizer

PROMPT = "a red circle bounces over green stripes"
LISTINGS = {
    "ali-vilab/text-to-video-ms-1.7b": {
        "unet/config.json": 700, "unet/diffusion_pytorch_model.fp16.safetensors": 2_820_000_000,
        "unet/diffusion_pytorch_model.safetensors": 5_640_000_000, "unet/diffusion_pytorch_model.bin": 5_640_000_000,
        "vae/config.json": 600, "vae/diffusion_pytorch_model.safetensors": 335_000_000,
        "text_encoder/config.json": 600, "text_encoder/model.fp16.safetensors": 680_000_000,
        "tokenizer/vocab.json": 1_059_962, "tokenizer/merges.txt": 524_619, "tokenizer/tokenizer_config.json": 800,
        "README.md": 3000,
    },
    "laion/CLIP-ViT-H-14-laion2B-s32B-b79K": {"config.json": 4000, "model.safetensors": 3_944_000_000},
    "PAIR/StreamingT2V": {"streaming_t2v.ckpt": 25_600_000_000, "README.md": 1},
    "ali-vilab/MS-Vid2Vid-XL": {"non_ema_0035000.pth": 5_650_000_000},
}  # fmt: skip


@pytest.fixture
def hub(monkeypatch):
    """A hub that answers from the listings; revisions asked for are noted, nothing is cached."""
    asked = []

    class Api:
        def model_info(self, repo, revision=None, files_metadata=False):
            assert files_metadata
            asked.append((repo, revision))
            siblings = [types.SimpleNamespace(rfilename=n, size=s) for n, s in LISTINGS[repo].items()]
            return types.SimpleNamespace(sha=revision or f"{len(repo):040x}", siblings=siblings)

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    monkeypatch.setattr(download, "_cached", lambda *_: False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return asked


def test_plan_takes_half_precision_and_no_pickles_but_the_two(hub, tmp_path):
    plans = download.plan(tmp_path)
    taken = {name for item in plans.values() for name in item.files}
    assert "unet/diffusion_pytorch_model.fp16.safetensors" in taken and "vae/config.json" in taken
    assert not any(name.endswith((".bin", ".md")) for name in taken)
    assert "unet/diffusion_pytorch_model.safetensors" not in taken
    assert {name for name in taken if name.endswith((".ckpt", ".pth"))} == {"streaming_t2v.ckpt", "non_ema_0035000.pth"}
    assert sum(item.missing for item in plans.values()) == pytest.approx(39.0e9, rel=0.02)
    text = download.format_plans(plans, tmp_path)
    assert "25.60 GB  streaming_t2v.ckpt" in text and "GB free in" in text
    assert all(item.revision and item.revision[:12] in text for item in plans.values())


def test_revisions_are_pinned(hub, tmp_path):
    plans = download.plan(tmp_path, revisions={"clip": "abc123"})
    assert plans["clip"].revision == "abc123"
    (tmp_path / download.LOCK).write_text(json.dumps({name: dataclasses.asdict(item) for name, item in plans.items()}))
    hub.clear()
    again = download.plan(tmp_path)
    assert hub == [] and again == plans, "the folder's revisions are used, and the hub is not asked for others"
    assert download.plan(tmp_path, revisions={"clip": "def"})["clip"].revision == "def"


def test_room_is_checked_before_anything_is_fetched(hub, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(download, "download", lambda *_: pytest.fail("fetched"))
    monkeypatch.setattr(download, "_free", lambda place: 40e9)
    monkeypatch.setattr(download.psutil, "virtual_memory", lambda: types.SimpleNamespace(available=8e9))
    assert cli.main(["download", "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr()
    assert "40.0 GB free and 51." in said.err and "streaming_t2v.ckpt" in said.out
    monkeypatch.setattr(download, "_free", lambda place: 80e9)
    assert cli.main(["download", "--out", str(tmp_path / "out"), "--dry-run"]) == 0
    monkeypatch.setattr(download.psutil, "virtual_memory", lambda: types.SimpleNamespace(available=2e9))
    with pytest.raises(OutputError, match="2.0 GB of memory are free"):
        download.check_room(download.plan(tmp_path), tmp_path)
    assert not (tmp_path / "out").exists()
    assert cli.main(["download", "--source", "vae=x", "--out", str(tmp_path)]) == 2


def test_what_is_made_already_is_neither_fetched_nor_counted(hub, tmp_path, monkeypatch):
    lock = {"streaming": {"place": "PAIR/StreamingT2V", "revision": "abc", "files": {"streaming_t2v.ckpt": 7}}}
    (tmp_path / download.LOCK).write_text(json.dumps(lock))
    for name in ("unet", "cam", "apm", "base", "vae", "text_encoder"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    plans = download.plan(tmp_path)
    assert [name for name, item in plans.items() if item.done] == ["streaming"], "the tokenizer is not there yet"
    assert plans["streaming"].revision == "abc" and plans["streaming"].missing == 0
    assert "made already" in download.format_plans(plans, tmp_path)
    monkeypatch.setattr(download.psutil, "virtual_memory", lambda: types.SimpleNamespace(available=8e9))
    monkeypatch.setattr(download, "_free", lambda place: 21.4e9)  # 13.4 to fetch and 7.9 for the result
    download.check_room(plans, tmp_path)


def test_a_place_that_cannot_be_written_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write .*file/out"):
        download.download({}, tmp_path / "file" / "out")


def test_offline_asks_nobody(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(WeightsError, match="offline, and the revision of .* is not known"):
        download.plan(tmp_path)
    lock = {name: {"place": s.repo, "revision": "abc", "files": LISTINGS[s.repo], "missing": 0}
            for name, s in download.SOURCES.items()}  # fmt: skip
    (tmp_path / download.LOCK).write_text(json.dumps(lock))
    with pytest.raises(WeightsError, match="is not cached"):
        download.plan(tmp_path)
    monkeypatch.setattr(download, "_cached", lambda *_: True)
    assert sum(item.missing for item in download.plan(tmp_path).values()) == 0 and hub == []


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"unet/config.json": 1}, "no safetensors in unet/"),
        ({"unet/config.json": 1, "unet/diffusion_pytorch_model.bin": 9}, "could run code"),
    ],
)
def test_repositories_without_what_is_needed(change, says):
    listing = {k: v for k, v in LISTINGS[download.SOURCES["base"].repo].items() if not k.startswith("unet/")} | change
    with pytest.raises(WeightsError, match=says):
        download.wanted(listing, download.SOURCES["base"], "a repository")
    with pytest.raises(WeightsError, match=r"has no streaming_t2v.ckpt"):
        download.wanted({}, download.SOURCES["streaming"], "a repository")


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """Folders with small stand-ins of all four sources, as they are published."""
    root = tmp_path_factory.mktemp("sources")
    torch.manual_seed(0)
    cfg = SMALL.replace(size=32, vae=VaeConfig(block_out_channels=(8, 8, 8, 8), norm_num_groups=4, layers_per_block=1))
    dim, image = cfg.unet.cross_attention_dim, cfg.apm.image_embed_dim
    make_unet(cfg.unet).half().save_pretrained(root / "base" / "unet", variant="fp16")
    make_vae(cfg.vae).save_pretrained(root / "base" / "vae")
    tokenizer = make_tokenizer()
    tokenizer.model_max_length = 77
    tokenizer.save_pretrained(root / "base" / "tokenizer")
    text = CLIPTextConfig(vocab_size=len(tokenizer), hidden_size=dim, intermediate_size=16, num_hidden_layers=1,
                          num_attention_heads=2, max_position_embeddings=77)  # fmt: skip
    CLIPTextModel(text).save_pretrained(root / "base" / "text_encoder")
    vision = CLIPVisionConfig(hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
                              image_size=16, patch_size=8, projection_dim=image)  # fmt: skip
    CLIPVisionModelWithProjection(vision).save_pretrained(root / "clip")
    (root / "streaming").mkdir()
    (root / "enhancer").mkdir()
    write_lightning(root / "streaming" / "streaming_t2v.ckpt", official_names())
    torch.save(vid2vid_state(make_unet(cfg.enhancer.unet)), root / "enhancer" / "non_ema_0035000.pth")
    return root, cfg


def test_a_pipeline_from_local_folders(local, tmp_path, monkeypatch):
    root, cfg = local
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    plans = download.plan(tmp_path, {name: str(root / name) for name in download.SOURCES})
    assert all(item.revision is None and item.missing == 0 for item in plans.values())
    enhancer = dataclasses.replace(cfg.enhancer, size=24, canvas_width=96, num_inference_steps=2)
    sampling = dataclasses.replace(cfg.sampling, num_inference_steps=2)
    cfg = cfg.replace(enhancer=enhancer, sampling=sampling)
    download.download(plans, tmp_path, cfg)
    assert not list(tmp_path.rglob("*.part"))
    stamps = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.safetensors")}
    plans = download.plan(tmp_path, {name: str(root / name) for name in download.SOURCES})
    assert all(item.done for item in plans.values()) and "0.00 GB" in download.format_plans(plans, tmp_path)
    monkeypatch.setattr(download, "_fetched", None)
    download.download(plans, tmp_path, cfg)
    assert stamps == {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.safetensors")}, "made once"

    for dtype in (torch.float16, torch.bfloat16):
        assert load("modelscope", "cpu", tmp_path, dtype=dtype).unet.dtype == dtype
    with pytest.raises(InputError, match="runs in float16, bfloat16, float32, got float64"):
        load("modelscope", "cpu", tmp_path, dtype=torch.float64)
    pipe = load("modelscope", "cpu", tmp_path)
    assert pipe.unet.dtype == torch.float32
    assert isinstance(pipe, StreamingT2VPipeline) and pipe.cfg == cfg
    assert type(pipe.text_encoder).__name__ == "CLIPTextModel" and pipe.apm.config.text_len == 77
    assert not torch.equal(pipe.base.conv_in.weight, pipe.unet.conv_in.weight), "stage 1 has a UNet of its own"
    grey = torch.zeros(1, 16, 3, 32, 32)
    out = pipe(PROMPT, num_frames=24, seed=2, progress=False, first_chunk=lambda prompt, seed: grey)
    assert out.frames.shape == (1, 24, 3, 24, 24) and out.frames.isfinite().all()
    assert not out.low_res[:, :16].any() and out.low_res[:, 16:].any()
    quick = dataclasses.replace(separate_unet.SAMPLING, num_inference_steps=2)
    base = separate_unet.separate_unet(pipe, sampling=quick)
    first = base(PROMPT, 2)
    assert first.shape == (1, 16, 3, 32, 32)
    assert torch.equal(first, base(PROMPT, 2)) and not torch.equal(first, base(PROMPT, 3))


def test_stage_one_samples_as_released():
    sampling = separate_unet.SAMPLING
    assert (sampling.sampler, sampling.num_inference_steps, sampling.guidance_scale) == ("dpm++", 50, 9.0)


# ----------------------------------------------------------------------------------------------------------- bases


def test_own_video_and_image(tmp_path):
    video = np.zeros((20, 96, 128, 3), np.uint8)
    video[:, :, 64:] = (250, 10, 10)
    write_video(tmp_path / "a.mp4", video, fps=8)
    first = from_file(tmp_path / "a.mp4", TINY)(PROMPT, 0)
    assert first.shape == (1, 16, 3, 64, 64) and first.dtype == torch.float32
    assert first[0, 0, 0, 32, 8] < -0.8 and first[0, 0, 0, 32, 56] > 0.8, "centre square, red on the right"
    cv2.imwrite(str(tmp_path / "a.png"), np.full((50, 40, 3), (200, 100, 0), np.uint8))  # BGR
    still = from_file(tmp_path / "a.png", TINY)(PROMPT, 0)
    assert still.shape == (1, 16, 3, 64, 64) and torch.equal(still[:, 0], still[:, 15])
    assert still[0, 0, :, 0, 0].tolist() == pytest.approx([-1, 100 / 127.5 - 1, 200 / 127.5 - 1], abs=1e-4)
    write_video(tmp_path / "short.mp4", video[:9], fps=8)
    with pytest.raises(InputError, match="has 9 frames; the first chunk needs 16"):
        from_file(tmp_path / "short.mp4", TINY)
    (tmp_path / "bad.png").write_bytes(b"x")
    with pytest.raises(UserError, match="empty or damaged"):
        from_file(tmp_path / "bad.png", TINY)
    with pytest.raises(InputError, match="needs 16 frames, got 3"):
        fit(torch.zeros(1, 3, 3, 64, 64), TINY)


def test_any_diffusers_pipeline_is_a_base():
    calls = []

    def pipeline(**options):
        calls.append(options)
        return types.SimpleNamespace(frames=torch.full((1, options["num_frames"], 3, 32, 48), 0.75))

    first = from_diffusers(pipeline, TINY, num_inference_steps=25)("a dog", 4)
    assert first.shape == (1, 16, 3, 64, 64) and torch.allclose(first, torch.tensor(0.5))
    (options,) = calls
    assert options["prompt"] == "a dog" and options["num_inference_steps"] == 25
    assert options["generator"].initial_seed() == 4


def test_a_base_gives_the_first_chunk(random_weights, quick_config):
    pipe = load("tiny", "cpu", random_weights / "weights" / "tiny")
    pipe.cfg = quick_config
    first, asked = torch.rand(1, 16, 3, 64, 64) * 2 - 1, []

    def base(prompt, seed):
        asked.append((prompt, seed))
        return first

    stream = pipe.stream(PROMPT, 16, seed=5, first_chunk=base, progress=False)
    assert asked == [], "made when the first block is asked for"
    assert torch.equal(next(stream), first) and asked == [(PROMPT, 5)]
    with pytest.raises(InputError, match="first_chunk"):
        next(pipe.stream(PROMPT, 16, first_chunk=lambda *_: first[:, :5], progress=False))


def test_first_chunk_on_the_command_line(tmp_path, capsys):
    assert cli.main(["generate", PROMPT, "--first", str(tmp_path / "no.mp4"), "--out", str(tmp_path / "x.mp4")]) == 2
    assert "no.mp4" in capsys.readouterr().err and not list(Path(tmp_path).iterdir())
