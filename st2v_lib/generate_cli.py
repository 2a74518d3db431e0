"""``st2v generate PROMPT``: a prompt to an mp4 that is written while frames are made; ``--demo`` adds what to look at.

Nothing stands under a final name before it is complete. Places are tried for writing before anything is computed.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import re
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from st2v_lib.bases.own_frames import from_file
from st2v_lib.checks import check_count, check_sampling, prompt_schedule
from st2v_lib.config import preset
from st2v_lib.errors import OutputError, WeightsError
from st2v_lib.loading import load
from st2v_lib.metrics.base import MetricResult
from st2v_lib.metrics.cli import SMALL
from st2v_lib.metrics.clip_score import area_preprocess, join_towers
from st2v_lib.metrics.mawe import SIZE
from st2v_lib.metrics.table import format_table, measure
from st2v_lib.metrics.truth import TruthScores, seams_of, world_truth
from st2v_lib.metrics.xt_slice import xt_slice
from st2v_lib.pipeline import StreamingT2VPipeline
from st2v_lib.sampling import make_scheduler
from st2v_lib.stages import carried_frames
from st2v_lib.video_io import VideoWriter, to_uint8
from st2v_lib.world.reader import load_reader

DTYPES = {None: None, "fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


def run(args: argparse.Namespace) -> int:
    """Makes the video and writes it; prints where it is and the seconds of each stage.

    Raises:
        UserError: for what the user can put right, before anything expensive is done.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)  # also what an earlier call in this process has said
        _print_own_warnings()
        return _run(args)


def _run(args: argparse.Namespace) -> int:
    cfg = preset(args.preset)
    prompt = prompt_schedule(args.prompt, cfg)(0)
    check_count(args.frames, "--frames", cfg.chunk_frames)
    check_count(args.seed, "--seed", 0)
    check_count(args.chunk_batch, "--chunk-batch", 1)
    sampling = dict(
        sampler=args.sampler, num_inference_steps=args.steps, eta=args.eta, guidance_scale=args.guidance
    )  # fmt: skip
    check_sampling(cfg, make_scheduler(cfg.scheduler, cfg.sampling.sampler), **sampling)
    first = None if args.first is None else from_file(args.first, cfg)
    with contextlib.ExitStack() as files:
        low_writers, writers = _open_writers(args, cfg.fps, prompt, files)
        start = time.perf_counter()
        pipe = load(args.preset, args.device, args.weights, memory=args.memory, dtype=DTYPES[args.dtype])
        if args.paste:
            pipe.cfg = pipe.cfg.replace(conditioning=f"{pipe.cfg.conditioning}+replacement")
        if writers and pipe.enhancer is None:
            raise WeightsError("these weights have no enhancer; add --no-enhance")
        print(f"{prompt!r}, {args.frames} frames, seed {args.seed} (weights loaded in {_since(start)})")
        video, metadata = _make(pipe, prompt, args, sampling | {"first_chunk": first}, low_writers, writers)
    for writer in (*low_writers, *writers):
        print(writer.path)
    if args.demo is not None:
        write_demo(Path(args.demo), pipe, prompt, video, metadata)
    return 0


def _print_own_warnings() -> None:
    """Until warnings are restored, those meant for users are one line on stderr, once each, without a place in code."""
    as_usual, seen = warnings.showwarning, set()

    def show(message, category, filename, *rest) -> None:
        if category is UserWarning:
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
) -> tuple[np.ndarray | None, dict]:
    """Runs the stages, writing frames as they come, and keeps what ``--demo`` shows.

    Returns:
        The video, ``uint8 f h w c``, if there is a demo, and its file's metadata.
    """
    seconds = dict.fromkeys(("base chunk", "streaming"), 0.0)
    with pipe.bar(True, 0) as bar:
        stream = pipe.stream(prompt, args.frames, args.seed, **sampling, progress=bar)
        metadata = {
            "prompt": prompt,
            "seed": args.seed,
            "chunk_frames": pipe.cfg.chunk_frames,
            "stride": pipe.cfg.chunk_frames - carried_frames(pipe.models(), pipe.cfg),
            "config": asdict(stream.config),
        }
        for writer in (*low_writers, *writers):
            writer.metadata = metadata
        bar.reset(stream.cost + (pipe.enhancer_cost(args.frames) if writers else 0))

        def low_blocks() -> Iterator[Tensor]:
            for name in itertools.chain(("base chunk",), itertools.repeat("streaming")):
                bar.set_description("stage 1" if name == "base chunk" else "stage 2")
                before = time.perf_counter()
                block = next(stream, None)
                seconds[name] += time.perf_counter() - before
                if block is None:
                    return
                _write(block, low_writers)
                bar.set_description("stage 3" if writers else "stage 2")
                yield block

        start, kept, blocks = time.perf_counter(), [], low_blocks()
        if writers:
            blocks = pipe.enhance(
                blocks, prompt, args.seed, progress=bar, num_frames=args.frames, chunk_batch=args.chunk_batch
            )
        for block in blocks:
            frames = _write(block, writers)
            if args.demo is not None:
                kept.append(frames)
        if writers:
            bar.set_description("stage 3")
            seconds["enhancement"] = time.perf_counter() - start - sum(seconds.values())
    for name, spent in seconds.items():
        print(f"{name:<24} {spent:.1f} s")
    return np.concatenate(kept) if kept else None, metadata


def _write(block: Tensor, writers: list[VideoWriter]) -> np.ndarray:
    frames = to_uint8(block[0])
    for writer in writers:
        writer.write(frames)
    return frames


def _since(start: float) -> str:
    return f"{time.perf_counter() - start:.1f} s"


# --------------------------------------------------------------------------------------------------------- --demo


def write_demo(folder: Path, pipe: StreamingT2VPipeline, prompt: str, video: np.ndarray, metadata: dict) -> None:
    """Writes ``contact_sheet.png``, ``xt_slice.png``, ``metrics.txt`` and ``metrics.json`` beside the videos.

    Args:
        folder: where to.
        pipe: its two CLIP towers give the CLIP score.
        prompt: what the video was made from.
        video: what was made, ``uint8 f h w c``.
        metadata: of its file; tells where chunks meet.
    """
    _write_png(folder / "contact_sheet.png", contact_sheet(video))
    _write_png(folder / "xt_slice.png", np.repeat(xt_slice(video), 4, axis=0))
    start = time.perf_counter()
    results = _measured(pipe, prompt, video, metadata)
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


def _measured(pipe: StreamingT2VPipeline, prompt: str, video: np.ndarray, metadata: dict) -> dict[str, MetricResult]:
    """All metrics of a video, as ``st2v metrics`` gives them, with the models at hand."""
    tiny = pipe.cfg.name == "tiny"
    clip = truth = None
    if pipe.image_encoder is not None and hasattr(pipe.text_encoder, "text_projection"):
        clip = (join_towers(pipe.text_encoder, pipe.image_encoder, f"CLIP of {pipe.cfg.name}"), pipe.tokenizer)
    if tiny and world_truth(prompt) is not None:
        with contextlib.suppress(WeightsError):  # weights without a reader: without scores against the truth
            truth = TruthScores(prompt, load_reader(), metadata)
    size = None if min(video.shape[1:3]) < SMALL else SIZE
    preprocess = area_preprocess if tiny else None
    seams = seams_of(len(video), metadata)
    return measure(video, prompt if clip else None, clip, size=size, preprocess=preprocess, truth=truth, seams=seams)


def _write_png(path: Path, image: np.ndarray) -> None:
    _write_bytes(path, cv2.imencode(".png", image[:, :, ::-1])[1].tobytes())


def _write_bytes(path: Path, data: bytes) -> None:
    unfinished = path.with_name(f".{path.name}.part")
    try:
        unfinished.write_bytes(data)
        unfinished.replace(path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from None
