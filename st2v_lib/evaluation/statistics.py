"""Means with intervals, and differences between arms on the same videos.

The unit is the video: frames and seams of one video are not independent, and neither are training seeds of one arm on
one video, so values are averaged within a video first. A share of yes-or-no values has Wilson's interval, which is not
empty at 0 or 100 %; any other mean has a percentile bootstrap over videos, with a fixed seed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

DRAWS = 10_000
Z95 = 1.959964
LEAST = 6  # videos for a verdict: of fewer not even differences of one sign are unlikely to be chance (2 / 2**5 > 5 %)


@dataclass(frozen=True)
class Interval:
    """A mean over ``n`` videos and its interval; nan where there is too little to tell."""

    mean: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return "–" if math.isnan(self.mean) else f"{self.mean:.4g} [{self.low:.4g}, {self.high:.4g}]"


def interval(
    values: Sequence[float], share: bool = False, level: float = 0.95, draws: int = DRAWS, seed: int = 0
) -> Interval:
    """The mean of one value a video and its interval; nan are left out of ``n``.

    Args:
        values: one for each video.
        share: they say yes or no: Wilson's interval if all are 0 or 1 (and the level 0.95), else a bootstrap.
        level: of the interval.
        draws, seed: of the bootstrap.

    Raises:
        ValueError: for a level outside (0, 1).
    """
    if not 0 < level < 1:
        raise ValueError(f"expected a level between 0 and 1, got {level}")
    kept = np.asarray([v for v in values if v is not None and not math.isnan(v)], dtype=np.float64)
    n = len(kept)
    if n == 0:
        return Interval(math.nan, math.nan, math.nan, 0)
    mean = float(kept.mean())
    if n == 1:
        return Interval(mean, math.nan, math.nan, 1)
    if share and level == 0.95 and np.isin(kept, (0.0, 1.0)).all():
        return Interval(mean, *wilson(int(kept.sum()), n), n)
    return Interval(mean, *bootstrap(kept, level, draws, seed), n)


def wilson(hits: int, n: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's interval of a share of ``hits`` in ``n``."""
    share, z2 = hits / n, z * z
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = z * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return max(0.0, middle - half), min(1.0, middle + half)


def bootstrap(values: np.ndarray, level: float = 0.95, draws: int = DRAWS, seed: int = 0) -> tuple[float, float]:
    """Percentile bootstrap of the mean."""
    rng, n = np.random.default_rng(seed), len(values)
    rounds = -(-draws // 1000)
    means = np.concatenate([values[rng.integers(n, size=(1000, n))].mean(1) for _ in range(rounds)])
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired_difference(
    a: Mapping[object, float], b: Mapping[object, float], level: float = 0.95, draws: int = DRAWS, seed: int = 0
) -> Interval:
    """Mean of ``a - b`` over the videos that both have a value for, with a bootstrap over videos."""
    both = [k for k in a if k in b and not (_missing(a[k]) or _missing(b[k]))]
    differences = np.asarray([a[k] - b[k] for k in both], dtype=np.float64)
    if len(differences) < 2:
        return Interval(float(differences.mean()) if len(differences) else math.nan, math.nan, math.nan, len(both))
    return Interval(float(differences.mean()), *bootstrap(differences, level, draws, seed), len(both))


def over_runs(runs: Sequence[Mapping[object, float]]) -> dict[object, float]:
    """One value a video from several runs (seeds) on the same videos: the mean of those that have one."""
    keys = dict.fromkeys(key for run in runs for key in run)
    found = {key: [run[key] for run in runs if key in run and not _missing(run[key])] for key in keys}
    return {key: math.fsum(values) / len(values) if values else math.nan for key, values in found.items()}


def verdict(difference: Interval, better: int) -> str:
    """What an interval of (this arm - reference) says: ``"better"``, ``"worse"``, ``"tie"`` or ``"too few"``.

    A bootstrap of a handful of values can only redraw these: two equal ones have an interval of no width.

    Args:
        better: 1 where more is better, -1 where less is.
    """
    if math.isnan(difference.low) or difference.n < LEAST:
        return "too few"
    if difference.low <= 0 <= difference.high:
        return "tie"
    return "better" if (difference.mean > 0) == (better > 0) else "worse"


def _missing(value: float | None) -> bool:
    return value is None or math.isnan(value)
