"""What the ablation lab computes with: its networks, loaded once, and what an arm of a state means for them."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from st2v_lib.baselines import RIVALS, load_rival
from st2v_lib.baselines.last_frame_clip import anchor_on_last_frame
from st2v_lib.cam import Cam
from st2v_lib.config import EnhancerConfig, SamplingConfig
from st2v_lib.evaluation.cases import HORIZON, Case, visible_shares
from st2v_lib.manifest import weights_dir
from st2v_lib.notebook.lab_state import CARRIED, FEWER, SAMPLERS, Arm, found_weights
from st2v_lib.sampling import make_scheduler
from st2v_lib.streaming import Models, StreamState, start_stream
from st2v_lib.world.captions import parse_prompt
from st2v_lib.world.scene import sample_scene, split_of


@dataclass(eq=False)
class Bench:
    """The networks of the lab, loaded once.

    Attributes:
        pipe: the tiny pipeline.
        reader, clip: what scores are read with; ``None`` leaves their scores out.
        folder: the weights, with trained arms in ``arms/``.
    """

    pipe: Any
    reader: Any = None
    clip: Any = None
    folder: Path = field(default_factory=lambda: weights_dir("tiny"))
    memories: dict[str, Any] = field(default_factory=dict)

    @functools.cached_property
    def found(self) -> frozenset[str]:
        """See ``lab_state.found_weights``."""
        return found_weights(self.folder)

    def memory(self, name: str) -> Any:
        """The network behind ``Arm.conditioning``; ``None`` for ``"none"``."""
        if name in ("none", "cam"):
            return self.pipe.cam if name == "cam" else None
        if name not in self.memories:
            place = self.folder / "arms"
            if name in FEWER:
                self.memories[name] = Cam.from_pretrained(place / name).float().eval().requires_grad_(False)
            else:
                self.memories[name] = load_rival(name, place)
        if name in RIVALS and hasattr(self.memories[name], "use_vae"):
            self.memories[name].use_vae(self.pipe.vae)
        return self.memories[name]


@functools.lru_cache(1)
def load_bench() -> Bench:
    """The shipped tiny pipeline, reader and CLIP; takes a few seconds the first time."""
    from st2v_lib import load
    from st2v_lib.metrics.clip_score import load_clip
    from st2v_lib.world.reader import load_reader

    return Bench(load("tiny", device="cpu"), load_reader(), load_clip(weights_dir("tiny")))


def scene_of(arm: Arm) -> Case:
    """A scene that a prompt describes, from a moment on in which its sprite is seen whole; the seed draws the rest."""
    truth = parse_prompt(arm.prompt)
    (colour, shape), kind, ground = truth.sprites[0], truth.background, truth.background_colour
    scene = sample_scene(
        11, arm.seed, split_of(shape, colour, kind, ground), num_sprites=1, motion=truth.motion, shape=shape,
        colour=colour, background=kind, background_colour=ground, pan=False,
    )  # fmt: skip
    whole = visible_shares(scene, HORIZON)[:, 0] > 0.95
    return Case(arm.seed, scene, int(whole.nonzero()[0]), arm.prompt)


def start_of(arm: Arm, models: Models, first: Tensor) -> StreamState:
    """What an arm starts stage 2 with, after a first chunk ``1 16 3 h w``."""
    grey = torch.zeros_like(first[:, :1]) if arm.apm == "grey" else None
    return start_stream(models, first, arm.seed, grey, CARRIED)


def models_of(arm: Arm, bench: Bench) -> Models:
    """The networks of stage 2 with what an arm switches on."""
    pipe, (sampler, _) = bench.pipe, SAMPLERS[arm.sampler]
    follow = anchor_on_last_frame if arm.apm == "last" else None
    apm = None if arm.apm == "off" else pipe.apm
    scheduler, memory = make_scheduler(pipe.cfg.scheduler, sampler), bench.memory(arm.conditioning)
    models = Models(pipe.unet, pipe.vae, scheduler, memory, apm, pipe.encode_image, None, follow)
    return dataclasses.replace(models, replacement=arm.paste == "on")


def sampling_of(arm: Arm) -> SamplingConfig:
    """An arm's sampling numbers."""
    sampler, eta = SAMPLERS[arm.sampler]
    return SamplingConfig(sampler, arm.steps, eta, float(arm.guidance), float(arm.guidance * arm.anchor_weight))


def enhancer_config(arm: Arm, config: EnhancerConfig) -> EnhancerConfig:
    """The enhancer's config with this arm's numbers."""
    return dataclasses.replace(
        config, blend_law=arm.blend_law, chunk_frames=arm.chunk, overlap_frames=arm.overlap,
        num_inference_steps=arm.enhancer_steps,
    )  # fmt: skip
