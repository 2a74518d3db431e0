"""What is asked of the pipeline, checked before anything expensive is done: one clear message for each mistake."""

from __future__ import annotations

import dataclasses
import inspect
import math
import numbers
from collections.abc import Callable, Mapping
from typing import Any

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, SchedulerMixin
from torch import Tensor

from st2v_lib.backbone import check_video
from st2v_lib.config import SamplingConfig, StreamingT2VConfig
from st2v_lib.errors import DeviceError, InputError
from st2v_lib.sampling import adds_noise, make_scheduler

# one text; {frame: text from there on}; {(first, end): text of these frames}; or a function of the frame
Prompt = str | Mapping | Callable[[int], str]


def check_device(name: str) -> torch.device:
    """The device of that name; ``"auto"`` is the first CUDA device, or the CPU without one.

    Raises:
        DeviceError: for a name torch does not know, or a device that is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise DeviceError(f"unknown device {name!r}; choose auto, cpu, cuda, cuda:1 or mps") from None
    present = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if (device.index or 0) >= present.get(device.type, 0):
        raise DeviceError(f"device {name!r} was asked for and is not there; choose auto or cpu")
    return device


def check_count(value: Any, name: str, minimum: int) -> int:
    """``value`` if it is a whole number of at least ``minimum``; ``InputError`` otherwise."""
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise InputError(f"{name}: expected a whole number of {minimum} or more, got {value!r}")
    return value


def check_text(text: Any, cfg: StreamingT2VConfig) -> str:
    """A prompt without surrounding space; for the sprite world, warns of words that it has no meaning for.

    Raises:
        InputError: unless it is a text with something in it.
    """
    if not isinstance(text, str):
        raise InputError(f"expected the prompt as text, got {type(text).__name__}")
    if not text.strip():
        raise InputError('the prompt is empty; try "a red circle bounces over green stripes"')
    if cfg.name == "tiny":
        from st2v_lib.world.captions import check_prompt

        return check_prompt(text)
    return text.strip()


def prompt_schedule(prompt: Prompt, cfg: StreamingT2VConfig, num_frames: int | None = None) -> Callable[[int], str]:
    """A prompt, or what changes it over time, as a function of the frame's index.

    Args:
        prompt: one text; a schedule, see ``prompt_ranges``; or a function.
        cfg: ``tiny`` has its words checked.
        num_frames: length of the video, if it is known and the schedule is for that video alone.

    Raises:
        InputError: for an empty prompt or a wrong schedule. What a function returns is checked when it is asked, its
            first answer now.
    """
    if callable(prompt):
        check_text(prompt(0), cfg)
        return lambda frame: check_text(prompt(frame), cfg)
    texts = dict(prompt_ranges(prompt, cfg, num_frames))
    return lambda frame: texts[max(start for start in texts if start <= frame)]


def prompt_ranges(
    prompt: str | Mapping, cfg: StreamingT2VConfig, num_frames: int | None = None
) -> tuple[tuple[int, str], ...]:
    """A prompt or a schedule as pairs of a frame and the prompt from there on, in order, the first at frame 0.

    Args:
        prompt: one text; ``{0: text, 40: text}``, each valid from its frame on; or ``{(0, 40): text, (40, 80): text}``,
            each valid from its first frame to before its end. Both kinds may be mixed.
        cfg: ``tiny`` has its words checked.
        num_frames: length of the video, if it is known.

    Raises:
        InputError: for an empty prompt; frames without a prompt or with two; frames beyond the end.
    """
    if not isinstance(prompt, Mapping):
        return ((0, check_text(prompt, cfg)),)
    what, entries = "the prompt schedule", []
    for key, text in prompt.items():
        first, end = key if isinstance(key, tuple) and len(key) == 2 else (key, None)
        check_count(first, f"frame of {what[4:]}", 0)
        if end is not None:
            check_count(end, f"{what}, end of the frames from {first} on", first + 1)
        entries.append((first, end, text))
    entries.sort(key=lambda entry: entry[0])
    if not entries or entries[0][0] != 0:
        raise InputError(f"{what} has nothing for frame 0; it starts at {entries[0][0] if entries else 'nothing'}")
    for (first, end, _), (following, _, _) in zip(entries, entries[1:], strict=False):
        if following == first or (end is not None and end > following):
            raise InputError(f"{what} overlaps: the frames from {following} on belong to two prompts")
        if end is not None and end < following:
            raise InputError(f"{what} has a gap: frames {end} to {following - 1} have no prompt")
    first, end, _ = entries[-1]
    if num_frames is not None and max(first + 1, end or 0) > num_frames:
        raise InputError(f"{what} goes to frame {max(first, (end or 0) - 1)}, the video ends at {num_frames - 1}")
    if end is not None and end != num_frames:
        raise InputError(
            f"{what} has a gap: frames from {end} on have no prompt; let the last entry have no end, {{{first}: text}}"
        )
    return tuple((first, check_text(text, cfg)) for first, _, text in entries)


def check_sampling(
    cfg: StreamingT2VConfig,
    scheduler: SchedulerMixin,
    sampler: str | None = None,
    num_inference_steps: int | None = None,
    eta: float | None = None,
    guidance_scale: float | None = None,
    anchor_guidance_scale: float | None = None,
) -> tuple[SamplingConfig, SchedulerMixin]:
    """The sampling numbers and the scheduler to use: what is given, in place of the config's.

    Args:
        cfg: its ``sampling`` fills in what is ``None``.
        scheduler: used unless a ``sampler`` is named.
        sampler: ``"ddim"``, ``"dpm++"`` or ``"sde-dpm++"``.
        num_inference_steps: 1 to the length of the training schedule.
        eta: 0 to 1; above 0 only with a sampler that has it.
        guidance_scale, anchor_guidance_scale: 0 or more; 1 means no guidance.

    Raises:
        InputError: for a number outside its range, or an unknown sampler.
    """
    if sampler is not None:
        try:
            scheduler = make_scheduler(cfg.scheduler, sampler)
        except ValueError as error:
            raise InputError(str(error)) from None
    given = dict(
        num_inference_steps=num_inference_steps,
        eta=eta,
        guidance_scale=guidance_scale,
        anchor_guidance_scale=anchor_guidance_scale,
    )
    sampling = dataclasses.replace(
        cfg.sampling, sampler=sampler_name(scheduler), **{k: v for k, v in given.items() if v is not None}
    )
    longest = scheduler.config.num_train_timesteps
    if check_count(sampling.num_inference_steps, "num_inference_steps", 1) > longest:
        raise InputError(f"num_inference_steps: expected at most {longest}, got {num_inference_steps}")
    for name in ("eta", "guidance_scale", "anchor_guidance_scale"):
        if not isinstance(getattr(sampling, name), numbers.Real | None):
            raise InputError(f"{name}: expected a number, got {getattr(sampling, name)!r}")
    if not 0 <= sampling.eta <= 1:
        raise InputError(f"eta: expected a number from 0 to 1, got {eta}")
    if eta and "eta" not in inspect.signature(scheduler.step).parameters:
        raise InputError(f"eta: the sampler {sampling.sampler!r} has none; choose sampler 'ddim'")
    for name in ("guidance_scale", "anchor_guidance_scale"):
        value = getattr(sampling, name)
        if value is not None and not 0 <= value < math.inf:
            raise InputError(f"{name}: expected a number of 0 or more, got {value}")
    return sampling, scheduler


def sampler_name(scheduler: SchedulerMixin) -> str:
    """``"ddim"``, ``"dpm++"``, ``"sde-dpm++"``, or the class name of another scheduler."""
    if type(scheduler) is DPMSolverMultistepScheduler:
        return "sde-dpm++" if adds_noise(scheduler, 0.0) else "dpm++"
    return "ddim" if type(scheduler) is DDIMScheduler else type(scheduler).__name__


def check_frames(video: Any, name: str, shape: tuple[int | None, ...] | None = None) -> Tensor:
    """``video`` if it is ``b f 3 h w``, floating point, in [-1, 1], and of ``shape`` where that is not ``None``.

    Raises:
        InputError: naming what was got and what was expected.
    """
    if not isinstance(video, Tensor):
        raise InputError(f"{name}: expected a tensor (b, f, 3, h, w), got {type(video).__name__}")
    try:
        check_video(video, name)
    except ValueError as error:
        raise InputError(str(error)) from None
    if shape is not None and any(want not in (None, got) for got, want in zip(video.shape, shape, strict=True)):
        expected = ", ".join("any" if want is None else str(want) for want in shape)
        raise InputError(f"{name}: expected shape ({expected}), got {tuple(video.shape)}")
    return video
