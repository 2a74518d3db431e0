"""What does a short-term memory take off the denoising loss, on the frames it was given and on the new ones?

    python -m st2v_lib.evaluation.memory_gain --arms runs/arms/cam-4000-0 runs/arms/cam_primed-4000-0

Joints of generated videos say little about a memory that has only begun to learn: most of what is seen is the base
model's unrest. Here clips, noise and level are the same for each memory and for none, and the true first frames of the
clip are given, as at inference, half of them after a trip through the VAE. A memory that copies takes all of the loss
off the carried frames; one that understands takes some off the new ones, where there is always something left to guess.
"""

from __future__ import annotations

import argparse
import json
import random
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from st2v_lib.evaluation.anchor_gain import AT_ONCE, SCENES
from st2v_lib.evaluation.statistics import Interval, paired_difference
from st2v_lib.evaluation.suite import Arm, trained_arm
from st2v_lib.manifest import weights_dir
from st2v_lib.sampling import make_predictor, make_scheduler
from st2v_lib.training.cam import seen_frames
from st2v_lib.training.data import Captioner, Pool
from st2v_lib.training.diffusion import noised, weighted_mse

LEVELS = (950, 800, 600, 300)
PARTS = ("carried", "new")
Losses = dict[int, dict[str, list[float]]]  # level -> part of the chunk -> one number a clip


@dataclass(frozen=True)
class Clips:
    """What every memory is asked about: clean latents ``b c f h w``, sprites' masks, given frames, tokens, noise."""

    latents: Tensor
    mask: Tensor
    cond: Tensor
    text: Tensor
    noise: Tensor


@torch.no_grad()
def make_clips(pipe, count: int, seed: int = 0) -> Clips:
    """Clips of scenes that no training phase uses; ``pipe`` gives VAE, text encoder and sizes."""
    cfg, rng = pipe.cfg, random.Random(f"memory/{seed}")
    keep = cfg.cam.num_cond_frames
    pool = Pool(vae=pipe.vae, seed=SCENES + seed, capacity=count)
    pool.grow(count)
    latents, mask, scenes, starts, _ = pool.draw(rng, count, cfg.chunk_frames)
    cond = seen_frames(pipe.vae, latents[:, :, :keep], scenes, starts, rng)
    text = pipe.text_encoder(Captioner()(scenes, rng, 0.0).to(pipe.device)).last_hidden_state
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(seed)).to(latents)
    return Clips(latents, mask, cond, text, noise)


@torch.no_grad()
def losses(pipe, clips: Clips, levels: tuple[int, ...] = LEVELS, memory: bool = True) -> Losses:
    """The loss of each clip's carried and new frames, with the pipeline's short-term memory or without any."""
    models, scheduler = pipe.models(), make_scheduler(pipe.cfg.scheduler, "ddim")
    models.attach()
    cam = models.cam if memory else None
    keep = clips.cond.shape[1]
    out: Losses = {}
    for level in levels:
        t = torch.full((len(clips.latents),), level, device=clips.latents.device)
        x, target = noised(scheduler, clips.latents, clips.noise, t)
        out[level] = {part: [] for part in PARTS}
        for some in torch.arange(len(x)).split(AT_ONCE):
            predict = make_predictor(models.unet, cam, clips.cond[some] if memory else None)
            for i, found in zip(some.tolist(), predict(x[some], t[some], clips.text[some])):
                for part, frames in zip(PARTS, (slice(keep), slice(keep, None))):
                    one = found[None, :, frames], target[i : i + 1, :, frames], clips.mask[i : i + 1, frames]
                    out[level][part].append(float(weighted_mse(*one)))
    return out


def left_over(found: Losses, without: Losses) -> dict[str, dict[str, list[float]]]:
    """The loss with a memory as a share of that without, level -> part -> ``[mean, low, high]``."""
    rows: dict[str, dict[str, list[float]]] = {}
    for level, parts in found.items():
        rows[str(level)] = {}
        for part, values in parts.items():
            base = dict(enumerate(without[level][part]))
            mean = sum(base.values()) / len(base)
            d: Interval = paired_difference(dict(enumerate(values)), base)
            rows[str(level)][part] = [1 + v / mean for v in (d.mean, d.low, d.high)]
    return rows


def main() -> None:
    """Command line of this module."""
    from st2v_lib.loading import load

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", type=Path, nargs="*", default=[], help="folders of st2v train ARM, of one base model")
    parser.add_argument("--clips", type=int, default=48)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, help="write the numbers to this JSON file")
    args = parser.parse_args()
    shipped = Arm("cam-shipped", {"apm": None}, folder=weights_dir("tiny"))
    results, clips, without = {}, None, None
    for arm in (shipped, *(trained_arm(folder) for folder in args.arms)):
        pipe = load("tiny", args.device, arm.folder)
        if clips is None:
            clips = make_clips(pipe, args.clips)
            without = losses(pipe, clips, memory=False)
        pipe.cfg = arm.config(pipe.cfg)
        rows = left_over(losses(pipe, clips), without)
        results[arm.name] = {"clips": args.clips, "training": arm.record, "left_over": rows}
        print(f"{arm.name}: loss that is left, of that without memory; carried frames, new frames")
        for level, parts in rows.items():
            cells = "  ".join(f"{p} {v[0]:.1%} [{v[1]:.1%}, {v[2]:.1%}]" for p, v in parts.items())
            print(f"  t = {level:>3}: {cells}", flush=True)
    if args.out:
        args.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
