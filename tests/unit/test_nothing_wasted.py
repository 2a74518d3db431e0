"""What the released code computes more often than it is needed is computed once here (reference 1.3, 5.1, 9.2)."""

from __future__ import annotations

import collections

import pytest
import torch

from st2v_lib.apm import apm_processors, holding
from st2v_lib.loading import load

PROMPT = "a red circle bounces over green stripes"
STEPS = 2


@pytest.fixture(scope="module")
def pipe(random_weights, quick_config):
    loaded = load("tiny", "cpu", random_weights / "weights" / "tiny")
    loaded.cfg = quick_config
    return loaded


@pytest.fixture
def calls(pipe):
    """How often each part runs while a test does."""
    count, hooks = collections.Counter(), []
    parts = {
        "unet": pipe.unet, "cam": pipe.cam.extractor.mid_block, "cam pixels": pipe.cam.extractor.cond_encoder,
        "mix": next(iter(pipe.apm.mixes.values())).conv, "anchor": pipe.image_encoder, "tokens": pipe.apm.tokens,
        "text": pipe.text_encoder, "vae encoder": pipe.vae.encoder, "enhancer": pipe.enhancer,
    }  # fmt: skip
    for name, part in parts.items():
        hooks.append(part.register_forward_hook(lambda *_, name=name: count.update([name])))
    yield count
    for hook in hooks:
        hook.remove()


def test_a_stream_computes_constants_once(pipe, calls):
    decoded = []
    hook = pipe.vae.decoder.register_forward_pre_hook(lambda _, args: decoded.append(len(args[0])))
    pipe(PROMPT, num_frames=24, enhance=False, progress=False)  # the first chunk and one more
    hook.remove()
    chunks = 2
    assert sum(decoded) == 24, "carried frames, generated again and dropped, are not decoded"
    assert calls["unet"] == chunks * STEPS, "all guidance branches in one batch"
    assert calls["cam"] == (chunks - 1) * STEPS
    assert calls["cam pixels"] == chunks - 1, "CAM's pixel encoder runs once a chunk"
    assert calls["mix"] == chunks - 1, "APM mixes once a chunk; stage 1 has no anchor"
    assert calls["anchor"] == calls["tokens"] == 2, "anchor and grey image, once a video"
    assert calls["text"] == 2, "prompt and negative prompt, once a video"
    assert calls["vae encoder"] == 0, "nothing is encoded again"


def test_the_enhancer_encodes_each_frame_and_each_text_once(pipe, calls):
    frames = []
    hook = pipe.vae.encoder.register_forward_pre_hook(lambda _, args: frames.append(len(args[0])))
    list(pipe.enhance(torch.zeros(1, 41, 3, 64, 64), PROMPT, progress=False))
    hook.remove()
    assert sum(frames) == 41
    assert calls["text"] == 2
    assert calls["enhancer"] == 3 * STEPS, "three chunks; temporal attention is not run again by hooks"


@torch.no_grad()
def test_contexts_held_for_a_chunk_give_the_same_prediction(pipe):
    pipe.models().attach()
    x = torch.randn(2, 8, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    tokens = torch.randn(2, 24 + 8, 128, generator=torch.Generator().manual_seed(1))
    at_each_step = pipe.unet(x, 500, tokens)
    layers = apm_processors(pipe.unet)
    assert len(layers) == len(pipe.apm.mixes)
    with holding(layers, [layer.mix(tokens) for layer in layers]):
        once = pipe.unet(x, 500, tokens)
    assert (once - at_each_step).abs().max() < 1e-5 * at_each_step.abs().max()
    assert not torch.equal(pipe.unet(x, 500, tokens[:, :24]), at_each_step), "released again: text alone is another"
    assert all(layer.context is None for layer in layers)
