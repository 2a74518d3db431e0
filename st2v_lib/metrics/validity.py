"""How well does each metric rank videos as the truth does? Metric x graded damage, as rank correlations.

    python -m st2v_lib.metrics.validity

renders scenes of the sprite world's test split, damages each in known ways and degrees, measures everything, and writes
``data/results/metric_validity.json``. For each scene the damage levels are ranked by the metric; Spearman's correlation
with the true level is averaged over the scenes: 1, the metric always ranks as the truth does; 0, it does not notice;
-1, it prefers the damaged video. ``across`` is the correlation over all scenes together, which is lower where scenes
differ more than damages do; ``prefers_damage`` is the share of scenes whose most damaged video scores better than the
clean one.

What the table cannot tell: how metrics do on damage of other kinds, on damage mixed, and on the pictures of other
models. Scores that rest on the reader are at home in this world; the others do not know it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from st2v_lib import __version__
from st2v_lib.manifest import data_dir, sha256, weights_dir
from st2v_lib.metrics.base import MetricResult, mean
from st2v_lib.metrics.clip_score import area_preprocess, load_clip
from st2v_lib.metrics.scene_cuts import scene_cuts
from st2v_lib.metrics.table import measure
from st2v_lib.metrics.truth import ANCHOR, STRIDE, TruthScores
from st2v_lib.video_io import to_uint8
from st2v_lib.world.captions import sparse_caption
from st2v_lib.world.degrade import blur
from st2v_lib.world.reader import load_reader
from st2v_lib.world.render import render
from st2v_lib.world.scene import MOTIONS, PATTERNS, SIZE_RANGE, Motion, Scene, sample_scene

SEED, FRAMES, LEVELS = 20260303, 80, (0.0, 0.25, 0.5, 0.75, 1.0)
SEAMS = tuple(range(ANCHOR, FRAMES, STRIDE))
OVERLAPS = tuple((start, start + 8) for start in range(16, FRAMES - 8, 16))  # of chunks of 24 with 8 in common
LATER = FRAMES - ANCHOR  # frames that can be damaged: the first chunk never is

LOWER = (
    "warp_error", "mawe_code", "mawe_paper", "mawe static pairs", "flow_deviation", "flow_deviation, overlaps",
    "motion_smoothness", "flicker", "scuts", "scuts, min_scene_len 1", "xt_seam", "drift_colour_abs",
    "drift_contrast_abs", "drift_sharpness_abs", "drift_motion_abs", "drift_clip_distance_abs", "seam_residual",
    "identity_pattern", "identity_shade", "identity_size", "|1 - motion_kept|",
)  # fmt: skip
HIGHER = (
    "motion", "high_pass_correlation", "high_pass, overlaps", "long_gap", "clip_score", "world_colour", "world_shape",
    "world_motion", "object_permanence",
)  # fmt: skip


# ------------------------------------------------------------------------------------------------------ damages


def at_times(scene: Scene, times: Tensor) -> Tensor:
    """The scene at any real times, ``f 3 64 64``."""
    return render([scene] * len(times), 1, times.tolist())[:, 0]


def _tail(level: float) -> int:
    """First of the last ``level`` of the later frames."""
    return FRAMES - round(LATER * level)


def _from(clean: Tensor, level: float, other: Scene) -> Tensor:
    """The clean video, which goes over to another scene for its last part."""
    start = _tail(level)
    return clean if start == FRAMES else torch.cat([clean[:start], render(other, FRAMES - start, start)[0]])


def _blurred(scene: Scene, clean: Tensor, level: float, rng: random.Random) -> Tensor:
    return blur(clean, torch.linspace(0, 2.5 * level, FRAMES))


def _jumps(scene: Scene, clean: Tensor, level: float, rng: random.Random) -> Tensor:
    times = torch.arange(FRAMES, dtype=torch.float64)
    odd = (times >= ANCHOR) & ((times - ANCHOR) // STRIDE % 2 == 0)  # every other chunk lies up to 12 frames ahead
    return at_times(scene, times + 12 * level * odd)


def _ghosts(scene: Scene, clean: Tensor, level: float, rng: random.Random) -> Tensor:
    out, late = clean.clone(), render(scene, FRAMES, 3)[0]  # overlaps are averages of chunks that do not agree
    for start, stop in OVERLAPS:
        out[start:stop] = torch.lerp(clean[start:stop], late[start:stop], 0.5 * level)
    return out


def _swapped(scene: Scene, clean: Tensor, level: float, rng: random.Random) -> Tensor:
    sprite = scene.sprites[0]
    pattern = PATTERNS[(PATTERNS.index(sprite.pattern) + rng.randrange(1, 4)) % 4]
    stranger = replace(sprite, pattern=pattern, shade=(sprite.shade + 0.5) % 1, size=sum(SIZE_RANGE) - sprite.size)
    return _from(clean, level, replace(scene, sprites=(stranger,)))


def _extra(scene: Scene, clean: Tensor, level: float, rng: random.Random) -> Tensor:
    sprite = scene.sprites[0]
    moved = {  # elsewhere on the path of a bounce, across the circle, the other way from side to side
        "bounce": replace(sprite.motion, x=sprite.motion.x + 0.8, y=sprite.motion.y + 0.5),
        "orbit": replace(sprite.motion, vy=sprite.motion.vy + 0.5),
        "zigzag": replace(sprite.motion, x=sprite.motion.x + 1.0),
    }
    twin = replace(sprite, motion=moved[sprite.motion.kind])
    return _from(clean, level, replace(scene, sprites=(sprite, twin)))


def _lost(scene: Scene, clean: Tensor, level: float, rng: random.Random) -> Tensor:
    far_away = replace(scene.sprites[0], motion=Motion("orbit", -5.0, -5.0, 0.1, 0.0, radius=0.1))
    return _from(clean, level, replace(scene, sprites=(far_away,)))


def _slowing(scene: Scene, clean: Tensor, level: float, rng: random.Random) -> Tensor:
    speed = torch.ones(FRAMES - 1, dtype=torch.float64)
    speed[ANCHOR - 1 :] = torch.linspace(1, 1 - level, LATER, dtype=torch.float64)
    return at_times(scene, torch.cat([torch.zeros(1, dtype=torch.float64), speed.cumsum(0)]))


def _frozen(scene: Scene, clean: Tensor, level: float, rng: random.Random) -> Tensor:
    return clean[torch.arange(FRAMES).clamp(max=_tail(level) - 1)]


def _reversed(scene: Scene, clean: Tensor, level: float, rng: random.Random) -> Tensor:
    turn = _tail(level) - 1
    times = torch.arange(FRAMES, dtype=torch.float64)
    return at_times(scene, torch.where(times <= turn, times, 2 * turn - times))


def _tinted(scene: Scene, clean: Tensor, level: float, rng: random.Random) -> Tensor:
    gain = torch.tensor([rng.gauss(0, 1) for _ in range(3)])
    ramp = torch.linspace(0, level, FRAMES).view(-1, 1, 1, 1)
    return ((clean + 1) * (1 + 0.4 * ramp * (gain / gain.norm()).view(3, 1, 1)) - 1).clamp(-1, 1)


def _flickering(scene: Scene, clean: Tensor, level: float, rng: random.Random) -> Tensor:
    sign = (-1.0) ** torch.arange(FRAMES).view(-1, 1, 1, 1)
    return (clean + 10 / 127.5 * level * sign).clamp(-1, 1)


def _cut(scene: Scene, clean: Tensor, level: float, rng: random.Random) -> Tensor:
    count = round(len(SEAMS) * level)
    cuts = [SEAMS[i * len(SEAMS) // count] for i in range(count)]
    out = clean.clone()
    for start in cuts:
        other = sample_scene(rng.randrange(2**30), 0, "test", num_sprites=1, motion=scene.motion)
        out[start:] = render(other, FRAMES - start, start)[0]
    return out


Damage = Callable[[Scene, Tensor, float, random.Random], Tensor]
DAMAGES: dict[str, Damage] = {
    "blur": _blurred, "jumps": _jumps, "ghosts": _ghosts, "identity swap": _swapped, "extra sprite": _extra,
    "lost sprite": _lost, "slowing": _slowing, "frozen": _frozen, "reversed": _reversed, "colour drift": _tinted,
    "flicker": _flickering, "hard cuts": _cut,
}  # fmt: skip


def damaged(scene: Scene, kind: str, level: float, index: int = 0) -> Tensor:
    """A scene of ``scenes_of``, 80 frames, with one damage; most kinds spare its first 16 frames.

    Args:
        kind: of ``DAMAGES``. Blur up to 2.5 px at the end; jumps by up to 12 frames of the path at each seam; averages
            with the picture 3 frames later inside overlaps; another identity, a second sprite, none, stillness,
            playing backwards in up to all 64 later frames; motion that slows down to nothing; channels that drift by up
            to 40 %; brightness that alternates by up to 10 grey levels; up to eight cuts to other scenes.
        level: from 0 (clean) to 1.
        index: draws what is random in a damage; the same at all levels.

    Returns:
        ``f 3 64 64`` in [-1, 1].

    Raises:
        ValueError: unknown kind, a level outside [0, 1].
    """
    if kind not in DAMAGES or not 0 <= level <= 1:
        raise ValueError(f"expected a level in 0..1 and a damage of {', '.join(DAMAGES)}; got {level}, {kind!r}")
    clean = render(scene, FRAMES)[0]
    return clean if level == 0 else DAMAGES[kind](scene, clean, level, random.Random(f"{kind}/{index}"))


# -------------------------------------------------------------------------------------------------- measurement


def values_of(found: dict[str, MetricResult]) -> dict[str, float]:
    """The numbers of the table from what ``table.measure`` gives."""
    out = {name: result.value for name, result in found.items()}
    out["mawe static pairs"] = float(len(found["mawe_code"].protocol["static_pairs"]))
    out["flow_deviation, overlaps"] = found["flow_deviation"].protocol["difference"]
    out["high_pass, overlaps"] = found["high_pass_correlation"].protocol["difference"]
    out["|1 - motion_kept|"] = abs(1 - found["motion_kept"].value)
    for part in ("mean_error", "mean_motion"):  # numerator and denominator of the paper's formula
        out[f"mawe_paper {part}"] = found["mawe_paper"].protocol.get(part, math.nan)
    return {name: out[name] for name in (*LOWER, *HIGHER, "mawe_paper mean_error", "mawe_paper mean_motion")}


def scenes_of(count: int, split: str = "test") -> list[Scene]:
    """Scenes of one sprite that is always in sight: it bounces, orbits or zigzags."""
    return [sample_scene(SEED, i, split, num_sprites=1, motion=MOTIONS[i % 3]) for i in range(count)]


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 0, ties share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts + 1) / 2)[inverse]


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's correlation over the places where both are numbers; 0 if one of them never changes.

    NaN with fewer than three places left.
    """
    both = ~(np.isnan(a) | np.isnan(b))
    x, y = ranks(np.asarray(a)[both]), ranks(np.asarray(b)[both])
    if len(x) < 3:
        return math.nan
    x, y = x - x.mean(), y - y.mean()
    norm = math.sqrt((x @ x) * (y @ y))
    return float(x @ y) / norm if norm else 0.0


def summary(values: np.ndarray, lower: bool) -> dict[str, float | int]:
    """One cell of the table.

    Args:
        values: ``scenes levels``, the clean video first.
        lower: whether lower values are better.
    """
    badness = values if lower else -values
    levels = np.array(LEVELS)
    each = np.array([rank_correlation(row, levels) for row in badness])
    defined = each[~np.isnan(each)]
    worst, clean = badness[:, -1], badness[:, 0]
    known = ~(np.isnan(worst) | np.isnan(clean))
    return {
        "correlation": mean(defined.tolist()),
        "sd": float(defined.std(ddof=1)) if len(defined) > 1 else math.nan,
        "across": rank_correlation(badness.ravel(), np.tile(levels, len(values))),
        "prefers_damage": float((worst[known] < clean[known]).mean()) if known.any() else math.nan,
        "undefined": int(np.isnan(values).sum()),
    }


def measure_scene(scene: Scene, index: int, kinds: list[str], reader, clip: tuple) -> dict[str, dict[str, list[float]]]:
    """Measures a scene with every damage at every level: ``{damage: {metric: a value for each level}}``."""

    def numbers(kind: str, level: float) -> dict[str, float]:
        video, prompt = to_uint8(damaged(scene, kind, level, index)), sparse_caption(scene)
        found = measure(
            video, prompt, clip, size=None, preprocess=area_preprocess, seams=SEAMS, overlaps=OVERLAPS,
            truth=TruthScores(prompt, reader, {"seams": SEAMS}),
        )  # fmt: skip
        return values_of(found | {"scuts, min_scene_len 1": scene_cuts(video, min_scene_len=1)})

    clean = numbers(kinds[0], 0.0)
    cells = {kind: [clean, *(numbers(kind, level) for level in LEVELS[1:])] for kind in kinds}
    return {kind: {name: [cell[name] for cell in row] for name in clean} for kind, row in cells.items()}


def summarise(scenes: list[dict[str, dict[str, list[float]]]]) -> dict[str, dict[str, dict]]:
    """The table from ``measure_scene`` of every scene: ``{damage: {metric: summary, with "by_level": means}}``."""
    out = {}
    for kind in scenes[0]:
        out[kind] = {}
        for name in scenes[0][kind]:
            values = np.array([scene[kind][name] for scene in scenes])
            by_level = [mean([v for v in column if not math.isnan(v)]) for column in values.T.tolist()]
            cell = summary(values, name not in HIGHER) if name in (*LOWER, *HIGHER) else {}
            out[kind][name] = cell | {"by_level": by_level}
    return out


def answers(results: dict) -> dict[str, dict[str, float]]:
    """The numbers behind three questions about the paper's metrics.

    6: what SCuts finds and misses; 7: what warp error prefers, and MAWE; 8: how often a wrong video has the higher
    CLIP score.
    """
    cell = lambda metric, damage, key: results[damage][metric][key]  # noqa: E731
    kinds = [kind for kind in DAMAGES if kind in results]
    out = {"6": {}, "7": {}, "8": {}}
    for kind in kinds:
        for metric in ("scuts", "scuts, min_scene_len 1"):
            out["6"][f"{metric}: cuts found at the highest level of {kind}"] = cell(metric, kind, "by_level")[-1]
        for metric in ("warp_error", "mawe_code", "mawe_paper"):
            out["7"][f"{metric} prefers {kind}"] = cell(metric, kind, "prefers_damage")
        out["8"][f"clip_score prefers {kind}"] = cell("clip_score", kind, "prefers_damage")
    return out


def table(results: dict, key: str = "correlation") -> str:
    """The results as text, a line for each metric and a column for each damage."""
    kinds = list(results)
    lines = [" " * 26 + "".join(f"{kind:>14}" for kind in kinds)]
    for name in (*LOWER, *HIGHER):
        lines.append(f"{name:<26}" + "".join(f"{results[kind][name][key]:>14.2f}" for kind in kinds))
    return "\n".join(lines)


def _rounded(x):
    if isinstance(x, dict):
        return {key: _rounded(value) for key, value in x.items()}
    if isinstance(x, list):
        return [_rounded(value) for value in x]
    if isinstance(x, float):
        return float(f"{x:.4g}") if math.isfinite(x) else None
    return x


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=12)
    parser.add_argument("--split", choices=("dev", "test"), default="test")
    parser.add_argument("--out", type=Path, default=data_dir() / "results" / "metric_validity.json")
    args = parser.parse_args(argv)
    reader, clip = load_reader(), load_clip(weights_dir("tiny"))
    done = []
    for index, scene in enumerate(tqdm(scenes_of(args.scenes, args.split))):
        done.append(measure_scene(scene, index, list(DAMAGES), reader, clip))
        write_record(args.out, summarise(done), len(done), args.split)
    print(table(summarise(done)))


def write_record(path: Path, results: dict, scenes: int, split: str) -> None:
    """The result file, whole at any time: a run that is cut short leaves the table of the scenes it has measured."""
    weights = weights_dir("tiny")
    record = {
        "command": f"python -m st2v_lib.metrics.validity --scenes {scenes} --split {split}",
        "config": {
            "split": split, "seed": SEED, "scenes": scenes, "frames": FRAMES, "size": 64, "levels": LEVELS,
            "seams": SEAMS, "overlaps": OVERLAPS, "flow": "dis at 64x64", "spread": "standard deviation over scenes",
        },
        "versions": {"st2v_lib": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "machine": f"{os.cpu_count()} CPU cores",
        "sha256": {
            "reader": sha256(weights / "reader" / "model.safetensors"),
            "clip image tower": sha256(weights / "image_encoder" / "model.safetensors"),
            "clip text tower": sha256(weights / "text_encoder" / "model.safetensors"),
        },
        "better": {name: "lower" if name in LOWER else "higher" for name in (*LOWER, *HIGHER)},
        "answers": _rounded(answers(results)),
        "results": _rounded(results),
    }  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.part")
    unfinished.write_text(json.dumps(record) + "\n")
    unfinished.replace(path)


if __name__ == "__main__":
    main()
