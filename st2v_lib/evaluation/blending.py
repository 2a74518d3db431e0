"""Blending laws on scenes whose fine grain and outline 64 pixels cannot hold (paper §4.3, §9.3, Fig. 4).

The input is the true 64-pixel rendering, so that stage 3 is judged alone, and every score has a true value beside it.
Arms: naive concatenation (B), with shared noise (B+S), randomized blending in both laws, and no enhancer at all.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from st2v_lib.backbone import decode_latents, encode_frames
from st2v_lib.blending import chunk_starts
from st2v_lib.enhancer import enhance_latents, unet_denoiser, upscale
from st2v_lib.evaluation.cases import Case, visible_case
from st2v_lib.evaluation.enhancer_levels import fine_energy, psnr
from st2v_lib.evaluation.scoring import caption_values, read
from st2v_lib.evaluation.suite import Arm, Bench, Options, Scored, Suite, slice_xt
from st2v_lib.metrics.flow import frame_pairs
from st2v_lib.metrics.motion import pair_motion
from st2v_lib.sampling import chunk_generator
from st2v_lib.video_io import as_frames
from st2v_lib.world.scene import PATTERNS

STREAM = 10
LAWS = {"B": "B", "B+S": "B+S", "code": "code", "paper": "paper"}
ARMS = (
    Arm("bicubic", how={"source": "bicubic"}), Arm("vae_of_truth", how={"source": "vae"}),
    *(Arm(name, enhancer={"blend_law": law}) for name, law in LAWS.items()),
)  # fmt: skip
SWEEP_ARMS = (
    *(Arm(f"start{t}", enhancer={"start_timestep": t}) for t in (50, 100, 200, 300, 400, 500, 599)),
    *(Arm(f"chunk{c}", enhancer={"chunk_frames": c}) for c in (12, 16, 32)),
    *(Arm(f"overlap{o}", enhancer={"overlap_frames": o}) for o in (0, 2, 4, 12)),
)

LEVEL_ARMS = tuple(  # where the enhancer makes up more, chunks have more to disagree about; the paper starts at 599
    Arm(f"{name}@{t}", enhancer={"blend_law": law, "start_timestep": t})
    for t in (300, 599)
    for name, law in LAWS.items()
)


@torch.no_grad()
def run(bench: Bench, cases: list[Case], seeds: list[int]) -> list[Scored]:
    """Enhances one true video after the other; all noise comes from the video's own seed."""
    return [score(bench, case, *enhanced(bench, case, seed)) for case, seed in zip(cases, seeds)]


def enhanced(bench: Bench, case: Case, seed: int) -> tuple[Tensor, Tensor, list[float]]:
    """The enhanced and the true video, ``f 3 size size``, and how far chunks agree where they overlap."""
    pipe, cfg = bench.pipe, bench.pipe.cfg.enhancer
    truth = case.frames(bench.frames, cfg.size)
    small = case.frames(bench.frames, pipe.cfg.size)[None].to(pipe.device)
    source = bench.arm.how.get("source")
    if source == "bicubic":
        return upscale(small, cfg.size, "bicubic")[0].cpu(), truth, []
    if source == "vae":
        latents = encode_frames(pipe.vae, truth[None].to(pipe.device), 16)
        return decode_latents(pipe.vae, latents, 16)[0].float().cpu(), truth, []
    latents = encode_frames(pipe.vae, upscale(small, cfg.size, cfg.upscale_mode), 16)
    network = unet_denoiser(pipe.enhancer, pipe.encode_text(case.prompt), pipe.encode_text(""), cfg)
    last: dict[int, Tensor] = {}

    def denoise(x: Tensor, timestep: int, chunk: int) -> Tensor:
        last[chunk] = network(x, timestep, chunk)
        return last[chunk]

    result = enhance_latents(latents, denoise, cfg, chunk_generator(seed, 0))
    video = decode_latents(pipe.vae, result, 16)[0].float().cpu()
    return (
        video,
        truth,
        chunk_agreement(pipe.vae, last, chunk_starts(bench.frames, cfg.chunk_frames, cfg.overlap_frames)),
    )


def chunk_agreement(vae, chunks: dict[int, Tensor], starts: list[int]) -> list[float]:
    """Correlation of the fine detail that two neighbours give the frames they share, in their last prediction."""
    out = []
    for k in range(1, len(starts)):
        shared = starts[k - 1] + chunks[k - 1].shape[2] - starts[k]
        if shared > 0:
            left, right = chunks[k - 1][:, :, -shared:], chunks[k][:, :, :shared]
            a, b = (high_pass(decode_latents(vae, part, 16)[0].float()) for part in (left, right))
            out.append(correlation(a, b))
    return out


def score(bench: Bench, case: Case, video: Tensor, truth: Tensor, agreement: list[float]) -> Scored:
    """Values of one enhanced video beside the truth."""
    cfg = bench.pipe.cfg.enhancer
    starts = chunk_starts(len(video), cfg.chunk_frames, cfg.overlap_frames)
    spans = [(b, min(a + cfg.chunk_frames, len(video))) for a, b in zip(starts, starts[1:])]
    flows = [torch.tensor([pair_motion(p) for p in frame_pairs(as_frames(v))]) for v in (video, truth)]
    values = {
        "psnr": psnr(video, truth), "fine_energy": fine_energy(video[None]) / fine_energy(truth[None]),
        "flow_deviation": float(flows[0].std(correction=0)), "true_flow_deviation": float(flows[1].std(correction=0)),
        "detail_correlation": correlation(high_pass(video), high_pass(truth)),
        "chunk_agreement": sum(agreement) / len(agreement) if agreement else math.nan,
    }  # fmt: skip
    values["flow_deviation_over_true"] = values["flow_deviation"] - values["true_flow_deviation"]
    values["flow_error"] = float((flows[0] - flows[1]).abs().mean())
    values |= detail_over_time(video, truth, spans)
    values["read_right"] = read_right(bench, case, video)
    values["input_read_right"] = read_right(bench, case, case.frames(len(video), bench.pipe.cfg.size))
    return Scored(values, {"xt": slice_xt(video), "xt_truth": slice_xt(truth)})


def read_right(bench: Bench, case: Case, video: Tensor) -> float:
    """Share of what the reader names rightly in most frames: the captioned parts and the sprite's pattern."""
    reading = read(video, bench.reader, bench.options.sprites)
    right = list(caption_values(reading, case.prompt, bench.reader).values())
    asked = PATTERNS.index(case.scene.sprites[0].pattern)
    named = reading.pattern[reading.seen[:, 0], 0].argmax(-1)
    right.append(float(len(named) > 0 and bool((named == asked).float().mean() > 0.5)))
    return sum(right) / len(right)


def detail_over_time(video: Tensor, truth: Tensor, spans: list[tuple[int, int]]) -> dict[str, float]:
    """Does fine detail travel with the motion? ``metrics.high_pass`` with flow of the true video."""
    from st2v_lib.metrics.flow import estimate_flow
    from st2v_lib.metrics.high_pass import high_pass_correlation

    spans = [s for s in spans if s[1] > s[0]]
    found = high_pass_correlation(video, flows=estimate_flow(truth), overlaps=spans)
    out = {"high_pass_correlation": found.value}
    if spans:
        out |= {f"high_pass_{k}": found.protocol[k] for k in ("inside_overlaps", "elsewhere", "difference")}
    return out


def high_pass(video: Tensor) -> Tensor:
    """What halving and doubling the resolution takes away from ``f 3 h w``."""
    half = torch.nn.functional.interpolate(video, scale_factor=0.5, mode="area")
    return video - torch.nn.functional.interpolate(half, scale_factor=2, mode="bicubic")


def correlation(a: Tensor, b: Tensor) -> float:
    """Pearson's correlation of all values; nan where one side is flat."""
    a, b = (x.double().flatten() - x.double().mean() for x in (a, b))
    scale = float(a.norm() * b.norm())
    return float(a @ b) / scale if scale > 1e-9 else math.nan


def case(split: str, index: int, options: Options) -> Case:
    """A grainy scene with its sprites in sight."""
    return visible_case(split, index, STREAM, options.sprites, options.speed, grain=True)


def chunks(options: Options, frames: int, cfg) -> float:
    """Enhancer chunks, in units of one denoised chunk of the runner's probe (see ``runner.probe``)."""
    return len(chunk_starts(frames, cfg.enhancer.chunk_frames, cfg.enhancer.overlap_frames))


SUITE = Suite(
    "blending", "B, B+S and randomized blending in both laws, on 128-pixel detail", ARMS, case, run, chunks,
    videos=24, frames=72, batch=1, parts=("vae", "text_encoder", "enhancer", "reader"),
)  # fmt: skip
SWEEP_SUITE = dataclasses.replace(
    SUITE, name="blending-sweep", about="start level, chunk and overlap of the enhancer", arms=SWEEP_ARMS
)
LEVELS_SUITE = dataclasses.replace(
    SUITE, name="blending-levels", about="the laws again, where the enhancer starts from more noise", arms=LEVEL_ARMS,
    videos=12,
)  # fmt: skip
