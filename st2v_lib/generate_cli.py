"""``st2v generate PROMPT``: a prompt to an mp4 that is written while frames are made; ``--demo`` adds what to look at.

Nothing stands under a final name before it is complete. Places are tried for writing before anything is computed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import sys
import time
import warnings
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from st2v_lib.checks import check_count, check_sampling, prompt_schedule
from st2v_lib.config import StreamingT2VConfig, preset
from st2v_lib.errors import OutputError, WeightsError
from st2v_lib.loading import load
from st2v_lib.metrics.base import MetricResult
from st2v_lib.metrics.table import format_table, measure
from st2v_lib.metrics.xt_slice import xt_slice
from st2v_lib.pipeline import StreamingT2VPipeline
from st2v_lib.sampling import make_scheduler
from st2v_lib.video_io import VideoWriter, to_uint8


def run(args: argparse.Namespace) -> int:
    """Makes the video and writes it; prints where it is and the seconds of each stage.

    Raises:
        UserError: for what the user can put right, before anything expensive is done.
    """
    with warnings.catch_warnings():
        _print_own_warnings()
        return _run(args)


def _run(args: argparse.Namespace) -> int:
    cfg = preset(args.preset)
    prompt = prompt_schedule(args.prompt, cfg)(0)
    check_count(args.frames, "--frames", cfg.chunk_frames)
    check_count(args.seed, "--seed", 0)
    sampling = dict(
        sampler=args.sampler, num_inference_steps=args.steps, eta=args.eta, guidance_scale=args.guidance
    )  # fmt: skip
    check_sampling(cfg, make_scheduler(cfg.scheduler, cfg.sampling.sampler), **sampling)
    with contextlib.ExitStack() as files:
        low_writers, writers = _open_writers(args, cfg.fps, prompt, files)
        start = time.perf_counter()
        pipe = load(args.preset, args.device)
        if writers and pipe.enhancer is None:
            raise WeightsError("these weights have no enhancer; add --no-enhance")
        print(f"{prompt!r}, {args.frames} frames, seed {args.seed} (weights loaded in {_since(start)})")
        low, high = _make(pipe, prompt, args, sampling, low_writers, writers)
    for writer in (*low_writers, *writers):
        print(writer.path)
    if args.demo is not None:
        write_demo(Path(args.demo), pipe, prompt, low, high)
    return 0


def _print_own_warnings() -> None:
    """Until warnings are restored, this library's are one line on stderr, once each, without a place in the code."""
    as_usual, seen = warnings.showwarning, set()

    def show(message, category, filename, *rest) -> None:
        if "st2v_lib" in str(filename):
            if str(message) in seen:
                return
            seen.add(str(message))
            print(f"st2v generate: warning: {message}", file=sys.stderr)
        else:
            as_usual(message, category, filename, *rest)

    warnings.showwarning = show


def _open_writers(
    args: argparse.Namespace, fps: float, prompt: str, files: contextlib.ExitStack
) -> tuple[list[VideoWriter], list[VideoWriter]]:
    """Writers of the low-resolution and of the enhanced video, opened now so that a wrong place is known at once."""
    low, high = [], []
    final = low if args.no_enhance else high
    open_writer = lambda path: files.enter_context(VideoWriter(path, fps))  # noqa: E731
    if args.out is not None or args.demo is None:
        slug = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:60] or "video"
        final.append(open_writer(args.out or Path("outputs") / f"{slug}-{args.seed}.mp4"))
    if args.demo is not None:
        low.append(open_writer(Path(args.demo) / "low_resolution.mp4"))
        if not args.no_enhance:
            high.append(open_writer(Path(args.demo) / "enhanced.mp4"))
    return low, high


def _make(
    pipe: StreamingT2VPipeline,
    prompt: str,
    args: argparse.Namespace,
    sampling: dict,
    low_writers: list[VideoWriter],
    writers: list[VideoWriter],
) -> tuple[Tensor, np.ndarray]:
    """Runs the stages, writing frames as they come; returns both videos, ``1 f 3 h w`` and ``uint8 f h w c``."""
    start, lines = time.perf_counter(), []
    with pipe.bar(True, 0) as bar:
        stream = pipe.stream(prompt, args.frames, args.seed, **sampling, progress=bar)
        for writer in (*low_writers, *writers):
            writer.metadata = {"prompt": prompt, "seed": args.seed, "config": asdict(stream.config)}
        bar.reset(stream.cost + (pipe.enhancer_cost(args.frames) if writers else 0))
        bar.set_description("stage 1")
        blocks, final = [], []
        for block in stream:
            if not blocks:
                lines.append(f"stage 1, base chunk      {_since(start)}")
                bar.set_description("stage 2")
            blocks.append(block)
            _write(block, low_writers)
        low = torch.cat(blocks, dim=1)
        lines.append(f"stage 2, streaming       {_since(start)} in all")
        if writers:
            bar.set_description("stage 3")
            for block in pipe.enhance(low, prompt, args.seed, progress=bar):
                final.append(_write(block, writers))
            lines.append(f"stage 3, enhancement     {_since(start)} in all")
    print("\n".join(lines))
    return low, np.concatenate(final) if final else to_uint8(low[0])


def _write(block: Tensor, writers: list[VideoWriter]) -> np.ndarray:
    frames = to_uint8(block[0])
    for writer in writers:
        writer.write(frames)
    return frames


def _since(start: float) -> str:
    return f"{time.perf_counter() - start:.1f} s"


# --------------------------------------------------------------------------------------------------------- --demo


def write_demo(folder: Path, pipe: StreamingT2VPipeline, prompt: str, low: Tensor, high: np.ndarray) -> None:
    """Writes ``contact_sheet.png``, ``xt_slice.png``, ``metrics.txt`` and ``metrics.json`` beside the videos.

    Args:
        folder: where to.
        pipe: its two CLIP towers measure the CLIP score.
        prompt: what the video was made from.
        low: stages 1 and 2, ``1 f 3 h w`` in [-1, 1]; the reader of the sprite world scores it.
        high: the final video, ``uint8 f h w c``.
    """
    _write_png(folder / "contact_sheet.png", contact_sheet(high))
    _write_png(folder / "xt_slice.png", np.repeat(xt_slice(high), 4, axis=0))
    start = time.perf_counter()
    results = measure(high, prompt, clip_of(pipe)) | world_scores(low, prompt, pipe.cfg)
    table = format_table(results)
    _write_bytes(folder / "metrics.txt", f"{prompt}\n\n{table}\n".encode())
    values = {name: result.to_dict() for name, result in results.items()}
    _write_bytes(folder / "metrics.json", (json.dumps(values, indent=1, allow_nan=False) + "\n").encode())
    print(f"metrics                  {_since(start)}\n\n{table}\n\n{folder}: {', '.join(sorted(os.listdir(folder)))}")


def contact_sheet(video: np.ndarray, columns: int = 8, rows: int = 2, gap: int = 4) -> np.ndarray:
    """Frames evenly spread over a video ``uint8 f h w c``, the first and the last among them, on white."""
    count = min(columns * rows, len(video))
    picks = video[np.linspace(0, len(video) - 1, count).round().astype(int)]
    _, h, w, _ = picks.shape
    sheet = np.full((rows * (h + gap) + gap, columns * (w + gap) + gap, 3), 255, np.uint8)
    for i, frame in enumerate(picks):
        y, x = gap + i // columns * (h + gap), gap + i % columns * (w + gap)
        sheet[y : y + h, x : x + w] = frame
    return sheet


def clip_of(pipe: StreamingT2VPipeline) -> tuple:
    """The pipeline's two CLIP towers as one model, with the tokenizer, as ``metrics.clip_score`` takes them."""
    from transformers import CLIPConfig, CLIPModel

    text, image = pipe.text_encoder, pipe.image_encoder
    model = CLIPModel(
        CLIPConfig(
            text_config=text.config.to_dict(),
            vision_config=image.config.to_dict(),
            projection_dim=text.config.projection_dim,
        )
    )
    weights = {**text.state_dict(), **image.state_dict(), "logit_scale": model.logit_scale}
    model.load_state_dict({name: weight.float() for name, weight in weights.items()})
    model.name_or_path = f"the CLIP of {pipe.cfg.name}"
    return model.eval(), pipe.tokenizer


def world_scores(video: Tensor, prompt: str, cfg: StreamingT2VConfig) -> dict[str, MetricResult]:
    """What the reader of the sprite world sees in a video ``1 f 3 h w``; nothing without a reader's weights."""
    if cfg.name != "tiny":
        return {}
    from st2v_lib.world.reader import load_reader, read_video
    from st2v_lib.world.scores import caption_accuracy, seam_residual

    try:
        reader = load_reader()
    except WeightsError:
        return {}
    reading = read_video(video[0], reader)
    shares = caption_accuracy(reading, prompt, reader)
    units = {"units": "share of frames that agree with the prompt", "reader": "tiny"}
    results = {f"world_{name}": MetricResult(f"world_{name}", value, protocol=units) for name, value in shares.items()}
    new = cfg.chunk_frames - (cfg.cam.num_cond_frames if cfg.cam else cfg.chunk_frames // 2)
    seams = range(cfg.chunk_frames, video.shape[1], new)
    if seams:
        residual = seam_residual(reading.positions, list(seams))
        protocol = {"units": "px, lower is smoother at chunk seams", "seams": residual.seams, "inside": residual.inside}
        results["seam_residual"] = MetricResult("seam_residual", residual.value, protocol=protocol)
    return results


def _write_png(path: Path, image: np.ndarray) -> None:
    _write_bytes(path, cv2.imencode(".png", image[:, :, ::-1])[1].tobytes())


def _write_bytes(path: Path, data: bytes) -> None:
    unfinished = path.with_name(f".{path.name}.part")
    try:
        unfinished.write_bytes(data)
        unfinished.replace(path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from None


__all__ = ["clip_of", "contact_sheet", "run", "world_scores", "write_demo"]
