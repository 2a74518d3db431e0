"""How well the tiny models follow prompts and join chunks, by the reader, on held-out prompts.

    python -m st2v_lib.evaluation.floors --split dev --prompts 100 --streams 32

``dev`` decides which weights are kept, ``test`` is for reported tables only. Writes ``data/results/floors_SPLIT.json``.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import platform
import time
from pathlib import Path

import torch
from tqdm.auto import tqdm

from st2v_lib.backbone import decode_latents
from st2v_lib.evaluation.scoring import PARTS, nanmean, speed
from st2v_lib.manifest import data_dir, weights_mark
from st2v_lib.metrics.drift import drift
from st2v_lib.sampling import Contexts, chunk_generator, denoise_chunk, make_predictor, make_scheduler, randn
from st2v_lib.streaming import start_stream, stream_chunks
from st2v_lib.world.captions import sparse_caption
from st2v_lib.world.reader import load_reader, read_video
from st2v_lib.world.scene import sample_scene
from st2v_lib.world.scores import caption_accuracy, frames_kept, object_permanence, seam_residual


def prompts_of(split: str, count: int) -> list[str]:
    """One-sprite prompts of the split; every other one in a wording that training never used."""
    scenes = [sample_scene(7, i, split, num_sprites=1) for i in range(count)]
    return [sparse_caption(s, i // 2, held_out=i % 2 == 1) for i, s in enumerate(scenes)]


def tokens(pipe, prompts: list[str]) -> torch.Tensor:
    """Text tokens of several prompts, ``(n, l, d)``."""
    return torch.cat([pipe.encode_text(p) for p in prompts])


@torch.no_grad()
def first_chunks(pipe, prompts: list[str], seed: int, chunk_index: int = 0) -> torch.Tensor:
    """One independent base chunk a prompt, ``(n, 16, 3, h, w)`` in [-1, 1]."""
    cfg, models, s = pipe.cfg, pipe.models(), pipe.cfg.sampling
    scheduler = make_scheduler(cfg.scheduler, s.sampler)
    text, null = tokens(pipe, prompts), tokens(pipe, [""]).expand(len(prompts), -1, -1)
    cells = cfg.size // cfg.vae.downscale
    generator = chunk_generator(seed, chunk_index)
    noise = randn((len(prompts), cfg.unet.in_channels, cfg.chunk_frames, cells, cells), generator, text)
    contexts = Contexts(text, null, scale=s.guidance_scale)
    predict = make_predictor(models.unet)
    latents = denoise_chunk(predict, scheduler, noise, contexts, s.num_inference_steps, s.eta, generator)
    return decode_latents(models.vae, latents).float()


@torch.no_grad()
def streams(pipe, prompts: list[str], first: torch.Tensor, num_chunks: int, seed: int) -> torch.Tensor:
    """The first chunks continued by the pipeline's memories, ``(n, 16 + 8 num_chunks, 3, h, w)``."""
    text, null = tokens(pipe, prompts), tokens(pipe, [""]).expand(len(prompts), -1, -1)
    models = pipe.models(make_scheduler(pipe.cfg.scheduler, pipe.cfg.sampling.sampler))
    state, blocks = start_stream(models, first, seed), [first]
    for block, _ in stream_chunks(models, state, text, null, pipe.cfg.sampling, num_chunks):
        blocks.append(block)
    return torch.cat(blocks, dim=1)


def evaluate(
    pipe,
    split: str,
    prompts: int = 100,
    num_streams: int = 32,
    num_chunks: int = 4,
    seed: int = 0,
    batch: int = 10,
    apart: bool = True,
):
    """Caption accuracy of first chunks, and the seam residual with memories and of independent chunks.

    Returns:
        A dict of scores: shares of videos whose part agrees with the prompt for most of its frames, their 95 %
        half-widths, and medians over seams in pixels at 64; ``apart=False`` leaves the independent chunks out.
    """
    reader, texts = load_reader(pipe.device), prompts_of(split, prompts)
    video = torch.cat(
        [first_chunks(pipe, texts[i : i + batch], seed + i) for i in tqdm(range(0, prompts, batch), "first chunks")]
    )
    readings = [read_video(v, reader, num_sprites=1) for v in video]
    hits = [caption_accuracy(r, t, reader) for r, t in zip(readings, texts)]
    out = {"first_chunk": {}, "n": prompts, "split": split, "seed": seed}
    for part in PARTS:
        share = sum(h[part] > 0.5 for h in hits) / prompts
        out["first_chunk"][part] = {"share": share, "ci95": 1.96 * (share * (1 - share) / prompts) ** 0.5}
    out["first_chunk"]["permanence"] = sum(object_permanence(r, t)["kept"] for r, t in zip(readings, texts)) / prompts
    n, seams = min(num_streams, prompts), [16 + 8 * k for k in range(num_chunks)]
    if n:
        joined, cut = [], []
        for i in tqdm(range(0, n, batch), "streams"):
            part = slice(i, min(i + batch, n))
            joined += list(streams(pipe, texts[part], video[part], num_chunks, seed))
            if apart:
                alone = [first_chunks(pipe, texts[part], seed + i, k + 1)[:, 8:] for k in range(num_chunks)]
                cut += list(torch.cat([video[part], *alone], dim=1))
        for name, group in (("streamed", joined), *([("independent", cut)] if apart else [])):
            read = [read_video(v, reader, num_sprites=1) for v in group]
            window = min(100, len(read[0]) // 2)
            kept = [frames_kept(r, t)[1].float() for r, t in zip(read, texts)]
            speeds = [(speed(r, 0, window), speed(r, len(r) - window, len(r))) for r in read]
            drifts = [drift(v.cpu(), flow=None) for v in group]
            per_seam = torch.tensor([seam_residual(r.positions[:, 0], seams).per_seam for r in read]).flatten()
            late = [caption_accuracy(r[len(r) - 16 :], t, reader) for r, t in zip(read, texts)]
            out[name] = {
                "median_seam_px": float(per_seam.nanmedian()), "seams_read": int((~per_seam.isnan()).sum()),
                "seams": per_seam.numel(),
                "last_16_frames": {p: sum(h[p] > 0.5 for h in late) / n for p in PARTS},
                "permanence_first_16": float(torch.stack([k[:16].mean() for k in kept]).mean()),
                f"permanence_last_{window}": float(torch.stack([k[-window:].mean() for k in kept]).mean()),
                "motion_kept": nanmean([late / early if early else math.nan for early, late in speeds]),
                "drift": {
                    k: nanmean([d[f"drift_{k}"].value for d in drifts])
                    for k in ("colour_signed", "colour_abs", "contrast_signed", "contrast_abs")
                },
            }  # fmt: skip
    return out


def main() -> None:
    """Command line of this module."""
    from st2v_lib import load

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--split", choices=("dev", "test"), default="dev")
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--chunks", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=10, help="videos made together")
    parser.add_argument("--steps", type=int, help="denoising steps, in place of the preset's")
    parser.add_argument("--guidance", type=float, help="guidance scale, in place of the preset's")
    parser.add_argument("--streamed-only", action="store_true", help="no independent chunks")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--weights", type=Path, help="a folder of weights other than the shipped ones")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    pipe = load("tiny", args.device, args.weights) if args.weights else load("tiny", args.device)
    asked = {"num_inference_steps": args.steps, "guidance_scale": args.guidance}
    asked = {name: value for name, value in asked.items() if value is not None}
    pipe.cfg = pipe.cfg.replace(sampling=dataclasses.replace(pipe.cfg.sampling, **asked))
    start, apart = time.time(), not args.streamed_only
    result = evaluate(pipe, args.split, args.prompts, args.streams, args.chunks, args.seed, args.batch, apart)
    result |= {
        "weights": weights_mark(args.weights, idle=("enhancer",)),
        "seconds": round(time.time() - start), "torch": torch.__version__.split("+")[0], "device": str(pipe.device),
        "python": platform.python_version(), "config": json.loads(pipe.cfg.to_json()),
    }  # fmt: skip
    out = args.out or data_dir() / "results" / f"floors_{args.split}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({k: v for k, v in result.items() if k != "config"}, indent=1))


if __name__ == "__main__":
    main()
