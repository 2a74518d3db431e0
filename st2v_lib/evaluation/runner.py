"""Runs a suite: jobs over processes, an estimate of time first, one result file for each arm and seed.

Jobs are batches of a fixed partition of the cases. Every process makes the same list of what is missing and takes every
k-th; noise belongs to videos, so the numbers do not depend on how many processes there were. On CPUs start several with
``python -m torch.distributed.run --standalone --nproc_per_node 2 -m st2v_lib.cli evaluate ...`` (accelerate's own
launcher starts one), on GPUs with ``accelerate launch -m st2v_lib.cli evaluate ...``.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from tqdm.auto import tqdm

from st2v_lib import __version__
from st2v_lib.baselines import RIVALS, parts_of
from st2v_lib.config import StreamingT2VConfig
from st2v_lib.errors import UserError, WeightsError
from st2v_lib.evaluation.generate import base_chunks, video_seed
from st2v_lib.evaluation.results import Run, write_bytes
from st2v_lib.evaluation.suite import Arm, Bench, Options, Scored, Suite
from st2v_lib.loading import load
from st2v_lib.manifest import MANIFEST, data_dir, sha256, weights_dir
from st2v_lib.memory import device_class

SCORING = 2  # raise it when a score changes its meaning: files of another number are not gone on with
PICTURES = 2  # videos of which pictures are kept
MEMORY_COST = 1.4  # a denoising step with CAM and APM over one of the base model


@dataclass
class Job:
    """One batch of one run."""

    arm: Arm
    seed: int
    run: Run
    indices: list[int]


class Pipelines:
    """Pipelines by folder; the last one is kept, since the jobs of an arm follow each other."""

    def __init__(self, preset: str, device: str, dtype: torch.dtype | None = None):
        self.preset, self.device, self.dtype, self.kept = preset, device, dtype, (None, None)

    def __call__(self, folder: Path):
        if self.kept[0] != folder:
            self.kept = (folder, load(self.preset, self.device, folder, dtype=self.dtype))
        return self.kept[1]


def weights_hash(folder: Path, parts: Sequence[str]) -> str:
    """One hash of the weights of these components, from the folder's manifest (checked when it was loaded).

    A folder without a reader is read with the shipped one.
    """
    entries = json.loads((folder / MANIFEST).read_text())
    if not any(name.startswith("reader/") for name in entries):
        entries |= json.loads((weights_dir("tiny") / MANIFEST).read_text()) | entries
    used = {name: entry["sha256"] for name, entry in sorted(entries.items()) if name.split("/")[0] in parts}
    return hashlib.sha256(json.dumps(used).encode()).hexdigest()


def used(parts: Sequence[str], cfg: StreamingT2VConfig) -> list[str]:
    """Those of the suite's components that an arm of this config runs: a new APM leaves arms without it alone."""
    idle = {"cam", *RIVALS} - {parts_of(cfg.conditioning)[0]} | ({"apm"} if cfg.apm is None else set())
    return [part for part in parts if part not in idle]


def unet_hash(folder: Path) -> str:
    """The SHA-256 of the base model's weights.

    Raises:
        WeightsError: when there are none.
    """
    file = next((folder / "unet").glob("*.safetensors"), None)
    if file is None:
        raise WeightsError(f"no base model in {folder}, its unet/ holds no safetensors; name another with --weights")
    return sha256(file)


def made_with(device: str, batch: int, processes: int) -> dict[str, Any]:
    """Versions and machine class, without anything that names the machine."""
    import diffusers

    return {
        "st2v_lib": __version__, "torch": torch.__version__, "diffusers": diffusers.__version__,
        "python": platform.python_version(), "machine": platform.machine(), "device": device_class(device),
        "batch": batch, "processes": processes,
    }  # fmt: skip


def open_runs(
    suite: Suite, arms: Sequence[Arm], pipelines: Pipelines, base: Path, split: str, seeds: Sequence[int],
    options: Options, folder: Path,
) -> list[tuple[Arm, int, Run]]:  # fmt: skip
    """The result files of all arms and seeds, with what they hold already.

    Raises:
        UserError: for a file made otherwise, or an arm that cannot run.
    """
    frames, found = options.frames or suite.frames, []
    kind = "".join((f"-{frames}f", "-two" * (options.sprites == 2), "-fast" * (options.speed == "fast")))
    for arm in arms:
        place = arm.folder or base
        cfg = arm.config(pipelines(place).cfg)
        pipe = pipelines(place)
        pipe.cfg, before = cfg, pipe.cfg
        pipe.models()  # says at once what is missing
        pipe.cfg = before
        for seed in seeds:
            identity = {
                "suite": suite.name, "arm": arm.name, "split": split, "seed": seed, "scoring": SCORING,
                "options": dataclasses.asdict(dataclasses.replace(options, frames=frames)), "how": arm.how,
                "training": arm.record, "weights_sha256": weights_hash(place, used(suite.parts, cfg)),
                "config": relevant(cfg, suite), **({"dtype": str(pipelines.dtype)} if pipelines.dtype else {}),
            }  # fmt: skip
            found.append((arm, seed, Run(folder, f"{suite.name}/{arm.name}-{split}{kind}-seed{seed}", identity)))
    return found


def relevant(cfg: StreamingT2VConfig, suite: Suite) -> dict[str, Any]:
    """The config without the stage that the suite does not run."""
    config = json.loads(cfg.to_json())
    config.pop("sampling" if "enhancer" in suite.parts else "enhancer")
    return config


def jobs_of(runs: Sequence[tuple[Arm, int, Run]], videos: int, batch: int) -> list[Job]:
    """The batches that are not complete, in the order of the runs."""
    parts = [list(range(i, min(i + batch, videos))) for i in range(0, videos, batch)]
    return [
        Job(arm, seed, run, [i for i in part if i not in run.videos])
        for arm, seed, run in runs
        for part in parts
        if any(i not in run.videos for i in part)
    ]


@torch.no_grad()
def probe(suite: Suite, pipe, batch: int) -> float:
    """Seconds of one chunk of the suite's kind for one video, from a few denoising steps."""
    cfg = pipe.cfg
    if "enhancer" in suite.parts:
        cells = cfg.enhancer.size // cfg.vae.downscale
        x = torch.zeros(1, cfg.unet.in_channels, cfg.enhancer.chunk_frames, cells, cells).to(
            pipe.device, pipe.enhancer.dtype
        )
        text = pipe.encode_text("a red circle").to(pipe.device, pipe.enhancer.dtype)
        pipe.enhancer(x, 100, text)
        start = time.perf_counter()
        pipe.enhancer(x, 100, text)
        return (time.perf_counter() - start) * (cfg.enhancer.num_inference_steps + 1)

    def seconds(steps: int) -> float:
        pipe.cfg = cfg.replace(sampling=dataclasses.replace(cfg.sampling, num_inference_steps=steps))
        start = time.perf_counter()
        base_chunks(pipe, ["a red circle"] * batch, list(range(batch)))
        return time.perf_counter() - start

    try:
        seconds(1)
        one, three = seconds(1), seconds(3)
    finally:
        pipe.cfg = cfg
    step = max(0.0, (three - one) / 2)
    return (one - step + step * cfg.sampling.num_inference_steps * MEMORY_COST) / batch


def estimate(
    suite: Suite, jobs: Sequence[Job], pipelines: Pipelines, base: Path, options: Options, batch: int, processes: int
) -> str:
    """What is to be done and how long it may take, as one line."""
    frames = options.frames or suite.frames
    pipe = pipelines(base)
    made = [j for j in jobs if j.arm.how.get("source") is None]
    calls = sum(len(j.indices) * suite.calls(options, frames, j.arm.config(pipe.cfg)) for j in made)
    each = probe(suite, pipe, batch)
    videos, minutes = sum(len(j.indices) for j in jobs), calls * each / processes / 60
    return (
        f"{suite.name}: {videos} videos of {frames} frames in {len({id(j.run) for j in jobs})} runs, "
        f"{calls:.0f} chunks of about {each:.2f} s: about {minutes:.0f} min on {processes} "
        f"process{'es' if processes > 1 else ''}, reading and metrics apart"
    )


def evaluate(
    suite: Suite,
    arms: Sequence[Arm],
    split: str,
    videos: int,
    seeds: Sequence[int],
    options: Options,
    base: Path | None = None,
    results: Path | None = None,
    preset: str = "tiny",
    device: str = "auto",
    batch: int | None = None,
    only_estimate: bool = False,
    dtype: torch.dtype | None = None,
) -> list[Path]:
    """Makes what is missing of every arm and seed.

    Args:
        suite, arms: what to run.
        split: ``"dev"`` or ``"test"``.
        videos: cases of each run.
        seeds: of the noise; one run each.
        options: kind and length of the videos.
        base: weights of arms without their own; the shipped ones when ``None``.
        results: where ``<suite>/<run>.json`` goes; ``data/results`` when ``None``.
        preset, device: of the pipeline.
        batch: videos generated together; the suite's when ``None``.
        only_estimate: print what would be done and stop.
        dtype: of the networks, see ``load``.

    Returns:
        The result files, complete; empty when it only estimates, and on other processes than the first.

    Raises:
        UserError: before anything is generated.
    """
    state = PartialState(cpu=device == "cpu" or not torch.cuda.is_available())
    place, results = Path(base or weights_dir(preset)), Path(results or data_dir() / "results")
    batch = batch or suite.batch
    pipelines = Pipelines(preset, str(state.device) if device == "auto" else device, dtype)
    base_unet = unet_hash(place)
    for arm in arms:
        if arm.folder is not None and arm.record and arm.record.get("base_sha256") != base_unet:
            raise UserError(f"{arm.folder} was trained on another base model than {place}; arms must share one")
    runs = open_runs(suite, arms, pipelines, place, split, seeds, options, results)
    jobs = jobs_of(runs, videos, batch)
    if state.is_main_process and jobs:
        print(estimate(suite, jobs, pipelines, place, options, batch, state.num_processes), flush=True)
    state.wait_for_everyone()  # the lists are made before anything is written
    if only_estimate:
        return []
    if jobs:
        tried = results / suite.name / f".write.{state.process_index}"  # better to know now than after a batch
        write_bytes(tried, b"")
        tried.unlink()
    meta = made_with(str(state.device), batch, state.num_processes)
    mine = jobs[state.process_index :: state.num_processes]
    for job in tqdm(mine, suite.name, unit="batch", disable=not (state.is_main_process and mine)):
        job.run.add(run_job(suite, job, pipelines, place, split, seeds[0], options), meta)
    state.wait_for_everyone()
    if not state.is_main_process:
        return []
    return [run.merge() for _, _, run in runs]


def run_job(
    suite: Suite, job: Job, pipelines: Pipelines, base: Path, split: str, first_seed: int, options: Options
) -> list[dict[str, Any]]:
    """One batch's entries for the result file."""
    pipe = pipelines(job.arm.folder or base)
    cfg = pipe.cfg
    cases = [suite.case(split, i, options) for i in job.indices]
    began = time.perf_counter()
    try:
        pipe.cfg = job.arm.config(cfg)
        bench = Bench(pipe, job.arm, options, options.frames or suite.frames)
        scored = suite.run(bench, cases, [video_seed(job.seed, i) for i in job.indices])
    finally:
        pipe.cfg = cfg
    seconds = (time.perf_counter() - began) / len(cases)
    entries = []
    for case, one in zip(cases, scored, strict=True):
        entry = {
            "index": case.index, "prompt": case.prompt, "motion": case.motion, "seconds": round(seconds, 2),
            "values": one.values,
        }  # fmt: skip
        if one.details:
            entry["details"] = one.details
        trained_first = job.arm.record is None or job.arm.record.get("seed", 0) == 0
        if case.index < PICTURES and job.seed == first_seed and trained_first:
            entry["pictures"] = save_pictures(job.run, case.index, one)
        entries.append(entry)
    return entries


def save_pictures(run: Run, index: int, scored: Scored) -> dict[str, str]:
    """Writes a video's pictures beside the result file; names by kind.

    Raises:
        OutputError: when the place cannot be written.
    """
    import cv2

    names = {}
    for kind, picture in scored.pictures.items():
        names[kind] = f"{run.path.stem}-{index}-{kind}.webp"
        bgr = np.ascontiguousarray(picture[..., ::-1])
        webp = cv2.imencode(".webp", bgr, [cv2.IMWRITE_WEBP_QUALITY, 90])[1].tobytes()  # a ninth of a PNG
        write_bytes(run.path.parent / names[kind], webp)
    return names
