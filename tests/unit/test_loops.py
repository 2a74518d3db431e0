"""Guidance, blending, the enhancer's loop and streaming: laws and invariants, on small or stand-in networks."""

import dataclasses
from itertools import islice

import pytest
import torch

from st2v_lib.apm import Apm
from st2v_lib.backbone import make_unet, make_vae
from st2v_lib.blending import blend, chunk_starts, draw_cuts, overlaps, probability_of_left
from st2v_lib.cam import Cam
from st2v_lib.cli import SAMPLERS
from st2v_lib.config import MODELSCOPE, TINY, EnhancerConfig
from st2v_lib.enhancer import (
    enhance_latents,
    enhance_video,
    logsnr_cosine_interp,
    noise_ratios,
    shape_quirks,
    time_grid,
)
from st2v_lib.sampling import Contexts, chunk_generator, denoise_chunk, guided, make_predictor, make_scheduler
from st2v_lib.streaming import Models, StreamState, start_stream, stream_chunks

FEW = dataclasses.replace(TINY.sampling, num_inference_steps=2)


@pytest.fixture(scope="module")
def models():
    torch.manual_seed(0)
    unet, vae = make_unet(TINY.unet).eval(), make_vae(TINY.vae).eval()
    cam, apm = Cam.from_unet(unet, TINY.cam).eval(), Apm.from_unet(unet, TINY.apm).eval()
    for module in (cam.injectors, cam.extractor.cond_encoder.conv_out, apm.mixes):
        for p in module.parameters():
            torch.nn.init.normal_(p, std=0.1)
    e = TINY.apm.image_embed_dim
    scheduler = make_scheduler(TINY.scheduler, "dpm++")
    return Models(unet, vae, scheduler, cam, apm, lambda frames: frames.flatten(2)[..., :e])


def text(seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(1, TINY.apm.text_len, TINY.unet.cross_attention_dim, generator=g)


def video(frames=16, size=64):
    return torch.rand(1, frames, 3, size, size, generator=torch.Generator().manual_seed(3)) * 2 - 1


# --- sampling -------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("config, sampler", [(c, s) for c in (TINY, MODELSCOPE) for s in SAMPLERS])
def test_samplers_recover_a_known_image(config, sampler):
    """With the perfect prediction for one clean image every sampler ends at it, whatever the parametrisation."""
    scheduler = make_scheduler(config.scheduler, sampler)
    clean = torch.randn(1, 4, 2, 3, 3, generator=torch.Generator().manual_seed(0))

    def predict(x, t, tokens):
        ab = scheduler.alphas_cumprod[t].double()
        a, s = ab.sqrt().float(), (1 - ab).sqrt().float()
        noise = (x - a * clean) / s
        return noise if config.scheduler.prediction_type == "epsilon" else a * noise - s * clean

    contexts = Contexts(torch.zeros(1, 1, 1), torch.zeros(1, 1, 1), scale=1.0)
    steps = []
    for eta in (0.0, 1.0):
        out = denoise_chunk(
            predict,
            scheduler,
            torch.randn(1, 4, 2, 3, 3),
            contexts,
            20,
            eta,
            chunk_generator(0, 0),
            callback=steps.append,
        )
        assert (out - clean).abs().max() < 0.15  # DDIM stops at the first training level, a trace of noise
    assert all((s.x0 - clean).abs().max() < 0.02 for s in steps)
    assert [s.index for s in steps] == [*range(20)] * 2 and steps[0].num_steps == 20


def test_timesteps():
    scheduler = make_scheduler(MODELSCOPE.scheduler, "ddim")
    scheduler.set_timesteps(50)
    assert scheduler.timesteps.tolist() == list(range(981, 0, -20))
    for sampler in SAMPLERS:
        scheduler = make_scheduler(TINY.scheduler, sampler)
        scheduler.set_timesteps(10)
        assert scheduler.timesteps[0] == 999 and len(scheduler.timesteps) == 10
    with pytest.raises(ValueError, match="euler"):
        make_scheduler(TINY.scheduler, "euler")


def test_three_branches_telescope_to_two():
    g = torch.Generator().manual_seed(0)
    tokens = [torch.randn(2, n, 6, generator=g) for n in (5, 5, 3, 3)]
    x = torch.randn(2, 4, 3, 2, 2, generator=g)
    sizes = []

    def predict(x, t, tokens):
        sizes.append((len(x), len(tokens)))
        return (tokens.square().sum(dim=(1, 2)).view(-1, len(x), 1, 1, 1, 1) * x).flatten(0, 1)

    two = guided(predict, x, torch.tensor(1), Contexts(*tokens, 7.5))
    three = guided(predict, x, torch.tensor(1), Contexts(*tokens, 7.5, 7.5 * (1 + 1e-12)))
    torch.testing.assert_close(three, two, rtol=1e-4, atol=1e-3)
    # weights that differ, against eq. 12 written out
    null, txt, anchor, null_anchor = tokens[1], tokens[0], tokens[2], tokens[3]
    e = [predict(x, None, torch.cat(p, dim=1)) for p in ((null, null_anchor), (txt, null_anchor), (txt, anchor))]
    expected = e[0] + 7.5 * (e[1] - e[0]) + 2.0 * (e[2] - e[1])
    torch.testing.assert_close(guided(predict, x, torch.tensor(1), Contexts(*tokens, 7.5, 2.0)), expected)
    guided(predict, x, torch.tensor(1), Contexts(*tokens, 1.0))
    assert sizes == [(2, n) for n in (4, 6, 2, 2, 2, 6, 2)]  # latents are the same for all branches


def test_chunk_generators_differ_and_repeat():
    draw = lambda *key: torch.randn(4, generator=chunk_generator(*key)).tolist()  # noqa: E731
    assert draw(3, 1) == draw(3, 1)
    assert len({tuple(draw(*key)) for key in ((3, 1), (3, 2), (4, 1), (1, 3))}) == 4
    with pytest.raises(ValueError, match="-1"):
        chunk_generator(-1, 0)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_tiny_runs_with_both_samplers(models, sampler):
    scheduler = make_scheduler(TINY.scheduler, sampler)
    models.attach()
    predict = make_predictor(models.unet, models.cam, video(8))
    tokens = models.apm(torch.zeros(2, 1, TINY.apm.image_embed_dim))
    contexts = Contexts(text(), text(1), tokens[:1], tokens[1:], 3.0, 2.0)
    x = torch.randn(1, TINY.unet.in_channels, 16, 8, 8)
    out = denoise_chunk(predict, scheduler, x, contexts, 2, 1.0, chunk_generator(0, 0))
    assert out.shape == x.shape and out.isfinite().all()


# --- blending and the enhancer ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk, overlap", [(24, 8), (5, 2), (4, 0), (6, 5)])
def test_chunks_cover_every_length(chunk, overlap):
    for length in range(1, 80):
        starts = chunk_starts(length, chunk, overlap)
        size = min(chunk, length)
        covered = {f for s in starts for f in range(s, s + size)}
        assert covered == set(range(length))
        assert all(o >= min(overlap, size) for o in overlaps(starts, size)[1:])
    assert chunk_starts(24 + 16 * 3, 24, 8) == [0, 16, 32, 48]
    with pytest.raises(ValueError, match="overlap 9"):
        chunk_starts(10, 8, 9)


@pytest.mark.parametrize("law", ["code", "paper"])
def test_probability_of_the_left_chunk(law):
    overlap, draws, generator = 4, 4000, torch.Generator().manual_seed(0)
    cuts = torch.tensor([draw_cuts([0, overlap], law, generator)[1] for _ in range(draws)])
    left, right = torch.zeros(1, 1, 6, 1, 1), torch.ones(1, 1, 6, 1, 1)
    chosen = torch.stack([blend([left, right], [0, 2], [0, int(c)]).flatten()[2:6] for c in cuts])
    for f in range(1, overlap + 1):
        assert 1 - chosen[:, f - 1].mean().item() == pytest.approx(probability_of_left(f, overlap, law), abs=0.03)
    expected = [3 / 4, 2 / 4, 1 / 4, 0] if law == "code" else [4 / 5, 3 / 5, 2 / 5, 1 / 5]
    assert [probability_of_left(f, 4, law) for f in range(1, 5)] == pytest.approx(expected)


def test_noise_levels():
    schedule = logsnr_cosine_interp()
    table = {0: 0.00111, 100: 0.32262, 300: 0.78257, 500: 0.94301, 599: 0.97236, 600: 0.97257, 900: 0.99911}
    for t, sigma in table.items():
        assert schedule.sigmas[t].item() == pytest.approx(sigma, abs=6e-6)
    assert schedule.sigmas[999] == 1 and schedule.alphas[999] == 0
    assert schedule.alphas[599].item() == pytest.approx(0.23347, abs=1e-5)
    ratios = noise_ratios(schedule, time_grid(30)).tolist()
    assert len(ratios) == 31 and ratios[-1] == 0
    assert ratios[:4] == pytest.approx([4.1648, 3.857, 3.576, 3.317], abs=1e-3)
    assert ratios[-4:-1] == pytest.approx([0.256, 0.188, 0.123], abs=1e-3)


@pytest.mark.parametrize("law", ["code", "paper", "B", "B+S"])
def test_perfect_denoiser_gives_its_image_for_any_cuts(law):
    clean = torch.randn(1, 2, 23, 2, 2)
    config = EnhancerConfig(chunk_frames=6, overlap_frames=2, num_inference_steps=4, blend_law=law)
    starts = chunk_starts(23, 6, 2)
    calls = []

    def denoise(x, t, k):
        calls.append((x.shape[2], k))
        return clean[:, :, starts[k] : starts[k] + 6]

    out = enhance_latents(clean, denoise, config, torch.Generator().manual_seed(0))
    torch.testing.assert_close(out, clean)
    assert calls == [(6, k) for _ in range(4) for k in range(len(starts))]


@pytest.mark.parametrize("law", ["code", "paper", "B+S"])
def test_chunks_that_agree_are_independent_of_the_cuts(law):
    """A frame-wise denoiser sees no chunk borders, so neither chunking nor cuts may show, with shared noise."""
    latents = torch.randn(1, 2, 15, 2, 2)
    noise = torch.randn(4, *latents.shape)

    def run(chunk, overlap, law):
        config = EnhancerConfig(chunk_frames=chunk, overlap_frames=overlap, num_inference_steps=4, blend_law=law)
        return enhance_latents(
            latents, lambda x, t, k: x.tanh(), config, torch.Generator().manual_seed(0), noise[0], noise[1:]
        )

    torch.testing.assert_close(run(6, 3, law), run(15, 0, "code"))


def test_independent_chunks_do_not_share_noise():
    latents = torch.zeros(1, 2, 9, 2, 2)
    shared, independent = (
        enhance_latents(
            latents,
            lambda x, t, k: x,
            EnhancerConfig(chunk_frames=6, overlap_frames=3, num_inference_steps=1, blend_law=law),
            torch.Generator().manual_seed(0),
        )
        for law in ("B+S", "B")
    )
    assert shared.shape == independent.shape == latents.shape
    assert not torch.allclose(shared[:, :, 6:], independent[:, :, 6:])


@torch.no_grad()
def test_released_enhancer_geometry():
    narrow = dict(block_out_channels=(8,) * 4, norm_num_groups=4, attention_head_dim=4, cross_attention_dim=8)
    tiny = dataclasses.replace(MODELSCOPE.unet, layers_per_block=1, **narrow)
    unet = make_unet(tiny).eval()
    names = list(unet.state_dict())
    assert list(shape_quirks(unet).state_dict()) == names
    heights = []
    for module in [b.resnets[-1] for b in (*unet.down_blocks, *unet.up_blocks)]:
        module.register_forward_hook(lambda m, i, o: heights.append(o.shape[-2]))
    x = torch.randn(1, 4, 1, 90, 16)
    assert unet(x, 599, torch.randn(1, 3, 8)).shape == x.shape
    assert heights == [90, 46, 24, 13, 13, 24, 46, 90]


def test_tiny_enhancer_runs(models):
    config = dataclasses.replace(
        TINY.enhancer, num_inference_steps=2, chunk_frames=4, overlap_frames=2, guidance_scale=3.0
    )
    unet = make_unet(config.unet).eval()
    out = enhance_video(video(5), models.vae, unet, text(), text(1), config, torch.Generator().manual_seed(0))
    assert out.shape == (1, 5, 3, 128, 128)
    wide = dataclasses.replace(config, canvas_width=160)
    out = enhance_video(video(2), models.vae, unet, text(), text(1), wide, torch.Generator().manual_seed(0))
    assert out.shape == (1, 2, 3, 128, 128)


# --- streaming -------------------------------------------------------------------------------------------------------


def test_stream_resumes_branches_and_does_not_depend_on_length(models, tmp_path):
    start = start_stream(models, video(), seed=5)
    run = lambda state, n, prompt=None: list(  # noqa: E731
        stream_chunks(models, state, text() if prompt is None else prompt, text(1), FEW, n)
    )
    two = run(start, 2)
    assert [b.shape for b, _ in two] == [(1, 8, 3, 64, 64)] * 2
    endless = list(islice(stream_chunks(models, start, text(), text(1), FEW), 2))
    assert torch.equal(endless[1][0], two[1][0])

    two[0][1].save(tmp_path / "state.safetensors")
    loaded = StreamState.load(tmp_path / "state.safetensors")
    resumed = run(loaded, 1)
    assert torch.equal(resumed[0][0], two[1][0]) and resumed[0][1].chunk_index == 3

    other = run(start, 2, lambda k: text() if k < 2 else text(7))
    assert torch.equal(other[0][0], two[0][0]) and not torch.equal(other[1][0], two[1][0])


def test_the_null_image_is_grey_as_released_or_black_as_in_the_paper(models):
    for value in (0.0, -1.0):
        state = start_stream(dataclasses.replace(models, null_pixel=value), video(), seed=5)
        expected = models.apm(models.encode_image(torch.full((1, 1, 3, 64, 64), value)))
        assert torch.equal(state.null_anchor, expected)
        assert torch.equal(state.anchor, start_stream(models, video(), seed=5).anchor)
    assert TINY.null_pixel == MODELSCOPE.null_pixel == models.null_pixel == 0


def test_memories_can_be_left_out(models):
    bare = dataclasses.replace(models, cam=None, apm=None, encode_image=None)
    state = start_stream(bare, video(), seed=5)
    assert state.anchor is None
    (block, _), *_ = stream_chunks(bare, state, text(), text(1), FEW, 1)
    assert block.shape == (1, 8, 3, 64, 64)
    with pytest.raises(ValueError, match="more than 8 frames, got 8"):
        start_stream(models, video(8))
    with pytest.raises(ValueError, match="encode_image"):
        start_stream(dataclasses.replace(models, encode_image=None), video())
