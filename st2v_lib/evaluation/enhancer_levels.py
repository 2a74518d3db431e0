"""What the enhancer gains or loses at each SDEdit start level, against the true 128-pixel rendering.

    python -m st2v_lib.evaluation.enhancer_levels --split dev --videos 8

Input is the true 64-pixel rendering, so that stage 3 is judged apart from the stages before it, and the VAE's own way
there and back, of the truth and of what stage 3 starts from, tells what of it is the VAE's. Prints PSNR to the
truth and the energy above 64-pixel detail relative to the truth's; writes ``data/results/enhancer_levels_SPLIT.json``.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

import torch
import torch.nn.functional as F

from st2v_lib.backbone import decode_latents, encode_frames
from st2v_lib.enhancer import enhance_video, upscale
from st2v_lib.manifest import data_dir
from st2v_lib.sampling import chunk_generator
from st2v_lib.world.captions import sparse_caption
from st2v_lib.world.render import render
from st2v_lib.world.scene import sample_scene

LEVELS = (5, 20, 50, 100, 200, 300, 400, 500, 599)


def psnr(video: torch.Tensor, truth: torch.Tensor) -> float:
    """Decibels over all of a batch, pixels in [0, 1]."""
    return float(-10 * torch.log10(((video - truth) / 2).square().mean()))


def fine_energy(video: torch.Tensor) -> float:
    """Mean square of what halving and doubling the resolution takes away."""
    frames = video.flatten(0, 1)
    coarse = F.interpolate(F.interpolate(frames, scale_factor=0.5, mode="area"), scale_factor=2, mode="bicubic")
    return float((frames - coarse).square().mean())


@torch.no_grad()
def evaluate(pipe, split: str = "dev", videos: int = 8, levels: tuple[int, ...] = LEVELS) -> dict:
    """PSNR and relative fine energy of both enlargements, of the VAE alone and of each level."""
    cfg = pipe.cfg.enhancer
    scenes = [sample_scene(11, i, split) for i in range(videos)]
    frames = {s: render(scenes, cfg.chunk_frames, 40, s, pipe.device) for s in (pipe.cfg.size, cfg.size)}
    small, truth = frames[pipe.cfg.size], frames[cfg.size]
    text = torch.cat([pipe.encode_text(sparse_caption(s)) for s in scenes])
    null = pipe.encode_text("").expand_as(text)
    out = {name: upscale(small, cfg.size, name) for name in ("bilinear", "bicubic")}
    for name, video in {"vae of the truth": truth, "vae of bicubic": out["bicubic"].clamp(-1, 1)}.items():
        out[name] = decode_latents(pipe.vae, encode_frames(pipe.vae, video, 16), 16)
    for level in levels:
        at = dataclasses.replace(cfg, start_timestep=level)
        noise = chunk_generator(0, 0)
        made = enhance_video(small, pipe.vae, pipe.enhancer, text, null, at, noise, batch_size=16)
        out[f"level {level}"] = made.to(truth.device)
    energy = fine_energy(truth)
    return {k: {"psnr": psnr(v, truth), "fine_energy": fine_energy(v) / energy} for k, v in out.items()}


def main() -> None:
    """Command line of this module."""
    from st2v_lib import load

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--split", choices=("dev", "test"), default="dev")
    parser.add_argument("--videos", type=int, default=8)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--weights", type=Path, help="a folder of weights other than the shipped ones")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    pipe = load("tiny", args.device, args.weights) if args.weights else load("tiny", args.device)
    result = evaluate(pipe, args.split, args.videos)
    out = args.out or data_dir() / "results" / f"enhancer_levels_{args.split}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"split": args.split, "videos": args.videos, "results": result}, indent=1) + "\n")
    for name, r in result.items():
        print(f"{name:18s} {r['psnr']:6.2f} dB   fine energy {r['fine_energy']:.2f} of the truth's")


if __name__ == "__main__":
    main()
