"""Training clips of the sprite world as latents, made on the fly and kept for reuse.

Each scene is rendered and encoded once, as a segment of 32 frames. New segments join the pool at every 16th step; a
batch draws windows from all of it, so the pool's size, not the epoch, sets how often a scene is seen.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from st2v_lib.backbone import PatchedAutoencoderKL, encode_frames
from st2v_lib.enhancer import upscale
from st2v_lib.training.common import fast_math
from st2v_lib.world.captions import detailed_caption, make_tokenizer, sparse_caption, tokenize
from st2v_lib.world.render import render
from st2v_lib.world.scene import HIDING_MOTIONS, Scene, sample_scene

SEGMENT = 32
PREFILL, FRESH, EVERY = 192, 1 / 12, 16  # segments made before the first step; the share made again at every 16th
AT_ONCE = 2**23  # pixels drawn together


def returns(seen: torch.Tensor) -> torch.Tensor:
    """Is a sprite of these visible shares, ``(..., 32)``, seen before frame 16, hidden to frame 23 and back after?"""
    before, hidden, after = (part.amax(-1) for part in seen.split((16, 8, 8), dim=-1))
    return (before > 0.7) & (hidden == 0) & (after > 0.3)


def draw_scenes(
    rng: random.Random, count: int, returning: float = 0.0, device: torch.device | str = "cpu"
) -> list[tuple[Scene, int]]:
    """Training scenes, each with the frame its segment starts at.

    Args:
        returning: share of segments in which the sprite is seen in frames 0–15, hidden in 16–23 and back in 24–31
            (the case that only a long-term memory can continue).
        device: where such segments are looked for.
    """
    drawn = [(sample_scene(rng.randrange(2**31), 0), rng.randrange(400)) for _ in range(count)]
    wanted = [i for i in range(count) if rng.random() < returning]
    for _ in range(4):
        missed = []
        for part in (wanted[k : k + 256] for k in range(0, len(wanted), 256)):
            scenes = [
                sample_scene(rng.randrange(2**31), 0, motion=rng.choice(HIDING_MOTIONS), num_sprites=1) for _ in part
            ]
            origins = [rng.randrange(100) for _ in part]
            _, truth = render(scenes, 128, origins, 16, device, truth="masks")
            fits = returns(truth.visible[:, :, 0].unfold(1, SEGMENT, 1)).cpu()
            for i, scene, origin, fit in zip(part, scenes, origins, fits):
                if fit.any():
                    drawn[i] = scene, origin + rng.choice(fit.nonzero()[:, 0].tolist())
                else:
                    missed.append(i)
        wanted = missed
    return drawn


def latent_mask(instances: torch.Tensor, cells: int) -> torch.Tensor:
    """Share of sprite pixels in each latent cell, ``(..., cells, cells)``."""
    mask = ((instances == 1) | (instances == 2)).float()
    return F.adaptive_avg_pool2d(mask, cells)


@dataclass
class Pool:
    """Segments of scenes as latents ``(n, frames, c, h, w)`` with masks ``(n, frames, h, w)``, in fp16.

    They stay on the VAE's device, and so do the batches drawn from them.

    Attributes:
        vae: encodes; frozen.
        seed: with the rank, decides which scenes come.
        capacity: segments kept; the oldest is replaced.
        returning: see :func:`draw_scenes`.
        segment: frames of each.
        size: pixels along a side.
        enlarged: keep the latents of the enlarged half-size frames too, in ``inputs``: what the enhancer is given.
        areas, peaks: of each frame's mask, sum and maximum over its cells, ``(n, frames)`` on the CPU.
    """

    vae: PatchedAutoencoderKL
    seed: int = 0
    rank: int = 0
    capacity: int = 16384
    returning: float = 0.0
    segment: int = SEGMENT
    size: int = 64
    enlarged: bool = False
    scenes: list[tuple[Scene, int]] = field(default_factory=list)
    latents: torch.Tensor | None = None
    inputs: torch.Tensor | None = None
    masks: torch.Tensor | None = None
    areas: torch.Tensor | None = None
    peaks: torch.Tensor | None = None
    made: int = 0

    @property
    def device(self) -> torch.device:
        """Where segments are made and kept."""
        return next(self.vae.parameters()).device

    @torch.no_grad()
    def grow(self, count: int) -> None:
        """Renders and encodes ``count`` new segments."""
        rng = random.Random(f"pool/{self.seed}/{self.rank}/{self.made}")
        drawn = draw_scenes(rng, count, self.returning, self.device)
        at_once = max(1, AT_ONCE // (self.segment * self.size**2))
        for part in (drawn[k : k + at_once] for k in range(0, count, at_once)):
            self._add(part)

    def _add(self, drawn: list[tuple[Scene, int]]) -> None:
        scenes, starts = [s for s, _ in drawn], [t for _, t in drawn]
        video, truth = render(scenes, self.segment, starts, self.size, self.device, truth="masks")
        new = {"latents": self._encode(video)}
        if self.enlarged:
            small = render(scenes, self.segment, starts, self.size // 2, self.device)
            new["inputs"] = self._encode(upscale(small, self.size).clamp(-1, 1))
        masks = latent_mask(truth.instances, new["latents"].shape[-1])
        new |= {"masks": masks, "areas": masks.sum((-1, -2)).cpu(), "peaks": masks.amax((-1, -2)).cpu()}
        slots = [(self.made + i) % self.capacity for i in range(len(drawn))]
        for name, values in new.items():
            kept = getattr(self, name)
            if kept is None:  # pages of an empty tensor take no memory before they are written
                kept = values.new_empty((self.capacity, *values.shape[1:]), dtype=torch.float16)
                setattr(self, name, kept)
            kept[slots] = values.half()
        for slot, item in zip(slots, drawn):
            self.scenes[slot : slot + 1] = [item]
        self.made += len(drawn)

    def _encode(self, video: torch.Tensor) -> torch.Tensor:
        with fast_math(self.device):
            return encode_frames(self.vae, video, batch_size=64 if self.device.type == "cpu" else 2048).transpose(1, 2)

    def draw(self, rng: random.Random, count: int, frames: int, start: int | None = None, in_sight: float = 0.0):
        """Random windows of the pool.

        Args:
            start: first frame of each window in its segment; random when ``None``.
            in_sight: share of random windows that begin with a sprite in sight, where the segment has such a frame.

        Returns:
            Latents ``(b, c, f, h, w)``, masks ``(b, f, h, w)``, scenes, first frames, picks.
        """
        picks = [rng.randrange(len(self.scenes)) for _ in range(count)]
        at = [self._window(rng, i, frames, in_sight) if start is None else start for i in picks]
        latents, masks = self.take("latents", picks, at, frames), self.take("masks", picks, at, frames)
        scenes = [self.scenes[i][0] for i in picks]
        return latents, masks, scenes, [self.scenes[i][1] + t for i, t in zip(picks, at)], picks

    def take(self, name: str, picks: list[int], at: list[int], frames: int) -> torch.Tensor:
        """Windows of ``latents`` or ``inputs``, ``(b, c, f, h, w)``, or of ``masks``, in float32."""
        rows = torch.tensor(picks, device=self.device)[:, None]
        times = torch.tensor(at, device=self.device)[:, None] + torch.arange(frames, device=self.device)
        windows = getattr(self, name)[rows, times].float()
        return windows if name == "masks" else windows.transpose(1, 2)

    def _window(self, rng: random.Random, pick: int, frames: int, in_sight: float) -> int:
        starts = range(self.segment - frames + 1)
        if rng.random() < in_sight:
            peaks = self.peaks[pick, : len(starts)].tolist()
            starts = [t for t in starts if peaks[t] > 0.8] or starts
        return rng.choice(starts)


def growing_pool(seed: int, salt: int, batch_scale: float = 1.0, prefill: int | None = None, **options: object):
    """A function ``(rank, n)`` that gives the rank's pool as it should be for batch number ``n``.

    Args:
        seed, salt: with the number of the first batch asked for, decide which scenes come.
        batch_scale: multiplies what is made before the first step and at every 16th.
        prefill: segments made before the first step; :data:`PREFILL` when ``None``.
        **options: of :class:`Pool`, its VAE included.
    """
    kept: dict[int, Pool] = {}
    first = max(1, round((prefill or PREFILL) * batch_scale))
    more = max(1, round(first * FRESH))

    def pool(rank: int, n: int) -> Pool:
        if rank not in kept:
            kept[rank] = Pool(seed=seed * 1_000_003 + n + salt, rank=rank, **options)
            kept[rank].grow(first)
        elif n % EVERY == 0:
            kept[rank].grow(more)
        return kept[rank]

    return pool


class Captioner:
    """Token ids of captions in random training wordings: sparse ones, and a share of detailed ones."""

    def __init__(self, detailed: float = 0.0) -> None:
        self.tokenizer, self.known, self.detailed = make_tokenizer(), {}, detailed

    def __call__(self, scenes: list[Scene], rng: random.Random, dropout: float) -> torch.Tensor:
        """Ids ``(n, text_len)``; with probability ``dropout`` a caption is empty."""
        texts = ["" if rng.random() < dropout else self.caption(s, rng) for s in scenes]
        if new := list({t for t in texts if t not in self.known}):
            self.known |= zip(new, tokenize(self.tokenizer, new).tolist())
        return torch.tensor([self.known[t] for t in texts])

    def caption(self, scene: Scene, rng: random.Random) -> str:
        """One of the two kinds."""
        if self.detailed and rng.random() < self.detailed:
            return detailed_caption(scene, rng.randrange(99), rng)
        return sparse_caption(scene, rng.randrange(99))
