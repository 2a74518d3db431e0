"""Training clips of the sprite world as latents, made on the fly and kept for reuse.

Each scene is rendered and encoded once, as a segment of 32 frames. A few new segments join the pool at each step; a
batch draws windows from all of it, so the pool's size, not the epoch, sets how often a scene is seen.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from st2v_lib.backbone import PatchedAutoencoderKL, encode_frames
from st2v_lib.training.common import fast_math
from st2v_lib.world.captions import make_tokenizer, sparse_caption, tokenize
from st2v_lib.world.render import render
from st2v_lib.world.scene import HIDING_MOTIONS, Scene, sample_scene

SEGMENT = 32
PREFILL, FRESH = 192, 1  # segments made before the first step, and at each step


def returns(seen: torch.Tensor) -> bool:
    """Is a sprite of these visible shares, ``(32,)``, seen before frame 16, hidden to frame 23 and back after?"""
    return bool(seen[:16].max() > 0.7 and seen[16:24].max() == 0 and seen[24:].max() > 0.3)


def draw_scene(rng: random.Random, returning: float = 0.0) -> tuple[Scene, int]:
    """A training scene and the frame its segment starts at.

    Args:
        returning: share of segments in which the sprite is seen in frames 0–15, hidden in 16–23 and back in 24–31
            (the case that only a long-term memory can continue).
    """
    for _ in range(4 if rng.random() < returning else 0):
        scene = sample_scene(rng.randrange(2**31), 0, motion=rng.choice(HIDING_MOTIONS), num_sprites=1)
        origin = rng.randrange(100)
        _, truth = render(scene, 128, origin, 16, truth="masks")
        seen = truth.visible[0, :, 0]
        fits = [t for t in range(128 - SEGMENT) if returns(seen[t : t + SEGMENT])]
        if fits:
            return scene, origin + rng.choice(fits)
    return sample_scene(rng.randrange(2**31), 0), rng.randrange(400)


def latent_mask(instances: torch.Tensor, cells: int) -> torch.Tensor:
    """Share of sprite pixels in each latent cell, ``(..., cells, cells)``."""
    mask = ((instances == 1) | (instances == 2)).float()
    return F.adaptive_avg_pool2d(mask, cells)


@dataclass
class Pool:
    """Segments of scenes as latents ``(c, 32, h, w)`` with masks ``(32, h, w)``, in fp16.

    Attributes:
        vae: encodes; frozen.
        seed: with the rank, decides which scenes come.
        capacity: segments kept; the oldest is replaced.
        returning: see :func:`draw_scene`.
    """

    vae: PatchedAutoencoderKL
    seed: int = 0
    rank: int = 0
    capacity: int = 16384
    returning: float = 0.0
    scenes: list[tuple[Scene, int]] = field(default_factory=list)
    latents: list[torch.Tensor] = field(default_factory=list)
    masks: list[torch.Tensor] = field(default_factory=list)
    made: int = 0

    @torch.no_grad()
    def grow(self, count: int) -> None:
        """Renders and encodes ``count`` new segments."""
        rng = random.Random(f"pool/{self.seed}/{self.rank}/{self.made}")
        drawn = [draw_scene(rng, self.returning) for _ in range(count)]
        device = next(self.vae.parameters()).device
        video, truth = render([s for s, _ in drawn], SEGMENT, [t for _, t in drawn], device=device, truth="masks")
        with fast_math(device):
            latents = encode_frames(self.vae, video, batch_size=64).half().cpu()
        masks = latent_mask(truth.instances, latents.shape[-1]).half().cpu()
        for new in zip(drawn, latents, masks):
            for kept, item in zip((self.scenes, self.latents, self.masks), new):
                if len(kept) < self.capacity:
                    kept.append(item)
                else:
                    kept[self.made % self.capacity] = item
            self.made += 1

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
        latents = torch.stack([self.latents[i][:, t : t + frames] for i, t in zip(picks, at)]).float()
        masks = torch.stack([self.masks[i][t : t + frames] for i, t in zip(picks, at)]).float()
        scenes = [self.scenes[i][0] for i in picks]
        return latents, masks, scenes, [self.scenes[i][1] + t for i, t in zip(picks, at)], picks

    def _window(self, rng: random.Random, pick: int, frames: int, in_sight: float) -> int:
        starts = range(SEGMENT - frames + 1)
        if rng.random() < in_sight:
            peaks = self.masks[pick][: len(starts)].float().amax((-1, -2))
            starts = [t for t in starts if peaks[t] > 0.8] or starts
        return rng.choice(starts)


@torch.no_grad()
def single_frames(vae: PatchedAutoencoderKL, rng: random.Random, count: int):
    """``count`` one-frame clips of as many scenes, in the form of :meth:`Pool.draw` without picks."""
    drawn = [draw_scene(rng) for _ in range(count)]
    device = next(vae.parameters()).device
    video, truth = render([s for s, _ in drawn], 1, [t for _, t in drawn], device=device, truth="masks")
    with fast_math(device):
        latents = encode_frames(vae, video, batch_size=64).float().cpu()
    return latents, latent_mask(truth.instances, latents.shape[-1]).cpu(), [s for s, _ in drawn]


class Captioner:
    """Token ids of sparse captions in random training wordings."""

    def __init__(self) -> None:
        self.tokenizer = make_tokenizer()

    def __call__(self, scenes: list[Scene], rng: random.Random, dropout: float) -> torch.Tensor:
        """Ids ``(n, text_len)``; with probability ``dropout`` a caption is empty."""
        texts = ["" if rng.random() < dropout else sparse_caption(s, rng.randrange(99)) for s in scenes]
        return tokenize(self.tokenizer, texts)
