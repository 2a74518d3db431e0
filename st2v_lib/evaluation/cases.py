"""What is generated: scenes of a split with their prompts and true frames, the same for every arm.

A case depends on (suite, split, index, sprites, speed) alone. Prompts are sparse captions, every other one in a wording
that training never used; the truth of the scene is used for scoring and for the rendered first chunk only.
"""

from __future__ import annotations

import dataclasses
import random
from dataclasses import dataclass

import torch
from torch import Tensor

from st2v_lib.errors import InputError
from st2v_lib.world.captions import sparse_caption
from st2v_lib.world.render import render
from st2v_lib.world.scene import Scene, positions, sample_scene

SPEEDS = ("world", "fast")
FAST = (8.5, 10.5)  # px a frame at 64: more than one latent cell of 8 px
FAST_MOTIONS = ("bounce", "orbit")  # a faster zigzag would turn twice a frame; the others hide the sprite
HORIZON = 400  # frames of a scene in which a start is looked for


@dataclass(frozen=True)
class Case:
    """One video to make.

    Attributes:
        index: of the case in its suite and split.
        scene, start: what is true, and the scene's frame that is the video's first.
        prompt: what the models are told.
    """

    index: int
    scene: Scene
    start: int
    prompt: str

    @property
    def motion(self) -> str:
        return self.scene.motion

    def frames(self, count: int, size: int = 64, truth: str | None = None):
        """The true video ``f 3 size size`` in [-1, 1] of that many frames; with ``truth`` also the ``Truth``."""
        if truth is None:
            return torch.cat(
                [render(self.scene, min(64, count - t), self.start + t, size)[0] for t in range(0, count, 64)]
            )
        video, facts = render(self.scene, count, self.start, size, truth=truth)
        return video[0], facts


def rendered(cases: list[Case], count: int, size: int = 64) -> Tensor:
    """True first frames of several cases, ``n f 3 size size``."""
    return torch.stack([case.frames(count, size) for case in cases])


def visible_shares(scene: Scene, frames: int, start: int = 0) -> Tensor:
    """Visible share of each sprite, ``f s``."""
    _, truth = render(scene, frames, start, 16, truth="masks")
    return truth.visible[0, :, : len(scene.sprites)]


def any_case(split: str, index: int, stream: int, sprites: int = 1, speed: str = "world", **fixed) -> Case:
    """A case that starts anywhere in its scene's time, as training clips do."""
    scene = scene_of(split, index, stream, sprites, speed, **fixed)
    start = random.Random(f"start/{stream}/{split}/{index}").randrange(HORIZON)
    return Case(index, scene, start, prompt_of(scene, index))


def visible_case(split: str, index: int, stream: int, sprites: int = 1, speed: str = "world", **fixed) -> Case:
    """A case whose sprites are all seen whole in the first frame."""
    case = any_case(split, index, stream, sprites, speed, **fixed)
    whole = (visible_shares(case.scene, HORIZON, case.start) > 0.95).all(-1)
    if not whole.any():
        raise InputError(f"case {index} of {split} never shows its sprites whole")
    return dataclasses.replace(case, start=case.start + int(whole.nonzero()[0]))


def hidden_case(split: str, index: int, stream: int) -> Case:
    """A sprite that is seen whole in frame 0, hidden in frames 16-23 and back by frame 48.

    Frames 16-23 are the first that are generated, and all that the second generated chunk is given.
    """
    for attempt in range(20):
        motion = ("cross", "hide")[index % 2]
        scene = scene_of(split, 1000 * index + attempt, stream, 1, "world", motion=motion)
        seen = visible_shares(scene, HORIZON + 48)[:, 0]
        starts = [
            t
            for t in range(HORIZON)
            if seen[t] > 0.95 and seen[t + 16 : t + 24].max() == 0 and seen[t + 24 : t + 48].max() > 0.95
        ]
        if starts:
            start = random.Random(f"hidden/{stream}/{split}/{index}").choice(starts)
            return Case(index, scene, start, prompt_of(scene, index))
    raise InputError(f"no hidden-sprite case {index} in {split}")


def scene_of(split: str, index: int, stream: int, sprites: int = 1, speed: str = "world", **fixed) -> Scene:
    """Scene number ``index``; ``speed="fast"`` makes it move more than one latent cell a frame.

    Raises:
        InputError: for another speed, or sprites other than 1 or 2.
    """
    if speed not in SPEEDS or sprites not in (1, 2):
        raise InputError(f"expected speed {' or '.join(SPEEDS)} and 1 or 2 sprites, got {speed!r} and {sprites}")
    if speed == "fast" and "motion" not in fixed:
        fixed["motion"] = FAST_MOTIONS[index % 2]
    scene = sample_scene(stream, index, split, num_sprites=sprites, **fixed)
    if speed == "world":
        return scene
    rng = random.Random(f"fast/{stream}/{split}/{index}")
    quick = []
    for sprite in scene.sprites:
        now = torch.diff(positions(sprite, torch.arange(200)), dim=0).norm(dim=-1).mean().item() * 64
        factor = rng.uniform(*FAST) / now
        motion = dataclasses.replace(sprite.motion, vx=sprite.motion.vx * factor)
        if sprite.motion.kind == "bounce":
            motion = dataclasses.replace(motion, vy=sprite.motion.vy * factor)
        quick.append(dataclasses.replace(sprite, motion=motion))
    return dataclasses.replace(scene, sprites=tuple(quick))


def prompt_of(scene: Scene, index: int) -> str:
    """The sparse caption; odd cases have a held-out wording."""
    return sparse_caption(scene, index // 2, held_out=index % 2 == 1)
