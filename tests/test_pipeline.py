"""The pipeline's contracts, on random weights: they hold whatever the networks have learnt."""

from __future__ import annotations

import dataclasses
import json
import shutil
import warnings

import pytest
import torch
from diffusers import EulerDiscreteScheduler

import st2v_lib
from st2v_lib import errors, manifest
from st2v_lib.enhancer import enhance_video
from st2v_lib.loading import load, write_index
from st2v_lib.pipeline import StreamingT2VPipeline
from st2v_lib.sampling import chunk_generator
from st2v_lib.stages import ENHANCER_NOISE
from st2v_lib.streaming import StreamState

PROMPT = "a red circle bounces over green stripes"


@pytest.fixture(scope="module")
def pipe(random_weights, quick_config):
    torch.set_num_threads(max(torch.get_num_threads(), 1))
    loaded = load("tiny", "cpu", random_weights / "weights" / "tiny")
    loaded.cfg = quick_config
    return loaded


@pytest.fixture
def changed(pipe, quick_config):
    """The pipeline, whose config and components a test may change."""
    kept = dict(pipe.components)
    yield pipe
    pipe.cfg = quick_config
    for name, part in kept.items():
        setattr(pipe, name, part)


@pytest.fixture(scope="module")
def long(pipe):
    """41 frames through all stages."""
    return pipe(PROMPT, num_frames=41, seed=3, progress=False)


def take(stream, blocks):
    return [next(stream) for _ in range(blocks)]


def test_a_call_gives_enhanced_and_low_frames_in_range(long, quick_config):
    assert long.frames.shape == (1, 41, 3, 80, 80) and long.low_res.shape == (1, 41, 3, 64, 64)
    for video in (long.frames, long.low_res):
        assert video.dtype == torch.float32 and video.abs().max() <= 1 and video.isfinite().all()
    assert long.config == quick_config
    assert long.frames[0].flatten(1).std(1).min() > 0  # every frame was written


@pytest.mark.parametrize("length", [16, 17, 24])
def test_any_length_is_the_start_of_a_longer_one(pipe, long, length):
    short = pipe(PROMPT, num_frames=length, seed=3, enhance=False, progress=False)
    assert short.frames.shape[1] == length
    assert torch.equal(short.low_res, long.low_res[:, :length])
    assert short.state.chunk_index == 1 + -(-(length - 16) // 8)


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_two_videos_are_enhanced_as_by_the_loop(changed, long, guidance_scale):
    config = dataclasses.replace(changed.cfg.enhancer, guidance_scale=guidance_scale)
    changed.cfg = changed.cfg.replace(enhancer=config)
    both = torch.cat([long.low_res[:, :17], long.low_res[:, 17:34]])
    texts = [changed.encode_text(text).repeat(2, 1, 1) for text in (PROMPT, "")]
    noise = chunk_generator(3, ENHANCER_NOISE)
    by_the_loop = enhance_video(both, changed.vae, changed.enhancer, *texts, config, noise)
    streamed = torch.cat(list(changed.enhance(both, PROMPT, 3, progress=False)), dim=1)
    assert (streamed - by_the_loop).abs().max() < 1e-3


def test_a_short_video_is_enhanced_whole(pipe):
    out = pipe(PROMPT, num_frames=17, progress=False)
    assert out.frames.shape[1] == 17 and not torch.equal(out.frames[:, 0], out.frames[:, 16])


def test_same_seed_same_frames_another_seed_others(pipe, long):
    again = pipe(PROMPT, num_frames=41, seed=3, progress=False)
    assert torch.equal(again.frames, long.frames)
    other = pipe(PROMPT, num_frames=16, seed=4, enhance=False, progress=False)
    assert not torch.equal(other.frames, long.low_res[:, :16])


def test_enhancing_in_batches_is_enhancing_the_whole_video(pipe, long):
    text, null_text = pipe.encode_text(PROMPT), pipe.encode_text("")
    noise = chunk_generator(3, ENHANCER_NOISE)
    whole = enhance_video(long.low_res, pipe.vae, pipe.enhancer, text, null_text, pipe.cfg.enhancer, noise)
    assert (whole - long.frames).abs().max() < 1e-3


def test_save_and_load_make_the_same_video(pipe, long, tmp_path):
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["cam"] == ["st2v_lib", "Cam"] and index["unet"] == ["st2v_lib", "StreamingUNet"]
    assert index["tokenizer"] == ["transformers", "PreTrainedTokenizerFast"]
    assert index["cfg"]["apm"]["num_image_tokens"] == 8
    again = StreamingT2VPipeline.from_pretrained(tmp_path)
    assert again.cfg == pipe.cfg and type(again.scheduler) is type(pipe.scheduler)
    out = again(PROMPT, num_frames=24, seed=3, enhance=False, progress=False)
    for name in ("unet", "vae", "cam", "apm", "text_encoder", "image_encoder", "enhancer"):
        before, after = getattr(pipe, name).state_dict(), getattr(again, name).state_dict()
        assert before.keys() == after.keys() and all(torch.equal(v, after[k]) for k, v in before.items()), name
    # weights in other places of the memory may be multiplied by other kernels, which round otherwise
    torch.testing.assert_close(out.low_res, long.low_res[:, :24], rtol=0, atol=1e-4)


def test_the_written_index_is_what_diffusers_saves(random_weights, quick_config, pipe, tmp_path):
    written = json.loads((random_weights / "weights" / "tiny" / "model_index.json").read_text())
    pipe.save_config(tmp_path)
    saved = json.loads((tmp_path / "model_index.json").read_text())
    saved = {name: value for name, value in saved.items() if name not in ("cfg", "_name_or_path")}
    assert {name: value for name, value in written.items() if name != "cfg"} == saved


def test_memories_are_optional_and_an_ablation_is_a_config(changed, long):
    def second_chunk():
        return changed(PROMPT, num_frames=24, seed=3, enhance=False, progress=False).low_res[:, 16:]

    full = second_chunk()
    changed.cfg = changed.cfg.replace(apm=None)
    without_apm = second_chunk()
    changed.cfg = changed.cfg.replace(conditioning="none")
    without_both = second_chunk()
    changed.cam = changed.apm = changed.image_encoder = None
    assert torch.equal(second_chunk(), without_both)
    assert torch.equal(full, long.low_res[:, 16:24])
    assert not torch.equal(full, without_apm) and not torch.equal(without_apm, without_both)
    changed.cfg = changed.cfg.replace(conditioning="hope")
    with pytest.raises(errors.InputError, match="hope"):
        second_chunk()


def test_anchor_is_the_first_frame_unless_given(pipe, long):
    options = dict(num_frames=24, seed=3, enhance=False, progress=False)
    same = pipe(PROMPT, anchor=long.low_res[:, :1], **options)
    other = pipe(PROMPT, anchor=-long.low_res[:, :1], **options)
    assert torch.equal(same.low_res, long.low_res[:, :24])
    assert torch.equal(other.low_res[:, :16], long.low_res[:, :16])
    assert not torch.equal(other.low_res[:, 16:], long.low_res[:, 16:24])


def test_the_null_image_is_the_configs(changed, long):
    changed.cfg = changed.cfg.replace(null_pixel=-1.0)
    stream = changed.stream(PROMPT, seed=3, progress=False)
    assert torch.equal(next(stream), long.low_res[:, :16]) and torch.equal(stream.state.anchor, long.state.anchor)
    assert not torch.equal(stream.state.null_anchor, long.state.null_anchor)


def test_first_chunk_may_be_given(pipe, long):
    out = pipe(PROMPT, num_frames=24, seed=3, first_chunk=long.low_res[:, :16], enhance=False, progress=False)
    assert torch.equal(out.low_res, long.low_res[:, :24])


def test_stream_yields_sixteen_then_eight_and_is_lazy(pipe, long):
    stream = pipe.stream(PROMPT, seed=3, progress=False)
    assert stream.state is None and stream.cost is None
    blocks = take(stream, 3)
    assert [block.shape[1] for block in blocks] == [16, 8, 8]
    assert torch.equal(torch.cat(blocks, 1), long.low_res[:, :32])
    assert stream.state.chunk_index == 3


def test_stream_state_does_not_grow(pipe):
    stream, sizes = pipe.stream(PROMPT, progress=False), []
    for _ in range(4):
        next(stream)
        tensors = [v for v in vars(stream.state).values() if isinstance(v, torch.Tensor)]
        sizes.append(sum(t.untyped_storage().nbytes() for t in tensors))
    assert len(set(sizes)) == 1


def test_resumed_is_uninterrupted(pipe, long, tmp_path):
    stream = pipe.stream(PROMPT, num_frames=24, seed=3, progress=False)
    list(stream)
    stream.state.save(tmp_path / "state.safetensors")
    rest = pipe.stream(PROMPT, num_frames=17, state=StreamState.load(tmp_path / "state.safetensors"), progress=False)
    blocks = list(rest)
    assert [block.shape[1] for block in blocks] == [8, 8, 1]
    assert torch.equal(torch.cat(blocks, 1), long.low_res[:, 24:])


def test_prompt_schedule(pipe, long):
    other = "a blue square orbits over plain red"
    as_dict = torch.cat(take(pipe.stream({0: PROMPT, 24: other}, seed=3, progress=False), 3), 1)
    as_function = torch.cat(take(pipe.stream(lambda f: PROMPT if f < 24 else other, seed=3, progress=False), 3), 1)
    assert torch.equal(as_dict, as_function)
    assert torch.equal(as_dict[:, :24], long.low_res[:, :24])
    assert not torch.equal(as_dict[:, 24:], long.low_res[:, 24:32])


def test_samplers_and_schedulers_are_swapped(changed, long):
    options = dict(num_frames=16, seed=3, enhance=False, progress=False)
    ddim = changed(PROMPT, sampler="ddim", eta=1.0, **options)
    assert (ddim.config.sampling.sampler, ddim.config.sampling.eta) == ("ddim", 1.0)
    assert not torch.equal(ddim.frames, long.low_res[:, :16])
    changed.scheduler = EulerDiscreteScheduler.from_config(changed.scheduler.config)
    euler = changed(PROMPT, **options)
    assert euler.config.sampling.sampler == "EulerDiscreteScheduler" and euler.frames.isfinite().all()
    assert changed.config["scheduler"] == ("diffusers", "EulerDiscreteScheduler")


def test_guidance_reaches_the_networks(pipe, long):
    options = dict(num_frames=24, seed=3, enhance=False, progress=False)
    weaker = pipe(PROMPT, guidance_scale=1.0, **options)
    apart = pipe(PROMPT, anchor_guidance_scale=0.0, **options)  # three branches
    assert not torch.equal(weaker.low_res[:, :16], long.low_res[:, :16])
    assert torch.equal(apart.low_res[:, :16], long.low_res[:, :16])
    assert not torch.equal(apart.low_res[:, 16:], long.low_res[:, 16:24])


def test_callback_and_bar_see_every_step(pipe, capsys):
    steps = []
    pipe(PROMPT, num_frames=24, callback=steps.append)
    assert [s.index for s in steps] == [0, 1] * 3  # stage 1, one chunk, stage 3
    assert "100%" in capsys.readouterr().err
    pipe(PROMPT, num_frames=16, enhance=False, progress=False)
    assert capsys.readouterr().err == ""


GREY = torch.zeros(1, 16, 3, 64, 64)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"prompt": "  "}, "empty"),
        ({"prompt": {8: PROMPT}}, "frame 0"),
        ({"prompt": lambda frame: ""}, "empty"),
        ({"num_frames": 15}, "16 or more, got 15"),
        ({"seed": -1}, "seed"),
        ({"sampler": "magic"}, "'ddim', 'dpm"),
        ({"num_inference_steps": 0}, "num_inference_steps"),
        ({"num_inference_steps": 1001}, "at most 1000"),
        ({"eta": 1.5, "sampler": "ddim"}, "from 0 to 1"),
        ({"eta": 1.0}, "choose sampler 'ddim'"),
        ({"guidance_scale": -1.0}, "guidance_scale"),
        ({"guidance_scale": float("nan")}, "guidance_scale"),
        ({"anchor_guidance_scale": float("inf")}, "anchor_guidance_scale"),
        ({"first_chunk": GREY[0]}, r"\(b, f, 3, h, w\), got \(16, 3, 64, 64\)"),
        ({"first_chunk": GREY[:, :8]}, r"\(1, 16, 3, 64, 64\), got \(1, 8"),
        ({"first_chunk": GREY + 2}, r"\[-1, 1\], got \[2, 2\]"),
        ({"first_chunk": GREY.to(torch.uint8)}, "floating point"),
        ({"anchor": GREY[..., :32]}, "anchor"),
    ],
)
def test_wrong_arguments_are_told_at_once(pipe, options, says, monkeypatch):
    monkeypatch.setattr(pipe.unet, "forward", None)
    arguments = {"prompt": PROMPT, "progress": False, **options}
    with pytest.raises(errors.InputError, match=says):
        pipe(**arguments)
    with pytest.raises(errors.InputError, match=says):
        pipe.stream(**arguments)


def test_unknown_words_are_named_and_the_vocabulary_printed(pipe):
    with pytest.warns(UserWarning, match="no word for: elephant.*circle"):
        pipe.stream("a red elephant bounces over green stripes", progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipe.stream(PROMPT, progress=False)
    with pytest.warns(UserWarning, match="longer than 24 tokens"):
        pipe.encode_text("red " * 40)


def test_stage_3_without_an_enhancer(changed):
    changed.enhancer = None
    with pytest.raises(errors.WeightsError, match="enhance=False"):
        changed(PROMPT, progress=False)
    with pytest.raises(errors.WeightsError, match="enhance=False"):
        changed.enhance(GREY, PROMPT)


def test_state_of_another_stream_is_refused(pipe, changed):
    state = StreamState(0, 1, 16, GREY[:, :8])
    with pytest.raises(errors.InputError, match="without APM"):
        pipe.stream(PROMPT, state=state)
    with pytest.raises(errors.InputError, match="state"):
        pipe.stream(PROMPT, state=dataclasses.replace(state, cond=GREY[:, :8, :, :32, :32]))


def test_load_checks_device_and_weights(random_weights, tmp_path, monkeypatch):
    monkeypatch.setenv("ST2V_DATA", str(random_weights))
    assert st2v_lib.load().device.type in ("cpu", "cuda")
    with pytest.raises(errors.InputError, match="unknown preset"):
        load("huge")
    if not torch.cuda.is_available():
        with pytest.raises(errors.DeviceError, match="cuda"):
            load(device="cuda")
    with pytest.raises(errors.DeviceError, match="unknown device"):
        load(device="toaster")
    monkeypatch.setenv("ST2V_DATA", str(tmp_path))
    with pytest.raises(errors.WeightsError, match="train"):
        load()


def test_damaged_or_incomplete_weights_are_refused(random_weights, tmp_path, quick_config):
    folder = tmp_path / "tiny"
    shutil.copytree(random_weights / "weights" / "tiny", folder)
    weights = next((folder / "unet").glob("*.safetensors"))
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(errors.WeightsError, match="damaged.*st2v train"):
        load(folder=folder)
    weights.write_bytes(content[:1000])
    manifest.write_manifest(folder)
    with pytest.raises(errors.WeightsError, match="cannot be loaded"):
        load(folder=folder)
    shutil.rmtree(folder / "unet")
    (folder / "model_index.json").unlink()
    assert not write_index(folder, quick_config)
    manifest.write_manifest(folder)
    with pytest.raises(errors.WeightsError, match="unet missing"):
        load(folder=folder)


def test_config_of_another_size_is_refused(pipe):
    with pytest.raises(errors.WeightsError, match="another config"):
        StreamingT2VPipeline(**pipe.components, cfg=st2v_lib.preset("modelscope"))
