"""A result of the ablation lab as a value and as a file: videos, numbers, curves and what they were made with.

Recorded results lie in ``data/results/lab``: ``<name>.json`` and, beside it, ``<name>.webp``, the frames of both arms
in one picture, compressed with loss. Numbers in the json were measured before that.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from st2v_lib.errors import OutputError
from st2v_lib.manifest import data_dir
from st2v_lib.notebook.lab_state import Arm, LabState

QUALITY = 80  # of the pictures


@dataclass(frozen=True)
class LabResult:
    """Both arms of one state.

    Attributes:
        state: what was run.
        videos: by arm, ``uint8 f h w 3``.
        seams: by arm, the first frame of each chunk but the first.
        metrics: by arm, values by name; nan where one is not defined.
        curves: by arm, a value for each chunk, by name.
        seconds: it took; weights: what ``weights_mark`` said then.
        recorded: whether it comes from a file.
    """

    state: LabState
    videos: dict[str, np.ndarray]
    seams: dict[str, tuple[int, ...]]
    metrics: dict[str, dict[str, float]]
    curves: dict[str, dict[str, tuple[float, ...]]]
    seconds: float
    weights: str = ""
    recorded: bool = field(default=False, compare=False)

    def differences(self) -> dict[str, float]:
        """Ablated less baseline, for each metric."""
        return {name: self.metrics["ablated"][name] - value for name, value in self.metrics["baseline"].items()}


def save(result: LabResult, folder: Path, name: str) -> None:
    """Writes one result as ``<name>.json`` and ``<name>.webp``."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    strips = [np.concatenate(list(video)) for video in result.videos.values()]  # frames below each other: (f h) w 3
    Image.fromarray(np.concatenate(strips, axis=1)).save(folder / f"{name}.webp", quality=QUALITY, method=6)
    record = {
        "state": {**asdict(result.state), "changes": dict(result.state.changes)},
        "frames": len(result.videos["baseline"]),
        "seams": result.seams, "metrics": result.metrics, "curves": result.curves, "seconds": round(result.seconds, 1),
        "weights": result.weights,
    }  # fmt: skip
    (folder / f"{name}.json").write_text(json.dumps(_plain(record), indent=1, allow_nan=False) + "\n")


def load(path: Path) -> LabResult:
    """Reads what ``save`` wrote, from the path of its json.

    Raises:
        OutputError: it cannot be read; the recorded results are made again by ``lab_run --precompute``.
    """
    from PIL import Image

    try:
        record = json.loads(path.read_text())
        strips = np.asarray(Image.open(path.with_suffix(".webp")).convert("RGB"))
        arms = [np.stack(np.split(half, record["frames"])) for half in np.split(strips, 2, axis=1)]
        state = LabState(**{**record["state"], "baseline": Arm(**record["state"]["baseline"])})
        numbers = {k: {a: _numbers(v) for a, v in record[k].items()} for k in ("metrics", "curves")}
        seams = {arm: tuple(frames) for arm, frames in record["seams"].items()}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise OutputError(
            f"{path.name} is no result of the lab ({error}); make it again: "
            "python -m st2v_lib.notebook.lab_run --precompute"
        ) from None
    videos = dict(zip(("baseline", "ablated"), arms))
    return LabResult(
        state, videos, seams, **numbers, seconds=record["seconds"], weights=record["weights"], recorded=True
    )


def recorded(folder: Path | None = None) -> dict[str, LabResult]:
    """All recorded results by name; a file that cannot be read is left out."""
    out = {}
    for path in sorted((folder or data_dir() / "results" / "lab").glob("*.json")):
        try:
            out[path.stem] = load(path)
        except OutputError:
            continue
    return out


def _plain(x):
    if isinstance(x, dict):
        return {key: _plain(value) for key, value in x.items()}
    if isinstance(x, (list, tuple)):
        return [_plain(value) for value in x]
    if isinstance(x, float):
        return float(f"{x:.5g}") if math.isfinite(x) else None
    return x


def _numbers(values: dict) -> dict:
    number = lambda v: math.nan if v is None else float(v)  # noqa: E731
    return {k: tuple(map(number, v)) if isinstance(v, list) else number(v) for k, v in values.items()}
