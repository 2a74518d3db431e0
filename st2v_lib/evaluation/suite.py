"""What a suite is: cases, arms and a function that makes and scores a batch of videos.

An arm is a change of the pipeline's config, or weights trained by ``st2v train ARM``; nothing else differs between the
arms of a suite, which see the same cases, first chunks and noise.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from st2v_lib.baselines import RIVALS, parts_of
from st2v_lib.config import StreamingT2VConfig
from st2v_lib.errors import UserError
from st2v_lib.evaluation.cases import Case
from st2v_lib.manifest import weights_dir

ARM_FILE = "arm.json"  # what training.rivals writes beside an arm's weights


@dataclass(frozen=True)
class Options:
    """What the user may set, part of every run's identity.

    Attributes:
        frames: length of each video; the suite's own when ``None``.
        sprites, speed: the kind of scenes, see ``cases.scene_of``.
    """

    frames: int | None = None
    sprites: int = 1
    speed: str = "world"


@dataclass(frozen=True)
class Arm:
    """One line of a table.

    Attributes:
        name: its file name and its place in tables.
        changes, sampling, enhancer: fields to change in the config, in its sampling and in its enhancer.
        how: what the suite's ``run`` does differently.
        folder: weights of its own; ``None`` for the pipeline's.
        record: how those were trained (``arm.json``).
    """

    name: str
    changes: dict[str, Any] = field(default_factory=dict)
    sampling: dict[str, Any] = field(default_factory=dict)
    enhancer: dict[str, Any] = field(default_factory=dict)
    how: dict[str, Any] = field(default_factory=dict)
    folder: Path | None = None
    record: dict[str, Any] | None = None

    def config(self, cfg: StreamingT2VConfig) -> StreamingT2VConfig:
        """The config with this arm's changes."""
        parts = {"sampling": self.sampling, "enhancer": self.enhancer}
        nested = {k: dataclasses.replace(getattr(cfg, k), **v) for k, v in parts.items() if v}
        return cfg.replace(**self.changes, **nested)


def trained_arm(folder: Path) -> Arm:
    """The arm whose weights lie in ``folder``: CAM and its rivals alone, APM's arms with the CAM trained beside them.

    Raises:
        UserError: when no ``st2v train ARM`` has finished there.
    """
    try:
        record = json.loads((folder / ARM_FILE).read_text())
        kind, phase = record["arm"], record["phase"]
    except (OSError, ValueError, KeyError):
        raise UserError(f"{folder} is no arm: it has no valid {ARM_FILE}; make it with st2v train ARM --out") from None
    name = f"{kind}-clips{record.get('clips', 0)}-train{record['seed']}"
    changes: dict[str, Any] = {"conditioning": phase if phase in RIVALS else "cam"}
    if phase != "apm":
        changes["apm"] = None
    how = {"anchor": "null"} if record.get("options", {}).get("null_anchor") else {}
    return Arm(name, changes, how=how, folder=folder, record=record)


def without_apm(arm: Arm) -> Arm:
    """The same trained weights with α = 0 at inference, ``apm_alpha0-…`` beside ``apm-…``."""
    kind = f"{arm.record['arm']}_alpha0"
    name = kind + arm.name.removeprefix(arm.record["arm"])
    return dataclasses.replace(arm, name=name, changes={**arm.changes, "apm": None}, record={**arm.record, "arm": kind})


@dataclass
class Bench:
    """What a batch is made and scored with.

    Attributes:
        pipe: with the arm's weights and config.
        arm, options: of this run.
        frames: length of the videos.
    """

    pipe: Any
    arm: Arm
    options: Options
    frames: int

    @property
    def reader(self):
        """The reader of the sprite world that lies beside the weights, else the shipped one."""
        return _reader(self._place("reader"), str(self.pipe.device))

    @property
    def clip(self):
        """The small CLIP beside the weights, else the shipped one, for the CLIP score."""
        return _clip(self._place("image_encoder"))

    def _place(self, component: str) -> Path:
        own = Path(getattr(self.pipe.config, "_name_or_path", None) or ".")
        return own if (own / component / "config.json").is_file() else weights_dir("tiny")


@functools.lru_cache(1)
def _reader(place: Path, device: str):
    from st2v_lib.world.reader import load_reader

    return load_reader(device, place / "reader")


@functools.lru_cache(1)
def _clip(place: Path):
    from st2v_lib.metrics.clip_score import load_clip

    return load_clip(place)


@dataclass
class Scored:
    """One video's values by name, and small pictures of it (``uint8 h w 3``) for figures."""

    values: dict[str, float]
    pictures: dict[str, np.ndarray] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Suite:
    """A fair test.

    Attributes:
        name, about: for the command line.
        arms: those that need no weights of their own; trained ones are added by ``--arms``.
        case: ``(split, index, options) -> Case``.
        run: ``(bench, cases, seeds) -> [Scored]``.
        calls: network chunks for one video, for the estimate: ``(options, frames, cfg) -> number``.
        videos, frames, batch: defaults.
        trained: phases whose trained arms make sense here.
        parts: components whose weights the numbers depend on.
    """

    name: str
    about: str
    arms: tuple[Arm, ...]
    case: Callable[[str, int, Options], Case]
    run: Callable[[Bench, list[Case], list[int]], list[Scored]]
    calls: Callable[[Options, int, StreamingT2VConfig], float]
    videos: int
    frames: int
    batch: int = 8
    trained: tuple[str, ...] = ()
    parts: tuple[str, ...] = ("vae", "text_encoder", "image_encoder", "unet", "cam", "apm", *RIVALS, "reader")


def stage_2_calls(options: Options, frames: int, cfg: StreamingT2VConfig) -> float:
    """Chunks of stage 2 for one video of that length."""
    carried = cfg.cam.num_cond_frames if cfg.cam and parts_of(cfg.conditioning)[0] != "none" else cfg.chunk_frames // 2
    return max(0, frames - cfg.chunk_frames) / (cfg.chunk_frames - carried)


def strip(video: torch.Tensor, count: int = 10) -> np.ndarray:
    """``count`` frames of a video ``f 3 h w`` in [-1, 1], evenly spread, side by side with 2 white pixels between."""
    from st2v_lib.video_io import as_frames

    picks = torch.linspace(0, len(video) - 1, min(count, len(video))).round().long()
    frames = [np.pad(f, ((0, 0), (0, 2), (0, 0)), constant_values=255) for f in as_frames(video[picks])]
    return np.concatenate(frames, axis=1)[:, :-2]


def slice_xt(video: torch.Tensor) -> np.ndarray:
    """The x-t slice at mid height, ``f w 3`` uint8."""
    from st2v_lib.metrics.xt_slice import xt_slice

    return xt_slice(video.numpy())
