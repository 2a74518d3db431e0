"""The measured rows of ``full_size.py``: steps, the VAE, a preview, an enhanced chunk, steps of training.

Each row makes the networks that it needs, with random weights, and lets go of them before the next. A row that runs out
of memory says so, and the next one is measured. On CUDA the peak is that of allocated memory; on a CPU it is the
process's own, sampled every few milliseconds, with all that Python and torch hold beside.
"""

from __future__ import annotations

import functools
import gc
import os
import statistics
import threading
import time
from collections.abc import Callable
from unittest.mock import patch

import psutil
import torch
from diffusers.training_utils import EMAModel
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPVisionConfig, CLIPVisionModelWithProjection

from st2v_lib.apm import Apm, apm_processors
from st2v_lib.backbone import decode_latents, encode_frames, make_unet, make_vae
from st2v_lib.cam import Cam
from st2v_lib.canvas import canvas_size
from st2v_lib.config import StreamingT2VConfig
from st2v_lib.enhancer import shape_quirks
from st2v_lib.memory import RUNGS, Ladder, Rung, chunk_feed_forward, one_by_one
from st2v_lib.pipeline import StreamingT2VPipeline
from st2v_lib.replay import Replayed
from st2v_lib.sampling import Contexts, guided, make_predictor, make_scheduler
from st2v_lib.stages import enhance_blocks, enhancer_stream
from st2v_lib.training import cam as cam_phase
from st2v_lib.training.checkpointing import checkpoint_blocks
from st2v_lib.training.common import fast_math
from st2v_lib.training.diffusion import fast_attention
from st2v_lib.training.folder_data import LR
from st2v_lib.world.captions import make_tokenizer

GB = 1e9
REPLAYED = 40  # frames: the first chunk and three more
PREVIEW = 24  # frames: the first chunk, and one that goes on from it
PROMPT = "a red circle bounces over green stripes"
Values = dict[str, float | str]


# --------------------------------------------------------------------------------------------------- seconds and memory


class Peak:
    """The most memory while it is entered, in GB, as ``value``."""

    def __init__(self, device: torch.device):
        self.device, self.value = device, 0.0

    def __enter__(self) -> Peak:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            return self
        self._process, self._done = psutil.Process(), threading.Event()
        self._sampler = threading.Thread(target=self._sample, daemon=True)
        self._sampler.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.device.type == "cuda":
            self.value = torch.cuda.max_memory_allocated(self.device) / GB
            return
        self._done.set()
        self._sampler.join()

    def _sample(self) -> None:
        while True:
            self.value = max(self.value, self._process.memory_info().rss / GB)
            if self._done.wait(0.005):
                return


def timed(action: Callable[[], object], device: torch.device, repeat: int = 5, warm: bool = True) -> Values:
    """Seconds of the fastest run, after one to warm up, and the peak of memory in GB."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    if warm:
        action()
    wait()
    seconds = []
    with Peak(device) as peak:
        for _ in range(repeat):
            start = time.perf_counter()
            action()
            wait()
            seconds.append(time.perf_counter() - start)
    return {"seconds": min(seconds), "peak GB": peak.value}


def measure(rows: dict[str, Callable[[], Values]], report: Callable[[str, Values], object]) -> dict[str, Values]:
    """Measures one row after another and reports each; one that runs out of memory says so."""
    found = {}
    for name, row in rows.items():
        try:
            found[name] = row()
        except torch.OutOfMemoryError:
            found[name] = {"failed": "out of memory"}
        report(name, found[name])
        gc.collect()  # outside the handler: until here the exception kept the failed row's tensors alive
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return found


# ------------------------------------------------------------------------------------------------------------- the rows


def rows_of(cfg: StreamingT2VConfig, device: torch.device) -> dict[str, Callable[[], Values]]:
    """All rows of a preset, by name, in the order of the stages; half precision on CUDA, as when it is loaded."""
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    on = {"cfg": cfg, "device": device, "dtype": dtype}
    px, large = f"{cfg.size} px", f"{cfg.enhancer.size} px"
    rows = {
        f"stage 2, a step, {px}": functools.partial(denoising_step, **on),
        f"stage 2, a step, {px}, the released way": functools.partial(denoising_step, released=True, **on),
        f"stage 2, a step, {px}, both ways in turns": functools.partial(steps_in_turns, **on),
    }
    canvas = canvas_size(cfg.enhancer.size, cfg.enhancer.size, cfg.enhancer, cfg.vae.downscale)
    for frames, (height, width) in ((cfg.chunk_frames, (cfg.size, cfg.size)), (1, canvas)):
        for way in ("encode", "decode"):
            row = functools.partial(autoencoder, way, frames, height, width, **on)
            rows[f"VAE, {way}, {frames} frames of {height} x {width} px"] = row
    name = f"a preview, stages 1 and 2, {PREVIEW} frames, {px}"
    rows[name] = functools.partial(preview, **on)
    rows |= {f"{name}, rung {r.name!r}": functools.partial(preview, rung=r, **on) for r in RUNGS if r.offload}
    if device.type == "cuda":
        rows[f"stages 1 and 2, {REPLAYED} frames, {px}, launched and replayed"] = functools.partial(
            previews_in_turns, **on
        )
    for rung in RUNGS:
        rows[f"stage 3, a step, {large}, rung {rung.name!r}"] = functools.partial(enhancer_step, rung, **on)
    for rung in RUNGS:
        name = f"stage 3, a chunk of {cfg.enhancer.chunk_frames} frames, {large}, rung {rung.name!r}"
        rows[name] = functools.partial(enhanced_chunk, rung, **on)
    for way in (False, True):
        name = f"train cam, a step, batch 1, {'with' if way else 'without'} checkpointing"
        rows[name] = functools.partial(training_step, way, cfg, device)
    return rows


def typed(net: torch.nn.Module, dtype: torch.dtype) -> torch.nn.Module:
    """A network for use, in that type, past diffusers' override of ``to``, which warns."""
    return torch.nn.Module.to(net, dtype).eval()


def stage2(device: str | torch.device, dtype: torch.dtype, cfg: StreamingT2VConfig):
    """UNet, CAM and APM, attached, with random weights; and one chunk's inputs."""
    with torch.device(device):
        unet = typed(make_unet(cfg.unet), dtype)
        cam = Cam.from_unet(unet, cfg.cam).attach(unet).eval()
        apm = Apm.from_unet(unet, cfg.apm).attach(unet).eval()
        cells, text, image = cfg.size // cfg.vae.downscale, cfg.apm.text_len, cfg.apm.num_image_tokens
        x = torch.zeros(1, cfg.unet.in_channels, cfg.chunk_frames, cells, cells)
        cond = torch.zeros(1, cfg.cam.num_cond_frames, 3, cfg.size, cfg.size)
        dim = cfg.unet.cross_attention_dim
        tokens = [torch.zeros(1, n, dim, dtype=dtype) for n in (text, text, image, image)]
    return unet, cam, apm, x, cond, Contexts(*tokens)


def released_way(unet, cam, cond) -> Callable:
    """A step that repeats all for both branches, encodes CAM's pixels in it and mixes APM's tokens for each frame."""

    def predict(x, t, tokens):
        x = x.to(unet.dtype).repeat(len(tokens) // len(x), 1, 1, 1, 1)
        return unet(x, t, tokens, cam(x, t, tokens, cond=cond.repeat(len(x), 1, 1, 1, 1))).float()

    return predict


@torch.no_grad()
def denoising_step(cfg: StreamingT2VConfig, device: torch.device, dtype: torch.dtype, released: bool = False) -> Values:
    """A step of stage 2 with both memories and all guidance branches."""
    unet, cam, _, x, cond, contexts = stage2(device, dtype, cfg)
    assert apm_processors(unet)
    predict = released_way(unet, cam, cond) if released else make_predictor(unet, cam, cond)
    return timed(functools.partial(guided, predict, x, torch.tensor(500, device=device), contexts), device)


@torch.no_grad()
def steps_in_turns(cfg: StreamingT2VConfig, device: torch.device, dtype: torch.dtype, turns: int = 9) -> Values:
    """Ours and the released way, one after the other with the same weights, so that both meet the same clock and heat.

    On CUDA a step of ours is both launched kernel by kernel, the first number, and replayed.

    Returns:
        Seconds of the fastest step of each, and the median of how many times each of ours fits into the released one.
    """
    unet, cam, _, x, cond, contexts = stage2(device, dtype, cfg)
    t, wait = torch.tensor(500, device=device), torch.cuda.synchronize if device.type == "cuda" else lambda: None
    seconds: list[list[float]] = []
    ours, replayed = make_predictor(unet, cam, cond), None
    ours = getattr(ours, "predict", ours)
    ways = {"seconds": ours, "released": released_way(unet, cam, cond)}
    if device.type == "cuda":
        ways["recorded"] = replayed = Replayed(ours, unet, cam)
    with Peak(device) as peak:
        for _ in range(turns + 2):
            seconds.append([])
            for predict in ways.values():
                wait()
                start = time.perf_counter()
                guided(predict, x, t, contexts)
                wait()
                seconds[-1].append(time.perf_counter() - start)
    rows = seconds[2:]  # the first warms up, in the second a step is recorded
    if replayed is not None and replayed.recording is None:  # could not be: the first way again
        del ways["recorded"]
    found = dict(zip(ways, map(min, zip(*rows))))
    found |= {"times": statistics.median(row[1] / row[0] for row in rows)}
    if "recorded" in ways:
        found |= {"times, recorded": statistics.median(row[1] / row[2] for row in rows)}
    return found | {"peak GB": peak.value}


@torch.no_grad()
def autoencoder(
    way: str, frames: int, height: int, width: int, cfg: StreamingT2VConfig, device: torch.device, dtype: torch.dtype
) -> Values:
    """The VAE, on that many frames at once."""
    with torch.device(device):
        vae = typed(make_vae(cfg.vae), dtype)
        cells = height // cfg.vae.downscale, width // cfg.vae.downscale
        latents = torch.zeros(1, cfg.vae.latent_channels, frames, *cells)
        video = torch.zeros(1, frames, 3, height, width)
    call = {"encode": lambda: encode_frames(vae, video), "decode": lambda: decode_latents(vae, latents)}[way]
    return timed(call, device, 3)


def encoders(cfg: StreamingT2VConfig) -> dict[str, torch.nn.Module]:
    """Text encoder and image tower of that size: the public ones' at full size, the small CLIP's at the tiny one."""
    dim, clip = cfg.unet.cross_attention_dim, cfg.clip
    layers = {"num_hidden_layers": 23 if clip is None else clip.num_text_layers, "vocab_size": 49408}
    text = CLIPTextConfig(
        hidden_size=dim, intermediate_size=4 * dim, num_attention_heads=dim // 64, hidden_act="gelu",
        max_position_embeddings=cfg.cam.text_len, projection_dim=dim, **layers,
    )  # fmt: skip
    width, layers, heads, patch, size = (1280, 32, 16, 14, 224)
    if clip is not None:
        width, layers, heads = clip.hidden_size, clip.num_layers, clip.num_heads
        patch, size = clip.patch_size, clip.image_size
    image = CLIPVisionConfig(
        hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers, num_attention_heads=heads,
        patch_size=patch, image_size=size, projection_dim=cfg.apm.image_embed_dim, hidden_act="gelu",
    )  # fmt: skip
    return {"text_encoder": CLIPTextModelWithProjection(text), "image_encoder": CLIPVisionModelWithProjection(image)}


def random_pipeline(cfg: StreamingT2VConfig, device: torch.device, dtype: torch.dtype) -> StreamingT2VPipeline:
    """Stages 1 and 2 with random weights; at full size stage 1 has a UNet of its own."""
    tokenizer = make_tokenizer()
    tokenizer.model_max_length = cfg.cam.text_len
    with torch.device(device):
        parts = {name: typed(net, dtype) for name, net in encoders(cfg).items()}
        parts["vae"] = typed(make_vae(cfg.vae), dtype)
        if cfg.clip is None:
            parts["base"] = typed(make_unet(cfg.unet), dtype)
        unet, cam, apm, *_ = stage2(device, dtype, cfg)
    scheduler = make_scheduler(cfg.scheduler, cfg.sampling.sampler)
    parts |= {"unet": unet, "cam": cam, "apm": apm, "scheduler": scheduler, "tokenizer": tokenizer}
    return StreamingT2VPipeline(**parts, cfg=cfg)


def preview(cfg: StreamingT2VConfig, device: torch.device, dtype: torch.dtype, rung: Rung | None = None) -> Values:
    """Stages 1 and 2 of the shortest video that CAM has a part in, on a rung or with everything on the device."""
    pipe = random_pipeline(cfg, device, dtype)
    if rung is not None:
        for net in pipe.components.values():
            if isinstance(net, torch.nn.Module):
                torch.nn.Module.cpu(net)
        pipe.ladder = Ladder(pipe, device, rung.name, report=lambda _: None)
    action = functools.partial(pipe, PROMPT, PREVIEW, enhance=False, progress=False)
    return timed(action, device, repeat=1, warm=False)


def previews_in_turns(cfg: StreamingT2VConfig, device: torch.device, dtype: torch.dtype) -> Values:
    """The pipeline's own steps launched kernel by kernel and replayed, twice each in turns; the first turns warm up.

    Returns:
        Seconds of the second turn of each, how many times the second fits into the first, and by how much their frames
        differ at most.
    """
    pipe, seconds, frames = random_pipeline(cfg, device, dtype), {}, {}
    with Peak(device) as peak, patch.dict(os.environ):
        for way, replay in 2 * [("seconds", "0"), ("recorded", "1")]:
            os.environ["ST2V_REPLAY"] = replay
            start = time.perf_counter()
            frames[way] = pipe(PROMPT, REPLAYED, enhance=False, progress=False).frames  # on the CPU, so it has waited
            seconds[way] = time.perf_counter() - start
    differ = (frames["seconds"] - frames["recorded"]).abs().max().item()
    times = seconds["seconds"] / seconds["recorded"]
    return seconds | {"times, recorded": times, "differ": differ, "peak GB": peak.value}


def rung_enhancer(rung: Rung, cfg: StreamingT2VConfig, device: torch.device, dtype: torch.dtype):
    """The enhancer's UNet as it works on a rung."""
    with torch.device(device):
        unet = typed(make_unet(cfg.enhancer.unet), dtype)
    if cfg.enhancer.shape_quirks:
        shape_quirks(unet)
    chunk_feed_forward(unet, rung.feed_forward_rows)
    if rung.one_branch:
        unet.forward = functools.partial(one_by_one, unet.forward)
    return unet


@torch.no_grad()
def enhancer_step(rung: Rung, cfg: StreamingT2VConfig, device: torch.device, dtype: torch.dtype) -> Values:
    """A step of stage 3 on one chunk, with all guidance branches."""
    config, unet = cfg.enhancer, rung_enhancer(rung, cfg, device, dtype)
    height, width = canvas_size(config.size, config.size, config, cfg.vae.downscale)
    cells, branches = (height // cfg.vae.downscale, width // cfg.vae.downscale), 1 + (config.guidance_scale != 1)
    with torch.device(device):
        x = torch.zeros(branches, config.unet.in_channels, config.chunk_frames, *cells, dtype=dtype)
        tokens = torch.zeros(branches, cfg.cam.text_len, config.unet.cross_attention_dim, dtype=dtype)
    return timed(lambda: unet(x, config.start_timestep, tokens), device, 3)


@torch.no_grad()
def enhanced_chunk(rung: Rung, cfg: StreamingT2VConfig, device: torch.device, dtype: torch.dtype) -> Values:
    """Stage 3 of a video of one chunk, from low-resolution frames to enhanced ones, the VAE's work included."""
    config, unet = cfg.enhancer, rung_enhancer(rung, cfg, device, dtype)
    with torch.device(device):
        vae = typed(make_vae(cfg.vae), dtype)
        text = torch.zeros(1, cfg.cam.text_len, config.unet.cross_attention_dim, dtype=dtype)
    vae.use_slicing = rung.slice_vae
    video = torch.zeros(1, config.chunk_frames, 3, cfg.size, cfg.size)

    def enhance() -> None:
        stream = enhancer_stream(vae, unet, config, lambda _: text, lambda _: "", num_frames=config.chunk_frames)
        assert sum(block.shape[1] for block in enhance_blocks([video], stream)) == config.chunk_frames

    return timed(enhance, device, repeat=1, warm=False)


def training_step(checkpointing: bool, cfg: StreamingT2VConfig, device: torch.device) -> Values:
    """A step of phase 1 as ``st2v train cam --data`` takes it, batch 1, from latents and frames on: loss, gradients,
    AdamW and the moving average. What is frozen is in bfloat16 on CUDA."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    with torch.device(device):
        unet, text_encoder = typed(make_unet(cfg.unet), dtype), typed(encoders(cfg)["text_encoder"], dtype)
        memory = torch.nn.Module.float(Cam.from_unet(unet, cfg.cam)).train()
        step = cam_phase.CamStep(cfg, unet, text_encoder, memory, shift=1.0)
        cells = cfg.size // cfg.vae.downscale
        batch = {
            "latents": torch.randn(1, cfg.vae.latent_channels, cfg.chunk_frames, cells, cells),
            "mask": torch.zeros(1, cfg.chunk_frames, cells, cells),
            "cond": torch.rand(1, cfg.cam.num_cond_frames, 3, cfg.size, cfg.size),
            "ids": torch.zeros(1, cfg.cam.text_len, dtype=torch.long),
        }
    if checkpointing:
        checkpoint_blocks(unet), checkpoint_blocks(memory)
    trained = [p for p in step.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LR, fused=device.type == "cuda")
    average = EMAModel(trained, decay=0.998, foreach=True)

    def one() -> None:
        with fast_math(device):
            loss, _ = step(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.step(trained)

    with fast_attention(device):
        return timed(one, device, 3)
