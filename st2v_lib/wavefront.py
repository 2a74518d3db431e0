"""Stage 3 in a stream, exactly: a wavefront through chunks and denoising steps (paper §4.3).

Blending couples neighbouring chunks at every step, so a chunk can run a step when the chunks that overlap it have run
the step before. Chunk k starts when its frames are there, chunk k-1 is then one step ahead, chunk k-2 two, and so on:
with S steps about S chunks are in flight. The chunk that leaves is (S - 1)(C - O) frames behind the one that enters,
for chunks of C frames that overlap by O, however long the video is.

All noise and cuts follow from (key, frame or boundary, step), so the frames are those of ``enhancer.enhance_latents``,
bit for bit on the CPU. They are so for any length, also one that is not known before the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from st2v_lib.backbone import StreamingUNet, decode_latents, encode_frames, vae_downscale
from st2v_lib.blending import LAWS, boundary_cut, frame_noise
from st2v_lib.canvas import crop_from_canvas, pad_to_canvas
from st2v_lib.config import EnhancerConfig
from st2v_lib.enhancer import VpSchedule, guide_v, logsnr_cosine_interp, solver_steps, start_scale, upscale
from st2v_lib.errors import InputError
from st2v_lib.sampling import StepState

# noisy chunks (n b) c f h w, the timestep and the index of each of the n chunks -> clean chunks
DenoiseBatch = Callable[[Tensor, Sequence[int], Sequence[int]], Tensor]


@dataclass
class _Frame:
    """A frame in flight: steps done, the solver's state, the clean prediction of the last step (``b c h w``)."""

    level: int
    state: Tensor
    previous: Tensor | None = None


class Wavefront:
    """Enhances latents while they come: ``push`` frames, run ``steps``, ``pop`` what is finished; ``end`` at the end.

    Args:
        denoise: the network, see ``batch_denoiser``.
        config: chunking, blending and the solver's numbers.
        key: of all noise and cuts (``blending.stage_key``).
        num_frames: length of the video, if it is known: the last frames then need not wait for ``end``. While it is
            not, a chunk waits for C frames more than its own, because the last chunk moves back to fit.
        batch_size: chunks in one call of the network. More than one is faster where a call does not fill the device,
            keeps as many more chunks in flight, and is not bit-identical.

    Raises:
        InputError: for a blending that keeps chunks apart, which needs no wavefront.
    """

    def __init__(
        self,
        denoise: DenoiseBatch,
        config: EnhancerConfig,
        key: int,
        num_frames: int | None = None,
        batch_size: int = 1,
        schedule: VpSchedule | None = None,
    ):
        if config.blend_law not in LAWS:
            raise InputError(
                f"stage 3 streams with a blend_law of {', '.join(LAWS)}, got {config.blend_law!r}; "
                "enhancer.enhance_video makes the naive variants"
            )
        self.denoise, self.config, self.key, self.num_frames = denoise, config, key, num_frames
        self.batch_size, self.schedule = batch_size, schedule or logsnr_cosine_interp()
        self.solver = solver_steps(self.schedule, config.num_inference_steps, config.start_timestep)
        self.stride = config.chunk_frames - config.overlap_frames
        self.first = self.pushed = self.popped = 0
        self.frames: dict[int, _Frame] = {}
        self.chunks: dict[int, tuple[int, Tensor]] = {}  # steps done, last prediction

    # ------------------------------------------------------------------------------------------- which frames, chunks

    @property
    def size(self) -> int:
        """Frames of a chunk: a short video is one short chunk."""
        return min(self.config.chunk_frames, self.num_frames or self.config.chunk_frames)

    def start(self, chunk: int) -> int:
        """First frame of a chunk; the last chunk moves back to end with the video."""
        last = math.inf if self.num_frames is None else self.num_frames - self.size
        return min(chunk * self.stride, last)

    def num_chunks(self) -> int:
        """Chunks of the video, as far as they are known."""
        if self.num_frames is None:
            return max(0, (self.pushed - self.size) // self.stride + 1)
        return -(-(self.num_frames - self.size) // self.stride) + 1

    def covering(self, frame: int) -> list[int]:
        """The chunks that a frame is in, as far as they are known."""
        chunks = range((frame - self.size) // self.stride + 1, self.num_chunks())
        regular = range(max(self.first, chunks.start), min(frame // self.stride + 1, chunks.stop))
        last = chunks[-1:]  # may start before its regular place
        return [k for k in sorted({*regular, *last}) if self.start(k) <= frame < self.start(k) + self.size]

    def is_covered(self, frame: int) -> bool:
        """Whether all chunks that a frame will be in are known."""
        return self.num_frames is not None or self.pushed > frame + self.config.chunk_frames

    def ready(self) -> list[int]:
        """The chunks that can run their next step, the most advanced first."""
        found = []
        for k in range(max(self.first, (self.popped - self.size) // self.stride + 1), self.num_chunks()):
            done, begin = self.done(k), self.start(k)
            if begin + self.size > self.pushed:
                break
            frames = range(max(begin, self.popped), begin + self.size)
            if frames and done < len(self.solver) and all(self.frames[f].level == done for f in frames):
                found.append(k)
        return found

    def done(self, chunk: int) -> int:
        """Steps that a chunk in flight has run."""
        return self.chunks.get(chunk, (0, None))[0]

    # ------------------------------------------------------------------------------------------------ push, run, pop

    def push(self, latents: Tensor) -> None:
        """Adds clean latents ``b c m h w`` of the next frames of the upscaled video."""
        shape = (*latents.shape[:2], *latents.shape[3:])
        new = range(self.pushed, self.pushed + latents.shape[2])
        noised = self.schedule.add_noise(
            latents, frame_noise(self.key, new, 0, shape, latents), self.config.start_timestep
        )
        noised = noised * start_scale(self.solver, self.config.official_start_scale)
        self.frames.update((f, _Frame(0, noised[:, :, i])) for i, f in enumerate(new))
        self.pushed += len(new)

    def end(self) -> None:
        """Says that no more frames will come."""
        self.num_frames = self.pushed

    @torch.no_grad()
    def steps(self) -> Iterator[StepState]:
        """Runs all that can be run now; yields after each chunk's step, with the prediction as latents."""
        for k, (done, _) in self.chunks.items():  # frames that waited to know in which chunks they are
            self._advance(k, done - 1)
        while chunks := self.ready():
            if len(chunks) < self.batch_size and self.pushed != self.num_frames:
                return
            chunks = chunks[: self.batch_size]
            done = [self.done(k) for k in chunks]
            x = torch.cat([self._noisy(k, i) for k, i in zip(chunks, done, strict=True)])
            x0 = self.denoise(x, [self.solver[i].timestep for i in done], chunks).chunk(len(chunks))
            for k, i, clean in zip(chunks, done, x0, strict=True):
                self.chunks[k] = (i + 1, clean)
                self._advance(k, i)
            for i, clean in zip(done, x0, strict=True):
                yield StepState(i, len(self.solver), self.solver[i].timestep, clean, clean)

    def _noisy(self, chunk: int, step: int) -> Tensor:
        begin = self.start(chunk)
        states = [self.frames[f].state for f in range(begin, begin + self.size)]
        return torch.stack(states, dim=2) / self.solver[step].scale

    def _advance(self, chunk: int, step: int) -> None:
        """Moves those frames of a chunk on whose chunks have all predicted them at this step."""
        begin, moved, x0 = self.start(chunk), [], []
        for f in range(max(begin, self.popped), begin + self.size):
            chunks = self.covering(f)
            predicted = self.is_covered(f) and all(self.done(k) > step for k in chunks)
            if predicted and self.frames[f].level == step:
                owner = max(k for k in chunks if self.start(k) + self.cut(k, step) <= f)
                moved.append(f)
                x0.append(self.chunks[owner][1][:, :, f - self.start(owner)])
        if not moved:
            return
        clean = torch.stack(x0, dim=2)
        state = clean
        if step < len(self.solver) - 1:
            old = [self.frames[f] for f in moved]
            previous = None if step == 0 else torch.stack([frame.previous for frame in old], dim=2)
            noise = frame_noise(self.key, moved, step + 1, old[0].state.shape, clean)
            before = torch.stack([frame.state for frame in old], dim=2)
            state = self.solver[step].advance(before, clean, previous, noise)
        for i, f in enumerate(moved):
            self.frames[f] = _Frame(step + 1, state[:, :, i], clean[:, :, i])

    def cut(self, chunk: int, step: int) -> int:
        """Where a chunk takes over from the one before, in frames from its start."""
        overlap = 0 if chunk == self.first else self.start(chunk - 1) + self.size - self.start(chunk)
        return boundary_cut(self.key, chunk, step, overlap, self.config.blend_law)

    def pop(self) -> Tensor | None:
        """The finished latents that have not been popped yet, ``b c m h w``."""
        done = []
        while (frame := self.frames.get(self.popped)) is not None and frame.level == len(self.solver):
            done.append(self.frames.pop(self.popped).state)
            self.popped += 1
        for k in [k for k in self.chunks if self.start(k) + self.size <= self.popped]:
            del self.chunks[k]
        return torch.stack(done, dim=2) if done else None

    # ------------------------------------------------------------------------------------------------- on disk and back

    def tensors(self) -> dict[str, Tensor]:
        """All that is in flight, for a checkpoint."""
        out = {"counts": torch.tensor([self.pushed, self.popped])}
        for f, frame in self.frames.items():
            out[f"frame.{f}.{frame.level}.state"] = frame.state
            if frame.previous is not None and frame.level < len(self.solver):
                out[f"frame.{f}.{frame.level}.previous"] = frame.previous
        for k, (done, prediction) in self.chunks.items():
            out[f"chunk.{k}.{done}"] = prediction
        return {name: tensor.contiguous() for name, tensor in out.items()}

    def restore(self, tensors: dict[str, Tensor], device: torch.device | str = "cpu") -> None:
        """Goes on from what ``tensors`` gave."""
        self.pushed, self.popped = tensors["counts"].tolist()
        frames, chunks = {}, {}
        for name, tensor in tensors.items():
            kind, _, rest = name.partition(".")
            if kind == "frame" and rest.endswith(".state"):
                f, level = (int(part) for part in rest.split(".")[:2])
                previous = tensors.get(f"frame.{f}.{level}.previous")
                frames[f] = _Frame(level, tensor.to(device), None if previous is None else previous.to(device))
            elif kind == "chunk":
                k, done = (int(part) for part in rest.split("."))
                chunks[k] = (done, tensor.to(device))
        self.frames, self.chunks = dict(sorted(frames.items())), dict(sorted(chunks.items()))


def batch_denoiser(
    unet: StreamingUNet,
    text: Callable[[int], Tensor],
    null_text: Tensor,
    config: EnhancerConfig,
    schedule: VpSchedule | None = None,
) -> DenoiseBatch:
    """The enhancer's network for several chunks at once, each with its own timestep and prompt.

    Args:
        unet: the video model, v-predicting; all guidance branches run in one batch.
        text: tokens ``b l d`` of a chunk, or ``1 l d`` for all videos of a batch.
        null_text: tokens ``b l d`` or ``1 l d``.
        config: guidance scale and rescale.
        schedule: noise levels; ``None`` for ``logsnr_cosine_interp()``.
    """
    schedule = schedule or logsnr_cosine_interp()
    dtype = unet.dtype  # asked once: diffusers walks through all modules for it

    def denoise(x: Tensor, timesteps: Sequence[int], chunks: Sequence[int]) -> Tensor:
        each = len(x) // len(chunks)
        branches = [torch.cat([text(k).expand(each, -1, -1) for k in chunks])]
        if config.guidance_scale != 1:
            branches.insert(0, null_text.expand(each, -1, -1).repeat(len(chunks), 1, 1))
        t = torch.tensor(timesteps, device=x.device).repeat_interleave(each)
        tokens = torch.cat(branches).to(dtype)
        v = unet(x.to(dtype), t, tokens).to(x.dtype)
        if len(branches) == 2:
            v = guide_v(*v.chunk(2), config.guidance_scale, config.guidance_rescale)
        parts = zip(x.split(each), v.split(each), timesteps, strict=True)
        return torch.cat([schedule.x0_from_v(*part) for part in parts])

    return denoise


class EnhancerStream:
    """Stage 3 on pixels while they come: low-resolution frames in, enhanced frames out, a few in the VAE at once.

    Args:
        vae: the autoencoder.
        wavefront: see ``Wavefront``.
        batch_size: frames in the VAE at once; part of what makes two runs bit-identical.
    """

    def __init__(
        self, vae: AutoencoderKL, wavefront: Wavefront, batch_size: int = 8, device: torch.device | str = "cpu"
    ):
        self.vae, self.wavefront, self.batch_size, self.device = vae, wavefront, batch_size, device
        self.config, self.low, self.high, self.skip = wavefront.config, None, None, 0

    @torch.no_grad()
    def push(self, frames: Tensor) -> None:
        """Adds frames ``b m 3 h w`` in [-1, 1]."""
        frames = frames.to(self.device)
        self.low = frames if self.low is None else torch.cat([self.low, frames], dim=1)
        count = self.low.shape[1]
        complete = self.wavefront.pushed + count == self.wavefront.num_frames
        self._encode(count if complete else count // self.batch_size * self.batch_size)

    def end(self) -> None:
        """Says that no more frames will come."""
        if self.low is not None:
            self._encode(self.low.shape[1])
        self.wavefront.end()

    @torch.no_grad()
    def _encode(self, count: int) -> None:
        for part in self.low[:, :count].split(self.batch_size, dim=1) if count else ():
            large = upscale(part, self.config.size, self.config.upscale_mode)
            large = pad_to_canvas(large, self.config, vae_downscale(self.vae))
            self.wavefront.push(encode_frames(self.vae, large))
        self.low = self.low[:, count:].clone() if count < self.low.shape[1] else None

    def steps(self) -> Iterator[StepState]:
        """See ``Wavefront.steps``."""
        return self.wavefront.steps()

    @torch.no_grad()
    def pop(self) -> Iterator[Tensor]:
        """Enhanced frames ``b m 3 size size`` in [-1, 1] on the CPU, ``batch_size`` at a time, the rest at the end."""
        done = self.wavefront.pop()
        if done is not None and self.wavefront.popped - done.shape[2] < self.skip:
            done = done[:, :, self.skip - self.wavefront.popped :] if self.wavefront.popped > self.skip else None
        if done is not None:
            self.high = done if self.high is None else torch.cat([self.high, done], dim=2)
        if self.high is None:
            return
        count = self.high.shape[2]
        complete = self.wavefront.popped == self.wavefront.num_frames
        whole = count if complete else count // self.batch_size * self.batch_size
        parts = self.high[:, :, :whole].split(self.batch_size, dim=2) if whole else ()
        self.high = self.high[:, :, whole:].clone() if whole < count else None
        for part in parts:
            yield crop_from_canvas(decode_latents(self.vae, part.contiguous()), self.config.size).float().cpu()

    @torch.no_grad()
    def replay(self, frames: Callable[[int, int], Tensor], pushed: int, popped: int) -> None:
        """Comes to the state after ``pushed`` frames went in and ``popped`` came out, from the frames themselves.

        Influence spreads from chunk to chunk by one step at a time, so about twice as many chunks as there are steps
        are run again, however long the video is.

        Args:
            frames: low-resolution frames ``b m 3 h w`` from a first to before a last one.
            pushed, popped: numbers of frames.
        """
        front, stride = self.wavefront, self.wavefront.stride
        neighbours = (self.config.chunk_frames - 1) // stride
        reach = 2 * (neighbours + 1) + len(front.solver) * neighbours  # chunks, with some to spare
        front.first = max(0, popped // stride - reach)
        begin = front.first * stride
        aligned = begin // self.batch_size * self.batch_size  # the same frames meet in the VAE
        front.pushed = front.popped = aligned
        self.push(frames(aligned, pushed))
        for frame in range(aligned, begin):
            del front.frames[frame]
        front.popped, self.skip = begin, popped
        for _ in front.steps():
            pass
        front.first = 0

    def tensors(self) -> dict[str, Tensor]:
        """All that is in flight, for a checkpoint: the wavefront, and frames that wait for a full batch."""
        waiting = {"low": self.low, "high": self.high, "skip": torch.tensor([self.skip])}
        kept = {name: tensor.contiguous() for name, tensor in waiting.items() if tensor is not None}
        return {**self.wavefront.tensors(), **kept}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Goes on from what ``tensors`` gave."""
        self.wavefront.restore(tensors, self.device)
        self.low, self.high = (tensors[name].to(self.device) if name in tensors else None for name in ("low", "high"))
        self.skip = int(tensors["skip"])
