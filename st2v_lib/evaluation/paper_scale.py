"""``st2v paper ROW --prompts FILE``: rows of the paper's tables with the full-size model, one command each.

Before anything is made it prints the estimated GPU-hours and disk. Hours come from the run times that the released code
states for an A100 (240 frames: 340 s of stages 1 and 2, 1610 s in all), since this kit has not been timed on one; 50
prompts are the paper's number. Its own prompts stand in its appendix (§11): a reader who wants its exact protocol types
them into a file, one a line. Rows of other methods, and of CAM's rivals, need weights that nobody released.

``st2v paper table`` draws what result files there are; a row without them says "not run".
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm.auto import tqdm

from st2v_lib.blending import NAIVE
from st2v_lib.config import MODELSCOPE, StreamingT2VConfig
from st2v_lib.enhancer import enhance_video
from st2v_lib.errors import InputError, OutputError
from st2v_lib.evaluation.results import write_json
from st2v_lib.loading import load
from st2v_lib.manifest import data_dir
from st2v_lib.metrics.clip_score import load_clip
from st2v_lib.metrics.table import measure
from st2v_lib.sampling import chunk_generator
from st2v_lib.stages import ENHANCER_NOISE
from st2v_lib.video_io import read_video, to_uint8, write_video

PROMPTS, FRAMES = 50, 240
LOW_SECONDS, ALL_SECONDS = 340.0, 1610.0  # 240 frames on an A100, as the released code's page states
VIDEO_GB = {False: 0.004, True: 0.04}  # a 240-frame mp4 at 256 and at 720 pixels, a generous guess
NOT_POSSIBLE = "not run: needs weights that nobody released"


@dataclass(frozen=True)
class Row:
    """A row of a table: what it shows, the paper's values, how the config differs, whether stage 3 is part of it."""

    text: str
    paper: dict[str, float]
    change: Callable[[StreamingT2VConfig], StreamingT2VConfig] | None
    enhance: bool = True


def _law(name: str) -> Callable[[StreamingT2VConfig], StreamingT2VConfig]:
    return lambda cfg: cfg.replace(enhancer=dataclasses.replace(cfg.enhancer, blend_law=name))


ROWS = {
    "table1": Row(
        "Tab. 1, StreamingT2V", {"mawe_paper": 52.3, "scuts": 0.04, "clip_score": 31.73}, lambda cfg: cfg
    ),
    "apm-off": Row("§5.3, the same weights with APM switched off", {"scuts": 0.03}, lambda cfg: cfg.replace(apm=None)),
    "blending-B": Row("§9.3, naive chunks", {"flow_deviation": 8.72}, _law("B")),
    "blending-B+S": Row("§9.3, shared noise", {"flow_deviation": 6.01}, _law("B+S")),
    "blending": Row("§9.3, randomized blending", {"flow_deviation": 3.32}, lambda cfg: cfg),
    "low-resolution": Row("stages 1 and 2 alone", {}, lambda cfg: cfg, enhance=False),
    "conc-cond": Row("§5.3, CAM replaced by concatenation", {"scuts": 0.24}, None),
    "add-cond": Row("§5.3, CAM replaced by addition", {"scuts": 0.284}, None),
}  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Entry point of the command line."""
    results = Path(args.results or data_dir() / "results" / "paper")
    if args.row == "table":
        print(draw(results))
        return 0
    row = ROWS[args.row]
    if row.change is None:
        raise InputError(f"{args.row}: {NOT_POSSIBLE}; the tiny model's comparison is st2v evaluate cam")
    if args.prompts is None:
        raise InputError("--prompts FILE is needed: one prompt a line (the paper's 50 stand in its appendix, §11)")
    prompts = read_prompts(args.prompts)
    out = Path(args.out or "outputs/paper") / args.row
    print(estimate(row, len(prompts), args.frames, out))
    if args.estimate:
        return 0
    free = shutil.disk_usage(next(p for p in (out, *out.absolute().parents) if p.exists())).free / 1e9
    if free < disk_gb(row, len(prompts), args.frames):
        raise OutputError(f"{free:.1f} GB are free at {out}")
    clip = load_clip(args.clip) if args.clip else None
    pipe = load(args.preset, args.device)
    pipe.cfg = row.change(pipe.cfg)
    values = [make(pipe, row, prompt, i, args.frames, args.seed, out, clip) for i, prompt in enumerate(tqdm(prompts))]
    write_json(results / f"{args.row}.json", summary(args, pipe.cfg, row, prompts, values))
    print(draw(results))
    return 0


def read_prompts(path: str | Path) -> list[str]:
    """Prompts of a file, one a line.

    Raises:
        InputError: if there is none.
    """
    try:
        prompts = [line.strip() for line in Path(path).read_text().splitlines() if line.strip()]
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    if not prompts:
        raise InputError(f"{path} has no prompt in it; write one a line")
    return prompts


def gpu_hours(row: Row, prompts: int, frames: int) -> float:
    """Hours on an A100 by the released code's own times; they grow with the number of frames."""
    return prompts * frames / FRAMES * (ALL_SECONDS if row.enhance else LOW_SECONDS) / 3600


def disk_gb(row: Row, prompts: int, frames: int) -> float:
    """GB of videos."""
    return prompts * frames / FRAMES * VIDEO_GB[row.enhance]


def estimate(row: Row, prompts: int, frames: int, out: Path) -> str:
    """What the row will take, in words."""
    return (
        f"{row.text}: {prompts} videos of {frames} frames in {out}\n"
        f"about {gpu_hours(row, prompts, frames):.1f} GPU-hours on an A100 by the released code's times "
        f"(this kit: not measured), {disk_gb(row, prompts, frames):.1f} GB of disk"
    )


def make(
    pipe, row: Row, prompt: str, index: int, frames: int, seed: int, out: Path, clip: tuple | None
) -> dict[str, float]:
    """One video, made unless its file is there, and its metrics."""
    path = out / f"{index:03d}.mp4"
    if not path.exists():
        write_video(path, _video(pipe, row, prompt, frames, seed + index), fps=pipe.cfg.fps)
    found = measure(read_video(path), prompt if clip else None, clip)
    return {name: result.value for name, result in found.items()}


def _video(pipe, row: Row, prompt: str, frames: int, seed: int):
    config = pipe.cfg.enhancer
    if row.enhance and config.blend_law in NAIVE:  # these keep every chunk apart and cannot be streamed
        low = pipe(prompt, frames, seed, enhance=False, progress=False).low_res.to(pipe._execution_device)
        texts = pipe.encode_text(prompt), pipe.encode_text("")
        noise = chunk_generator(seed, ENHANCER_NOISE)
        video: Tensor = enhance_video(low, pipe.vae, pipe.enhancer, *texts, config, noise)
    else:
        video = pipe(prompt, frames, seed, enhance=row.enhance, progress=False).frames
    return to_uint8(video[0].float().cpu())


def summary(args: argparse.Namespace, cfg: StreamingT2VConfig, row: Row, prompts: list[str], values: list) -> dict:
    """The content of a result file: means over videos, each video's values, and what they were made with."""
    names = sorted(set.intersection(*(set(v) for v in values)))
    means = {name: statistics.fmean(v[name] for v in values) for name in names}
    return {
        "row": args.row, "text": row.text, "preset": args.preset, "prompts": len(prompts), "frames": args.frames,
        "seed": args.seed, "prompts_file": Path(args.prompts).name, "mean": means, "videos": values,
        "torch": torch.__version__, "config": dataclasses.asdict(cfg),
    }  # fmt: skip


def draw(results: Path) -> str:
    """All rows as a table; what has no result file says so. Results of another preset than the full size name it."""
    lines = ["| row | paper | this kit | videos |", "|---|---|---|---|"]
    for name, row in ROWS.items():
        paper = ", ".join(f"{metric} {value:g}" for metric, value in row.paper.items()) or "–"
        file = results / f"{name}.json"
        if row.change is None:
            ours, videos = NOT_POSSIBLE, ""
        elif not file.is_file():
            ours, videos = "not run", ""
        else:
            found = json.loads(file.read_text())
            shown = row.paper or found["mean"]
            ours = ", ".join(f"{metric} {found['mean'][metric]:.4g}" for metric in shown if metric in found["mean"])
            other = "" if found["preset"] == MODELSCOPE.name else f" of {found['preset']!r}, not comparable"
            videos = f"{found['prompts']} x {found['frames']} frames, {found['prompts_file']}{other}"
        lines.append(f"| {row.text} | {paper} | {ours} | {videos} |")
    return "\n".join(lines)
