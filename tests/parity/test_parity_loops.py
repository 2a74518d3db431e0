"""Denoising, streaming and the enhancer's sampler against the recorded outputs (cases 6, 6c, 8)."""

import math

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import DecoderOutput
from parity_tools import error, frames_from_u8

from st2v_lib.config import EnhancerConfig, SamplingConfig, SchedulerConfig
from st2v_lib.enhancer import enhance_latents, guide_v, logsnr_cosine_interp, noise_ratios, sample_2m_sde, time_grid
from st2v_lib.sampling import Contexts, denoise_chunk, guided, make_predictor, make_scheduler
from st2v_lib.streaming import Models, next_chunk, start_stream


class StandInVae(AutoencoderKL):
    """The recording's decoder: four latent channels to RGB by a formula, nearest x8."""

    def decode(self, z, return_dict=True, generator=None):
        rgb = torch.tanh((z[:, :3] + 0.5 * z[:, 3:4]) / 8)
        return DecoderOutput(sample=F.interpolate(rgb, scale_factor=8, mode="nearest"))


@pytest.fixture(scope="module")
def vae():
    down, up = ("DownEncoderBlock2D",) * 4, ("UpDecoderBlock2D",) * 4
    return StandInVae(down_block_types=down, up_block_types=up, block_out_channels=(32,) * 4, layers_per_block=1)


def scheduler(config):
    known = SchedulerConfig.__dataclass_fields__
    return make_scheduler(SchedulerConfig(**{k: v for k, v in config["scheduler"].items() if k in known}), "ddim")


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_one_chunk(case, config, attached, vae, eta):
    c = case("case6_sampling")
    tokens = [attached.apm(c[k]) for k in ("image_embedding", "image_embedding_uncond")]
    assert error(tokens[0], c["image_tokens"]) < 1e-4 and error(tokens[1], c["image_tokens_uncond"]) < 1e-4
    contexts = Contexts(c["prompt_embeds"], c["negative_prompt_embeds"], *tokens, scale=7.5)
    predict = make_predictor(attached.unet, attached.cam, frames_from_u8(c["conditioning_frames_u8"], 1))
    steps = []
    result = denoise_chunk(
        predict,
        scheduler(config),
        c["x_T"],
        contexts,
        num_inference_steps=len(c["timesteps"]),
        eta=eta,
        variance_noise=c["eta1_variance_noise"],
        callback=steps.append,
    )
    assert [s.timestep for s in steps] == c["timesteps"].tolist()
    expected = c[f"eta{eta:.0f}_latents"]
    for step, want in zip(steps, expected, strict=True):
        assert error(step.latents[0], want) < 3e-4
    if eta == 0:
        both = torch.cat(contexts.branches())
        for i, x in ((0, c["x_T"]), (3, expected[2:3])):
            t = c["timesteps"][i]
            assert error(predict(x.repeat(2, 1, 1, 1, 1), t, both), c[f"eta0_eps_uncond_cond_step{i}"]) < 3e-4
        video = vae.decode(result[0].transpose(0, 1) / 0.18215).sample / 2 + 0.5
        assert error(video[..., ::8, ::8], c["eta0_decoded_lowres"]) < 3e-4


def test_variance_noise_is_drawn_frame_by_frame(case, config):
    """The generator's noises are those of the (b f) c h w flattening, one for each step, the last one included."""
    x = case("case6_sampling")["x_T"]
    b, c, f, h, w = x.shape
    contexts = Contexts(torch.zeros(1, 2, 3), torch.zeros(1, 2, 3), scale=1.0)

    def run(**noise):
        return denoise_chunk(lambda x, t, _: 0.3 * x, scheduler(config), x, contexts, 3, 1.0, **noise)

    g = torch.Generator().manual_seed(5)
    drawn = torch.stack([torch.randn(b * f, c, h, w, generator=g) for _ in range(3)])
    assert torch.equal(run(generator=torch.Generator().manual_seed(5)), run(variance_noise=drawn))


def test_two_chunks_autoregressively(case, config, attached, vae):
    c = case("case6c_autoregressive")
    proj, shift = c["standin_encoder.proj"], c["standin_encoder.shift"]

    def encode_image(frames):  # b n 3 h w -> b n e
        pooled = F.adaptive_avg_pool2d(frames.flatten(0, 1), 4).flatten(1)
        return torch.tanh(pooled @ proj + shift).unflatten(0, frames.shape[:2])

    models = Models(attached.unet, vae, scheduler(config), attached.cam, attached.apm, encode_image)
    first = (c["first_chunk_u8"].float() / 255)[None] * 2 - 1
    state = start_stream(models, first)
    assert error(state.anchor, c["anchor_tokens"]) < 3e-4
    assert error(state.null_anchor, c["zero_image_tokens"]) < 3e-4

    blocks, sampling = [], SamplingConfig(num_inference_steps=2, eta=0.0, guidance_scale=7.5)
    for k in (1, 2):
        assert error(state.cond[..., ::8, ::8], c[f"chunk{k}.input_frames_lowres"]) < 3e-4
        steps = []
        block, state = next_chunk(
            models,
            state,
            c["prompt_embeds"],
            c["negative_prompt_embeds"],
            sampling,
            noise=c[f"chunk{k}.x_T"],
            callback=steps.append,
        )
        assert error(steps[-1].latents, c[f"chunk{k}.final_latents"]) < 3e-4
        blocks.append(block)
    # the given frames are compared as given: truncation does not survive a round trip through [-1, 1]
    new = ((torch.cat(blocks, dim=1)[0, ..., ::8, ::8] / 2 + 0.5) * 255).floor()
    video = torch.cat([c["first_chunk_u8"][..., ::8, ::8].float(), new])
    expected = (c["merged_video_lowres"] * 255).round()
    off = (video - expected).abs()
    assert video.shape == expected.shape and off.max() <= 1 and (off > 0).float().mean() <= 1e-3


def stub_v(x, t, y, k):
    """The recording's denoiser, v from a chunk; y is 1 for the prompt and -0.5 for the negative prompt."""
    frames = x.shape[2]
    ramp = torch.linspace(-1, 1, frames)[:, None, None]
    return (
        0.6 * x + 0.25 * x.mean(2, keepdim=True).tanh() + 0.1 * y * torch.sin(3 * x + t / 100) + 0.05 * ramp + 0.03 * k
    )


def stub_denoiser(rescale=0.2):
    schedule = logsnr_cosine_interp()

    def denoise(x, t, k):
        v = guide_v(stub_v(x, t, -0.5, k), stub_v(x, t, 1.0, k), 7.5, rescale)
        return schedule.x0_from_v(x, v, t)

    return denoise


def test_enhancer_schedule(case):
    c, schedule = case("case8_blending"), logsnr_cosine_interp()
    assert error(schedule.sigmas, c["schedule.sigmas_1000"]) < 1e-6
    assert error(schedule.alphas, c["schedule.alphas_1000"]) < 1e-4
    assert schedule.alphas[-1] == 0
    for name, steps in (("single", 4), ("run", 5), ("full", 30)):
        times = time_grid(steps)
        assert times.round().long().tolist() == c[f"{name}.model_timesteps"].tolist()
        assert error(noise_ratios(schedule, times).float(), c[f"{name}.sigmas"]) < 1e-5


def test_one_denoiser_call(case):
    c = case("case8_blending")
    x0 = stub_denoiser()(c["input.noised_latents"][:, :, :6], int(c["denoise.t"]), 0)
    assert error(x0, c["denoise.x0"]) < 1e-4


@pytest.mark.parametrize(
    "name, latents, noise, chunk, overlap, steps, rescale",
    [
        ("run", "input.clean_latents", "input.noise", 6, 3, 5, 0.2),
        ("full", "full.encoded_latents", "full.noise", 5, 2, 30, 0.2),
    ],
)
def test_enhancer_run(case, name, latents, noise, chunk, overlap, steps, rescale):
    c = case("case8_blending")
    config = EnhancerConfig(
        chunk_frames=chunk, overlap_frames=overlap, num_inference_steps=steps, official_start_scale=True
    )
    states = []
    result = enhance_latents(
        c[latents],
        stub_denoiser(rescale),
        config,
        noise=c[noise],
        step_noise=c[f"{name}.brownian_noise"],
        cuts=c[f"{name}.random_offsets"].clamp(min=0).tolist(),
        callback=states.append,
    )
    for i, state in enumerate(states):
        assert error(state.x0, c[f"{name}.x0_blended"][i]) < 1e-4
        if i + 1 < steps:
            assert error(state.latents, c[f"{name}.x_before_step"][i + 1]) < 1e-4
    assert error(result, c[f"{name}.result"]) < 1e-4


def test_enhancer_single_chunk(case):
    c, schedule, denoise = case("case8_blending"), logsnr_cosine_interp(), stub_denoiser(0.0)
    first = c["single.x_before_step"][0]
    ratio = noise_ratios(schedule, time_grid(4))[0].item()
    result = sample_2m_sde(
        first / ratio, lambda x, t: denoise(x, t, 0), lambda i: c["single.brownian_noise"][i], schedule, 4,
        official_start_scale=True,
    )  # fmt: skip
    assert error(result, c["single.result"]) < 1e-4


def test_exact_start_differs_by_the_documented_factor():
    ratio = noise_ratios(logsnr_cosine_interp(), time_grid(30))[0].item()
    assert ratio / math.sqrt(1 + ratio**2) == pytest.approx(0.972, abs=5e-4)


def test_guided_is_two_branches_in_one_batch(case):
    c = case("case6_sampling")
    seen = []

    def predict(x, t, tokens):
        seen.append(tokens.shape[0])
        return x * tokens.mean(dim=(1, 2)).view(-1, 1, 1, 1, 1)

    contexts = Contexts(c["prompt_embeds"], c["negative_prompt_embeds"], scale=7.5)
    guided(predict, c["x_T"], c["timesteps"][0], contexts)
    assert seen == [2]
