"""What a metric returns, the mean of one metric over many videos, and which pairs of frames lie in an overlap."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class MetricResult:
    """One metric on one video, or its mean over several.

    Attributes:
        name: the metric, and its variant where there are several.
        value: the number to report; NaN where the metric is not defined (``protocol["undefined"]`` says why).
        per_pair: one value for each pair of consecutive frames; NaN for a pair that was left out of ``value``.
        per_frame: one value for each frame.
        per_video: one value for each video, for results of ``mean_over_videos``.
        protocol: everything another person needs to get the same number: estimator, resolution, thresholds, counts.
    """

    name: str
    value: float
    per_pair: tuple[float, ...] | None = None
    per_frame: tuple[float, ...] | None = None
    per_video: tuple[float, ...] | None = None
    protocol: dict[str, Any] = field(default_factory=dict)

    def by_chunk(self, seams: Sequence[int]) -> tuple[float, ...]:
        """Mean of ``per_frame`` over each chunk; ``seams`` are the first frames of the chunks but the first.

        Raises:
            ValueError: the result has no ``per_frame`` values.
        """
        if self.per_frame is None:
            raise ValueError(f"{self.name} has no value for each frame, so none for each chunk")
        edges = [0, *seams, len(self.per_frame)]
        return tuple(mean(self.per_frame[a:b]) for a, b in zip(edges, edges[1:]))

    def to_dict(self) -> dict[str, Any]:
        """A dict of plain JSON types; NaN becomes None, infinities the strings "inf" and "-inf"."""
        fields = ("name", "value", "per_pair", "per_frame", "per_video", "protocol")
        return {key: _plain(getattr(self, key)) for key in fields if getattr(self, key) is not None}

    def to_json(self, **options) -> str:
        """Strict JSON of ``to_dict``; ``options`` go to ``json.dumps``."""
        return json.dumps(self.to_dict(), allow_nan=False, **options)


def _plain(x: Any) -> Any:
    if isinstance(x, dict):
        return {str(key): _plain(value) for key, value in x.items()}
    if isinstance(x, (list, tuple)):
        return [_plain(value) for value in x]
    if isinstance(x, float) and not math.isfinite(x):
        return None if math.isnan(x) else str(x)
    return x


def undefined(name: str, reason: str, protocol: dict[str, Any] | None = None) -> MetricResult:
    """The result of a metric that has no value on this video, such as motion on a single frame."""
    return MetricResult(name, math.nan, protocol={**(protocol or {}), "undefined": reason})


def mean(values: Sequence[float]) -> float:
    """Mean that does not depend on the order of the values (exactly rounded sum); NaN if there are none."""
    if not values:
        return math.nan
    try:
        return math.fsum(values) / len(values)
    except (OverflowError, ValueError):  # inf - inf
        return math.nan


def touches(overlaps: Sequence[tuple[int, int]], pairs: int) -> list[bool]:
    """Which pairs of frames (i, i + 1) have a frame in an overlap ``(first frame, frame after the last)``.

    Raises:
        ValueError: an overlap that is empty or does not lie in the video.
    """
    inside = [False] * pairs
    for start, stop in overlaps:
        if not 0 <= start < stop <= pairs + 1:
            raise ValueError(f"expected overlaps (start, stop) within 0..{pairs + 1}, got {(start, stop)}")
        inside[max(start - 1, 0) : stop] = [True] * (min(stop, pairs) - max(start - 1, 0))
    return inside


def mean_over_videos(results: Sequence[MetricResult]) -> MetricResult:
    """Mean of one metric over videos; it does not depend on their order or on how they were batched.

    Videos on which the metric is not defined are left out of the mean and counted in ``protocol["undefined_videos"]``.
    Protocol entries that differ between the videos (counts of left-out pairs, say) are kept as lists.

    Raises:
        ValueError: no results, or results of different metrics.
    """
    if not results:
        raise ValueError("expected at least one result, got none")
    if len({result.name for result in results}) > 1:
        raise ValueError(f"expected results of one metric, got {sorted({result.name for result in results})}")
    values = tuple(result.value for result in results)
    protocol: dict[str, Any] = {}
    for key in dict.fromkeys(key for result in results for key in result.protocol if key != "undefined"):
        seen = [result.protocol.get(key) for result in results]
        protocol[key] = seen[0] if all(entry == seen[0] for entry in seen) else seen
    defined = [value for value in values if not math.isnan(value)]
    protocol |= {"videos": len(values), "undefined_videos": len(values) - len(defined)}
    return MetricResult(results[0].name, mean(defined), per_video=values, protocol=protocol)
