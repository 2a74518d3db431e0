"""Trains the reader: the frame net on damaged renderings of the train split, then the motion net on true paths.

Half of the frames are damaged, some in several ways, so that the reader stays right on blurred, noisy and
reconstructed video. A tenth show no sprite; noise and shapeless patches of other pictures are part of the
lesson that most things are not sprites.

    python -m st2v_lib.training.reader --minutes 9
"""

from __future__ import annotations

import argparse
import json
import random
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from st2v_lib.manifest import weights_dir
from st2v_lib.training.common import FitConfig, accelerator, fit, save_folder
from st2v_lib.world import degrade
from st2v_lib.world.reader import GRID, MIN_SEEN, MIN_VISIBLE, SIZE, WINDOW, MotionNet, Reader, load_reader, save_reader
from st2v_lib.world.render import render
from st2v_lib.world.scene import BACKGROUNDS, COLOURS, MOTIONS, PATTERNS, SHAPES, SIZE_RANGE, Scene, sample_scene

IGNORED_FROM = 0.15  # between this visible share and MIN_VISIBLE a sprite is neither asked for nor forbidden
TWO_SHARE, EMPTY_SHARE = 0.3, 0.1
SPRITE_WEIGHTS = {"offset": 1.0, "shape": 1.0, "colour": 0.5, "pattern": 1.5, "size": 2.0, "shade": 2.0, "visible": 0.5}
FRAME_WEIGHTS = {"background": 0.5, "background_colour": 0.5, "background_shade": 1.0, "pillar": 0.25}


def _empty(scene: Scene) -> Scene:
    """The scene with its sprites outside at frame 0."""
    gone = lambda s: replace(s, motion=replace(s.motion, kind="cross", vx=0.03, vy=0.0, gap=18))  # noqa: E731
    return replace(scene, sprites=tuple(gone(s) for s in scene.sprites))


def draw_frames(rng: random.Random, count: int, split: str = "train", size: int = SIZE):
    """Single frames of random scenes, with their scenes and truth.

    Returns:
        Frames ``(n, 3, 64, 64)`` in [-1, 1] (shrunk from ``size``), scenes, and the renderer's truth.
    """
    scenes, starts = [], []
    for i in range(count):
        two = 2 if rng.random() < TWO_SHARE else 1
        motion = {} if two == 1 else {"motion": rng.choice(MOTIONS[:3])}
        scene = sample_scene(rng.randrange(2**31), i, split, num_sprites=two, **motion)
        away = rng.random() < EMPTY_SHARE
        scenes.append(_empty(scene) if away else scene)
        starts.append(0 if away else rng.randrange(400))
    video, truth = render(scenes, 1, starts, size, truth="masks")
    return F.interpolate(video[:, 0], SIZE, mode="area"), scenes, truth


def targets(scenes: list[Scene], position: Tensor, visible: Tensor) -> dict[str, Tensor]:
    """What the frame net should say: cells ``(n, 16, 16)`` and frames ``(n,)``.

    Args:
        position: ``(n, 2, 2)`` in frame widths.
        visible: ``(n, 2)`` shares; 0 for an absent sprite.
    """
    centre = position * GRID - 0.5  # in cells
    cells = torch.stack(torch.meshgrid(torch.arange(GRID), torch.arange(GRID), indexing="xy"), -1).float()
    inside = centre.clamp(0, GRID - 1)
    away = (cells - rearrange(inside, "n s c -> n s 1 1 c")).square().sum(-1)
    asked = (visible >= MIN_VISIBLE)[..., None, None]
    doubtful = ((visible >= IGNORED_FROM) & (visible < MIN_VISIBLE))[..., None, None]
    bump = torch.where(asked, torch.exp(-away / (2 * 0.8**2)), 0.0)
    heat, owner = bump.max(1)  # (n, 16, 16); the nearer sprite owns a cell
    peak = torch.zeros_like(bump)
    index = inside.round().long()
    cell = index[..., 1] * GRID + index[..., 0]
    peak.flatten(2).scatter_(2, cell[..., None], asked[..., 0].float())
    low, high = SIZE_RANGE
    names = lambda s: (SHAPES.index(s.shape), COLOURS.index(s.colour), PATTERNS.index(s.pattern))  # noqa: E731
    row = lambda s: (*names(s), (s.size - low) / (high - low), s.shade)  # noqa: E731
    rows = [[row(s) for s in (*scene.sprites, scene.sprites[0])[:2]] for scene in scenes]
    facts = torch.cat([torch.tensor(rows), visible[..., None]], -1)
    pick = lambda v: v.gather(1, owner.flatten(1)[..., None].expand(-1, -1, v.shape[-1])).unflatten(1, (GRID, GRID))  # noqa: E731
    out = dict(zip(("shape", "colour", "pattern", "size", "shade", "visible"), pick(facts).unbind(-1)))
    grounds = [s.background for s in scenes]
    return out | {
        "heat": heat, "peak": peak.amax(1), "owned": heat * (heat > 0.2), "offset": pick(centre) - cells,
        "care": 1 - (doubtful & (away < 9)).float().amax(1),
        "background": torch.tensor([BACKGROUNDS.index(g.kind) for g in grounds]),
        "background_colour": torch.tensor([COLOURS.index(g.colour) for g in grounds]),
        "background_shade": torch.tensor([g.shade for g in grounds]),
        "pillar": torch.tensor([float(s.has_pillar) for s in scenes]),
    }  # fmt: skip


def damage(frames: Tensor, g: torch.Generator) -> Tensor:
    """Half of the frames as they are, the others blurred, noised, quantised, resampled, bent or tinted at random."""
    n = len(frames)
    hurt = torch.rand(n, generator=g) < 0.6

    def some(share: float, most: float) -> Tensor:
        chosen = hurt & (torch.rand(n, generator=g) < share)
        return torch.where(chosen, most * torch.rand(n, generator=g), 0.0)

    x = degrade.wobble(frames, some(0.3, 0.8), g)
    factor = 1 + 1.2 * float(torch.rand((), generator=g))
    x = torch.where((some(0.3, 1.0) > 0).view(-1, 1, 1, 1), degrade.resample(x, factor), x)
    x = degrade.blur(x, some(0.6, 1.5))
    x = degrade.tint(x, some(0.3, 0.025), g)
    x = degrade.noise(x, some(0.3, 0.10), g, cell=random.Random(int(factor * 1e6)).choice((2, 4, 8)))
    x = degrade.quantise(x, some(0.3, 0.10))
    return degrade.noise(x, some(0.5, 0.25), g).clamp(-1, 1)


def make_batch(seed: int, count: int = 64):
    """Batch number ``n`` of damaged frames with their targets; one in eight is drawn at 128 pixels."""

    def batch(rank: int, n: int) -> dict[str, Tensor]:
        rng = random.Random(f"reader/{seed}/{rank}/{n}")
        g = torch.Generator().manual_seed(rng.randrange(2**62))
        frames, scenes, truth = draw_frames(rng, count, size=128 if n % 8 == 0 else SIZE)
        out = targets(scenes, truth.position[:, 0], truth.visible[:, 0])
        empty = out["heat"].flatten(1).amax(1) == 0
        blobbed = empty & (torch.rand(count, generator=g) < 0.5) | (torch.rand(count, generator=g) < 0.05)
        texture = degrade.blur(frames.roll(1, 0), torch.full((count,), 2.0))
        texture = torch.where((torch.rand(count, generator=g) < 0.5).view(-1, 1, 1, 1), frames.roll(1, 0), texture)
        free = F.interpolate((1 - out["heat"])[:, None], SIZE, mode="bilinear").square() ** 4  # never over a sprite
        patched = degrade.blobs(frames, texture, g)
        frames = torch.where(blobbed.view(-1, 1, 1, 1), frames + free * (patched - frames), frames)
        static = empty & (torch.rand(count, generator=g) < 0.1)
        frames = torch.where(static.view(-1, 1, 1, 1), torch.randn(frames.shape, generator=g) * 0.6, frames)
        return {"frames": damage(frames, g), "known": (~static).float(), **out}

    return batch


class ReaderStep(nn.Module):
    """Focal loss on the heatmap, weighted errors of the attributes around each peak and of the background."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, batch: dict[str, Tensor]):
        maps, frame = self.net(batch["frames"])
        raw, heat, peak = maps["heat"][:, 0], batch["heat"], batch["peak"]
        p = raw.sigmoid()
        right = peak * (1 - p).square() * F.logsigmoid(raw)
        wrong = (1 - peak) * (1 - heat).pow(4) * p.square() * F.logsigmoid(-raw)
        losses = {"heat": -((right + wrong) * batch["care"]).sum() / peak.sum().clamp(min=1)}
        weight = batch["owned"] * batch["visible"].clamp(0.2, 1)
        weight = weight / weight.sum().clamp(min=1e-6)
        for k, scale in SPRITE_WEIGHTS.items():
            value, truth = maps[k], batch[k]
            if k in ("shape", "colour", "pattern"):
                error = F.cross_entropy(value, truth.long(), reduction="none")
            elif k == "offset":
                error = (value - rearrange(truth, "n h w c -> n c h w")).abs().sum(1)
            else:
                error = (value[:, 0] - truth).abs()
            losses[k] = scale * (weight * error).sum()
        known = batch["known"] / batch["known"].sum()
        for k, scale in FRAME_WEIGHTS.items():
            value, truth = frame[k], batch[k]
            if k == "pillar":
                error = F.binary_cross_entropy_with_logits(value[:, 0], truth, reduction="none")
            elif k == "background_shade":
                error = (value[:, 0] - truth).abs()
            else:
                error = F.cross_entropy(value, truth, reduction="none")
            losses[k] = scale * (known * error).sum()
        return sum(losses.values()), {k: v.detach() for k, v in losses.items()}


def draw_paths(seed: int, count: int, split: str = "train", frames: int = 48) -> dict[str, Tensor]:
    """True paths ``(n, frames, 2)`` with visible shares ``(n, frames)``, motion ``(n,)`` and pillar ``(n,)``."""
    rng = random.Random(f"paths/{split}/{seed}")
    scenes = [sample_scene(seed, i, split) for i in range(count)]
    parts = []
    for i in range(0, count, 32):
        some = scenes[i : i + 32]
        truth = render(some, frames, [rng.randrange(400) for _ in some], 16, truth="masks")[1]
        for s, position, visible in zip(some, truth.position, truth.visible):
            for k in range(len(s.sprites)):
                parts.append((position[:, k], visible[:, k], MOTIONS.index(s.motion), float(s.has_pillar)))
    position, visible, motion, pillar = zip(*parts)
    stacked = {"position": torch.stack(position), "visible": torch.stack(visible)}
    return stacked | {"motion": torch.tensor(motion), "pillar": torch.tensor(pillar)}


def make_motion_batch(paths: dict[str, Tensor], seed: int, count: int = 256):
    """Windows of true paths with a reader's faults: jitter, rare wild readings, misses, a wrong pillar, mirroring."""

    def batch(rank: int, n: int) -> dict[str, Tensor]:
        g = torch.Generator().manual_seed(random.Random(f"motion/{seed}/{rank}/{n}").randrange(2**62))
        rand = lambda *s: torch.rand(*s, generator=g)  # noqa: E731
        length = paths["visible"].shape[1]
        row = (rand(count) * len(paths["motion"])).long()[:, None]
        column = (rand(count, 1) * (length - WINDOW + 1)).long() + torch.arange(WINDOW)
        position, visible = paths["position"][row, column], paths["visible"][row, column]
        position = torch.where(rand(count, 1, 2) < 0.5, 1 - position, position)
        position = position + torch.randn(position.shape, generator=g) * 0.012 * rand(count, 1, 1)
        position = torch.where(rand(count, WINDOW, 1) < 0.01, rand(count, WINDOW, 2), position)
        seen = (visible > 0.15 + 0.15 * rand(count, 1)) & (rand(count, WINDOW) > 0.1 * rand(count, 1))
        position = torch.where(seen[..., None], position, torch.nan)
        pillar, motion = paths["pillar"][row[:, 0]], paths["motion"][row[:, 0]]
        pillar = torch.where(rand(count) < 0.02, 1 - pillar, pillar)
        return {"position": position, "pillar": pillar, "motion": motion, "enough": seen.sum(1) >= MIN_SEEN}

    return batch


class MotionStep(nn.Module):
    """Cross entropy over windows that show the sprite often enough."""

    def __init__(self, net: MotionNet):
        super().__init__()
        self.net = net

    def forward(self, batch: dict[str, Tensor]):
        logits, enough = self.net(batch["position"], batch["pillar"]).float(), batch["enough"]
        right = (logits.argmax(1) == batch["motion"])[enough].float().mean()
        return F.cross_entropy(logits[enough], batch["motion"][enough]), {"accuracy": right}


def train(minutes: float, out: Path, run_dir: Path, device: str = "auto", seed: int = 0, max_steps: int | None = None):
    """Trains both nets (a tenth of the time goes to the motions) and writes them; returns the last logged values."""
    torch.manual_seed(seed)
    acc = accelerator(device)
    reader = Reader()
    cfg = FitConfig("reader", 0.9 * minutes, lr=2e-3, ema_decay=0.995, decay=0.35, max_steps=max_steps, seed=seed)
    logged = {"frames": fit(ReaderStep(reader.net), make_batch(seed), cfg, run_dir, acc)}
    paths = draw_paths(seed, 4000 if max_steps is None else 64)
    cfg = FitConfig("motion", 0.1 * minutes, lr=2e-3, ema_decay=0.99, max_steps=max_steps, seed=seed)
    logged["motions"] = fit(MotionStep(reader.motion), make_motion_batch(paths, seed), cfg, run_dir / "motion", acc)
    if acc.is_main_process:
        save_folder(out, lambda part: save_reader(reader, part))
        load_reader("cpu", out)
        (run_dir / "result.json").write_text(json.dumps(logged, indent=2) + "\n")
    return logged


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--out", type=Path, default=weights_dir("tiny") / "reader")
    parser.add_argument("--run-dir", type=Path, default=Path("runs/reader"))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-steps", type=int)
    args = parser.parse_args(argv)
    print(json.dumps(train(args.minutes, args.out, args.run_dir, args.device, args.seed, args.max_steps), indent=2))


if __name__ == "__main__":
    main()
