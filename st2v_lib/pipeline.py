"""The three stages as one diffusers pipeline: a base chunk, streaming, enhancement (paper §4, Fig. 2).

Differs from the released system: stage 1 samples with the same numbers as stage 2; stage 3 shares the VAE and the text
encoder of the other stages; the prompt goes to stage 3 as it is, and may change over time there too; all noise of all
stages comes from one seed; every frame is enhanced. The stages themselves are plain functions in ``stages``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DiffusionPipeline, SchedulerMixin
from diffusers.utils import BaseOutput
from einops import rearrange
from torch import Tensor
from tqdm.auto import tqdm
from transformers import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionModelWithProjection,
    PreTrainedTokenizerBase,
)

from st2v_lib.apm import Apm, preprocess_for_clip
from st2v_lib.backbone import PatchedAutoencoderKL, StreamingUNet
from st2v_lib.baselines import parts_of, rival_of
from st2v_lib.baselines.last_frame_clip import anchor_on_last_frame
from st2v_lib.bases import Base
from st2v_lib.bases.separate_unet import SAMPLING, separate_unet
from st2v_lib.blending import chunk_starts
from st2v_lib.cam import Cam
from st2v_lib.checks import Prompt, check_count, check_frames, check_sampling, prompt_schedule
from st2v_lib.config import SamplingConfig, StreamingT2VConfig
from st2v_lib.enhancer import shape_quirks
from st2v_lib.errors import InputError, WeightsError
from st2v_lib.memory import Ladder
from st2v_lib.sampling import StepState
from st2v_lib.stages import FrameStream, enhance_blocks, enhancer_stream, next_frame, stream_blocks, stream_cost
from st2v_lib.streaming import Models, StreamState

ENHANCER_COST = 2  # one call of stage 3 in steps of stage 2, for the time left (benchmarks/generate_speed.py, tiny)
BAR = "{desc}{percentage:3.0f}%|{bar}| {elapsed}<{remaining}"

Callback = Callable[[StepState], Any]


@dataclass
class StreamingT2VOutput(BaseOutput):
    """What a call returns.

    Attributes:
        frames: the video ``b f 3 h w`` in [-1, 1] on the CPU, enhanced if that was asked for.
        low_res: the video of stages 1 and 2.
        config: the config it was made with, sampling numbers included.
        state: where stage 2 stopped; ``pipe.stream(prompt, state=...)`` goes on from there. It holds whole chunks: if
            the length is not 16 + 8k, the stream begins where the last chunk ended, not where the frames were cut off.
    """

    frames: Tensor
    low_res: Tensor
    config: StreamingT2VConfig
    state: StreamState


class StreamingT2VPipeline(DiffusionPipeline):
    """Text to video of any length.

    Components are the networks and a scheduler, which may be swapped; ``cfg`` is saved with them. An ablation is
    another config: ``pipe.cfg = pipe.cfg.replace(apm=None)`` or ``conditioning="none"``.

    Args:
        vae, text_encoder, tokenizer, unet, scheduler: the base model.
        image_encoder, cam, apm: the memories; ``None`` leaves one out.
        enhancer: the video model of stage 3; ``None`` for stages 1 and 2 alone.
        base: a UNet for stage 1 alone, as the released model has; ``None``: stage 1 uses ``unet`` without memories.
        cfg: sizes and defaults; a dict is its JSON form.

    Raises:
        WeightsError: when ``cfg`` and the UNet disagree, or APM comes without an image encoder.
    """

    model_cpu_offload_seq = "text_encoder->image_encoder->unet->vae->enhancer"
    _exclude_from_cpu_offload = ["cam", "apm"]  # they work inside the UNet, so they stay on its device
    _optional_components = ["image_encoder", "cam", "apm", "enhancer", "base"]
    ladder: Ladder | None = None  # moves networks to and from the device, if loading has set one

    def __init__(
        self,
        vae: PatchedAutoencoderKL,
        text_encoder: CLIPTextModel | CLIPTextModelWithProjection,
        tokenizer: PreTrainedTokenizerBase,
        unet: StreamingUNet,
        scheduler: SchedulerMixin,
        image_encoder: CLIPVisionModelWithProjection | None = None,
        cam: Cam | None = None,
        apm: Apm | None = None,
        enhancer: StreamingUNet | None = None,
        base: StreamingUNet | None = None,
        cfg: StreamingT2VConfig | dict | None = None,
    ):
        super().__init__()
        if not isinstance(cfg, StreamingT2VConfig):
            cfg = StreamingT2VConfig.from_json(json.dumps(cfg)) if cfg else StreamingT2VConfig()
        if tuple(unet.config.block_out_channels) != tuple(cfg.unet.block_out_channels):
            raise WeightsError(
                f"the UNet was made for another config: it has channels {tuple(unet.config.block_out_channels)}, "
                f"{cfg.name!r} has {cfg.unet.block_out_channels}"
            )
        if apm is not None and image_encoder is None:
            raise WeightsError("apm needs an image_encoder; give both or neither")
        if enhancer is not None and cfg.enhancer is not None and cfg.enhancer.shape_quirks:
            shape_quirks(enhancer)
        self.register_modules(
            vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, scheduler=scheduler,
            image_encoder=image_encoder, cam=cam, apm=apm, enhancer=enhancer, base=base,
        )  # fmt: skip
        self.register_to_config(cfg=cfg)
        self.cfg = cfg

    def register_to_config(self, **kwargs: Any) -> None:
        """As in diffusers; own classes are named as members of the package, and ``cfg`` is kept as plain JSON."""
        for name, value in kwargs.items():
            if isinstance(value, StreamingT2VConfig):
                kwargs[name] = json.loads(value.to_json())
            elif isinstance(value, tuple) and str(value[0]).startswith("st2v_lib"):
                kwargs[name] = ("st2v_lib", value[1])
            elif name == "tokenizer" and value[1] == "TokenizersBackend":  # its name in transformers 5 only
                kwargs[name] = (value[0], "PreTrainedTokenizerFast")
        super().register_to_config(**kwargs)

    @classmethod
    def from_pretrained(cls, path: Any, **kwargs: Any) -> StreamingT2VPipeline:
        """As in diffusers, but in float32 unless ``torch_dtype`` (or ``dtype``) says otherwise.

        The networks come ready for use, in evaluation mode.
        """
        pipe = super().from_pretrained(str(path), **kwargs)
        if not {"dtype", "torch_dtype"} & kwargs.keys():
            pipe.to(torch.float32)
        for part in pipe.components.values():
            if isinstance(part, torch.nn.Module):
                part.eval()
        return pipe

    # ------------------------------------------------------------------------------------------------ what users call

    def __call__(
        self,
        prompt: Prompt,
        num_frames: int = 80,
        seed: int = 0,
        sampler: str | None = None,
        num_inference_steps: int | None = None,
        eta: float | None = None,
        guidance_scale: float | None = None,
        anchor_guidance_scale: float | None = None,
        negative_prompt: str = "",
        first_chunk: Tensor | Base | None = None,
        anchor: Tensor | None = None,
        enhance: bool = True,
        callback: Callback | None = None,
        progress: bool = True,
    ) -> StreamingT2VOutput:
        """Makes a video through all stages. Same seed, same frames.

        Args:
            prompt: a text, or a schedule: ``{frame: text}`` or a function of the frame.
            num_frames: any length from one chunk (16); what is made beyond it is cut off. Stage-2 chunks do not
                depend on it; enhanced frames near the end do, because blending couples neighbours at every step.
            seed: of all noise.
            sampler, num_inference_steps, eta, guidance_scale, anchor_guidance_scale: see ``checks.check_sampling``.
                A UNet for stage 1 alone takes ``base_sampling`` where steps and guidance are ``None``.
            negative_prompt: what to stay away from.
            first_chunk: ``1 16 3 h w`` in [-1, 1] in place of stage 1, or a function that makes it (``bases``).
            anchor: frames ``1 n 3 h w`` that APM keeps to; ``None`` for the first.
            enhance: ``False`` stops after stage 2.
            callback: called with a ``StepState`` after every denoising step of every stage.
            progress: shows a bar over all denoising steps, with the time left.

        Raises:
            InputError: for a wrong argument, before anything is computed.
            WeightsError: when stage 3 is asked for and there is no enhancer.
        """
        if enhance:
            self._require_enhancer()
        options = dict(
            sampler=sampler, num_inference_steps=num_inference_steps, eta=eta, guidance_scale=guidance_scale,
            anchor_guidance_scale=anchor_guidance_scale, negative_prompt=negative_prompt, first_chunk=first_chunk,
            anchor=anchor, callback=callback,
        )  # fmt: skip
        check_count(num_frames, "num_frames", self.cfg.chunk_frames)
        with self.bar(progress, 0) as bar:
            stream = self.stream(prompt, num_frames, seed, progress=bar, **options)
            bar.reset(stream.cost + (self.enhancer_cost(num_frames) if enhance else 0))
            frames = low_res = torch.cat(list(stream), dim=1)
            if enhance:
                blocks = self.enhance(low_res, prompt, seed, negative_prompt, callback, progress=bar)
                frames = torch.cat(list(blocks), dim=1)
        self.maybe_free_model_hooks()
        return StreamingT2VOutput(frames=frames, low_res=low_res, config=stream.config, state=stream.state)

    def stream(
        self,
        prompt: Prompt,
        num_frames: int | None = None,
        seed: int = 0,
        sampler: str | None = None,
        num_inference_steps: int | None = None,
        eta: float | None = None,
        guidance_scale: float | None = None,
        anchor_guidance_scale: float | None = None,
        negative_prompt: str = "",
        first_chunk: Tensor | Base | None = None,
        anchor: Tensor | None = None,
        state: StreamState | None = None,
        callback: Callback | None = None,
        progress: bool | tqdm = True,
    ) -> FrameStream:
        """Stages 1 and 2, block by block: first 16 frames, then 8 at a time, in constant memory.

        Args:
            num_frames: frames to yield; ``None`` never ends. The last block is cut to fit, the state behind it is not.
            state: resumes from ``stream.state``: no first chunk, and the seed is the state's.
            progress: whether to show a bar, or a bar to move that others share.

        The other arguments are those of a call. Raises ``InputError`` now, not at the first block.
        """
        sampling, scheduler = check_sampling(
            self.cfg, self.scheduler, sampler, num_inference_steps, eta, guidance_scale, anchor_guidance_scale
        )
        size = self.cfg.size
        check_count(seed, "seed", 0)
        models = self.models(scheduler)
        end = num_frames
        if num_frames is not None:
            check_count(num_frames, "num_frames", self.cfg.chunk_frames if state is None else 1)
            end = num_frames + (0 if state is None else next_frame(state, models, self.cfg))
        prompt_at = prompt_schedule(prompt, self.cfg, end)
        chunk_shape = (1, self.cfg.chunk_frames, 3, size, size)
        if first_chunk is not None and not callable(first_chunk):
            check_frames(first_chunk, "first_chunk", chunk_shape)
        if anchor is not None:
            check_frames(anchor, "anchor", (1, None, 3, size, size))
        if state is not None:
            check_frames(state.cond, "state", (1, None, 3, size, size))
            if models.apm is not None and state.anchor is None:
                raise InputError("state: it was made without APM; resume with pipe.cfg.replace(apm=None)")
        if state is not None and first_chunk is not None:
            raise InputError("give first_chunk to start a stream or state to resume one, not both")
        cfg = self.cfg.replace(sampling=sampling)
        own = first_chunk is None and state is None and self.base is not None  # stage 1 has a UNet of its own
        numbers = base_sampling(num_inference_steps, guidance_scale)
        cost = None
        if num_frames:
            cost = stream_cost(num_frames, models, cfg, own or first_chunk is not None, state is not None)
            cost += numbers.num_inference_steps if own else 0

        def blocks(bar: tqdm) -> Iterator[tuple[Tensor, StreamState]]:
            first = first_chunk
            if own:
                first = separate_unet(self, negative_prompt, numbers, _ticking(bar, callback))
            if callable(first):
                first = check_frames(first(prompt_at(0), seed), "first_chunk", chunk_shape)
            return stream_blocks(
                models, cfg, self.encode_text, prompt_at, negative_prompt, num_frames, seed, first, anchor, state,
                _ticking(bar, callback),
            )  # fmt: skip

        return FrameStream(self._run(blocks, progress, cost), cfg, state, cost)

    def enhance(
        self,
        video: Tensor | Iterable[Tensor],
        prompt: Prompt,
        seed: int = 0,
        negative_prompt: str = "",
        callback: Callback | None = None,
        progress: bool | tqdm = True,
        batch_size: int = 8,
        num_frames: int | None = None,
        chunk_batch: int = 1,
    ) -> Iterator[Tensor]:
        """Stage 3 on a video of any length, in constant memory: yields enhanced frames on the CPU.

        ``pipe.enhance(pipe.stream(prompt), prompt)`` enhances while frames are made, for ever; the same frames come
        out as of the whole video at once (see ``wavefront``).

        Args:
            video: ``b f 3 h w`` in [-1, 1], or blocks of it as they come.
            batch_size: frames in the VAE at once, and in a block that is yielded.
            num_frames: length of the video, if blocks are given and it is known: the last frames then come earlier.
            chunk_batch: chunks in the network at once. More than 1 is not bit-identical and lets the frames come later,
                hence the default; 4 were a tenth faster on two cores (``benchmarks/streaming.py``).

        The other arguments are those of a call. Raises ``InputError`` or ``WeightsError`` now.
        """
        self._require_enhancer()
        check_count(seed, "seed", 0)
        check_count(batch_size, "batch_size", 1)
        check_count(chunk_batch, "chunk_batch", 1)
        blocks = video
        if isinstance(video, Tensor):
            num_frames, blocks = check_frames(video, "video").shape[1], video.split(batch_size, dim=1)
        prompt_at = prompt_schedule(prompt, self.cfg, num_frames)
        cost = None if num_frames is None else self.enhancer_cost(num_frames)

        def run(bar: tqdm) -> Iterator[Tensor]:
            stream = enhancer_stream(
                self.vae, self.enhancer, self.cfg.enhancer, self.encode_text, prompt_at, negative_prompt, seed,
                num_frames, batch_size, chunk_batch,
            )  # fmt: skip
            return enhance_blocks(blocks, stream, lambda: bar.update(ENHANCER_COST), callback)

        return self._run(run, progress, cost)

    # ------------------------------------------------------------------------------------------------------ the parts

    @property
    def _execution_device(self) -> torch.device:
        return super()._execution_device if self.ladder is None else self.ladder.device

    @torch.no_grad()
    def encode_text(self, text: str) -> Tensor:
        """Tokens ``1 l d`` of a text: the text encoder's last hidden state. Warns of a text that is cut off."""
        length = self.tokenizer.model_max_length
        ids = self.tokenizer(text, padding="max_length", truncation=True, return_tensors="pt").input_ids
        if len(self.tokenizer(text, verbose=False).input_ids) > length:
            warnings.warn(f"the prompt is longer than {length} tokens; its end is cut off", stacklevel=2)
        return self.text_encoder(input_ids=ids.to(self._execution_device)).last_hidden_state

    @torch.no_grad()
    def encode_image(self, frames: Tensor) -> Tensor:
        """CLIP embeddings ``b n e`` of frames ``b n 3 h w`` in [-1, 1] (paper §4.2)."""
        flat = rearrange(frames, "b n c h w -> (b n) c h w").to(self._execution_device, torch.float32)
        pixels = preprocess_for_clip(flat, self.image_encoder.config.image_size).to(self.image_encoder.dtype)
        embeds = self.image_encoder(pixel_values=pixels).image_embeds
        return rearrange(embeds, "(b n) e -> b n e", b=len(frames))

    def models(self, scheduler: SchedulerMixin | None = None) -> Models:
        """The networks of stage 2 as the plain loops of ``streaming`` take them, with what ``cfg`` switches on."""
        if self.cfg.anchor not in ("first", "last"):
            raise InputError(f"anchor: expected 'first' or 'last', got {self.cfg.anchor!r}")
        cam, (memory, replacement) = None, parts_of(self.cfg.conditioning)
        if self.cfg.cam is not None and memory != "none":
            cam = self.cam if memory == "cam" else rival_of(self, memory)
        apm = self.apm if self.cfg.apm is not None else None
        follow = anchor_on_last_frame if self.cfg.anchor == "last" else None
        scheduler, device = scheduler or self.scheduler, self._execution_device
        if replacement and float(scheduler.init_noise_sigma) != 1:
            raise InputError(
                f"conditioning {self.cfg.conditioning!r} pastes frames noised as DDIM and DPM-Solver++ noise them, "
                f"{type(scheduler).__name__} does it otherwise; choose another scheduler"
            )
        null = self.cfg.null_pixel
        return Models(self.unet, self.vae, scheduler, cam, apm, self.encode_image, device, follow, null, replacement)

    @contextlib.contextmanager
    def bar(self, progress: bool | tqdm = True, total: int | None = None) -> Iterator[tqdm]:
        """A progress bar with the time left; one that others share is passed through and left open."""
        if not isinstance(progress, bool):
            yield progress
            return
        look = {"disable": not progress, "bar_format": None if total is None else BAR, "delay": 1e-3}
        with tqdm(total=total, **{**look, **getattr(self, "_progress_bar_config", {})}) as bar:
            yield bar

    def enhancer_cost(self, num_frames: int) -> int:
        """What stage 3 of a video of that length adds to a progress bar's total, in steps of stage 2."""
        config = self.cfg.enhancer
        chunks = len(chunk_starts(num_frames, config.chunk_frames, config.overlap_frames))
        return chunks * config.num_inference_steps * ENHANCER_COST

    def _run(self, blocks: Callable[[tqdm], Iterator], progress: bool | tqdm, cost: int | None) -> Iterator:
        """Runs a stage under a progress bar; then off-loaded networks leave the device, unless a shared bar goes on."""
        with self.bar(progress, cost) as bar:
            yield from blocks(bar)
        if isinstance(progress, bool):
            self.maybe_free_model_hooks()

    def _require_enhancer(self) -> None:
        if self.enhancer is None or self.cfg.enhancer is None:
            raise WeightsError("stage 3 was asked for and this pipeline has no enhancer; pass enhance=False")


def base_sampling(num_inference_steps: int | None = None, guidance_scale: float | None = None) -> SamplingConfig:
    """Sampling numbers of a UNet for stage 1 alone: the released ones, but for what the user has asked for."""
    given = {"num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale}
    return dataclasses.replace(SAMPLING, **{name: value for name, value in given.items() if value is not None})


def _ticking(bar: tqdm, callback: Callback | None) -> Callback:
    """A callback that moves the bar and then calls the user's."""

    def on_step(step: StepState) -> None:
        bar.update()
        if callback is not None:
            callback(step)

    return on_step
