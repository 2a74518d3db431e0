"""Renders scenes and their truth: frames, instance masks, visibility, optical flow and occlusion.

Everything is a formula of the pixel's place, with each edge anti-aliased by its distance in pixels, so a scene can be
drawn at any resolution. Fine grain is integrated over the pixel in closed form: 64-pixel frames average it away,
128-pixel frames show it. The outline is a bright and a dark line, each a third of a 64-pixel pixel wide, that nearly
cancel there.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from st2v_lib.world.scene import (
    BACKGROUNDS,
    COLOURS,
    PATTERNS,
    PILLAR_WIDTH,
    REACH,
    SHAPES,
    Scene,
    paths,
)

HUES = {"red": 0.0, "yellow": 52.0, "green": 120.0, "cyan": 180.0, "blue": 225.0, "purple": 290.0}
PILLAR_RGB = (0.80, 0.78, 0.74)
OUTLINE = 1 / 200  # width of each of the outline's two lines
EDGE = 1.5  # pixels over which an edge passes, as through a lens
GRAIN_CYCLES = (51.0, 55.0)  # per frame width, across and down: above what 64 pixels can carry, below 128's limit
# A shape is a folded sector: corners, inner over outer radius, rotation, circumradius over half the size.
_FORM = {
    "circle": (0, 1.0, 0.0, 1.0),
    "square": (4, math.cos(math.pi / 4), math.pi / 4, 1.22),
    "triangle": (3, 0.5, -math.pi / 2, 1.24),
    "star": (5, 0.50, -math.pi / 2, 1.24),
}
_ABSENT = (1e-3, *_FORM["circle"], 0.0, 0.0, 0.0, 0.0)  # a second sprite that is not there


def sprite_rgb(colour: str, shade: float) -> tuple[float, float, float]:
    """Colour of a sprite in [0, 1]; shade 0 is the darkest of its family, 1 the brightest."""
    return colorsys.hsv_to_rgb(HUES[colour] / 360, 0.85, 0.55 + 0.45 * shade)


def background_rgb(colour: str, shade: float) -> tuple[float, float, float]:
    """The background's lighter tone in [0, 1]; the darker tone is 0.62 of it."""
    return colorsys.hsv_to_rgb(HUES[colour] / 360, 0.50, 0.34 + 0.30 * shade)


@dataclass(frozen=True)
class Truth:
    """What is true of each rendered frame; sizes ``b`` scenes, ``f`` frames, ``s`` sprites (2, absent ones hidden).

    Attributes:
        position: ``(b, f, s, 2)`` centres in frame widths.
        visible: ``(b, f, s)`` share of the sprite's area that can be seen, 0 when hidden or absent.
        instances: ``(b, f, h, w)`` uint8: 0 background, 1 and 2 sprites, 3 pillar.
        flow: ``(b, f, 2, h, w)`` pixels from each frame to the next, x then y.
        occluded: ``(b, f, h, w)`` bool: what is here cannot be seen in the next frame.
        backward_flow, backward_occluded: the same from each frame to the previous one.
    """

    position: torch.Tensor
    visible: torch.Tensor
    instances: torch.Tensor
    flow: torch.Tensor | None = None
    occluded: torch.Tensor | None = None
    backward_flow: torch.Tensor | None = None
    backward_occluded: torch.Tensor | None = None


def _stack(scenes: Sequence[Scene], frames: torch.Tensor, device: torch.device) -> dict[str, torch.Tensor]:
    """Scenes as tensors, ``(b, 1, 1, 1)`` or per sprite ``(b, s, 1, 1, 1)``, and positions ``(b, s, f, 1, 1)``.

    All are made on the CPU and moved together: thousands of small copies would cost more than the drawing.
    """
    pillar = [s.sprites[0].motion.x if s.has_pillar else -9.0 for s in scenes]
    ground = [
        (BACKGROUNDS.index(g.kind), *g.phase, *g.pan, g.period, g.angle, g.grain, g.grain_phase, stone)
        + background_rgb(g.colour, g.shade)
        for g, stone in ((s.background, stone) for s, stone in zip(scenes, pillar))
    ]
    there = [(i, j, p) for i, s in enumerate(scenes) for j, p in enumerate(s.sprites)]
    where = torch.full((len(scenes), 2, frames.shape[1], 2), -9.0)
    rows, slots = [i for i, _, _ in there], [j for _, j, _ in there]
    where[rows, slots] = paths([p for *_, p in there], frames[rows]).float()
    sprites = torch.tensor(_ABSENT).repeat(len(scenes), 2, 1)
    sprites[rows, slots] = torch.tensor(
        [(p.size / 2, *_FORM[p.shape], PATTERNS.index(p.pattern), *sprite_rgb(p.colour, p.shade)) for *_, p in there]
    )
    g, q, where = torch.tensor(ground).to(device), sprites.to(device), where.to(device)[..., None, None, :]
    names = ("kind", "phase_x", "phase_y", "pan_x", "pan_y", "period", "angle", "grain", "grain_phase", "pillar")
    out = {name: g[:, i].view(-1, 1, 1, 1) for i, name in enumerate(names)}
    for i, name in enumerate(("radius", "corners", "inner", "turn", "scale", "pattern")):
        out[name] = q[:, :, i].view(-1, 2, 1, 1, 1)
    out |= {"tone": g[:, 10:].view(-1, 3, 1, 1, 1), "rgb": q[:, :, 6:].view(-1, 2, 3, 1, 1, 1)}
    return out | {"cx": where[..., 0], "cy": where[..., 1]}


def _cover(distance: torch.Tensor, size: int) -> torch.Tensor:
    """Share of a pixel inside an edge, from the signed distance in frame widths (negative inside)."""
    return (0.5 - distance * size / EDGE).clamp(0, 1)


def _background(
    p: dict[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor, t: torch.Tensor, size: int
) -> torch.Tensor:
    """Colour of the background, ``(b, 3, f, h, w)`` in [0, 1]."""
    u = x - p["pan_x"] * t + p["phase_x"]
    v = y - p["pan_y"] * t + p["phase_y"]
    period, kind = p["period"], p["kind"]
    along = u * p["angle"].cos() + v * p["angle"].sin()
    wave = lambda a: ((a / period).remainder(1) - 0.5).abs() - 0.25  # noqa: E731  (distance to the edge, in periods)
    stripes = wave(along) * period
    a, b = wave(u) * period, wave(v) * period
    checks = torch.where((a < 0) == (b < 0), -1.0, 1.0) * torch.minimum(a.abs(), b.abs())
    cell = lambda a: ((a / period).remainder(1) - 0.5) * period  # noqa: E731
    dots = (cell(u).square() + cell(v).square()).sqrt() - 0.30 * period
    distance = torch.where(kind == 1, stripes, torch.where(kind == 2, checks, dots))
    dark = torch.where(kind == 0, 0.30 * y.expand_as(dots), 0.38 * _cover(distance, size))
    fx, fy = GRAIN_CYCLES
    held = math.sin(math.pi * fx / size) / (math.pi * fx / size) * math.sin(math.pi * fy / size) / (math.pi * fy / size)
    grain = p["grain"] * held * (2 * math.pi * (fx * u + p["grain_phase"])).cos() * (2 * math.pi * fy * v).cos()
    return p["tone"] * (1 - dark).unsqueeze(1) + grain.unsqueeze(1)


def _sprite(p: dict[str, torch.Tensor], i: int, x: torch.Tensor, y: torch.Tensor, size: int):
    """Coverage ``(b, f, h, w)`` and colour ``(b, 3, f, h, w)`` of sprite ``i``."""
    q = {k: p[k][:, i] for k in ("cx", "cy", "radius", "corners", "inner", "turn", "scale", "pattern")}
    dx, dy = x - q["cx"], y - q["cy"]
    rho = (dx.square() + dy.square()).sqrt()
    sector = math.pi / q["corners"].clamp(min=1)
    theta = ((torch.atan2(dy, dx) - q["turn"]).remainder(2 * sector) - sector).abs()
    theta = sector - theta  # 0 at a corner, `sector` between two
    outer = q["radius"] * q["scale"]
    ex, ey = q["inner"] * sector.cos() - 1, q["inner"] * sector.sin()
    edge = ((rho * theta.cos() - outer) * -ey + rho * theta.sin() * ex) / -(ex.square() + ey.square()).sqrt()
    distance = torch.where(q["corners"] == 0, rho - q["radius"], edge)
    u, v = dx / q["radius"], dy / q["radius"]
    band = ((v.abs() - 0.42).abs() - 0.21) * q["radius"]
    dot = rho - 0.46 * q["radius"]
    half = -dx
    mark = torch.where(q["pattern"] == 1, band, torch.where(q["pattern"] == 2, dot, half))
    ink = torch.where(q["pattern"] == 0, torch.zeros_like(u), 0.65 * _cover(mark, size))
    rgb = p["rgb"][:, i] * (1 - ink).unsqueeze(1)
    inside = _cover(distance + OUTLINE, size)
    line = _cover(distance, size) - inside
    rgb = rgb * (1 - 0.8 * line).unsqueeze(1)
    halo = _cover(distance - OUTLINE, size)
    glow = 0.8 * (halo - _cover(distance, size)).unsqueeze(1)
    return halo, rgb * (1 - glow) + glow


@torch.no_grad()
def render(
    scenes: Scene | Sequence[Scene],
    num_frames: int = 16,
    start: float | Sequence[float] = 0,
    size: int = 64,
    device: str | torch.device = "cpu",
    truth: str | None = None,
):
    """Draws scenes.

    Args:
        scenes: one scene or several.
        num_frames: frames to draw.
        start: first frame, one for all or one per scene; any real number, as time is.
        size: pixels along a side.
        device: where to draw.
        truth: ``None``, ``"masks"`` (positions, visibility, instances) or ``"flow"`` (all of it).

    Returns:
        Video ``(b, f, 3, size, size)`` in [-1, 1]; with ``truth`` the pair of it and a :class:`Truth`.

    Raises:
        ValueError: for no scene, less than one frame or less than 8 pixels.
    """
    scenes = [scenes] if isinstance(scenes, Scene) else list(scenes)
    if not scenes or num_frames < 1 or size < 8:
        raise ValueError(f"need a scene, a frame and 8 pixels; got {len(scenes)}, {num_frames}, {size}")
    starts = [start] * len(scenes) if isinstance(start, (int, float)) else list(start)
    extra = 1 if truth == "flow" else 0  # flow looks one frame to each side
    device = torch.device(device)
    offsets = torch.arange(-extra, num_frames + extra, dtype=torch.float64)
    frames = torch.stack([offsets + s for s in starts])
    p = _stack(scenes, frames, device)
    t = frames.float().to(device)[..., None, None]
    grid = (torch.arange(size, device=device, dtype=torch.float32) + 0.5) / size
    x, y = grid.view(1, 1, 1, -1), grid.view(1, 1, -1, 1)
    video = _background(p, x, y, t, size)
    covers = []
    for i in range(2 if any(len(s.sprites) > 1 for s in scenes) else 1):
        cover, rgb = _sprite(p, i, x, y, size)
        video = video + (rgb - video) * cover.unsqueeze(1)
        covers.append(cover)
    pillar = _cover((x - p["pillar"]).abs() - PILLAR_WIDTH / 2, size).expand(-1, t.shape[1], size, -1)
    shine = 1 - 0.35 * (((x - p["pillar"]) / PILLAR_WIDTH * 2).abs()).clamp(max=1)
    stone = torch.tensor(PILLAR_RGB, device=device).view(1, 3, 1, 1, 1) * shine.unsqueeze(1)
    video = (video + (stone - video) * pillar.unsqueeze(1)).clamp(0, 1).movedim(1, 2) * 2 - 1
    if truth is None:
        return video
    if len(covers) == 1:
        covers.append(torch.zeros_like(covers[0]))
    return video[:, extra : extra + num_frames], _truth(p, covers, pillar, num_frames, extra, size)


def _truth(p, covers, pillar, num_frames: int, extra: int, size: int) -> Truth:
    instances = torch.zeros(covers[0].shape, dtype=torch.uint8, device=pillar.device)
    for label, cover in ((1, covers[0]), (2, covers[1]), (3, pillar)):
        instances[cover > 0.5] = label
    position = torch.stack([p["cx"], p["cy"]], -1)[:, :, :, 0, 0].transpose(1, 2)
    area = _full_area(p)  # (b, s) in frame areas
    seen = torch.stack([(instances == i + 1).float().mean((-1, -2)) for i in range(2)], -1)
    visible = (seen / area[:, None]).clamp(max=1)
    inner = slice(extra, extra + num_frames)
    if not extra:
        return Truth(position, visible, instances)
    shift = torch.stack([p["pan_x"], p["pan_y"]], -1)[:, 0, 0, 0]  # (b, 2)
    moves = torch.zeros(len(shift), position.shape[1], 4, 2, device=shift.device)  # displacement into the next frame
    moves[:, :, 0] = shift[:, None]
    moves[:, :-1, 1:3] = position[:, 1:] - position[:, :-1]
    back = torch.zeros_like(moves)
    back[:, 1:] = -moves[:, :-1]
    forward, occluded = _flow(instances[:, inner], instances[:, extra + 1 :], moves[:, inner], size)
    backward, backward_occluded = _flow(instances[:, inner], instances[:, : -extra - 1], back[:, inner], size)
    return Truth(
        position[:, inner], visible[:, inner], instances[:, inner], forward, occluded, backward, backward_occluded
    )


def _flow(here: torch.Tensor, there: torch.Tensor, moves: torch.Tensor, size: int):
    """Flow in pixels by instance, and where its target shows another instance or lies outside."""
    picked = torch.stack([moves[..., c].gather(2, here.flatten(2).long()).view(here.shape) for c in (0, 1)], 2) * size
    rows = torch.arange(size, device=here.device, dtype=torch.float32)
    tx, ty = picked[:, :, 0] + rows, picked[:, :, 1] + rows[:, None]
    outside = (tx < 0) | (tx > size - 1) | (ty < 0) | (ty > size - 1)
    hidden = outside.clone()
    for ox, oy in ((0, 0), (0, 1), (1, 0), (1, 1)):  # all four pixels that a bilinear look-up would touch
        ix, iy = (tx.floor() + ox).clamp(0, size - 1).long(), (ty.floor() + oy).clamp(0, size - 1).long()
        hidden |= there.flatten(2).gather(2, (iy * size + ix).flatten(2)).view(here.shape) != here
    return picked, hidden


def _full_area(p: dict[str, torch.Tensor]) -> torch.Tensor:
    """Area of each sprite when nothing hides it, ``(b, s)`` in frame areas, outline included."""
    n, outer = p["corners"].clamp(min=1), p["radius"] * p["scale"] + OUTLINE
    folded = n * outer.square() * p["inner"] * torch.sin(math.pi / n)
    round_ = math.pi * (p["radius"] + OUTLINE).square()
    return torch.where(p["corners"] == 0, round_, folded)[:, :, 0, 0, 0]


__all__ = ["HUES", "REACH", "SHAPES", "COLOURS", "Truth", "background_rgb", "render", "sprite_rgb"]
