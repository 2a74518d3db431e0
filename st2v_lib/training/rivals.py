"""Arms of the fair tests: rivals of CAM, CAM with fewer carried frames, APM without its anchor, at one budget.

    st2v train add_cond --from data/weights/tiny --clips 16000 --seed 0 --out runs/arms/add_cond-0

Every arm starts from the same frozen base model, sees the same clips in the same order (they depend on the seed alone),
takes the same number of steps and trains as many parameters as CAM. With ``--clips`` the learning rate follows the
steps, not the clock, so a slow machine gives the same run. ``--out`` becomes a complete folder of weights;
``arm.json`` in it says how the arm was made.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from st2v_lib.baselines import RIVALS, rival_class
from st2v_lib.baselines.rival import masked
from st2v_lib.config import StreamingT2VConfig
from st2v_lib.errors import UserError
from st2v_lib.manifest import MANIFEST, sha256, weights_dir
from st2v_lib.training import cam, common

ARM_FILE = "arm.json"
BASE = ("vae", "text_encoder", "tokenizer", "image_encoder", "unet", "scheduler", "reader")
PAPERS = {"primed": False, "guided": False}  # CAM starts and learns as the paper's
GUIDED = {"primed": True, "guided": True}  # as the shipped one
WITHOUT_LIMIT = 7 * 24 * 60.0  # minutes, when the clips are what ends the run


@dataclass(frozen=True)
class Arm:
    """One line of an ablation.

    Attributes:
        phase: of ``training.cli.train_phase``.
        needs: components beyond the base that it starts from.
        num_cond_frames: carried frames, where they are not the preset's.
        options: of the phase's batches.
    """

    phase: str
    needs: tuple[str, ...] = ()
    num_cond_frames: int | None = None
    options: dict[str, Any] = field(default_factory=dict)


ARMS = {
    "cam": Arm("cam", options=PAPERS),
    "cam_primed": Arm("cam", options={"primed": True, "guided": False}),
    "cam_guided": Arm("cam", options=GUIDED),
    "cam_1": Arm("cam", num_cond_frames=1, options=GUIDED),  # beside cam_guided: a CAM that learns in so few clips
    "cam_2": Arm("cam", num_cond_frames=2, options=GUIDED),
    "cam_4": Arm("cam", num_cond_frames=4, options=GUIDED),
    "concat_cond": Arm("concat_cond", options={"mask": "random"}),
    "concat_cond_aligned": Arm("concat_cond", options={"mask": "aligned"}),
    "add_cond": Arm("add_cond", options={"mask": "random"}),
    "add_cond_primed": Arm("add_cond", options={"mask": "random", "primed": True}),
    "placed_cam": Arm("placed_cam", options={"primed": True}),
    "add_cond_aligned": Arm("add_cond", options={"mask": "aligned"}),
    "apm": Arm("apm", needs=("cam",)),
    "apm_null": Arm("apm", needs=("cam",), options={"null_anchor": True}),
    "apm_unet": Arm("apm", needs=("cam",), options={"train_unet": True}),  # the paper's phase 2: a base of its own
    "apm_unet_null": Arm("apm", needs=("cam",), options={"train_unet": True, "null_anchor": True}),
}


def run(args: argparse.Namespace, cfg: StreamingT2VConfig, acc: Accelerator) -> int:
    """Entry point of the command line for arms; ``training.cli`` has checked preset and device."""
    if args.clips is not None and args.clips < 1:
        raise UserError(f"--clips must be 1 or more, got {args.clips}")
    if args.phase not in ARMS:
        raise UserError(f"--clips and --from are for arms of the fair tests: {', '.join(ARMS)}; got {args.phase!r}")
    out = Path(args.out or f"runs/arms/{args.phase}-{args.seed}")
    source = Path(args.source or weights_dir(args.preset))
    minutes = args.minutes or (9.0 if args.clips is None else WITHOUT_LIMIT)
    train_arm(
        args.phase, cfg, source, out, acc, minutes, args.clips, args.seed, args.resume, args.batch_scale, args.graph
    )
    return 0


def train_arm(
    name: str,
    cfg: StreamingT2VConfig,
    source: Path,
    out: Path,
    acc: Accelerator,
    minutes: float,
    clips: int | None = None,
    seed: int = 0,
    resume: bool = False,
    batch_scale: float = 1.0,
    graphed: bool = False,
) -> dict[str, float]:
    """Trains one arm from the base model in ``source`` and leaves a complete folder of weights in ``out``.

    Args:
        name: one of :data:`ARMS`.
        cfg: the preset.
        source: weights of the base; for APM's arms also of the CAM that both start from.
        out: a folder of its own.
        acc: the accelerator.
        minutes: time budget.
        clips: budget in clips, over all processes and resumed runs; ``None`` for time alone.
        seed: of initialisation and data.
        resume: go on from an earlier run.
        batch_scale: times the phase's batch.
        graphed: record each step as a CUDA graph.

    Returns:
        What :func:`st2v_lib.training.common.fit` returns.

    Raises:
        UserError: for an unknown arm, or a source without what it starts from.
        OutputError: when ``out`` cannot be written.
    """
    from st2v_lib.training.cli import train_phase

    if name not in ARMS:
        raise UserError(f"unknown arm {name!r}; choose one of: {', '.join(ARMS)}")
    arm = ARMS[name]
    missing = [part for part in ("vae", "text_encoder", "unet", *arm.needs) if not (source / part).is_dir()]
    if missing:
        raise UserError(f"{source} has no {', '.join(missing)}; arms start from a trained base, name it with --from")
    if source.resolve() == out.resolve():
        raise UserError(f"an arm needs a folder of its own, and --out is that of --from: {out}")
    common.check_writable(out, common.state_dir(out))
    if arm.num_cond_frames is not None:
        cfg = cfg.replace(cam=dataclasses.replace(cfg.cam, num_cond_frames=arm.num_cond_frames))
    if acc.is_main_process:
        for part in (*BASE, *arm.needs):
            if (source / part).is_dir() and not (out / part).is_dir():
                whole = out / f".{part}"
                shutil.rmtree(whole, ignore_errors=True)
                shutil.copytree(source / part, whole).rename(out / part)
        if not arm.options.get("train_unet") and base_hash(out) != base_hash(source):
            raise UserError(f"{out} holds an arm of another base than {source}; name another folder with --out")
    acc.wait_for_everyone()
    resumed = resume and (common.state_dir(out) / arm.phase / "state.pt").is_file()
    per_step = max(1, round(cam.BATCH * batch_scale)) * acc.num_processes
    steps = None if clips is None else math.ceil(clips / per_step)
    result = train_phase(
        arm.phase, cfg, out, minutes, acc, resume=resume, seed=seed, total_steps=steps, batch_scale=batch_scale,
        graphed=graphed, **arm.options,
    )  # fmt: skip
    if acc.is_main_process:
        record = {
            "arm": name, "phase": arm.phase, "options": arm.options, "seed": seed, "clips": result["step"] * per_step,
            "clips_asked": clips, "steps": result["step"], "resumed": resumed, "seconds": round(result["seconds"]),
            "loss": result.get("loss"), "trained_parameters": result.get("trained_parameters"),
            "num_cond_frames": cfg.cam.num_cond_frames, "processes": acc.num_processes,
            "base_sha256": base_hash(source),
            "source_manifest_sha256": sha256(source / MANIFEST) if (source / MANIFEST).is_file() else None,
        }  # fmt: skip
        (out / ARM_FILE).write_text(json.dumps(record, indent=1) + "\n")
    return result


def base_hash(folder: Path) -> str | None:
    """The SHA-256 of a folder's base model, if its weights are there."""
    return next(map(sha256, (folder / "unet").glob("*.safetensors")), None)


def prepare(phase: str, cfg: StreamingT2VConfig, unet, vae):
    """A fresh rival for that phase, its folder's name being the phase's."""
    assert phase in RIVALS
    rival = rival_class(phase).from_unet(unet, cfg.cam, cfg.chunk_frames)
    return with_vae(rival, vae)


def with_vae(rival, vae):
    """The rival, with the VAE where it needs one."""
    return rival.use_vae(vae) if hasattr(rival, "use_vae") else rival


def make_batch(
    cfg: StreamingT2VConfig, vae, seed: int = 0, mask: str = "random", batch_scale: float = 1.0
) -> Callable[[int, int], dict[str, torch.Tensor]]:
    """CAM's batches, clip for clip, with the masked chunk ``b f 4 H W`` as the condition.

    Args:
        mask: ``"random"``: any ``num_cond_frames`` of the chunk are given (paper §9.1.1); ``"aligned"``: its first.

    Raises:
        ValueError: for another mask.
    """
    if mask not in ("random", "aligned"):
        raise ValueError(f"unknown mask {mask!r}; choose 'random' or 'aligned'")
    n, f = cfg.cam.num_cond_frames, cfg.chunk_frames
    whole = cfg.replace(cam=dataclasses.replace(cfg.cam, num_cond_frames=f))
    batches = cam.make_batch(whole, vae, seed, batch_scale=batch_scale)

    def batch(rank: int, step: int) -> dict[str, torch.Tensor]:
        out = batches(rank, step)
        rng = random.Random(f"mask/{seed}/{rank}/{step}")
        given = torch.zeros(out["cond"].shape[:2], dtype=torch.bool)
        for row in given:
            row[rng.sample(range(f), n) if mask == "random" else slice(n)] = True
        return {**out, "cond": masked(out["cond"], given.to(out["cond"].device))}

    return batch
