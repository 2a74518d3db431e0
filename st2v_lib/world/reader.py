"""The reader: recovers the world's state from pixels alone, so that generated videos can be scored against truth.

A small convolutional net looks at single 64-pixel frames. On a 16x16 grid it marks the centres of up to two sprites and
reads each one's attributes there; the background is read from the whole frame. Nothing is shared with the generator or
with CLIP. A second, tiny net names the motion from sixteen positions.

A sprite counts as seen when a quarter of its area can be seen (:data:`MIN_VISIBLE`), also when its centre lies outside
the frame or behind something; below 15 % the reader is trained to stay silent, in between either is right. Two sprites
whose centres are closer than about two cells (8 px) are read as one, mostly the front one.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor, nn

from st2v_lib.errors import InputError, WeightsError
from st2v_lib.manifest import weights_dir
from st2v_lib.world.scene import BACKGROUNDS, COLOURS, MOTIONS, PATTERNS, SHAPES, SIZE_RANGE

SIZE, GRID, WINDOW = 64, 16, 16  # pixels the net sees, cells, frames the motion is named from
MIN_VISIBLE = 0.25
CONFIDENCE = 0.5  # a peak of the heatmap above this is a sprite
SPRITE_PARTS = {"heat": 1, "offset": 2, "shape": 4, "colour": 6, "pattern": 4, "size": 1, "shade": 1, "visible": 1}
FRAME_PARTS = {"background": 4, "background_colour": 6, "background_shade": 1, "pillar": 1}
MIN_SEEN = 4  # of the frames of a window, to name its motion


@dataclass(frozen=True)
class Reading:
    """What the reader saw in ``f`` frames; two sprite slots, kept through the video by tracking.

    Attributes:
        positions: ``(f, 2, 2)`` centres in frame widths, x then y; nan where the sprite is not seen.
        confidence: ``(f, 2)`` in [0, 1], 0 where not seen.
        shape, colour, pattern: ``(f, 2, 4 | 6 | 4)`` probabilities in the order of the names in ``scene``.
        size: ``(f, 2)`` in frame widths. shade, visible: ``(f, 2)`` in [0, 1].
        background, background_colour: ``(f, 4 | 6)`` probabilities.
        background_shade, pillar: ``(f,)`` in [0, 1]; ``pillar`` is the probability that one is there.
        count: ``(f,)`` sprites detected in the frame, before tracking: 0, 1 or 2.

    Attributes of a sprite are nan where it is not seen.
    """

    positions: Tensor
    confidence: Tensor
    shape: Tensor
    colour: Tensor
    pattern: Tensor
    size: Tensor
    shade: Tensor
    visible: Tensor
    background: Tensor
    background_colour: Tensor
    background_shade: Tensor
    pillar: Tensor
    count: Tensor

    @property
    def seen(self) -> Tensor:
        """``(f, 2)`` bool: is each tracked sprite seen?"""
        return self.confidence > 0

    def __len__(self) -> int:
        return len(self.count)

    def __getitem__(self, frames: slice) -> Reading:
        """The reading of some of the frames."""
        return Reading(**{f.name: getattr(self, f.name)[frames] for f in fields(self)})


class _Block(nn.Module):
    """Two 3x3 convolutions beside a skip."""

    def __init__(self, width: int, dilation: int = 1):
        super().__init__()
        conv = lambda d: nn.Conv2d(width, width, 3, padding=d, dilation=d)  # noqa: E731
        norm = lambda: nn.GroupNorm(8, width)  # noqa: E731
        self.body = nn.Sequential(norm(), nn.SiLU(), conv(1), norm(), nn.SiLU(), conv(dilation))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class FrameNet(nn.Module):
    """Frames ``(n, 3, 64, 64)`` → sprite maps ``(n, c, 16, 16)``, frame values ``(n, c)``, by part, raw."""

    def __init__(self, width: int = 64):
        super().__init__()
        half = width // 2
        self.fine = nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(12, half, 3, padding=1), _Block(half))
        self.mid = nn.Sequential(nn.Conv2d(half, width, 3, 2, 1), _Block(width), _Block(width))
        self.wide = nn.Sequential(nn.Conv2d(width, width, 3, 2, 1), _Block(width, dilation=2))
        self.head = nn.Sequential(
            nn.GroupNorm(8, width), nn.Conv2d(width, width, 3, padding=1), nn.SiLU(),
            nn.Conv2d(width, sum(SPRITE_PARTS.values()), 1),
        )  # fmt: skip
        self.frame = nn.Sequential(nn.Linear(2 * width, width), nn.SiLU(), nn.Linear(width, sum(FRAME_PARTS.values())))
        nn.init.constant_(self.head[-1].bias[:1], -4.0)  # sprites are rare among cells

    def forward(self, frames: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        mid = self.mid(self.fine(frames))
        wide = self.wide(mid)
        maps = self.head(mid + F.interpolate(wide, scale_factor=2.0)).float()
        pooled = torch.cat([reduce(wide, "n c h w -> n c", how) for how in ("mean", "max")], 1)
        return _split(maps, SPRITE_PARTS), _split(self.frame(pooled).float(), FRAME_PARTS)


class MotionNet(nn.Module):
    """Names a motion: positions ``(n, 16, 2)`` (nan where unseen) and pillar ``(n,)`` → logits ``(n, 5)``."""

    def __init__(self, width: int = 48):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv1d(7, width, 3, padding=1), nn.SiLU(), nn.Conv1d(width, width, 3, 2, 1), nn.SiLU(),
            nn.Conv1d(width, width, 3, padding=1), nn.SiLU(),
        )  # fmt: skip
        self.head = nn.Sequential(nn.Linear(8 * width, width), nn.SiLU(), nn.Linear(width, len(MOTIONS)))

    def forward(self, positions: Tensor, pillar: Tensor) -> Tensor:
        step = torch.diff(positions, dim=1, append=positions[:, -1:]) * 16
        seen, moved = (~p.isnan().any(-1, keepdim=True) for p in (positions, step))
        there = pillar.view(-1, 1, 1).expand(-1, WINDOW, 1)
        parts = [(positions - 0.5).nan_to_num(), step.nan_to_num(), seen.float(), moved.float(), there]
        return self.head(self.body(torch.cat(parts, -1).transpose(1, 2)).flatten(1))


class Reader(nn.Module):
    """Both nets; :func:`read_video` and :func:`read_motion` use them."""

    def __init__(self, width: int = 64, motion_width: int = 48):
        super().__init__()
        self.config = {"width": width, "motion_width": motion_width}
        self.net, self.motion = FrameNet(width), MotionNet(motion_width)


def _split(values: Tensor, parts: dict[str, int]) -> dict[str, Tensor]:
    return dict(zip(parts, values.split(list(parts.values()), 1)))


def _frames(video: Tensor) -> Tensor:
    """A video in either layout of the library as ``(f, 3, 64, 64)`` in [-1, 1]."""
    if video.dtype == torch.uint8 and video.ndim == 4 and video.shape[-1] == 3:
        video = rearrange(video, "f h w c -> f c h w").float() / 127.5 - 1
    if video.ndim != 4 or video.shape[1] != 3 or video.shape[-1] != video.shape[-2] or not video.is_floating_point():
        raise InputError(
            f"the reader takes a square video, (f, 3, h, h) float in [-1, 1] or (f, h, h, 3) uint8; "
            f"got {tuple(video.shape)} {video.dtype}"
        )
    video = video.float()
    if video.shape[-1] % SIZE == 0:
        return F.interpolate(video, SIZE, mode="area").clamp(-1, 1)
    return F.interpolate(video, SIZE, mode="bilinear", antialias=True).clamp(-1, 1)


@torch.no_grad()
def detect(reader: Reader, frames: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Reads single frames ``(n, 3, 64, 64)``, strongest sprite first.

    Returns:
        Per sprite: ``position (n, 2, 2)``, ``confidence (n, 2)`` (0 where there is none) and the attributes of
        :class:`Reading`; per frame: the background.
    """
    maps, frame = reader.net(frames)
    heat = maps["heat"].sigmoid()
    peaks = torch.where(F.max_pool2d(heat, 3, 1, 1) == heat, heat, 0.0).flatten(1)
    confidence, cell = peaks.topk(2, 1)
    at = {k: v.flatten(2).gather(2, cell[:, None].expand(-1, v.shape[1], -1)).transpose(1, 2) for k, v in maps.items()}
    position = (torch.stack([cell % GRID, cell // GRID], -1) + 0.5 + at["offset"]) / GRID
    twice = (position[:, 0] - position[:, 1]).norm(dim=-1) < 0.08  # two peaks that point at one sprite
    confidence = torch.where(confidence > CONFIDENCE, confidence, 0.0)
    confidence[:, 1] = torch.where(twice, 0.0, confidence[:, 1])
    low, high = SIZE_RANGE
    sprites = {"positions": position, "confidence": confidence, "size": low + (high - low) * at["size"][..., 0]}
    sprites |= {k: at[k].softmax(-1) for k in ("shape", "colour", "pattern")}
    sprites |= {k: at[k][..., 0].clamp(0, 1) for k in ("shade", "visible")}
    ground = {k: frame[k].softmax(-1) for k in ("background", "background_colour")}
    ground |= {"background_shade": frame["background_shade"][:, 0].clamp(0, 1)}
    ground |= {"pillar": frame["pillar"][:, 0].sigmoid()}
    return sprites, ground


def read_video(video: Tensor, reader: Reader, num_sprites: int | None = None, batch_size: int = 64) -> Reading:
    """Reads a video and follows its sprites.

    Args:
        video: ``(f, 3, h, h)`` float in [-1, 1] or ``(f, h, h, 3)`` uint8; sizes other than 64 are resized.
        num_sprites: 1 or 2 tracks; ``None`` decides by whether a fifth of the frames that show any sprite show two.
            With one track, the most confident sprite of each frame is on it, whatever it looks like.

    Raises:
        InputError: for another layout, no frame, or another number of sprites.
    """
    if num_sprites not in (None, 1, 2) or len(video) == 0:
        raise InputError(f"need a frame and 1 or 2 sprites; got {len(video)} and {num_sprites}")
    device = next(reader.parameters()).device
    return follow([detect(reader, _frames(chunk.to(device))) for chunk in video.split(batch_size)], num_sprites)


def follow(parts: list[tuple[dict[str, Tensor], dict[str, Tensor]]], num_sprites: int | None = None) -> Reading:
    """Joins what :func:`detect` gave for successive frames and follows the sprites; see :func:`read_video`."""
    sprites, ground = ({k: torch.cat([p[i][k] for p in parts]).cpu() for k in parts[0][i]} for i in (0, 1))
    count = (sprites["confidence"] > 0).sum(1)
    if num_sprites is None:
        num_sprites = 2 if (count == 2).sum() > 0.2 * (count > 0).sum() else 1
    order = _follow(sprites) if num_sprites == 2 else torch.tensor([0, 1]).expand(len(count), 2)
    rows = torch.arange(len(count))[:, None]
    sprites = {k: v[rows, order] for k, v in sprites.items()}
    if num_sprites == 1:
        sprites["confidence"][:, 1] = 0
    unseen = sprites["confidence"] == 0
    for k, v in sprites.items():
        if k != "confidence":
            sprites[k] = torch.where(unseen.view(*unseen.shape, *[1] * (v.ndim - 2)), torch.nan, v)
    return Reading(**sprites, **ground, count=count)


def _follow(sprites: dict[str, Tensor]) -> torch.Tensor:
    """Which detection goes to which of two tracks, ``(f, 2)``: nearest in place and most alike in colour and shape.

    A track keeps its last place while its sprite is unseen, and the longer that lasts the less the place counts.
    """
    where, found = sprites["positions"], sprites["confidence"] > 0
    looks = torch.cat([sprites["colour"], 0.5 * sprites["shape"]], -1)
    last, look, since = where.new_full((2, 2), torch.nan), looks.new_zeros(2, looks.shape[-1]), torch.zeros(2)
    order = torch.empty(len(where), 2, dtype=torch.long)
    for f in range(len(where)):
        away = torch.cdist(last, where[f]) / (0.1 + 0.05 * since[:, None])  # (track, detection)
        unlike = torch.cdist(look, looks[f], p=1) / 2
        cost = torch.where(last[:, :1].isnan(), 0.7, away.clamp(max=1) + unlike)  # an empty track takes a stranger
        cost = torch.where(found[f], cost, 0.0)
        swap = cost[0, 1] + cost[1, 0] < cost[0, 0] + cost[1, 1]
        order[f] = torch.tensor([1, 0]) if swap else torch.tensor([0, 1])
        hit = found[f][order[f]]
        fresh = last[:, 0].isnan()
        last[hit] = where[f][order[f]][hit]
        rate = torch.where(fresh, 1.0, 0.2)[:, None]
        look = torch.where(hit[:, None], look + rate * (looks[f][order[f]] - look), look)
        since = torch.where(hit, 0.0, since + 1)
    return order


@torch.no_grad()
def read_motion(reading: Reading, reader: Reader, stride: int = 8) -> Tensor:
    """Probabilities of the motions for 16-frame windows, ``(windows, 2, 5)``; nan with fewer than 4 frames seen.

    Raises:
        InputError: for a reading of fewer than 16 frames.
    """
    if len(reading) < WINDOW:
        raise InputError(f"naming a motion takes {WINDOW} frames; got {len(reading)}")
    device = next(reader.parameters()).device
    windows = rearrange(reading.positions.unfold(0, WINDOW, stride), "n s c t -> (n s) t c")
    pillar = (reading.pillar.unfold(0, WINDOW, stride).mean(1) > 0.5).float().repeat_interleave(2)
    named = reader.motion(windows.to(device), pillar.to(device)).softmax(-1).cpu()
    blind = (~windows.isnan().any(-1)).sum(1) < MIN_SEEN
    return rearrange(named.masked_fill(blind[:, None], torch.nan), "(n s) m -> n s m", s=2)


def save_reader(reader: Reader, folder: Path) -> None:
    """Writes ``model.safetensors`` in fp16 and ``config.json``."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    names = {"shape": SHAPES, "colour": COLOURS, "pattern": PATTERNS, "background": BACKGROUNDS, "motion": MOTIONS}
    weights = {k: v.detach().cpu().half().contiguous() for k, v in reader.state_dict().items()}
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({**reader.config, "names": names}, indent=2) + "\n")


def load_reader(device: str | torch.device = "cpu", folder: Path | None = None) -> Reader:
    """The shipped reader, in float32, ready to read.

    Raises:
        WeightsError: when its files are missing, damaged or of another net.
    """
    from safetensors.torch import load_file

    folder = Path(folder) if folder else weights_dir("tiny") / "reader"
    try:
        config = json.loads((folder / "config.json").read_text())
        reader = Reader(config["width"], config["motion_width"])
        reader.load_state_dict({k: v.float() for k, v in load_file(folder / "model.safetensors").items()})
    except Exception as error:
        raise WeightsError(f"the reader in {folder} cannot be loaded ({error}); st2v train reader makes it") from error
    return reader.to(device).eval().requires_grad_(False)
