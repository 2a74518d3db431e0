"""Scores of a generated video against the truth of its prompt, from what the reader saw.

Each score says what it cannot see, and each is to be read beside the reader's own error, measured on renderings and
recorded in ``data/results/reader_error.json`` (:func:`reader_error`). Speeds and residuals are in pixels of the
64-pixel frame. nan means that there was nothing to measure; average speed and identity only beside
:func:`object_permanence`, since frames without a sprite drop out of them silently.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor

from st2v_lib.errors import InputError
from st2v_lib.manifest import data_dir
from st2v_lib.world.captions import PromptTruth, parse_prompt
from st2v_lib.world.reader import Reader, Reading, read_motion, read_video
from st2v_lib.world.scene import BACKGROUNDS, COLOURS, HIDING_MOTIONS, MAX_GAP, MOTIONS, PATTERNS, SHAPES, SIZE_RANGE

PIXELS = 64  # positions in frame widths times this are the pixels reported
WHOLE = 0.8  # visible share from which pattern, shade and size are compared
LONGEST_GAP = MAX_GAP + 17  # frames that cross and hide can leave the sprite unseen: fully hidden, partly, a margin
BOUNCE_TOLERANCE = 0.8  # pixels: how far a reflected step may be from the mirrored one


def reader_error(path: Path | None = None) -> dict:
    """The reader's recorded error (see ``measure_reader``)."""
    return json.loads((path or data_dir() / "results" / "reader_error.json").read_text())


def _truth(prompt: str | PromptTruth) -> PromptTruth:
    return parse_prompt(prompt) if isinstance(prompt, str) else prompt


def _mean(values: Tensor) -> float:
    """Mean of what is not nan; nan when nothing is left."""
    kept = values[~values.isnan()]
    return float(kept.double().mean()) if kept.numel() else math.nan


def caption_accuracy(reading: Reading, prompt: str | PromptTruth, reader: Reader) -> dict[str, float]:
    """How much of the video agrees with the prompt, each part by itself.

    Args:
        reading: of a video of any length (16 frames or more for the motion).

    Returns:
        Shares in [0, 1]: ``colour`` and ``shape`` of the frames that show a sprite (two sprites are matched with the
        caption in the better of both orders; 0 for a sprite never seen), ``motion`` of 16-frame windows in which it can
        be told (0 if there is none), ``background`` and ``background_colour`` of all frames. nan for what the prompt
        does not say. A video counts as right where the share exceeds a half.
    """
    truth = _truth(prompt)
    out = dict.fromkeys(("colour", "shape", "motion", "background", "background_colour"), math.nan)
    seen = reading.seen

    def share(track: int, sprite: int, part: str) -> float:
        colour, shape = truth.sprites[sprite]
        asked = COLOURS.index(colour) if part == "colour" else SHAPES.index(shape)
        hit = getattr(reading, part)[seen[:, track], track].argmax(-1) == asked
        return float(hit.float().mean()) if len(hit) else 0.0

    tracks = range(min(len(truth.sprites), 2))
    orders = [tracks] if len(tracks) < 2 else [tracks, tracks[::-1]]
    if len(tracks):
        options = [{p: [share(t, s, p) for s, t in enumerate(o)] for p in ("colour", "shape")} for o in orders]
        best = max(options, key=lambda o: sum(o["colour"]) + sum(o["shape"]))
        out |= {p: sum(v) / len(v) for p, v in best.items()}
    if truth.motion is not None and len(reading) >= 16:
        named = read_motion(reading, reader)[:, : max(len(tracks), 1)].flatten(0, 1)
        named = named[~named.isnan().any(-1)].argmax(-1)
        out["motion"] = float((named == MOTIONS.index(truth.motion)).float().mean()) if len(named) else 0.0
    for part, asked, names in (
        ("background", truth.background, BACKGROUNDS),
        ("background_colour", truth.background_colour, COLOURS),
    ):
        if asked is not None:
            out[part] = float((getattr(reading, part).argmax(-1) == names.index(asked)).float().mean())
    return out


@dataclass(frozen=True)
class Identity:
    """What only memory keeps, of two tracks: ``pattern (2, 4)`` mean probabilities, ``shade (2,)``, ``size (2,)``.

    Shade is in [0, 1]; size is 0 for the world's smallest sprite and 1 for its largest. nan where never seen whole.
    """

    pattern: Tensor
    shade: Tensor
    size: Tensor


def _relative(size: Tensor) -> Tensor:
    return (size - SIZE_RANGE[0]) / (SIZE_RANGE[1] - SIZE_RANGE[0])


def _whole(reading: Reading) -> Tensor:
    """``(f, 2)`` bool: frames in which a sprite can be seen (nearly) whole."""
    return reading.seen & (reading.visible.nan_to_num() >= WHOLE)


def identity(reading: Reading) -> Identity:
    """The identity shown in a reading, the mean over frames that show a sprite whole (the anchor: ``reading[:16]``)."""
    whole = _whole(reading)

    def mean(values: Tensor) -> Tensor:
        masked = torch.where(whole.view(*whole.shape, *[1] * (values.ndim - 2)), values, torch.nan)
        return masked.nanmean(0)

    return Identity(mean(reading.pattern), mean(reading.shade), mean(_relative(reading.size)))


def identity_error(reading: Reading, anchor: Identity) -> dict[str, float]:
    """How far the sprites of a reading are from an anchor's identity, in frames that show them whole.

    Give it the frames after the anchor (``reading[16:]``). An anchor of another video gives the level of chance.

    Returns:
        ``pattern``: share of frames with another pattern; ``shade`` and ``size``: mean absolute differences as shares
        of their ranges; ``frames``: how many were compared (0 leaves nan).
    """
    whole = _whole(reading) & ~anchor.shade.isnan()
    track = whole.nonzero()[:, 1]
    pattern = reading.pattern[whole].argmax(-1) != anchor.pattern.nan_to_num().argmax(-1)[track]
    shade = (reading.shade[whole] - anchor.shade[track]).abs()
    size = (_relative(reading.size[whole]) - anchor.size[track]).abs()
    return {"pattern": _mean(pattern.float()), "shade": _mean(shade), "size": _mean(size), "frames": int(whole.sum())}


def second_difference(positions: Tensor) -> Tensor:
    """Length of ``p[t+1] - 2 p[t] + p[t-1]`` in pixels, ``(f, ...)`` for ``(f, ..., 2)``; nan at the ends and gaps."""
    out = torch.full(positions.shape[:-1], torch.nan)
    out[1:-1] = (positions[2:] - 2 * positions[1:-1] + positions[:-2]).float().norm(dim=-1) * PIXELS
    return out


def bounces(positions: Tensor) -> Tensor:
    """Frames at which the path is reflected, so that its second difference is no fault, ``(f, ...)`` bool.

    In a reflection the step before and the step after are mirrored in x or y and those between are no longer, while the
    other axis goes on as before. A jump is longer, or keeps the direction, or shows on the other axis.
    """
    step = torch.diff(positions.float(), dim=0) * PIXELS  # step[t]: from t to t + 1
    out = torch.zeros(positions.shape[:-1], dtype=torch.bool)
    if len(step) < 4:
        return out
    before, first, second, after = step[:-3], step[1:-2], step[2:-1], step[3:]
    mirrored = ((before + after).abs() < BOUNCE_TOLERANCE) & (before.abs() > BOUNCE_TOLERANCE / 2)
    mirrored &= torch.maximum(first.abs(), second.abs()) < before.abs() + BOUNCE_TOLERANCE
    steady = torch.maximum((first - before).abs(), (second - before).abs()) < 2 * BOUNCE_TOLERANCE
    out[2:-2] = (mirrored | steady).all(-1) & mirrored.any(-1)
    return out


@dataclass(frozen=True)
class SeamResidual:
    """Pixels: ``value = seams - inside``; ``per_seam`` in the order given (nan: unseen, or a bounce)."""

    value: float
    seams: float
    inside: float
    per_seam: tuple[float, ...]


def seam_residual(positions: Tensor, seams: Sequence[int], start: int = 0) -> SeamResidual:
    """How much less smooth the path is where chunks meet.

    The second difference of a path, averaged over the two triples that straddle each seam, minus its mean over all
    triples that do not; reflections are left out. A lone jump of 5 px at a seam gives 5. Blind to errors of constant
    speed and to sprites that vanish at a seam. Print ``reader_error()["noise"]["second_difference"]`` beside it.

    Args:
        positions: ``(f, 2)`` or ``(f, s, 2)`` in frame widths, nan where unseen.
        seams: index of the first frame of each chunk but the first.
        start: first frame that counts as inside; frames before it may be true ones, which are smoother than any made.

    Raises:
        InputError: for a seam that is not between two frames of the path.
    """
    if positions.ndim not in (2, 3) or positions.shape[-1] != 2:
        raise InputError(f"positions are (f, 2) or (f, s, 2); got {tuple(positions.shape)}")
    if any(not 0 < s < len(positions) for s in seams):
        raise InputError(f"seams lie between 1 and {len(positions) - 1}; got {list(seams)}")
    bend = second_difference(positions).masked_fill(bounces(positions), torch.nan).view(len(positions), -1)
    at_seam = torch.zeros(len(positions), dtype=torch.bool)
    for s in seams:
        at_seam[s - 1 : s + 1] = True
    per_seam = torch.tensor([_mean(bend[s - 1 : s + 1]) for s in seams])
    at, inside = _mean(per_seam), _mean(bend[start:][~at_seam[start:]])
    return SeamResidual(at - inside, at, inside, tuple(per_seam.tolist()))


def overlap_fidelity(discarded: Tensor, carried: Tensor, reader: Reader) -> dict[str, float]:
    """How well a chunk repeats the frames it was conditioned on: its slots 0-7, thrown away, against those frames.

    Args:
        discarded, carried: ``(f, 3, h, h)`` float in [-1, 1] or ``(f, h, h, 3)`` uint8, of the same shape.

    Returns:
        ``psnr`` in dB; ``position`` mean distance in pixels at 64 between sprites seen in both; ``found`` the share of
        carried sprites that the chunk shows too.

    Raises:
        InputError: when the shapes differ.
    """
    if discarded.shape != carried.shape or discarded.dtype != carried.dtype:
        raise InputError(f"both parts must be alike; got {tuple(discarded.shape)} and {tuple(carried.shape)}")
    scale = 255 if discarded.dtype == torch.uint8 else 2
    error = float(((discarded.float() - carried.float()) / scale).square().mean())
    there = read_video(carried, reader, num_sprites=2)
    here = read_video(discarded, reader, num_sprites=2)
    straight = (here.positions - there.positions).norm(dim=-1)
    crossed = (here.positions.flip(1) - there.positions).norm(dim=-1)
    score = lambda d: (int((~d.isnan()).sum()), -_mean(d))  # noqa: E731
    distance = max(straight, crossed, key=score)
    seen = int(there.seen.sum())
    found = int((~distance.isnan()).sum()) / seen if seen else math.nan
    psnr = -10 * math.log10(error) if error else math.inf
    return {"psnr": psnr, "position": _mean(distance) * PIXELS, "found": found}


def object_permanence(reading: Reading, prompt: str | PromptTruth) -> dict[str, float]:
    """Share of frames that show the captioned number of sprites, or hide them as the world may.

    Legitimate: in ``cross`` a gap of at most 36 frames before or after which the sprite was near the border; in
    ``hide`` the same near the middle, with a pillar there; one sprite of two unseen where the other could cover it.
    More sprites than captioned are as wrong as fewer. Identity is not looked at.

    Returns:
        ``kept``: the share; ``visible``: of frames with the right number seen; ``longest_loss``: frames of the longest
        run that is wrong.
    """
    visible, kept = frames_kept(reading, prompt)
    return {
        "kept": _mean(kept.float()), "visible": _mean(visible.float()),
        "longest_loss": max((b - a for a, b in _runs(~kept)), default=0),
    }  # fmt: skip


def frames_kept(reading: Reading, prompt: str | PromptTruth) -> tuple[Tensor, Tensor]:
    """``object_permanence`` frame by frame: the right number of sprites is seen; it is, or may be hidden; ``(f,)``.

    For a part of a video, cut this and not the reading: whether a sprite may be hidden shows before and after the part.
    """
    truth = _truth(prompt)
    wanted = len(truth.sprites)
    visible = reading.count == wanted
    kept = visible.clone()
    if wanted == 1 and truth.motion in HIDING_MOTIONS:
        for start, stop in _runs(reading.count == 0):
            edges = [reading.positions[t, 0] - 0.5 for t in (start - 1, stop) if 0 <= t < len(reading)]
            if truth.motion == "cross":
                allowed = any(bool(p.abs().max() > 0.35) for p in edges)
            else:
                allowed = any(bool(p[0].abs() < 0.25) for p in edges)
                allowed &= bool(reading.pillar[start:stop].median() > 0.5)
            kept[start:stop] = allowed and stop - start <= LONGEST_GAP
    if wanted == 2:
        place = _hold(reading.positions)
        close = (place[:, 0] - place[:, 1]).norm(dim=-1) < SIZE_RANGE[1]
        kept |= (reading.count == 1) & close
    return visible, kept


def _runs(flags: Tensor) -> list[tuple[int, int]]:
    """Start and end (exclusive) of each run of true frames."""
    edges = torch.diff(torch.cat([torch.zeros(1), flags.float(), torch.zeros(1)]))
    return list(zip((edges > 0).nonzero()[:, 0].tolist(), (edges < 0).nonzero()[:, 0].tolist()))


def _hold(positions: Tensor) -> Tensor:
    """Positions with each gap filled by the last place seen."""
    held = positions.clone()
    for t in range(1, len(held)):
        held[t] = torch.where(held[t].isnan(), held[t - 1], held[t])
    return held


def motion_kept(positions: Tensor, frames: int = 16) -> dict[str, float]:
    """Whether the sprites still move at the end as they did at the start.

    Args:
        positions: ``(f, s, 2)`` or ``(f, 2)`` in frame widths, nan where unseen.
        frames: length of the start and of the end that are compared.

    Returns:
        ``early`` and ``late`` mean speed in pixels per frame, ``kept`` their ratio (nan when either was not seen; 1 is
        perfect, 0 frozen; the reader's jitter alone looks like a slow motion).
    """
    path = rearrange(positions, "f c -> f 1 c") if positions.ndim == 2 else positions
    speed = torch.diff(path, dim=0).norm(dim=-1) * PIXELS
    early, late = _mean(speed[: frames - 1]), _mean(speed[-(frames - 1) :])
    return {"early": early, "late": late, "kept": late / early if early > 0 else math.nan}


__all__ = [
    "PATTERNS", "Identity", "SeamResidual", "bounces", "caption_accuracy", "frames_kept", "identity", "identity_error",
    "motion_kept", "object_permanence", "overlap_fidelity", "reader_error", "seam_residual", "second_difference",
]  # fmt: skip
