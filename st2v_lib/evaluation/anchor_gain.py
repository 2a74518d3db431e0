"""Does the denoiser listen to the anchor? Denoising loss with the true anchor, a grey one, and one of another video.

    python -m st2v_lib.evaluation.anchor_gain --weights runs/arms/apm-2000-0

Generated videos are a coarse judge of APM: a few dozen cases, each read once. Here every segment is one in which the
sprite was seen in the anchor, is hidden in the carried frames and returns in the new ones (training's ``RETURNING``
share), noise and level are the same for all three anchors, and only the new frames count, so that a gain of a percent
can be seen. A gain over *wrong* alone says that the anchor's content is used; over *grey*, that it helps to have one.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import torch
from torch import Tensor

from st2v_lib.evaluation.statistics import paired_difference
from st2v_lib.manifest import weights_dir
from st2v_lib.sampling import make_predictor, make_scheduler
from st2v_lib.training.apm import anchor_frame
from st2v_lib.training.cam import seen_frames
from st2v_lib.training.data import SEGMENT, Captioner, Pool
from st2v_lib.training.diffusion import noised, weighted_mse

LEVELS = (900, 700, 500, 300, 100)
SCENES = 987_654  # seed of the pool: no training phase uses it
AT_ONCE = 8
ANCHORS = ("true", "grey", "wrong")


@torch.no_grad()
def losses(pipe, clips: int = 48, levels: tuple[int, ...] = LEVELS, seed: int = 0) -> dict[int, dict[str, list[float]]]:
    """Loss on the new frames of each segment: level -> anchor -> one number a segment.

    Args:
        pipe: with CAM and APM.
        clips: segments, all with a sprite that returns.
        levels: timesteps.
        seed: of picks and noise.
    """
    cfg, rng = pipe.cfg, random.Random(f"gain/{seed}")
    chunk, keep = cfg.chunk_frames, cfg.cam.num_cond_frames
    pool = Pool(vae=pipe.vae, seed=SCENES + seed, capacity=clips, returning=1.0)
    pool.grow(clips)
    first = SEGMENT - chunk
    picks, back = list(range(clips)), [first] * clips
    latents, mask = (pool.take(name, picks, back, chunk) for name in ("latents", "masks"))
    scenes, starts = [s for s, _ in pool.scenes], [t for _, t in pool.scenes]
    cond = seen_frames(pipe.vae, latents[:, :, :keep], scenes, [t + first for t in starts], rng)
    at = [anchor_frame(pool.areas[i, :chunk].tolist(), rng) for i in picks]
    shown = seen_frames(pipe.vae, pool.take("latents", picks, at, 1), scenes, [t + a for t, a in zip(starts, at)], rng)
    text = pipe.text_encoder(Captioner()(scenes, rng, 0.0).to(pipe.device)).last_hidden_state
    anchors = {"true": shown, "grey": torch.full_like(shown, cfg.null_pixel), "wrong": shown.roll(1, 0)}
    tokens = {
        name: torch.cat([text, pipe.apm(pipe.encode_image(frames).to(pipe.apm.dtype))], dim=1)
        for name, frames in anchors.items()
    }
    pipe.cam.attach(pipe.unet)
    pipe.apm.attach(pipe.unet)
    scheduler = make_scheduler(cfg.scheduler, "ddim")
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(seed)).to(latents)
    out = {}
    for level in levels:
        t = torch.full((clips,), level, device=latents.device)
        x, target = noised(scheduler, latents, noise, t)
        out[level] = {name: per_clip(pipe, x, t, tokens[name], cond, target, mask, keep) for name in ANCHORS}
    return out


def per_clip(
    pipe, x: Tensor, t: Tensor, tokens: Tensor, cond: Tensor, target: Tensor, mask: Tensor, keep: int
) -> list[float]:
    """The loss of frames ``keep`` and later of each clip."""
    out = []
    for part in torch.arange(len(x)).split(AT_ONCE):
        predict = make_predictor(pipe.unet, pipe.cam, cond[part])
        found = predict(x[part], t[part], tokens[part])
        for i, one in zip(part.tolist(), found):
            new = (one[None, :, keep:], target[i : i + 1, :, keep:], mask[i : i + 1, keep:])
            out.append(float(weighted_mse(*new)))
    return out


def gains(found: dict[int, dict[str, list[float]]]) -> dict[str, dict[str, list[float]]]:
    """Loss with another anchor less that with the true one, as shares of the latter: ``[mean, low, high]``."""
    rows = {}
    for level, by_anchor in found.items():
        true = dict(enumerate(by_anchor["true"]))
        mean = sum(true.values()) / len(true)
        rows[str(level)] = {"loss": [mean]}
        for name in ANCHORS[1:]:
            d = paired_difference(dict(enumerate(by_anchor[name])), true)
            rows[str(level)][name] = [d.mean / mean, d.low / mean, d.high / mean]
    return rows


def main() -> None:
    """Command line of this module."""
    from st2v_lib.loading import load

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, nargs="+", default=[weights_dir("tiny")], help="folders with APM")
    parser.add_argument("--clips", type=int, default=48)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, help="write the numbers to this JSON file")
    args = parser.parse_args()
    results = {}
    for folder in args.weights:
        pipe = load("tiny", args.device, folder)
        alpha = torch.stack([m.alpha for m in pipe.apm.mixes.values()]).abs().mean().item()
        rows = gains(losses(pipe, args.clips))
        results[folder.name] = {"clips": args.clips, "mean_abs_alpha": alpha, "gain": rows}
        print(f"{folder.name}: mean |alpha| {alpha:.3f}; loss with another anchor, against the true one")
        for level, row in rows.items():
            cells = "  ".join(f"{n} {row[n][0]:+.2%} [{row[n][1]:+.2%}, {row[n][2]:+.2%}]" for n in ANCHORS[1:])
            print(f"  t = {level:>3}: loss {row['loss'][0]:.4f}  {cells}", flush=True)
    if args.out:
        args.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
