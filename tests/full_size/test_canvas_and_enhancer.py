"""The enhancer's geometry, numbers and sizes: what the released network does at 90 x 160, and any other size."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from st2v_lib.backbone import make_unet, make_vae
from st2v_lib.canvas import canvas_size, crop_from_canvas, pad_to_canvas
from st2v_lib.config import MODELSCOPE, TINY, EnhancerConfig, UNetConfig
from st2v_lib.enhancer import (
    enhance_video,
    guide_v,
    logsnr_cosine_interp,
    noise_ratios,
    sample_2m_sde,
    shape_quirks,
    time_grid,
    upscale,
)

SMALL = UNetConfig(
    sample_size=8, block_out_channels=(8, 8, 8, 8), norm_num_groups=4, cross_attention_dim=12, attention_head_dim=4
)


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    return shape_quirks(make_unet(SMALL).eval())


def test_released_canvas():
    assert canvas_size(720, 720, MODELSCOPE.enhancer, 8) == (720, 1280)


@pytest.mark.parametrize("height", [1, 8, 90, 255, 256, 360, 480, 720, 721, 1080])
@pytest.mark.parametrize("width", [16, 200, 1281])
def test_any_size_fits_and_comes_back(height, width):
    config = dataclasses.replace(MODELSCOPE.enhancer, canvas_width=None)
    tall, wide = canvas_size(height, width, config, 8)
    assert height <= tall < height + 64 + 80 and width <= wide < width + 64
    rows, heights = tall // 8, []
    for _ in range(3):  # each level of the asymmetric down path has an even number of rows, so the up path meets it
        heights.append(rows)
        rows = (rows + 2 * 2 - 3) // 2 + 1
    assert all(h % 2 == 0 and 2 * ((h + 1) // 2 + 1) - 2 == h for h in heights) and wide % 64 == 0
    frames = torch.rand(1, 2, 3, height, width) * 2 - 1
    padded = pad_to_canvas(frames, config, 8)
    assert padded.shape[-2:] == (tall, wide)
    assert torch.equal(crop_from_canvas(padded, (height, width)), frames)
    outside = padded.clone()
    top, left = (tall - height) // 2, (wide - width) // 2
    outside[..., top : top + height, left : left + width] = -1
    assert (outside == -1).all(), "black around it"


@torch.no_grad()
@pytest.mark.parametrize("rows, columns", [(10, 16), (18, 24), (90, 8)])
def test_network_takes_every_canvas(unet, rows, columns):
    """Row counts of 2 plus a multiple of 8; the released 90 goes 46, 24, 13 and back (reference 5.1)."""
    seen, hooks = [], []
    for block in (*unet.down_blocks, *unet.up_blocks):
        hooks.append(block.register_forward_hook(
            lambda _, args, out: seen.append((out[0] if isinstance(out, tuple) else out).shape[-2:])))  # fmt: skip
    out = unet(torch.randn(1, 4, 2, rows, columns), 100, torch.randn(1, 77, 12))
    for hook in hooks:
        hook.remove()
    assert out.shape == (1, 4, 2, rows, columns)
    if rows == 90:
        assert [h for h, _ in seen] == [46, 24, 13, 13, 24, 46, 90, 90]
        assert [w for _, w in seen] == [4, 2, 1, 1, 2, 4, 8, 8]


@torch.no_grad()
def test_quirks_change_rows_only(unet):
    """Down: two rows of padding and one column. Up: nearest doubling without the first and the last row."""
    x = torch.randn(1, 8, 6, 8)
    down, up = unet.down_blocks[0].downsamplers[0].conv, unet.up_blocks[0].upsamplers[0]
    assert down.padding == (2, 1) and down.stride == (2, 2)
    doubled = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert torch.equal(up(x), up.conv(doubled[:, :, 1:-1]))


def test_schedule_values_of_the_reference():
    """The table of reference 5.3: sigma at some indices, alpha and their ratio where SDEdit starts."""
    schedule = logsnr_cosine_interp()
    for index, sigma in {0: 0.00111, 100: 0.32262, 300: 0.78257, 500: 0.94301, 600: 0.97257, 900: 0.99911}.items():
        assert float(schedule.sigmas[index]) == pytest.approx(sigma, abs=6e-6)
    assert float(schedule.sigmas[599]) == pytest.approx(0.97236, abs=6e-6)
    assert float(schedule.alphas[599]) == pytest.approx(0.23347, abs=6e-6)
    assert float(schedule.sigmas[999]) == 1 and float(schedule.alphas[999]) == 0
    assert torch.allclose(schedule.alphas**2 + schedule.sigmas**2, torch.ones(1000))


def test_thirty_evaluations_and_their_noise_levels():
    """Reference 5.4: 31 timesteps with stride 600/31, the last dropped; the first and last ratios."""
    times = time_grid(30)
    assert len(times) == 30 and times[0] == 599 and float(times[1]) == pytest.approx(579.6, abs=0.06)
    assert float(times[-1]) == pytest.approx(37.7, abs=0.06)
    ratios = noise_ratios(logsnr_cosine_interp(), times).tolist()
    for index, value in {0: 4.1648, 1: 3.857, 2: 3.576, 3: 3.317, 27: 0.256, 28: 0.188, 29: 0.123, 30: 0.0}.items():
        assert ratios[index] == pytest.approx(value, abs=6e-4)


@pytest.mark.parametrize("official", [False, True])
def test_both_scalings_at_the_start(official):
    """What the network sees first: the noised latents, or 0.972 of them as the released sampler (its slip)."""
    seen, x = [], torch.randn(1, 4, 3, 2, 2)

    def predict(state, t):
        seen.append((state, t))
        return 0.5 * state

    sample_2m_sde(x, predict, lambda i: torch.randn_like(x), logsnr_cosine_interp(), 30, official_start_scale=official)
    assert len(seen) == 30 and seen[0][1] == 599
    factor = (seen[0][0] / x).mean().item()
    assert factor == pytest.approx(4.1648 / math.sqrt(1 + 4.1648**2) if official else 1.0, abs=1e-4)


def test_guidance_rescale():
    """The spread is pulled by a fifth towards that of the text branch, over a whole chunk."""
    null, text = torch.randn(2, 1, 4, 6, 5, 5, generator=torch.Generator().manual_seed(0))
    plain = null + 7.5 * (text - null)
    out = guide_v(null, text, 7.5, 0.2)
    assert torch.allclose(out, plain * (0.2 * text.std() / plain.std() + 0.8), rtol=1e-5)
    assert torch.allclose(guide_v(null, text, 7.5, 0.0), plain)
    assert guide_v(null, text, 7.5, 1.0).std().item() == pytest.approx(text.std().item(), rel=1e-4)


@pytest.mark.parametrize("size", [48, (40, 56), (33, 47)])
def test_enhanced_videos_of_any_size_have_no_bars(size):
    """A white video stays free of black at its edges, whatever canvas it was worked on."""
    torch.manual_seed(0)
    vae = make_vae(TINY.vae).eval()
    config = EnhancerConfig(
        unet=dataclasses.replace(SMALL, in_channels=8, out_channels=8), size=size, canvas_width=96,
        num_inference_steps=2, chunk_frames=4, overlap_frames=2,
    )  # fmt: skip
    unet = shape_quirks(make_unet(config.unet).eval())
    tokens = torch.randn(2, 1, 77, 12)
    out = enhance_video(torch.ones(1, 7, 3, 20, 28), vae, unet, *tokens, config, torch.Generator().manual_seed(0))
    assert out.shape == (1, 7, 3, *((size, size) if isinstance(size, int) else size))
    assert out.isfinite().all() and out.abs().max() <= 1


@pytest.mark.parametrize("law", ["code", "B", "B+S"])
@pytest.mark.parametrize("together", [1, 3, None])
def test_large_frames_exist_a_few_at_a_time(monkeypatch, law, together):
    """So a naive variant of a long video, too, takes latents and no more; what comes out does not depend on it."""
    torch.manual_seed(0)
    vae, sizes = make_vae(TINY.vae).eval(), []
    config = EnhancerConfig(
        unet=dataclasses.replace(SMALL, in_channels=8, out_channels=8), size=32, canvas_width=None, blend_law=law,
        num_inference_steps=2, chunk_frames=4, overlap_frames=2, shape_quirks=False,
    )  # fmt: skip
    unet, tokens = make_unet(config.unet).eval(), torch.randn(2, 1, 77, 12)
    video = torch.rand(1, 7, 3, 16, 16)

    def counted(part, *arguments):
        sizes.append(part.shape[1])
        return upscale(part, *arguments)

    monkeypatch.setattr("st2v_lib.enhancer.upscale", counted)
    run = lambda n: enhance_video(  # noqa: E731
        video, vae, unet, *tokens, config, torch.Generator().manual_seed(0), batch_size=n
    )
    out = run(together)
    assert max(sizes) == (together or 7) and sum(sizes) == 7 and out.device.type == "cpu"
    assert (out - run(7)).abs().max() < 1e-3
