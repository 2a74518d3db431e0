"""``st2v paper ROW --prompts FILE``: rows of the paper's tables with the full-size model, one command each.

Before anything is made it prints the estimated GPU-hours and disk. Hours come from the run times that the released code
states for an A100 (240 frames: 340 s of stages 1 and 2, 1610 s in all), since this kit has not been timed on one; 50
prompts are the paper's number. Its own prompts stand in its appendix (§11): a reader who wants its exact protocol types
them into a file, one a line. Rows of other methods, and of CAM's rivals, need weights that nobody released.

``st2v paper table`` draws what result files there are; a row without them says "not run". The stability of Tab. 1's
videos, their scores over the first 120 to 220 frames, comes with ``table1``.

Differs from the paper: optical flow is OpenCV's DIS unless ``--flow raft`` asks for its RAFT-large, and MAWE and flow
deviation depend on that (``FLOW_NOTE``).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import shutil
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from st2v_lib.blending import NAIVE
from st2v_lib.checks import check_count
from st2v_lib.config import MODELSCOPE, StreamingT2VConfig
from st2v_lib.enhancer import enhance_video
from st2v_lib.errors import InputError, OutputError, UserError
from st2v_lib.evaluation.paper import STABILITY
from st2v_lib.evaluation.results import write_json
from st2v_lib.loading import load
from st2v_lib.manifest import data_dir
from st2v_lib.metrics.clip_score import load_clip
from st2v_lib.metrics.flow import flow_protocol, make_estimator
from st2v_lib.metrics.mawe import SIZE
from st2v_lib.metrics.table import measure
from st2v_lib.sampling import chunk_generator
from st2v_lib.session import config_hash
from st2v_lib.stages import ENHANCER_NOISE
from st2v_lib.video_io import probe, read_video, to_uint8, write_video

PROMPTS, FRAMES = 50, 240
LOW_SECONDS, ALL_SECONDS = 340.0, 1610.0  # 240 frames on an A100, as the released code's page states
VIDEO_GB = {False: 0.004, True: 0.04}  # a 240-frame mp4 at 256 and at 720 pixels, a generous guess
NOT_POSSIBLE = "not run: needs weights that nobody released"
FLOW_NOTE = (
    "flow: {flow} in place of the paper's RAFT-large. MAWE and flow deviation follow the estimator: compare them "
    "between rows measured alike; of the paper's numbers only the order can agree. --flow raft takes its estimator, "
    "where torchvision is. SCuts do not depend on flow; the CLIP score depends on --clip."
)


@dataclass(frozen=True)
class Row:
    """A row of a table: what it shows, the paper's values, how the config differs, whether stage 3 is part of it.

    ``stability``: its first n frames are measured, too, for the n of ``paper.STABILITY``.
    """

    text: str
    paper: dict[str, float]
    change: Callable[[StreamingT2VConfig], StreamingT2VConfig] | None
    enhance: bool = True
    stability: bool = False


def _law(name: str) -> Callable[[StreamingT2VConfig], StreamingT2VConfig]:
    return lambda cfg: cfg.replace(enhancer=dataclasses.replace(cfg.enhancer, blend_law=name))


ROWS = {
    "table1": Row(
        "Tab. 1, StreamingT2V", {"mawe_paper": 52.3, "scuts": 0.04, "clip_score": 31.73}, lambda cfg: cfg,
        stability=True,
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
    check_count(args.frames, "--frames", 16)
    check_count(args.seed, "--seed", 0)
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
    if note := flow_note(args.flow):
        print(note)
    if args.estimate:
        return 0
    free = shutil.disk_usage(next(p for p in (out, *out.absolute().parents) if p.exists())).free / 1e9
    if free < disk_gb(row, len(prompts), args.frames):
        raise OutputError(f"{free:.1f} GB are free at {out}")
    make_estimator(args.flow)  # whether it is there is known now
    clip = load_clip(args.clip) if args.clip else None
    pipe = load(args.preset, args.device)
    pipe.cfg = row.change(pipe.cfg)
    values = [
        make(pipe, row, prompt, i, args.frames, args.seed, out, clip, args.flow)
        for i, prompt in enumerate(tqdm(prompts))
    ]
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
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
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


def flow_note(flow: str) -> str:
    """What another flow estimator than the paper's means for the numbers; nothing to say for the paper's."""
    return "" if flow == "raft" else FLOW_NOTE.format(flow={"dis": "DIS", "farneback": "Farneback's"}[flow])


def make(
    pipe, row: Row, prompt: str, index: int, frames: int, seed: int, out: Path, clip: tuple | None, flow: str
) -> dict[str, Any]:
    """One video, made unless its file is there, and its metrics; those of its first frames under ``"stability"``.

    Raises:
        InputError: for a file that is there and was made in another way.
    """
    path = out / f"{index:03d}.mp4"
    about = {
        "prompt": prompt, "seed": seed + index, "frames": frames, "enhance": row.enhance,
        "config_sha256": config_hash(pipe.cfg),
    }  # fmt: skip
    if not path.exists():
        write_video(path, _video(pipe, row, prompt, frames, seed + index), fps=pipe.cfg.fps, metadata=about)
    elif probe(path)["metadata"] != about:
        raise InputError(f"{path} is not the video that was asked for; name another --out, or remove it")
    prefixes = tuple(STABILITY) if row.stability else ()
    found = measure(read_video(path), prompt if clip else None, clip, flow, prefixes=prefixes)
    values = {name: result.value for name, result in found.items()}
    first = {name: r.protocol["of_first_frames"] for name, r in found.items() if "of_first_frames" in r.protocol}
    lengths = next(iter(first.values()), {})
    return values | ({"stability": {n: {k: v[n] for k, v in first.items()} for n in lengths}} if first else {})


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
    first = [value.pop("stability", {}) for value in values]
    stability = {n: means([video[n] for video in first]) for n in sorted(set.intersection(*(set(v) for v in first)))}
    return {
        "row": args.row, "text": row.text, "preset": args.preset, "prompts": len(prompts), "frames": args.frames,
        "seed": args.seed, "prompts_file": Path(args.prompts).name, "flow": flow_protocol(args.flow, None, SIZE),
        "mean": means(values), "stability": stability, "videos": values, "torch": torch.__version__,
        "config": dataclasses.asdict(cfg),
    }  # fmt: skip


def means(values: list[dict[str, float]]) -> dict[str, float]:
    """The mean of each value that all of them have, over those in which it is defined."""
    names = sorted(set.intersection(*(set(v) for v in values)))
    defined = {name: [v[name] for v in values if not math.isnan(v[name])] for name in names}
    return {name: statistics.fmean(found) for name, found in defined.items() if found}


def draw(results: Path) -> str:
    """All rows as a table; what has no result file says so. Results of another preset than the full size name it."""
    lines, flows = ["| row | paper | this kit | videos |", "|---|---|---|---|"], set()
    for name, row in ROWS.items():
        file = results / f"{name}.json"
        found, missing = {}, NOT_POSSIBLE if row.change is None else "not run"
        if row.change is not None and file.is_file():
            try:
                found = json.loads(file.read_text())
                flows.add(found.get("flow", {}).get("flow", "dis"))
                described(found)
            except (ValueError, KeyError, AttributeError):
                raise UserError(f"{file} is no result of st2v paper, or damaged; move it away") from None
        videos = described(found)
        lines.append(line(row.text, row.paper, found.get("mean"), missing, videos))
        for n, (mawe, clip) in STABILITY.items() if row.stability else ():
            theirs, ours = {"mawe_paper": mawe, "clip_score": clip}, found.get("stability", {}).get(str(n))
            shown = missing if not found else "too short, or not measured"
            lines.append(line(f"{row.text}, first {n} frames", theirs, ours, shown, videos))
    notes = [note for flow in sorted(flows or {"dis"}) if (note := flow_note(flow))]
    return "\n".join([*lines, *(f"\n{note}" for note in notes)])


def line(text: str, paper: dict[str, float], ours: dict[str, float] | None, missing: str, videos: str) -> str:
    """A row of the table; ``missing`` stands where there is no value of ours."""
    theirs = ", ".join(f"{metric} {value:g}" for metric, value in paper.items()) or "–"
    shown = {} if ours is None else {metric: ours[metric] for metric in paper or ours if metric in ours}
    mine = ", ".join(f"{metric} {value:.4g}" for metric, value in shown.items()) or missing
    return f"| {text} | {theirs} | {mine} | {videos} |"


def described(found: dict[str, Any]) -> str:
    """Which videos a result file is of."""
    if not found:
        return ""
    other = "" if found["preset"] == MODELSCOPE.name else f" of {found['preset']!r}, not comparable"
    return f"{found['prompts']} x {found['frames']} frames, {found['prompts_file']}{other}"
