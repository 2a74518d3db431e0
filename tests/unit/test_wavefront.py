"""Stage 3 in a stream gives the frames of stage 3 all at once, bit for bit, and holds no more for a longer video."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from st2v_lib.backbone import make_unet, make_vae
from st2v_lib.blending import boundary_cut, chunk_starts, frame_noise, stage_key
from st2v_lib.config import EnhancerConfig, UNetConfig, VaeConfig
from st2v_lib.enhancer import enhance_latents, enhance_video
from st2v_lib.errors import InputError
from st2v_lib.sampling import chunk_generator
from st2v_lib.wavefront import EnhancerStream, Wavefront, batch_denoiser

SMALL = EnhancerConfig(size=32, canvas_width=None, chunk_frames=6, overlap_frames=2, num_inference_steps=4)


def stub(x, timesteps, chunks):
    """Mixes the frames of a chunk, and depends on its timestep and index."""
    parts = zip(x.split(len(x) // len(chunks)), timesteps, chunks, strict=True)
    return torch.cat(
        [(p + p.roll(1, 2) * 0.5 + p.mean(2, keepdim=True)).tanh() + 1e-3 * t + 0.1 * k for p, t, k in parts]
    )


def at_once(latents, config, key=None):
    generator = torch.Generator().manual_seed(0)
    return enhance_latents(latents, lambda x, t, k: stub(x, [t], [k]), config, generator)


def streamed(latents, config, sizes, known, batch_size=1):
    key = stage_key(torch.Generator().manual_seed(0))
    num_frames = latents.shape[2]
    front = Wavefront(stub, config, key, num_frames if known else None, batch_size)
    out, at = [], 0
    while at < num_frames:
        size = sizes[len(out) % len(sizes)]
        front.push(latents[:, :, at : at + size])
        at += size
        list(front.steps())
        out.append(front.pop())
    front.end()
    list(front.steps())
    out.append(front.pop())
    assert not front.frames
    return torch.cat([part for part in out if part is not None], dim=2)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("law", ["code", "paper"])
@pytest.mark.parametrize("length", [1, 5, 6, 7, 8, 9, 10, 13, 14, 22, 23, 41])
def test_streamed_is_all_at_once(length, law, known):
    """Lengths that fit, that do not, and videos shorter than a chunk; the length told before or only at the end."""
    config = dataclasses.replace(SMALL, blend_law=law)
    latents = torch.randn(2, 2, length, 3, 3, generator=torch.Generator().manual_seed(length))
    for sizes in ([1], [4], [3, 2]):
        assert torch.equal(streamed(latents, config, sizes, known), at_once(latents, config))


@pytest.mark.parametrize(("chunk", "overlap", "steps"), [(6, 0, 3), (6, 5, 3), (5, 3, 6), (24, 8, 1), (4, 2, 7)])
def test_any_chunking(chunk, overlap, steps):
    config = dataclasses.replace(SMALL, chunk_frames=chunk, overlap_frames=overlap, num_inference_steps=steps)
    for length in (chunk + 1, 2 * chunk, 2 * chunk + 3, 5 * chunk - 1):
        latents = torch.randn(1, 2, length, 2, 2, generator=torch.Generator().manual_seed(length))
        for known in (True, False):
            assert torch.equal(streamed(latents, config, [2], known), at_once(latents, config))


def test_several_chunks_in_one_call():
    latents = torch.randn(1, 2, 43, 3, 3)
    calls = []

    def counting(x, timesteps, chunks):
        calls.append(list(chunks))
        return stub(x, timesteps, chunks)

    front = Wavefront(counting, SMALL, stage_key(torch.Generator().manual_seed(0)), None, 3)
    for part in latents.split(2, dim=2):
        front.push(part)
        list(front.steps())
    front.end()
    list(front.steps())
    assert torch.equal(front.pop(), at_once(latents, SMALL))
    assert max(map(len, calls)) == 3 and sum(map(len, calls)) == 4 * len(chunk_starts(43, 6, 2))
    assert sum(len(c) == 3 for c in calls) > len(calls) / 2


def test_frames_follow_by_a_constant_number():
    """The chunk that leaves is (S - 1)(C - O) frames behind the one that enters; what is held does not grow."""
    steps, stride = 4, 4
    front = Wavefront(stub, SMALL, 0, num_frames=10_000)
    held, behind = [], []
    for k in range(60):
        front.push(torch.randn(1, 1, 6 if k == 0 else stride, 2, 2))
        before = front.popped
        list(front.steps())
        front.pop()
        entered = k * stride
        if front.popped > before:
            behind.append(entered - (front.popped - stride))
        held.append(sum(t.numel() for t in front.tensors().values()))
    assert set(behind) == {(steps - 1) * stride}
    assert len(set(held[10:])) == 1
    unknown = Wavefront(stub, SMALL, 0)
    for part in torch.randn(1, 1, 46, 2, 2).split(2, dim=2):
        unknown.push(part)
        list(unknown.steps())
    unknown.pop()
    assert front.pushed - front.popped < unknown.pushed - unknown.popped <= (steps - 1) * stride + 6 + stride


def test_a_checkpoint_at_any_moment():
    latents = torch.randn(1, 2, 23, 3, 3)
    whole, key = at_once(latents, SMALL), stage_key(torch.Generator().manual_seed(0))
    front, out = Wavefront(stub, SMALL, key), []
    for part in [*latents.split(2, dim=2), None]:
        front.end() if part is None else front.push(part)
        while next(front.steps(), None) is not None:  # one step, then into a checkpoint and back
            kept = {name: tensor.clone() for name, tensor in front.tensors().items()}
            front = Wavefront(stub, SMALL, key, front.num_frames)
            front.restore(kept)
        out.append(front.pop())
    assert torch.equal(torch.cat([part for part in out if part is not None], dim=2), whole)


def test_noise_is_a_function_of_frame_and_step():
    like = torch.zeros(1, 2, 5, 3, 3)
    draw = lambda frames, step, key=1: frame_noise(key, frames, step, (1, 2, 3, 3), like)  # noqa: E731
    assert torch.equal(draw([3, 4, 5], 2)[:, :, 1:], draw([4, 5], 2))
    for other in (draw([5, 4], 2), draw([4, 5], 3), draw([4, 5], 2, 2)):
        assert not torch.equal(other, draw([4, 5], 2))
    cuts = [boundary_cut(1, k, i, 8) for k in range(40) for i in range(5)]
    assert set(cuts) == set(range(8)) and cuts == [boundary_cut(1, k, i, 8) for k in range(40) for i in range(5)]
    values = draw(range(500), 0)
    assert abs(values.mean()) < 0.05 and abs(values.std() - 1) < 0.05


def test_naive_variants_do_not_stream():
    with pytest.raises(InputError, match="naive"):
        Wavefront(stub, dataclasses.replace(SMALL, blend_law="B"), 0)


# ------------------------------------------------------------------------------------------------------- real networks


@pytest.fixture(scope="module")
def networks():
    torch.manual_seed(0)
    blocks = dict(down_block_types=("CrossAttnDownBlock3D",) * 2, up_block_types=("CrossAttnUpBlock3D",) * 2)
    sizes = dict(block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8, cross_attention_dim=16)
    unet = make_unet(UNetConfig(in_channels=4, out_channels=4, attention_head_dim=8, **blocks, **sizes))
    vae = make_vae(VaeConfig(2, 4, (16, 16), 1, 8, 1.0))
    return vae.eval(), unet.eval()


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_pixels_bit_for_bit(networks, scale):
    """With real networks: the loop over the whole video, and frames that come eight at a time."""
    vae, unet = networks
    config = dataclasses.replace(SMALL, guidance_scale=scale)
    generator = torch.Generator().manual_seed(1)
    video = torch.rand(1, 22, 3, 16, 16, generator=generator) * 2 - 1
    text, null = torch.randn(2, 1, 5, 16, generator=generator)
    whole = enhance_video(video, vae, unet, text, null, config, chunk_generator(7, 3), batch_size=4)
    key = stage_key(chunk_generator(7, 3))
    for known in (True, False):
        denoise = batch_denoiser(unet, lambda chunk: text, null, config)
        stream = EnhancerStream(vae, Wavefront(denoise, config, key, 22 if known else None), batch_size=4)
        frames = []
        for block in (video[:, :10], video[:, 10:13], video[:, 13:]):
            stream.push(block)
            list(stream.steps())
            frames += stream.pop()
        if not known:
            stream.end()
            list(stream.steps())
            frames += stream.pop()
        assert torch.equal(torch.cat(frames, dim=1), whole)


@torch.no_grad()
def test_one_batch_of_chunks_has_each_chunks_prompt_and_level(networks):
    _, unet = networks
    config = dataclasses.replace(SMALL, guidance_scale=3.0)
    generator = torch.Generator().manual_seed(2)
    texts = torch.randn(9, 1, 5, 16, generator=generator)
    denoise = batch_denoiser(unet, lambda chunk: texts[chunk], texts[8], config)
    x = torch.randn(2, 4, 6, 8, 8, generator=generator)
    both = denoise(x, [500, 90], [2, 5])
    alone = torch.cat([denoise(x[:1], [500], [2]), denoise(x[1:], [90], [5])])
    assert (both - alone).abs().max() < 1e-4
    assert (both - denoise(x, [500, 90], [5, 2])).abs().max() > 1e-3
