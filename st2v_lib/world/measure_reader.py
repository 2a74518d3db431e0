"""Measures the reader on renderings of the test split, clean and damaged, and records its error.

    python -m st2v_lib.world.measure_reader

writes ``data/results/reader_error.json`` and prints it as a table. Scores that rely on the reader are read beside it.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from st2v_lib import __version__
from st2v_lib.manifest import data_dir, sha256, weights_dir
from st2v_lib.world import degrade
from st2v_lib.world.reader import MIN_VISIBLE, SIZE, Reader, detect, load_reader, read_motion, read_video
from st2v_lib.world.render import Truth, render
from st2v_lib.world.scene import BACKGROUNDS, COLOURS, MOTIONS, PATTERNS, SHAPES, SIZE_RANGE, Scene, sample_scene
from st2v_lib.world.scores import WHOLE, bounces, second_difference

MATCH = 0.12  # frame widths within which a detection belongs to a sprite
SILENT_BELOW = 0.15  # visible share below which a detection is a hallucination
SEED = 20260101


@dataclass(frozen=True)
class Condition:
    """How the frames are treated before they are read; ``size`` is the rendering's."""

    damage: Callable[[Tensor], Tensor]
    size: int = SIZE


def conditions(vae_folder: Path | None = None) -> dict[str, Condition]:
    """The treatments that are measured; the last one only where the VAE's weights are."""
    level = lambda x, v: torch.full((len(x),), v)  # noqa: E731
    g = torch.Generator().manual_seed(SEED)
    out = {
        "clean": Condition(lambda x: x),
        "128 px": Condition(lambda x: F.interpolate(x, SIZE, mode="area"), 128),
        "blur 0.7 px": Condition(lambda x: degrade.blur(x, level(x, 0.7))),
        "blur 1.2 px": Condition(lambda x: degrade.blur(x, level(x, 1.2))),
        "noise 0.1": Condition(lambda x: degrade.noise(x, level(x, 0.1), g).clamp(-1, 1)),
        "noise 0.2": Condition(lambda x: degrade.noise(x, level(x, 0.2), g).clamp(-1, 1)),
        "quantised 0.05": Condition(lambda x: degrade.quantise(x, level(x, 0.05)).clamp(-1, 1)),
    }
    folder = vae_folder or weights_dir("tiny") / "vae"
    if (folder / "config.json").exists():
        from st2v_lib.backbone import PatchedAutoencoderKL

        vae = PatchedAutoencoderKL.from_pretrained(folder).float().eval()
        pass_through = lambda x: vae.decode(vae.encode(x).latent_dist.mode()).sample.clamp(-1, 1)  # noqa: E731
        out["VAE"] = Condition(lambda x: torch.cat([pass_through(part) for part in x.split(32)]))
    return out


def match(sprites: dict[str, Tensor], position: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
    """Which detection shows which true sprite: one to one, as near as can be, within 0.12 frame widths.

    Returns:
        ``(n, 2)`` index of the detection of each sprite, -1 where there is none, and ``(n,)`` detections that show
        nothing of which 15 % can be seen.
    """
    away = torch.cdist(position, sprites["positions"])  # (n, true, detected)
    away = away.masked_fill((sprites["confidence"] == 0)[:, None] | (visible < SILENT_BELOW)[..., None], MATCH)
    away = away.clamp(max=MATCH)
    orders = torch.tensor([[0, 1], [1, 0]])
    costs = torch.stack([away[:, 0, a] + away[:, 1, b] for a, b in orders.tolist()], -1)
    index = orders[costs.argmin(-1)]
    index = torch.where(away.gather(2, index[..., None])[..., 0] < MATCH, index, -1)
    near = (away < MATCH).any(1)
    return index, ((sprites["confidence"] > 0) & ~near).sum(1)


@torch.no_grad()
def frame_errors(reader: Reader, frames: Tensor, scenes: list[Scene], position: Tensor, visible: Tensor) -> dict:
    """The reader's errors on single frames ``(n, 3, 64, 64)`` with true ``position (n, 2, 2)`` and ``visible (n, 2)``.

    Returns:
        Accuracies as shares; ``position`` in pixels (mean and 95 % quantile); ``shade`` and ``size`` as mean absolute
        errors in shares of their range, ``size_r2``. Sprites are taken whole (80 % visible or more) but in names ending
        in ``_part`` (25 to 80 %). ``found``: share of them detected; ``invented``: detections per frame of nothing.
    """
    parts = [detect(reader, chunk) for chunk in frames.split(128)]
    sprites, ground = ({k: torch.cat([p[i][k] for p in parts]) for k in parts[0][i]} for i in (0, 1))
    index, invented = match(sprites, position, visible)
    low, high = SIZE_RANGE
    facts = torch.zeros(len(scenes), 2, 5)
    for n, scene in enumerate(scenes):
        for k, s in enumerate(scene.sprites):
            names = SHAPES.index(s.shape), COLOURS.index(s.colour), PATTERNS.index(s.pattern)
            facts[n, k] = torch.tensor([*names, s.shade, (s.size - low) / (high - low)])
    out = {"invented": float(invented.float().mean())}
    for name, asked in (("", visible >= WHOLE), ("_part", (visible >= MIN_VISIBLE) & (visible < WHOLE))):
        hit = asked & (index >= 0)
        if not hit.any():
            continue
        row, k = hit.nonzero().unbind(1)
        got = {key: v[row, index[row, k]] for key, v in sprites.items()}
        true = facts[row, k]
        away = (got["positions"] - position[row, k]).norm(dim=-1) * SIZE
        out[f"found{name}"] = float(hit.sum() / asked.sum())
        for i, key in enumerate(("shape", "colour", "pattern")):
            out[f"{key}{name}"] = float((got[key].argmax(-1) == true[:, i]).float().mean())
        size = (got["size"] - low) / (high - low)
        out[f"shade{name}"] = float((got["shade"] - true[:, 3]).abs().mean())
        out[f"size{name}"] = float((size - true[:, 4]).abs().mean())
        if not name:
            out["size_r2"] = float(1 - (size - true[:, 4]).square().mean() / true[:, 4].var(correction=0))
        out[f"position{name}"], out[f"position_95{name}"] = float(away.mean()), float(away.quantile(0.95))
    grounds = [s.background for s in scenes]
    kind = torch.tensor([BACKGROUNDS.index(b.kind) for b in grounds])
    colour = torch.tensor([COLOURS.index(b.colour) for b in grounds])
    out["background"] = float((ground["background"].argmax(-1) == kind).float().mean())
    out["background_colour"] = float((ground["background_colour"].argmax(-1) == colour).float().mean())
    shades = torch.tensor([b.shade for b in grounds])
    out["background_shade"] = float((ground["background_shade"] - shades).abs().mean())
    pillar = torch.tensor([s.has_pillar for s in scenes])
    return out | {"pillar": float(((ground["pillar"] > 0.5) == pillar).float().mean())}


def video_errors(reader: Reader, videos: Tensor, scenes: list[Scene], truth: Truth) -> dict[str, float]:
    """Errors that need 16 frames: ``motion`` accuracy, and noise of the path in pixels.

    ``second_difference``: how much the read path's second difference exceeds the true one's on average (the noise of
    a seam residual); ``step``: mean error of a displacement from frame to frame.
    """
    right, bend, step = [], [], []
    for video, scene, position in zip(videos, scenes, truth.position):
        reading = read_video(video, reader, num_sprites=len(scene.sprites))
        named = read_motion(reading, reader).flatten(0, 1)
        named = named[~named.isnan().any(-1)].argmax(-1)
        right.append((named == MOTIONS.index(scene.motion)).float())
        true, read = position[:, : len(scene.sprites)], reading.positions[:, : len(scene.sprites)]
        if len(scene.sprites) == 2 and (read.flip(1) - true).nan_to_num().norm() < (read - true).nan_to_num().norm():
            read = read.flip(1)
        smooth = ~bounces(true)
        bend.append((second_difference(read) - second_difference(true))[smooth])
        step.append((torch.diff(read, dim=0) - torch.diff(true, dim=0)).norm(dim=-1).flatten() * SIZE)
    mean = lambda parts: float(torch.cat(parts).nanmean())  # noqa: E731
    return {"motion": mean(right), "second_difference": mean(bend), "step": mean(step)}


def _scenes(count: int, num_sprites: int) -> list[Scene]:
    motions = MOTIONS if num_sprites == 1 else MOTIONS[:3]
    return [
        sample_scene(SEED, i, "test", num_sprites=num_sprites, motion=motions[i % len(motions)]) for i in range(count)
    ]


@torch.no_grad()
def measure(reader: Reader, treatments: dict[str, Condition], frames: int = 600, videos: int = 120) -> dict:
    """All errors: ``{"one sprite" | "two sprites": {condition: {name: value}}}``."""
    out = {}
    for name, num in (("one sprite", 1), ("two sprites", 2)):
        out[name] = {}
        for label, treat in treatments.items():
            values, scenes = {}, _scenes(frames, num)
            images, truth = render(scenes, 1, [7 * i for i in range(frames)], treat.size, truth="masks")
            values |= frame_errors(
                reader, treat.damage(images[:, 0]), scenes, truth.position[:, 0], truth.visible[:, 0]
            )
            scenes = _scenes(videos, num)
            clips, truth = render(scenes, 16, [11 * i for i in range(videos)], treat.size, truth="masks")
            clips = treat.damage(clips.flatten(0, 1)).unflatten(0, (videos, 16))
            out[name][label] = values | video_errors(reader, clips, scenes, truth)
    return out


def table(results: dict) -> str:
    """The results as text, one column per condition."""
    lines = []
    for name, columns in results.items():
        lines += ["", f"{name:<22}" + "".join(f"{c:>16}" for c in columns)]
        for row in dict.fromkeys(k for c in columns.values() for k in c):
            lines.append(f"{row:<22}" + "".join(f"{c.get(row, math.nan):>16.4f}" for c in columns.values()))
    return "\n".join(lines[1:])


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=data_dir() / "results" / "reader_error.json")
    parser.add_argument("--frames", type=int, default=600)
    parser.add_argument("--videos", type=int, default=120)
    parser.add_argument("--reader", type=Path, default=weights_dir("tiny") / "reader")
    args = parser.parse_args(argv)
    results = measure(load_reader("cpu", args.reader), conditions(), args.frames, args.videos)
    rounded = lambda row: {k: round(v, 5) for k, v in row.items()}  # noqa: E731
    record = {
        "config": {"split": "test", "seed": SEED, "frames": args.frames, "videos": args.videos, "match": MATCH},
        "versions": {"st2v_lib": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "device": "cpu",
        "reader_sha256": sha256(args.reader / "model.safetensors"),
        "noise": rounded({k: results["one sprite"]["clean"][k] for k in ("position", "second_difference", "step")}),
        "results": {n: {c: rounded(row) for c, row in t.items()} for n, t in results.items()},
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(record, indent=1) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
