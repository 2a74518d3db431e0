"""The weights that come with the kit: whole, small enough, made for the preset, and as good as their card says."""

import subprocess
from pathlib import Path

import pytest
import torch
from diffusers.models.resnet import TemporalConvLayer
from safetensors import safe_open

from st2v_lib import load
from st2v_lib.config import TINY, StreamingT2VConfig
from st2v_lib.manifest import verify_manifest, weights_dir
from st2v_lib.training.vae import reconstruction_psnr

ROOT = Path(__file__).resolve().parents[1]
COMPONENTS = ("vae", "text_encoder", "image_encoder", "unet", "cam", "apm", "enhancer", "reader")


@pytest.fixture(scope="module")
def pipe():
    return load("tiny", "cpu")


def test_whole_and_undamaged():
    assert verify_manifest(weights_dir("tiny")) == []


@pytest.mark.parametrize("component", COMPONENTS)
def test_safetensors_in_half_precision(component):
    files = list((weights_dir("tiny") / component).glob("*.safetensors"))
    assert files, f"{component} has no weights"
    for file in files:
        with safe_open(file, "pt") as f:
            kinds = {f.get_slice(k).get_dtype() for k in f.keys()}  # noqa: SIM118 (not a mapping)
        assert kinds <= {"F16", "I64"}, f"{file.name}: {kinds}"


def test_sizes():
    weights = sum(f.stat().st_size for f in weights_dir("tiny").rglob("*") if f.is_file())
    assert weights <= 40e6
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a git checkout, so the tree cannot be told from what lies beside it")
    tree = sum((ROOT / name).stat().st_size for name in tracked.stdout.split("\0") if name and (ROOT / name).exists())
    assert tree <= 52e6


def test_index_is_the_preset(pipe):
    assert pipe.cfg == TINY == StreamingT2VConfig.from_json(TINY.to_json())


def test_vae_is_past_its_gate(pipe):
    """29 dB over frames and 26 dB inside sprites, on scenes no training saw."""
    psnr = reconstruction_psnr(pipe.vae, count=64, split="test")
    assert psnr["psnr"] >= 29 and psnr["psnr_sprites"] >= 26, psnr


def test_latents_have_unit_scale(pipe):
    from st2v_lib.training.vae import latent_scale

    assert latent_scale(pipe.vae, 64) == pytest.approx(pipe.vae.config.scaling_factor, rel=0.1)


@torch.no_grad()
def test_clip_tells_scenes_apart(pipe):
    """Most frames find their own dense caption among 100."""
    from st2v_lib.training.clip import make_clip, restore, retrieval_top1

    model = make_clip(TINY.clip)
    restore(model, weights_dir("tiny"))
    assert retrieval_top1(model.eval(), rounds=1) >= 0.9


def test_memories_are_trained(pipe):
    """Zero-initialised layers have moved; an untrained memory would change nothing."""
    assert all(float(i.proj_out.weight.abs().max()) > 1e-3 for i in pipe.cam.injectors)
    assert max(abs(a) for a in pipe.apm.alphas().values()) > 1e-3


@torch.no_grad()
def test_base_and_cam_know_the_order_of_frames(pipe):
    """Shuffled frames, shuffled back after: the same prediction would mean that time has no direction for them."""
    generator = torch.Generator().manual_seed(0)
    x, order = torch.randn(2, 8, 16, 8, 8, generator=generator), torch.randperm(16, generator=generator)
    text, t = pipe.encode_text("a red circle bounces over green stripes").expand(2, -1, -1), torch.tensor([600, 900])
    for module in (pipe.unet, pipe.cam.extractor):
        assert all(m.conv4[0].weight.abs().max() > 0 for m in module.modules() if isinstance(m, TemporalConvLayer))
    whole, shuffled = pipe.unet(x, t, text), pipe.unet(x[:, :, order], t, text)
    assert (shuffled - whole[:, :, order]).square().mean() > 1e-3 * whole.square().mean()


def test_bfloat16_makes_the_same_video(pipe):
    """Networks alone change; two steps through all stages stay within rounding."""
    half = load("tiny", "cpu", dtype=torch.bfloat16)
    assert (half.unet.dtype, half.enhancer.dtype, half.vae.dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)
    prompt, call = "a red circle bounces over green stripes", {"num_frames": 24, "num_inference_steps": 2}
    whole, fast = (p(prompt, progress=False, **call).frames for p in (pipe, half))
    assert whole.dtype == fast.dtype and fast.shape == whole.shape
    assert 10 * torch.log10(4 / (whole - fast).square().mean()) > 35
