"""``st2v train cam|apm --data FOLDER``: the memories of either preset on videos of one's own (paper §4.1-4.2, §10).

The folder holds video files and ``captions.jsonl``, one line a video: ``{"file": "a.mp4", "caption": "a dog runs"}``.
Each video is decoded once, at the size and rate of training, into ``<out>-state/frames``; a step then reads no more
than its windows from there. Roles of frames and dropout are those of ``cam`` and ``apm``; the loss has no mask.

Differs from the sprite world's phases: learning rate 5e-5, the paper's, and a constant one after warm-up; timesteps are
drawn evenly.
"""

from __future__ import annotations

import argparse
import json
import random
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from accelerate import Accelerator
from numpy.lib.format import open_memmap
from torch import Tensor
from tqdm.auto import tqdm
from transformers import (
    AutoTokenizer,
    CLIPTextModelWithProjection,
    CLIPVisionModelWithProjection,
    PreTrainedTokenizerBase,
)

from st2v_lib.backbone import PatchedAutoencoderKL, StreamingUNet, encode_frames
from st2v_lib.config import StreamingT2VConfig
from st2v_lib.errors import InputError, UserError, WeightsError
from st2v_lib.manifest import weights_dir, write_manifest
from st2v_lib.training import apm, cam, common, diffusion
from st2v_lib.training.checkpointing import checkpoint_blocks
from st2v_lib.video_io import from_uint8, iter_video, probe

CAPTIONS = "captions.jsonl"
LR = 5e-5
SHOWN = 5  # problems listed in an error


@dataclass(frozen=True)
class Clip:
    """A video of the folder: its file, caption, frames at the training rate, and every how many frames one is taken."""

    path: Path
    caption: str
    frames: int
    stride: int


def read_folder(folder: str | Path, length: int, fps: float) -> list[Clip]:
    """The videos that ``captions.jsonl`` lists, checked without decoding them.

    Args:
        folder: of videos and captions.
        length: frames that a training example needs.
        fps: rate of training; a video is thinned to the nearest rate that drops whole frames.

    Raises:
        InputError: listing what is wrong: lines, files, captions, videos that are too short.
    """
    folder, clips, problems = Path(folder), [], []
    if not (folder / CAPTIONS).is_file():
        raise InputError(f'{folder} has no {CAPTIONS}; one line a video: {{"file": "a.mp4", "caption": "a dog runs"}}')
    try:
        lines = (folder / CAPTIONS).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{folder / CAPTIONS} cannot be read: {error}") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            name, caption = entry["file"] + "", entry["caption"].strip()  # a text, or the line is refused
        except (ValueError, TypeError, KeyError, AttributeError):
            problems.append(f'line {number} is not {{"file": …, "caption": …}}')
            continue
        try:
            about = probe(folder / name)
        except UserError as error:
            problems.append(str(error))
            continue
        stride = max(1, round((about["fps"] or fps) / fps))
        frames = -(-about["frames"] // stride)
        if not caption:
            problems.append(f"{name} has an empty caption")
        elif frames < length:
            problems.append(f"{name} has {frames} frames at {fps:g} a second, {length} are needed")
        else:
            clips.append(Clip(folder / name, caption, frames, stride))
    if problems or not clips:
        more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise InputError(f"{folder / CAPTIONS}: {'; '.join(problems[:SHOWN]) or 'no video is listed'}{more}")
    return clips


def prepare(clips: list[Clip], size: int, cache: Path, progress: bool = True) -> list[np.ndarray]:
    """Frames of all videos, ``uint8 f size size c``, on disk and mapped: centre square, thinned, decoded once."""
    cache.mkdir(parents=True, exist_ok=True)
    maps = []
    for clip in tqdm(clips, desc="frames", disable=not progress):
        about = clip.path.stat()
        path = cache / f"{clip.path.stem}-{about.st_size}-{about.st_mtime_ns}-{size}-{clip.stride}.npy"
        if not path.exists():
            common.save_atomically(path, lambda part, clip=clip: _decode(clip, size, part))
        maps.append(np.load(path, mmap_mode="r"))
    return maps


def _decode(clip: Clip, size: int, path: Path) -> None:
    out = open_memmap(path, "w+", np.uint8, (clip.frames, size, size, 3))
    count = 0
    for i, frame in enumerate(iter_video(clip.path)):
        if i % clip.stride == 0 and count < clip.frames:
            height, width, _ = frame.shape
            side = min(height, width)
            top, left = (height - side) // 2, (width - side) // 2
            square = frame[top : top + side, left : left + side]
            out[count] = cv2.resize(square, (size, size), interpolation=cv2.INTER_AREA)
            count += 1
    if count < clip.frames:
        raise InputError(f"{clip.path} ends after {count} of {clip.frames} frames")
    out.flush()


def make_batch(
    phase: str,
    cfg: StreamingT2VConfig,
    vae: PatchedAutoencoderKL,
    tokenizer: PreTrainedTokenizerBase,
    clips: list[Clip],
    frames: list[np.ndarray],
    batch_size: int,
    seed: int = 0,
):
    """Batch number ``n``: windows of random videos, with the roles of that phase (see ``cam``, ``apm``)."""
    chunk, keep, segment = cfg.chunk_frames, cfg.cam.num_cond_frames, segment_frames(phase, cfg)
    device = next(vae.parameters()).device

    def encoded(video: Tensor) -> Tensor:
        with common.fast_math(device):
            return encode_frames(vae, video, batch_size=8).float()

    def seen(video: Tensor, rng: random.Random, latents: Tensor | None = None) -> Tensor:
        """Half of the clips as they are, half from the VAE, their latents a little noisy (as hand-overs are)."""
        out = video.clone()
        if trips := [i for i in range(batch_size) if rng.random() < cam.ROUND_TRIP]:
            taken = encoded(video[trips]) if latents is None else latents[trips]
            out[trips] = cam.through_vae(vae, taken, rng, batch_size=8)
        return out

    @torch.no_grad()
    def batch(rank: int, n: int) -> dict[str, Tensor]:
        rng = random.Random(f"{phase}/{seed}/{rank}/{n}")
        picks = [rng.randrange(len(clips)) for _ in range(batch_size)]
        starts = [rng.randrange(len(frames[i]) - segment + 1) for i in picks]
        windows = [np.array(frames[i][start : start + segment]) for i, start in zip(picks, starts)]
        video = torch.stack([from_uint8(window) for window in windows]).to(device)
        denoised = video[:, segment - chunk :]
        latents = encoded(denoised)
        cond = seen(denoised[:, :keep], rng, latents[:, :, :keep])
        texts = [clips[i].caption for i in picks]
        out = {"latents": latents, "cond": cond, "mask": torch.zeros_like(latents[:, 0])}
        if phase == "cam":
            texts = ["" if rng.random() < cam.TEXT_DROPOUT else text for text in texts]
        else:
            anchor = video[torch.arange(batch_size), [rng.randrange(chunk) for _ in picks]]
            anchor = seen(anchor[:, None], rng)[:, 0]
            for i, u in enumerate([rng.random() for _ in picks]):
                if u < apm.DROP_TEXT + apm.DROP_BOTH:
                    texts[i] = ""
                if apm.DROP_TEXT <= u < apm.DROP_TEXT + apm.DROP_BOTH + apm.DROP_ANCHOR:
                    anchor[i] = cfg.null_pixel
            out["anchor"] = anchor
        ids = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        return out | {"ids": ids}

    return batch


def segment_frames(phase: str, cfg: StreamingT2VConfig) -> int:
    """Frames of one example: a chunk for CAM; the chunk before it too, where the anchor is, for APM."""
    return cfg.chunk_frames * (2 if phase == "apm" else 1)


def run(args: argparse.Namespace, cfg: StreamingT2VConfig, acc: Accelerator) -> int:
    """The command line's ``--data``; see ``train``."""
    if args.phase not in ("cam", "apm"):
        raise InputError(f"--data trains cam or apm, not {args.phase!r}")
    out = Path(args.out or f"runs/{cfg.name}-own")
    minutes = 60.0 if args.minutes is None else args.minutes
    batch_size = max(1, round(args.batch_scale * (cam.BATCH if cfg.name == "tiny" else 1)))
    train(
        args.phase, cfg, args.data, out, acc, minutes, batch_size, source=args.source, resume=args.resume,
        seed=args.seed, ema_decay=0.0 if args.no_ema else common.FitConfig.ema_decay,
    )  # fmt: skip
    return 0


def train(
    phase: str,
    cfg: StreamingT2VConfig,
    data: str | Path,
    out: Path,
    acc: Accelerator,
    minutes: float = 60.0,
    batch_size: int = 1,
    source: Path | None = None,
    resume: bool = False,
    max_steps: int | None = None,
    seed: int = 0,
    fps: float | None = None,
    checkpointing: bool | None = None,
    train_unet: bool = False,
    ema_decay: float = common.FitConfig.ema_decay,
) -> dict[str, float]:
    """Trains CAM (phase 1) or CAM and APM (phase 2) on a folder and writes them to ``out``, as fp16 safetensors.

    Args:
        phase: ``"cam"`` or ``"apm"``.
        cfg: the preset.
        data: folder of videos and captions.
        out: gets ``cam``, or ``cam`` and ``apm`` (and ``unet``); the state to resume from lies beside it.
        acc: the accelerator; ``accelerate launch`` gives each process batches of its own.
        minutes: budget of this run.
        batch_size: examples a step and process.
        source: folder of a pipeline to start from (default: the preset's). A CAM or APM found in ``out`` comes first,
            then one in ``source``; without one a fresh one starts from the UNet.
        resume: go on from an earlier run's state.
        max_steps: stop earlier.
        seed: of data.
        fps: frames a second of training (default: the preset's; the paper's was 3).
        checkpointing: compute activations again in the backward pass (default: at full size).
        train_unet: in phase 2, train what the paper trains: the main UNet too, but for its temporal layers.
        ema_decay: of the average of the weights, which is what is written; 0: the last weights.

    Raises:
        InputError: listing what is wrong with the folder, before any weight is loaded.
        WeightsError: when a component is missing.
        OutputError: when ``out`` cannot be written.
    """
    state = common.state_dir(out)
    if not resume and (state / phase / "state.pt").exists():
        raise InputError(
            f"{out} holds a run of {phase!r} already; add --resume to go on with it, or name another --out"
        )
    clips = read_folder(data, segment_frames(phase, cfg), fps or cfg.fps)
    source = Path(source or weights_dir(cfg.name))
    full = cfg.name != "tiny"
    common.check_writable(out, state)
    if acc.is_main_process:  # decoded by one process, read by all
        prepare(clips, cfg.size, state / "frames")
    acc.wait_for_everyone()
    frames = prepare(clips, cfg.size, state / "frames", progress=False)

    dtype = torch.bfloat16 if full and acc.device.type == "cuda" else torch.float32
    frozen = lambda cls, name: _load(cls, (source,), name).to(acc.device, dtype).requires_grad_(False)  # noqa: E731
    vae, text = frozen(PatchedAutoencoderKL, "vae").eval(), frozen(CLIPTextModelWithProjection, "text_encoder")
    tokenizer = AutoTokenizer.from_pretrained(source / "tokenizer", local_files_only=True)
    unet = _load(StreamingUNet, (out, source), "unet") if train_unet else frozen(StreamingUNet, "unet")
    memory, anchor = _memories(phase, cfg, unet, (out, source))
    if phase == "cam":
        step, groups = cam.CamStep(cfg, unet, text, memory, shift=1.0), None
    else:
        image = frozen(CLIPVisionModelWithProjection, "image_encoder")
        step = apm.ApmStep(cfg, unet, text, image, memory, anchor, train_unet, shift=1.0)
        groups = step.groups(LR)
    for part in (memory, anchor, unet if train_unet else None):
        if part is not None:  # with dropout, as in the base's own training, but for the tiny models, which underfit
            part.train(full)
    if full if checkpointing is None else checkpointing:
        checkpoint_blocks(unet)
        checkpoint_blocks(memory)
    batches = make_batch(phase, cfg, vae, tokenizer, clips, frames, batch_size, seed)
    fit = common.FitConfig(phase, minutes, lr=LR, decay=1e-6, ema_decay=ema_decay, max_steps=max_steps, seed=seed)
    with diffusion.fast_attention(acc.device):
        result = common.fit(step, batches, fit, state / phase, acc, groups)
    if acc.is_main_process:
        parts = {"cam": memory, "apm": anchor, "unet": unet if train_unet else None}
        for name, part in parts.items():
            if part is not None:
                common.save_folder(out / name, part.half().save_pretrained)
        write_manifest(out)
    acc.wait_for_everyone()
    return result


def _memories(phase: str, cfg: StreamingT2VConfig, unet: StreamingUNet, places: tuple[Path, ...]):
    """CAM, and APM in phase 2, in float32: as found, else new."""
    from st2v_lib.apm import Apm
    from st2v_lib.cam import Cam

    found = lambda cls, name: _load(cls, places, name) if _place(places, name) else None  # noqa: E731
    memory = found(Cam, "cam")
    if phase == "apm":
        if memory is None:
            raise WeightsError(f"phase 2 needs the CAM of phase 1 in {' or '.join(map(str, places))}: st2v train cam")
        return memory, found(Apm, "apm") or Apm.from_unet(unet, cfg.apm).float()
    return memory or Cam.from_unet(unet, cfg.cam).float(), None


def _place(places: tuple[Path, ...], name: str) -> Path | None:
    return next((place / name for place in places if (place / name / "config.json").is_file()), None)


def _load(cls: type, places: tuple[Path, ...], name: str) -> torch.nn.Module:
    folder = _place(places, name)
    if folder is None:
        raise WeightsError(f"no weights of {name!r} in {' or '.join(map(str, places))}")
    return cls.from_pretrained(folder, local_files_only=True).float()
