"""Scenes of the sprite world: what is in them, how it moves, and which are held out of training.

A scene is a handful of plain numbers. Its motion has a closed form in the frame index and never ends, so a video of any
length, from any frame on, is a function of ``(split, seed, index)`` alone. Lengths are in frame widths, speeds in frame
widths per frame, colours are family names plus a shade in [0, 1].
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch

SHAPES = ("circle", "square", "triangle", "star")
COLOURS = ("red", "yellow", "green", "cyan", "blue", "purple")
PATTERNS = ("plain", "striped", "dotted", "halved")
BACKGROUNDS = ("plain", "stripes", "checks", "dots")
MOTIONS = ("bounce", "orbit", "zigzag", "cross", "hide")
HIDING_MOTIONS = ("cross", "hide")  # these hide the sprite for MIN_GAP frames or more

SIZE_RANGE = (0.27, 0.40)
SMALL_SIZE_RANGE = (0.27, 0.32)  # two sprites
HIDE_SIZE_RANGE = (0.27, 0.29)  # fits behind the pillar
MIN_GAP, MAX_GAP = 16, 19  # fully hidden frames: 16 blank an aligned 8-frame window whatever the alignment
PAN_SHARE, GRAIN_SHARE, TWO_SPRITE_SHARE = 0.15, 0.5, 0.15
PILLAR_WIDTH = 0.36
REACH = 0.62  # half-extent of a sprite over its size, outline included (a star's tips stick out furthest)
EXTENT = {
    "circle": (0.5, 0.5),
    "square": (0.44, 0.44),
    "triangle": (0.54, 0.62),
    "star": (0.59, 0.62),
}  # x, y over size


@dataclass(frozen=True)
class Motion:
    """A path without end: ``kind`` of :data:`MOTIONS` and its numbers (see :func:`positions`)."""

    kind: str
    x: float
    y: float
    vx: float
    vy: float
    radius: float = 0.0
    gap: int = 0


@dataclass(frozen=True)
class Sprite:
    """One sprite. The sparse caption tells ``shape`` and ``colour``; shade, pattern and size must be remembered."""

    shape: str
    colour: str
    shade: float
    pattern: str
    size: float
    motion: Motion

    @property
    def identity(self) -> tuple[float, ...]:
        """What only memory keeps: pattern (one-hot), shade, size (0 smallest, 1 largest)."""
        low, high = SIZE_RANGE
        return (*(float(self.pattern == p) for p in PATTERNS), self.shade, (self.size - low) / (high - low))


@dataclass(frozen=True)
class Background:
    """A procedural background; ``pan`` is its slow drift, ``grain`` a texture too fine for 64 pixels."""

    kind: str
    colour: str
    shade: float
    phase: tuple[float, float]
    period: float
    angle: float
    pan: tuple[float, float]
    grain: float
    grain_phase: float


@dataclass(frozen=True)
class Scene:
    """A background, one sprite or two (the later one in front), and a pillar in front of all where one hides."""

    background: Background
    sprites: tuple[Sprite, ...]

    @property
    def motion(self) -> str:
        """The motion that the caption names (both sprites share it)."""
        return self.sprites[0].motion.kind

    @property
    def has_pillar(self) -> bool:
        return self.motion == "hide"


def split_of(shape: str, colour: str, background_kind: str, background_colour: str) -> str:
    """The split a (shape, colour, background) triple belongs to, for good: ``train``, ``dev`` or ``test``.

    The background of a triple is its kind with its colour family. 78 % of the triples train, 10 % serve to decide what
    is kept, 12 % are for reported tables only.
    """
    key = f"{shape} {colour} {background_kind} {background_colour}".encode()
    draw = int.from_bytes(hashlib.sha256(key).digest()[:4], "big") / 2**32
    return "train" if draw < 0.78 else "dev" if draw < 0.88 else "test"


def _motion(kind: str, size: float, rng: random.Random) -> Motion:
    speed = rng.uniform(1.2, 2.4) / 64
    if kind == "bounce":
        angle = math.radians(rng.uniform(28, 62) + 90 * rng.randrange(4))
        return Motion(kind, rng.random(), rng.random(), speed * math.cos(angle), speed * math.sin(angle))
    if kind == "orbit":
        radius = rng.uniform(0.17, 0.24)
        spin = rng.choice((-1, 1)) * max(speed, 1.6 / 64) / radius
        return Motion(kind, rng.uniform(0.44, 0.56), rng.uniform(0.44, 0.56), spin, rng.random(), radius)
    if kind == "zigzag":  # steady sideways, up and down every four to six frames
        return Motion(
            kind, rng.random(), rng.uniform(0.4, 0.6), rng.choice((-1, 1)) * rng.uniform(1.2, 1.8) / 64,
            1 / rng.uniform(8, 12), rng.uniform(0.11, 0.15),
        )  # fmt: skip
    if kind == "cross":  # vy: where on the way it is at frame 0
        gap, speed = rng.randint(MIN_GAP, MAX_GAP), rng.uniform(1.8, 2.8) / 64
        return Motion(kind, float(rng.randrange(2)), rng.uniform(0.3, 0.7), speed, rng.random(), gap=gap)
    if kind == "hide":
        gap, speed = rng.randint(MIN_GAP, MAX_GAP), rng.uniform(1.3, 2.0) / 64
        return Motion(kind, rng.uniform(0.46, 0.54), rng.uniform(0.3, 0.7), speed, rng.random(), gap=gap)
    raise ValueError(f"unknown motion {kind!r}; choose one of: {', '.join(MOTIONS)}")


def _triangle(u: torch.Tensor) -> torch.Tensor:
    """Triangle wave: 0 → 1 → 0 while ``u`` goes 0 → 1 → 2."""
    return 1 - (u.remainder(2) - 1).abs()


def positions(sprite: Sprite, frames: torch.Tensor) -> torch.Tensor:
    """Centre of the sprite at each frame.

    Args:
        frames: frame indices, any real numbers, shape ``(f,)``.

    Returns:
        ``(f, 2)`` in frame widths, x to the right and y downwards, float64; outside [0, 1] when it has left.
    """
    return paths([sprite], frames[None])[0]


def paths(sprites: Sequence[Sprite], frames: torch.Tensor) -> torch.Tensor:
    """Centres ``(n, f, 2)`` of several sprites, each at its own frames ``(n, f)``; see :func:`positions`."""
    out = torch.empty(*frames.shape, 2, dtype=torch.float64)
    for kind in dict.fromkeys(s.motion.kind for s in sprites):
        rows = [i for i, s in enumerate(sprites) if s.motion.kind == kind]
        out[rows] = _paths_of_kind(kind, [sprites[i] for i in rows], frames[rows].double())
    return out


def _paths_of_kind(kind: str, sprites: Sequence[Sprite], t: torch.Tensor) -> torch.Tensor:
    column = lambda values: torch.tensor(values, dtype=torch.float64)[:, None]  # noqa: E731
    mx, my, vx, vy, radius, gap = (
        column([getattr(s.motion, name) for s in sprites]) for name in ("x", "y", "vx", "vy", "radius", "gap")
    )
    size = column([s.size for s in sprites])
    reach = REACH * size
    if kind == "bounce":
        span = 1 - 2 * reach
        x, y = (reach + span * _triangle(p + v * t / span) for p, v in ((mx, vx), (my, vy)))
    elif kind == "orbit":
        angle = 2 * math.pi * vy + vx * t
        x, y = mx + radius * angle.cos(), my + radius * angle.sin()
    elif kind == "zigzag":
        span = 1 - 2 * reach
        x = reach + span * _triangle(mx + vx * t / span)
        y = my + radius * (2 * _triangle(vy * 2 * t) - 1)
    elif kind == "cross":  # turns outside, far enough to stay hidden for `gap` frames
        outside = column([EXTENT[s.shape][int(s.motion.x)] for s in sprites]) * size + 0.006 + (gap + 1) * vx / 2
        span = 1 + 2 * outside
        along = -outside + span * _triangle(2 * vy + vx * t / span)
        across = my.expand_as(t)
        x, y = torch.where(mx > 0, across, along), torch.where(mx > 0, along, across)
    else:  # hide: from side to side, resting behind the pillar; one way = go, rest, go
        half = 0.5 - 0.45 * size  # from the pillar's middle to the turn
        width = column([EXTENT[s.shape][0] for s in sprites]) * size
        hidden_way = (PILLAR_WIDTH - 2 * width - 0.012).clamp(min=0) / vx  # frames fully hidden without a rest
        rest = (gap + 1 - hidden_way).clamp(min=0)
        go = half / vx
        way = 2 * go + rest
        u = _triangle(2 * vy + t / way) * way  # frames since the left turn
        x = mx + (torch.minimum(u, go) + (u - go - rest).clamp(min=0)) * vx - half
        y = my.expand_as(t)
    return torch.stack([x, y], -1)


def sample_scene(seed: int, index: int, split: str = "train", **fixed: object) -> Scene:
    """Scene number ``index`` of a stream; the same arguments give the same scene on every machine.

    Args:
        seed: the stream.
        index: which scene of it.
        split: ``train``, ``dev`` or ``test``: whose (shape, colour, background) triples are used.
        **fixed: values to hold instead of drawing them: ``num_sprites``, ``motion``, ``shape``, ``colour``,
            ``background``, ``background_colour``, ``pattern``, ``grain``, ``pan`` (a bool).

    Raises:
        ValueError: for an unknown split or name, or when the fixed values leave no triple in the split.
    """
    if split not in ("train", "dev", "test"):
        raise ValueError(f"unknown split {split!r}; choose train, dev or test")
    allowed = {
        "shape": SHAPES, "colour": COLOURS, "background": BACKGROUNDS, "background_colour": COLOURS,
        "pattern": PATTERNS, "motion": MOTIONS,
    }  # fmt: skip
    for name, value in fixed.items():
        if name in allowed and value not in allowed[name]:
            raise ValueError(f"unknown {name} {value!r}; choose one of: {', '.join(allowed[name])}")
        if name not in allowed and name not in ("num_sprites", "grain", "pan"):
            raise ValueError(
                f"cannot fix {name!r}; these can be: {', '.join([*allowed, 'num_sprites', 'grain', 'pan'])}"
            )
    rng = random.Random(f"{split}/{seed}/{index}")
    motion = fixed.get("motion") or rng.choice(MOTIONS)
    two = fixed["num_sprites"] == 2 if "num_sprites" in fixed else rng.random() < TWO_SPRITE_SHARE
    if two and motion in HIDING_MOTIONS:
        if fixed.get("motion") and fixed.get("num_sprites"):
            raise ValueError(f"two sprites do not {motion}; choose bounce, orbit or zigzag")
        motion, two = (rng.choice(MOTIONS[:3]), True) if "motion" not in fixed else (motion, False)
    for _ in range(5000):
        kind, ground = (
            fixed.get("background") or rng.choice(BACKGROUNDS),
            fixed.get("background_colour") or rng.choice(COLOURS),
        )
        shapes = [fixed.get("shape") or rng.choice(SHAPES), rng.choice(SHAPES)][: 1 + two]
        colours = [fixed.get("colour") or rng.choice(COLOURS), rng.choice(COLOURS)][: 1 + two]
        homes = [split_of(s, c, kind, ground) for s, c in zip(shapes, colours)]
        held = homes[0] == split and all(h in (split, "train") for h in homes)
        if held and len({ground, *colours}) == 2 + two:
            break
    else:
        raise ValueError(f"no (shape, colour, background) triple of the {split} split fits {fixed}")
    sizes = SMALL_SIZE_RANGE if two else HIDE_SIZE_RANGE if motion == "hide" else SIZE_RANGE
    sprites = []
    for shape, colour in zip(shapes, colours):
        size = rng.uniform(*sizes)
        pattern = fixed.get("pattern") or rng.choice(PATTERNS)
        sprites.append(Sprite(shape, colour, rng.random(), pattern, size, _motion(motion, size, rng)))
    pans = fixed["pan"] if "pan" in fixed else rng.random() < PAN_SHARE and motion != "hide"
    direction, speed = rng.random() * 2 * math.pi, rng.uniform(0.25, 0.6) / 64
    pan = (speed * math.cos(direction), speed * math.sin(direction)) if pans else (0.0, 0.0)
    grainy = fixed["grain"] if "grain" in fixed else rng.random() < GRAIN_SHARE
    background = Background(
        kind, ground, rng.random(), (rng.random(), rng.random()), rng.uniform(0.28, 0.40),
        math.radians(45 * rng.randrange(4)), pan, 0.03 if grainy else 0.0, rng.random(),
    )  # fmt: skip
    return Scene(background, tuple(sprites))
