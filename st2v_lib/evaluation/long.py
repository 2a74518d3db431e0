"""Long videos from prompts: what is still as captioned at the end, what is lost, what drifts, whether it moves.

Arms: the shipped memories; the same without APM; with the last frame as the anchor (the rivals' CLIP conditioning),
where errors may add up; independent chunks; FreeNoise, all frames at once from the noise of one chunk; the shipped
memories with carried frames pasted in as well; and true renderings of the same length, which bound every score.
"""

from __future__ import annotations

import dataclasses

from st2v_lib.evaluation.cases import Case, any_case
from st2v_lib.evaluation.generate import base_chunks, continue_videos, free_noise_videos
from st2v_lib.evaluation.scoring import (
    background_shade_error,
    caption_values,
    identity_values,
    measured,
    nanmean,
    permanence,
    read,
    seam_values,
    speed,
)
from st2v_lib.evaluation.suite import Arm, Bench, Options, Scored, Suite, slice_xt, stage_2_calls, strip

STREAM = 7
ARMS = (
    Arm("full"), Arm("rendering", how={"source": "rendering"}), Arm("no_apm", {"apm": None}),
    Arm("last_frame_clip", {"anchor": "last"}), Arm("none", {"conditioning": "none", "apm": None}),
    Arm("free_noise", {"conditioning": "none", "apm": None}, how={"source": "free_noise"}),
    Arm("full-replacement", {"conditioning": "cam+replacement"}),
)  # fmt: skip
GUIDANCE_ARMS = tuple(Arm(f"guidance{g:g}", sampling={"guidance_scale": g}) for g in (1.0, 1.5, 2.0, 3.0, 5.0, 7.5))
SAMPLER_ARMS = tuple(
    Arm(name, sampling={"sampler": sampler, "num_inference_steps": steps, "eta": eta})
    for name, sampler, steps, eta in (
        ("sde-dpm++10", "sde-dpm++", 10, 0.0), ("sde-dpm++15", "sde-dpm++", 15, 0.0), ("dpm++10", "dpm++", 10, 0.0),
        ("dpm++20", "dpm++", 20, 0.0), ("ddim20", "ddim", 20, 0.0), ("ddim20-eta1", "ddim", 20, 1.0),
    )
)  # fmt: skip
PREFIXES = (120, 140, 160, 180, 200, 220, 240, 480, 720, 960, 1200)  # frames; the first six are the paper's
WINDOW = 16


def run(bench: Bench, cases: list[Case], seeds: list[int]) -> list[Scored]:
    """Windows of 16 frames at the start, at 224-239 and at the end; series over the whole length."""
    prompts, frames = [c.prompt for c in cases], bench.frames
    source = bench.arm.how.get("source")
    seams = list(range(bench.pipe.cfg.chunk_frames, frames, bench.pipe.cfg.chunk_frames // 2))
    if source == "rendering":
        videos = [c.frames(frames, bench.pipe.cfg.size) for c in cases]
    elif source == "free_noise":
        videos = list(free_noise_videos(bench.pipe, prompts, seeds, frames))
    else:
        first = base_chunks(bench.pipe, prompts, seeds)
        stream = continue_videos(bench.pipe, prompts, first, seeds, frames)
        videos, seams = list(stream.video), stream.seams
    return [score(bench, case, video, seams) for case, video in zip(cases, videos)]


def score(bench: Bench, case: Case, video, seams: list[int]) -> Scored:
    """All values of one long video ``f 3 h w``."""
    frames, reader = len(video), bench.reader
    reading = read(video, reader, bench.options.sprites)
    values: dict[str, float] = {}
    windows = {"first_": 0, "end_": frames - WINDOW} | ({"at224_": 224} if frames >= 240 else {})
    for prefix, start in windows.items():
        values |= caption_values(reading[start : start + WINDOW], case.prompt, reader, prefix)
        values[f"{prefix}permanence"] = permanence(reading, case.prompt, start, start + WINDOW)
    last = slice(max(frames - 100, frames // 2), frames)
    values["last100_permanence"] = permanence(reading, case.prompt, last.start, last.stop)
    early, late = speed(reading, 0, frames - last.start), speed(reading, last.start, frames)
    values |= {"speed_first": early, "speed_last": late, "motion_kept": late / early if early else float("nan")}
    values |= identity_values(reading[max(WINDOW, frames - 4 * WINDOW) :], reading[:WINDOW], "end_")
    values["end_background_shade_change"] = background_shade_error(
        reading[frames - WINDOW :], float(reading.background_shade[:WINDOW].mean())
    )
    if seams:
        values |= seam_values(reading, seams)
    metrics, results = measured(video, case.prompt, bench.clip)
    details = {"frames": [], "mawe_code": [], "clip_score": [], "pattern_error": [], "shade_error": []}
    for n in (n for n in PREFIXES if n <= frames):
        details["frames"].append(n)
        details["mawe_code"].append(nanmean(results["mawe_code"].per_pair[: n - 1]))
        details["clip_score"].append(nanmean(results["clip_score"].per_frame[:n]))
        error = identity_values(reading[max(WINDOW, n - 120) : n], reading[:WINDOW])
        details["pattern_error"].append(error["pattern_error"])
        details["shade_error"].append(error["shade_error"])
    return Scored(values | metrics, {"strip": strip(video, 12), "xt": slice_xt(video[:240])}, details)


def case(split: str, index: int, options: Options) -> Case:
    """The cases of the first-chunk suite, gone on with."""
    return any_case(split, index, STREAM, options.sprites, options.speed)


SUITE = Suite(
    "long", "240 or 1200 frames from prompts: captions at the end, permanence, drift, motion kept", ARMS, case, run,
    lambda options, frames, cfg: 1 + stage_2_calls(options, frames, cfg), videos=64, frames=240, batch=4,
    trained=("apm",),
)  # fmt: skip
GUIDANCE_SUITE = dataclasses.replace(
    SUITE, name="guidance", about="how much the prompt weighs: what a small model gains by it and where it burns",
    arms=GUIDANCE_ARMS, videos=12, frames=120, trained=(),
)  # fmt: skip
SAMPLER_SUITE = dataclasses.replace(
    GUIDANCE_SUITE, name="samplers", about="what drifts by the sampler: noise in every step, or in the first alone",
    arms=SAMPLER_ARMS, frames=128,
)  # fmt: skip
