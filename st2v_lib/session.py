"""Sessions on disk: a video that survives its process, and can be taken up, branched and changed on its way.

After each chunk a checkpoint is made: data files first, then one small JSON file that names their hashes and that of
the checkpoint before. It appears under its name whole or not at all, so whatever stops the process, the session is at
its last checkpoint; going on from there gives, on the CPU, the bytes of an uninterrupted run.

::

    session.json             how it was begun: config, hashes of config and weights, versions, parent
    plan.json                what it will do next: prompts, seed, guidance, length; changes while it runs
    checkpoints/000007.json  hashes of the files below, numbers of the drift watch
    blocks/000007.safetensors  the chunk's new low-resolution frames, float32; the last of them condition the next chunk
    video/000007.m4s         what came out then, as a piece of a fragmented mp4; video/init.mp4 goes before all pieces
    wavefront.000007.safetensors  stage 3 in flight; only the newest is kept

A branch has a folder of its own and reads its past from its parent's.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import json
import os
import platform
import re
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from diffusers import SchedulerMixin
from safetensors.torch import load as from_bytes
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from st2v_lib import __version__
from st2v_lib.bases.separate_unet import separate_steps
from st2v_lib.checks import Prompt, check_count, check_sampling, prompt_ranges
from st2v_lib.cli import SAMPLERS
from st2v_lib.config import StreamingT2VConfig
from st2v_lib.drift_watch import DriftLimits, chunk_look, drift_warnings
from st2v_lib.errors import InputError, OutputError, UserError, WeightsError
from st2v_lib.live_video import encode_fragment, grow
from st2v_lib.pipeline import StreamingT2VPipeline, base_sampling
from st2v_lib.sampling import StepState, make_scheduler
from st2v_lib.stages import base_steps, carried_frames, enhancer_stream
from st2v_lib.streaming import Models, StreamState, chunk_steps, start_stream
from st2v_lib.video_io import to_uint8
from st2v_lib.wavefront import EnhancerStream

FORMAT = 1
INIT = "video/init.mp4"
LONGEST = 10_000  # characters of prompts in an mp4; ffmpeg is told them in one argument
STEP = Generator[StepState, None, Any]


class SessionError(UserError, RuntimeError):
    """A session that cannot be taken up: damaged, in use, or made with another config or other weights."""


@dataclass(frozen=True)
class Plan:
    """What a session does from its next chunk on.

    Attributes:
        prompts: pairs of a frame and the prompt from there on, the first at frame 0.
        seed: of stage 2's noise.
        num_frames: length; ``None`` for no end.
        guidance_scale, anchor_guidance_scale: as in ``SamplingConfig``.
    """

    prompts: tuple[tuple[int, str], ...]
    seed: int
    num_frames: int | None
    guidance_scale: float
    anchor_guidance_scale: float | None

    def prompt_at(self, frame: int) -> str:
        """The prompt of a frame."""
        return [text for start, text in self.prompts if start <= frame][-1]


@dataclass(frozen=True)
class Block:
    """What one checkpoint added.

    Attributes:
        index: number of the chunk; 0 is the first, of stage 1.
        first_frame: where in the video its new frames begin.
        low: its new frames ``1 m 3 h w`` in [-1, 1], cut to the length asked for; ``m`` may be 0 at the very end.
        video: frames that are finished now, enhanced ones if the session enhances, ``1 n 3 H W``; ``n`` may be 0.
        prompt: what it was made from.
        look: numbers of the drift watch.
        warnings: what the drift watch says.
    """

    index: int
    first_frame: int
    low: Tensor
    video: Tensor
    prompt: str
    look: dict[str, float]
    warnings: tuple[str, ...]


class Session:
    """A video in the making, in a folder. ``create``, ``open`` or ``branch`` give one; ``run`` goes on with it.

    Attributes:
        folder: where it lives.
        plan: what it does next; ``change`` and ``end`` replace it.
        records: what each checkpoint says, also those of the parent.
        limits: thresholds of the drift watch.
    """

    def __init__(self, folder: str | Path, pipe: StreamingT2VPipeline, upto: int | None = None):
        """Takes up the session in ``folder``; see ``open``."""
        self.folder, self.pipe, self.upto = Path(folder), pipe, upto
        self.header = read_sealed(self.folder / "session.json")
        made_by_another = SessionError(f"{self.folder}: made by another version of this kit")
        if self.header.get("format") != FORMAT:
            raise made_by_another
        try:
            self.limits = DriftLimits(**self.header["limits"])
            self.cfg = StreamingT2VConfig.from_json(json.dumps(self.header["config"]))
        except (KeyError, TypeError, ValueError):  # fields that this version does not know
            raise made_by_another from None
        self._refuse_others()
        self.records = _records(self.folder, self.header, upto)
        if upto is None:
            self._wavefront()
        values = read_sealed(self.folder / "plan.json")
        values["prompts"] = tuple((frame, text) for frame, text in values["prompts"])
        self.plan = Plan(**{name: value for name, value in values.items() if name != "sha256"})
        self._stopping, self._begun, self._last_frame, self._anchor = False, self.frames_made, None, None
        self._grown: dict[Path, tuple[int, int]] = {}

    # --------------------------------------------------------------------------------------- create, open, branch

    @classmethod
    def create(
        cls,
        folder: str | Path,
        pipe: StreamingT2VPipeline,
        prompt: Prompt,
        num_frames: int | None = None,
        seed: int = 0,
        enhance: bool = True,
        negative_prompt: str = "",
        limits: DriftLimits | None = None,
        **sampling: Any,
    ) -> Session:
        """Begins a session in a new folder; nothing is computed yet.

        Args:
            folder: must not hold a session.
            pipe: the pipeline; the session takes its ``cfg`` as it is now.
            prompt: a text or a schedule ``{frame: text}``.
            num_frames: length; ``None`` for no end.
            seed: of all noise.
            enhance: whether stage 3 follows, a constant number of frames behind.
            negative_prompt: what to stay away from.
            limits: thresholds of the drift watch.
            sampling: ``sampler``, ``num_inference_steps``, ``eta``, ``guidance_scale``, ``anchor_guidance_scale``.

        Raises:
            UserError: for a wrong argument, before anything is written.
        """
        folder = Path(folder)
        if callable(prompt):
            raise InputError("a session keeps its prompts on disk: give a text or {frame: text}, no function")
        if (folder / "session.json").exists():
            raise InputError(f"there is a session in {folder} already: resume it, or choose another folder")
        check_count(seed, "seed", 0)
        if num_frames is not None:
            check_count(num_frames, "num_frames", pipe.cfg.chunk_frames)
        numbers, scheduler = check_sampling(pipe.cfg, pipe.scheduler, **sampling)
        prompts = prompt_ranges(prompt, pipe.cfg, num_frames)
        if enhance and (pipe.enhancer is None or pipe.cfg.enhancer is None):
            raise WeightsError("a session with stage 3 was asked for and this pipeline has no enhancer; enhance=False")
        cfg = pipe.cfg.replace(sampling=numbers)
        header = {
            "format": FORMAT, "config": dataclasses.asdict(cfg), "config_sha256": config_hash(cfg),
            "weights_sha256": weights_hash(pipe), "enhance": enhance, "seed": seed,
            "negative_prompt": negative_prompt, "limits": dataclasses.asdict(limits or DriftLimits()),
            "versions": versions(), "parent": None,
        }  # fmt: skip
        if pipe.base is not None:
            header["base"] = {name: sampling.get(name) for name in ("num_inference_steps", "guidance_scale")}
        plan = Plan(prompts, seed, num_frames, float(numbers.guidance_scale), numbers.anchor_guidance_scale)
        return cls._begin(folder, pipe, header, plan)

    @classmethod
    def open(cls, folder: str | Path, pipe: StreamingT2VPipeline, upto: int | None = None) -> Session:
        """Takes up a session; every file of it, and of the branches it comes from, is checked.

        Args:
            folder: where it lives.
            pipe: with the config and weights that it was begun with.
            upto: look at so many checkpoints only, to branch from a session whose later files are damaged.

        Raises:
            SessionError: damaged bytes, another config, other weights, or a missing parent; the reason is named.
        """
        return cls(folder, pipe, upto)

    def branch(
        self,
        folder: str | Path,
        at: int,
        prompt: str | None = None,
        seed: int | None = None,
        guidance_scale: float | None = None,
        num_frames: int | None = None,
    ) -> Session:
        """Another future: chunk ``at`` and all after it made anew; the chunks before are shared on disk.

        Args:
            folder: of the branch, must not hold a session.
            at: number of the chunk; 0 is the first.
            prompt: from that chunk on; ``None`` keeps the schedule.
            seed: of the noise from that chunk on; ``None`` keeps it.
            guidance_scale: from that chunk on; ``None`` keeps it.
            num_frames: length; ``None`` keeps it.

        Raises:
            InputError: for a chunk that is not there yet, or a folder in use.
        """
        folder = Path(folder)
        chunks = sum(record["frames"] > 0 for record in self.records)
        last = chunks - 1 if self.is_done else chunks
        if check_count(at, "at", 0) > last:
            raise InputError(f"at: chunk {at} was asked for, this session can be branched at 0 to {last}")
        if (folder / "session.json").exists():
            raise InputError(f"there is a session in {folder} already: choose another folder")
        frame = self.records[at - 1]["frames_made"] if at else 0
        plan = self._changed(frame, prompt, seed, guidance_scale)
        if num_frames not in (None, plan.num_frames):
            # finished frames of the past must not depend on where the video ends
            margin = self.cfg.enhancer.chunk_frames if self.header["enhance"] and plan.num_frames is not None else 1
            check_count(num_frames, "num_frames", max(frame + margin, self.cfg.chunk_frames))
            plan = dataclasses.replace(plan, num_frames=num_frames)
        seal = self.records[at - 1]["sha256"] if at else self.header["sha256"]
        parent = {"folder": os.path.relpath(self.folder, folder), "at": at, "sha256": seal}
        return self._begin(folder, self.pipe, {**self.header, "parent": parent}, plan)

    @classmethod
    def _begin(cls, folder: Path, pipe: StreamingT2VPipeline, header: dict[str, Any], plan: Plan) -> Session:
        write_sealed(folder / "plan.json", dataclasses.asdict(plan))
        write_sealed(folder / "session.json", header)  # last: with it the folder is a session
        return cls(folder, pipe)

    # ------------------------------------------------------------------------------------------------------- control

    @property
    def frames_made(self) -> int:
        """Frames of stage 2 on disk."""
        return self.records[-1]["frames_made"] if self.records else 0

    @property
    def frames_out(self) -> int:
        """Finished frames in the video."""
        return self.records[-1]["frames_out"] if self.records else 0

    @property
    def is_done(self) -> bool:
        """Whether the video has its length."""
        return self.plan.num_frames is not None and self.frames_out >= self.plan.num_frames

    def change(self, prompt: str | None = None, guidance_scale: float | None = None, frame: int | None = None) -> int:
        """Another prompt or guidance for what comes; kept on disk at once.

        Args:
            prompt: takes the place of all that was planned from its frame on; ``None`` keeps what is.
            guidance_scale: from the next chunk on; ``None`` keeps what is.
            frame: where the prompt changes; ``None`` for the first frame of the next chunk that has not been begun.

        Returns:
            The frame.

        Raises:
            InputError: for an empty prompt, a frame that has been made, or one beyond the end.
        """
        at = self._begun if frame is None else check_count(frame, "frame", 0)
        if at < self._begun:
            raise InputError(f"frame {at} has been made already: the next change can be at {self._begun}, or branch")
        self.plan = self._changed(at, prompt, None, guidance_scale)
        write_sealed(self.folder / "plan.json", dataclasses.asdict(self.plan))
        return at

    def end(self, num_frames: int | None = None) -> int:
        """Gives a session without end its length: ``num_frames``, or what has been begun. Returns it."""
        if self.plan.num_frames is not None:
            raise InputError(f"this session has its length, {self.plan.num_frames} frames; a branch may have another")
        least = max(self._begun, self.cfg.chunk_frames)
        length = least if num_frames is None else check_count(num_frames, "num_frames", least)
        self.plan = dataclasses.replace(self.plan, num_frames=length)
        write_sealed(self.folder / "plan.json", dataclasses.asdict(self.plan))
        return length

    def stop(self) -> None:
        """Ends ``run``, ``steps`` or ``play`` after the denoising step in progress; nothing on disk is lost."""
        self._stopping = True

    def _changed(self, frame: int, prompt: str | None, seed: int | None, guidance_scale: float | None) -> Plan:
        plan, changes = self.plan, {}
        if prompt is not None:
            if plan.num_frames is not None and frame >= plan.num_frames:
                raise InputError(f"frame {frame} is beyond the end of the video, {plan.num_frames} frames")
            ((_, text),) = prompt_ranges(prompt, self.cfg)
            changes["prompts"] = (*((start, p) for start, p in plan.prompts if start < frame), (frame, text))
        if seed is not None:
            changes["seed"] = check_count(seed, "seed", 0)
        if guidance_scale is not None:
            check_sampling(self.cfg, self._scheduler(), guidance_scale=guidance_scale)
            changes["guidance_scale"] = float(guidance_scale)
        return dataclasses.replace(plan, **changes)

    # --------------------------------------------------------------------------------------------------------- going on

    def run(self, callback: Callable[[StepState], Any] | None = None) -> Iterator[Block]:
        """Goes on from the last checkpoint; yields each chunk once it is safe on disk, until the end or ``stop``."""
        for event in self.steps():
            if isinstance(event, Block):
                yield event
            elif callback is not None:
                callback(event)

    async def play(self, on_event: Callable[[StepState | Block], Any] | None = None) -> None:
        """``steps`` as a task of asyncio: one denoising step, then whatever else the loop has to do."""
        with contextlib.closing(self.steps()) as events:
            for event in events:
                if on_event is not None:
                    on_event(event)
                await asyncio.sleep(0)

    def steps(self) -> Iterator[StepState | Block]:
        """Goes on from the last checkpoint; yields after every denoising step and every checkpoint.

        Raises:
            SessionError: another process is at work on this session.
            OutputError: the disk is full; the session stays at its last checkpoint.
        """
        self._stopping = False
        if self.upto is not None:
            raise SessionError(
                f"{self.folder}: opened up to checkpoint {self.upto} only, so it can be branched, not run"
            )
        with self._locked():
            self._refuse_config()
            if (self.folder / "checkpoints" / f"{len(self.records):06}.json").exists():
                self.records, self._last_frame = _records(self.folder, self.header), None  # another process was here
            work = self._work()
            try:
                for event in work:
                    yield event
                    if self._stopping:
                        return
            finally:
                work.close()
                self._begun = self.frames_made
                self.pipe.maybe_free_model_hooks()

    def _work(self) -> Iterator[StepState | Block]:
        remove_leftovers(self.folder, len(self.records))
        state, enhancer = self._state(), self._enhancer()
        while not self.is_done:
            plan = self.plan
            first, video = self.frames_made, []
            ended = plan.num_frames is not None and first >= plan.num_frames
            if ended:
                full = frames = torch.zeros(1, 0, 3, self.cfg.size, self.cfg.size)
            else:
                self._begun = first + (self.stride if self.records else self.cfg.chunk_frames)
                full, state = yield from self._generate(state, plan)
                full = full.cpu()
                frames = full if plan.num_frames is None else full[:, : plan.num_frames - first]
            if enhancer is None:
                video = [frames]
            else:
                enhancer.wavefront.num_frames = self.plan.num_frames  # may have been given in the meantime
                enhancer.end() if ended else enhancer.push(frames)
                yield from enhancer.steps()
                video = list(enhancer.pop())
            yield self._commit(plan, full, frames, state, video, enhancer)

    @functools.cached_property
    def carried(self) -> int:
        """Frames that a chunk repeats of the one before."""
        return carried_frames(self._models(), self.cfg)

    @property
    def stride(self) -> int:
        """New frames of a chunk after the first."""
        return self.cfg.chunk_frames - self.carried

    def _generate(self, state: StreamState | None, plan: Plan) -> STEP:
        models, encode = self._models(), self._encode
        null = encode(self.header["negative_prompt"])
        numbers = dataclasses.replace(
            self.cfg.sampling,
            guidance_scale=plan.guidance_scale,
            anchor_guidance_scale=plan.anchor_guidance_scale,
        )
        text = encode(plan.prompt_at(self.frames_made))
        if state is None:
            if self.pipe.base is not None:
                given = dict(self.header.get("base", {}))
                if plan.guidance_scale != self.cfg.sampling.guidance_scale:  # changed since the session was begun
                    given["guidance_scale"] = plan.guidance_scale
                first = yield from separate_steps(
                    self.pipe, plan.prompt_at(0), plan.seed, self.header["negative_prompt"], base_sampling(**given)
                )
            else:
                first = yield from base_steps(models, self.cfg.replace(sampling=numbers), text, null, plan.seed)
            return first, start_stream(models, first, plan.seed, None, self.carried)
        state = dataclasses.replace(state, seed=plan.seed)
        return (yield from chunk_steps(models, state, text, null, numbers))

    # ------------------------------------------------------------------------------------------------------ checkpoints

    def _commit(
        self, plan: Plan, full: Tensor, frames: Tensor, state: StreamState, video: list[Tensor],
        enhancer: EnhancerStream | None,
    ) -> Block:  # fmt: skip
        """Writes a checkpoint: the data, then the record that makes it count, then what is no longer needed goes."""
        index, first, files = len(self.records), self.frames_made, {}

        def write(name: str, data: bytes) -> None:
            write_whole(self.folder / name, data)
            files[name] = hashlib.sha256(data).hexdigest()

        pixels = to_uint8(frames[0]) if frames.shape[1] else ()
        look = self._look(frames, pixels) if len(pixels) else {}
        looks = [record["look"] for record in self.records if record["look"]] + ([look] if look else [])
        said = drift_warnings(looks, self.limits, self.cfg.size) if look else []
        if len(pixels):
            kept = {"frames": full}
            if state.cond.shape[1] > full.shape[1]:  # otherwise it is the end of the frames
                kept["cond"] = state.cond
            if state.anchor is not None and (index == 0 or self.cfg.anchor != "first"):
                kept |= {"anchor": state.anchor, "null_anchor": state.null_anchor}
            write(f"blocks/{index:06}.safetensors", to_bytes({n: t.cpu().contiguous() for n, t in kept.items()}))
        size = self.cfg.size if enhancer is None else self.cfg.enhancer.size
        height, width = (size, size) if isinstance(size, int) else size
        out = torch.cat([torch.zeros(1, 0, 3, height, width), *video], dim=1)
        if out.shape[1]:
            pieces = sum(any(name.endswith(".m4s") for name in record["files"]) for record in self.records)
            begins = not any(INIT in record["files"] for record in self.records[self._shared() :])
            about = self.metadata() if begins else None  # only the init part says it
            init, piece = encode_fragment(to_uint8(out[0]), self.cfg.fps, pieces, self.frames_out, about)
            if begins:
                write(INIT, init)
            write(f"video/{index:06}.m4s", piece)
        if enhancer is not None:
            write(f"wavefront.{index:06}.safetensors", to_bytes({n: t.cpu() for n, t in enhancer.tensors().items()}))
        record = {
            "index": index, "previous": self.records[-1]["sha256"] if self.records else self.header["sha256"],
            "first_frame": first, "frames": len(pixels), "frames_made": first + len(pixels),
            "frames_out": self.frames_out + out.shape[1], "prompt": plan.prompt_at(first) if len(pixels) else "",
            "seed": plan.seed, "guidance_scale": plan.guidance_scale, "files": files, "look": look,
            "warnings": said,
        }  # fmt: skip
        self.records.append(write_sealed(self.folder / "checkpoints" / f"{index:06}.json", record))
        if len(pixels):
            self._last_frame = pixels[-1]
        (self.folder / f"wavefront.{index - 1:06}.safetensors").unlink(missing_ok=True)
        return Block(index, first, frames, out, record["prompt"], look, tuple(said))

    def _look(self, frames: Tensor, pixels: np.ndarray) -> dict[str, float]:
        embeds = None
        if self.records and self._last_frame is None:
            self._last_frame = to_uint8(self.low_frames(self.frames_made - 1)[0])[0]
        if self.pipe.image_encoder is not None:
            embeds = self.pipe.encode_image(frames.contiguous())[0].cpu()
            if self._anchor is None:
                first = self.low_frames(0, 1) if self.records else frames[:, :1]
                self._anchor = self.pipe.encode_image(first.contiguous())[0, 0].cpu()
        return chunk_look(pixels, self._last_frame if self.records else None, embeds, self._anchor)

    def low_frames(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Frames of stage 2 from the disk, ``1 f 3 h w`` in [-1, 1]; ``stop=None`` for all that are there."""
        stop, parts = self.frames_made if stop is None else stop, []
        for index, record in enumerate(self.records):
            first, last = max(start, record["first_frame"]), min(stop, record["frames_made"])
            if first < last:
                frames = self._block(index)["frames"]
                parts.append(frames[:, first - record["first_frame"] : last - record["first_frame"]])
        return torch.cat(parts, dim=1)

    def _block(self, index: int) -> dict[str, Tensor]:
        name = f"blocks/{index:06}.safetensors"
        return from_bytes(read_checked(self._home(index) / name, self.records[index]["files"][name]))

    def _home(self, index: int) -> Path:
        """The folder that holds a chunk: this one, or that of the branch it comes from."""
        return _home(self.folder, self.header, index)

    def _state(self) -> StreamState | None:
        """What the next chunk needs, from the disk."""
        chunks = [index for index, record in enumerate(self.records) if record["frames"]]
        if not chunks:
            return None
        block = self._block(0) | self._block(chunks[-1])  # tokens of a fixed anchor are with the first chunk
        cond = block.get("cond", block["frames"][:, -self.carried :]).contiguous()
        tokens = block.get("anchor"), block.get("null_anchor")
        return StreamState(self.plan.seed, len(chunks), self.cfg.chunk_frames, cond, *tokens)

    def _enhancer(self) -> EnhancerStream | None:
        """Stage 3 as it was at the last checkpoint: from the disk, or, in a new branch, from the shared frames."""
        if not self.header["enhance"]:
            return None
        stream = functools.partial(
            enhancer_stream, self.pipe.vae, self.pipe.enhancer, self.cfg.enhancer, self._encode,
            lambda frame: self.plan.prompt_at(frame), self.header["negative_prompt"], self.header["seed"],
        )  # fmt: skip
        enhancer, data = stream(self.plan.num_frames), self._wavefront()
        if data is not None:
            enhancer.restore(from_bytes(data))
        elif self.records:
            enhancer.replay(self.low_frames, self.frames_made, self.frames_out)
        return enhancer

    def _wavefront(self) -> bytes | None:
        """Stage 3 at the last checkpoint, if that is this folder's own."""
        name = f"wavefront.{len(self.records) - 1:06}.safetensors"
        if len(self.records) == self._shared() or name not in self.records[-1]["files"]:
            return None
        return read_checked(self.folder / name, self.records[-1]["files"][name])

    def _shared(self) -> int:
        """Checkpoints that lie in the parent's folder."""
        return self.header["parent"]["at"] if self.header["parent"] else 0

    # ----------------------------------------------------------------------------------------------------------- video

    def metadata(self) -> dict[str, Any]:
        """What the mp4 says about itself; a long schedule is in the session's plan alone."""
        prompts = dict(self.plan.prompts)
        if len(json.dumps(prompts)) > LONGEST:
            prompts = {}
        return {
            "prompt": self.plan.prompts[0][1][:LONGEST], "prompts": prompts, "seed": self.header["seed"],
            "chunk_frames": self.cfg.chunk_frames, "stride": self.stride, "config": self.header["config"],
            "config_sha256": self.header["config_sha256"], "weights_sha256": self.header["weights_sha256"],
            "versions": self.header["versions"],
        }  # fmt: skip

    def write_video(self, path: str | Path) -> None:
        """Brings an mp4 in line with the session: made, mended or continued, whatever it held."""
        path = Path(path)
        known, size = self._grown.get(path, (0, 0))
        if known and (not path.exists() or path.stat().st_size != size):
            known = size = 0  # someone else was there
        if self.frames_out:
            self._grown[path] = len(self.records), grow(path, self._parts(known), size)

    def _parts(self, known: int) -> Iterator[bytes]:
        """Init part and pieces of the video, or the pieces after the first ``known`` checkpoints."""
        named = [(i, name) for i, record in enumerate(self.records) for name in record["files"]]
        pieces = [(i, name) for i, name in named if name.endswith(".m4s") and i >= known]
        init = [(i, name) for i, name in named if name == INIT][-1:] if not known else []
        for index, name in [*init, *pieces]:
            yield read_checked(self._home(index) / name, self.records[index]["files"][name])

    # ----------------------------------------------------------------------------------------------------------- inside

    def _models(self) -> Models:
        return self.pipe.models(self._scheduler())

    def _scheduler(self) -> SchedulerMixin:
        name = self.cfg.sampling.sampler
        return make_scheduler(self.cfg.scheduler, name) if name in SAMPLERS else self.pipe.scheduler

    @functools.cached_property
    def _encode(self) -> Callable[[str], Tensor]:
        return functools.lru_cache(8)(self.pipe.encode_text)

    def _refuse_others(self) -> None:
        self._refuse_config()
        if weights_hash(self.pipe) != self.header["weights_sha256"]:
            raise SessionError(f"{self.folder}: made with other weights than those that are loaded")
        mine, its = versions(), self.header["versions"]
        if others := [f"{name} {its.get(name)}, here {mine[name]}" for name in mine if mine[name] != its.get(name)]:
            warnings.warn(
                f"the session was made with {'; '.join(others)}: new frames may round differently", stacklevel=4
            )

    def _refuse_config(self) -> None:
        here = self.pipe.cfg.replace(sampling=self.cfg.sampling)
        if here != self.cfg:  # by value: a session may be older than a field
            mine, its = (json.loads(cfg.to_json()) for cfg in (here, self.cfg))
            names = ", ".join(name for name in its if its[name] != mine.get(name))
            raise SessionError(f"{self.folder}: made with another config, it differs in {names}")

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            file = open(self.folder / "lock", "w")
        except OSError as error:
            raise OutputError(f"{self.folder}: cannot be written ({error.strerror})") from None
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # let go by the system when the process dies
            except OSError:
                raise SessionError(f"{self.folder}: another process is at work on this session") from None
            yield


# ------------------------------------------------------------------------------------------------------------- on disk


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file that appears under its name whole and on the disk, or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    unfinished = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(unfinished, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from None


def read_checked(path: Path, sha256: str) -> bytes:
    """The bytes of a file whose hash is known.

    Raises:
        SessionError: it is missing or damaged.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SessionError(f"{path}: {error.strerror or error}; the session cannot be taken up without it") from None
    if hashlib.sha256(data).hexdigest() != sha256:
        raise SessionError(f"{path}: damaged, its SHA-256 differs; a branch at an earlier chunk keeps the rest")
    return data


def write_sealed(path: Path, values: dict[str, Any]) -> dict[str, Any]:
    """Writes JSON with its own hash under ``sha256``; returns it so."""
    values = json.loads(json.dumps({name: value for name, value in values.items() if name != "sha256"}))
    values["sha256"] = _seal(values)
    write_whole(path, (json.dumps(values, indent=1) + "\n").encode())
    return values


def read_sealed(path: Path) -> dict[str, Any]:
    """Reads what ``write_sealed`` wrote.

    Raises:
        SessionError: it is missing or damaged.
    """
    try:
        values = json.loads(path.read_text())
        seal = values.pop("sha256")
    except FileNotFoundError:
        raise SessionError(f"{path.parent}: no session here, {path.name} is missing") from None
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise SessionError(f"{path}: damaged ({error})") from None
    if _seal(values) != seal:
        raise SessionError(f"{path}: damaged, its SHA-256 differs")
    return {**values, "sha256": seal}


def _seal(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _home(folder: Path, header: dict[str, Any], index: int) -> Path:
    while (parent := header["parent"]) is not None and index < parent["at"]:
        folder = Path(os.path.normpath(folder / parent["folder"]))
        header = read_sealed(folder / "session.json")
    return folder


def _records(folder: Path, header: dict[str, Any], upto: int | None = None) -> list[dict[str, Any]]:
    """All checkpoints, the parent's first; every file but wavefronts, of which old ones are gone, is checked."""
    parent, records = header["parent"], []
    if parent is not None:
        past = Path(os.path.normpath(folder / parent["folder"]))
        records = _records(past, read_sealed(past / "session.json"), parent["at"])
        found = records[-1]["sha256"] if records else parent["sha256"]
        if len(records) != parent["at"] or found != parent["sha256"]:
            raise SessionError(f"{folder}: its past in {past} is no longer what it branched from")
    paths = sorted(path for path in (folder / "checkpoints").glob("*.json") if path.stem.isdigit())
    for path in paths if upto is None else paths[: max(0, upto - len(records))]:
        if int(path.stem) != len(records):
            raise SessionError(f"{folder}: checkpoint {len(records)} is missing, there are later ones")
        record, before = read_sealed(path), records[-1]["sha256"] if records else header["sha256"]
        if record["previous"] != before:
            raise SessionError(f"{path}: does not follow the checkpoint before it")
        for name, sha256 in record["files"].items():
            if not name.startswith("wavefront"):
                read_checked(folder / name, sha256)
        records.append(record)
    return records[:upto]


def remove_leftovers(folder: Path, count: int) -> None:
    """Removes what was written for a checkpoint that did not come about, and wavefronts of the past."""
    for path in [*folder.glob(".*.part"), *folder.glob("*/.*.part")]:
        path.unlink()
    for path in [*folder.glob("wavefront.*"), *(folder / "blocks").glob("*"), *(folder / "video").glob("*.m4s")]:
        number = re.search(r"\d{6,}", path.name)
        if number and (int(number[0]) >= count or (path.parent == folder and int(number[0]) != count - 1)):
            path.unlink()


def config_hash(cfg: StreamingT2VConfig) -> str:
    """SHA-256 of a config's JSON."""
    return hashlib.sha256(json.dumps(dataclasses.asdict(cfg), sort_keys=True).encode()).hexdigest()


def weights_hash(pipe: StreamingT2VPipeline) -> str:
    """SHA-256 of all tensors of a pipeline's networks, by name, type and value, and of its scheduler's settings."""
    settings = {name: str(value) for name, value in pipe.scheduler.config.items() if not name.startswith("_")}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name, part in sorted(pipe.components.items()):
        if isinstance(part, nn.Module):
            for key, tensor in sorted(part.state_dict().items()):
                digest.update(f"{name}.{key}.{tensor.dtype}.{tuple(tensor.shape)}".encode())
                digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """What a session was made with; another version, or another number of threads, may round differently."""
    return {
        "st2v": __version__, "torch": torch.__version__, "diffusers": diffusers.__version__,
        "transformers": transformers.__version__, "python": platform.python_version(),
        "threads": str(torch.get_num_threads()),
    }  # fmt: skip
