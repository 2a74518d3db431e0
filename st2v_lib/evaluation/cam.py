"""CAM against its rivals, all from the same rendered first chunk with the sprites in sight (paper §5.3, §9.1).

Axes, fixed beforehand: bend at seams, overlap fidelity, amount of motion, SCuts. Bend at the seams and between them is
shown apart, since an arm that jitters everywhere has the least *difference* of the two. Motion, cuts, warp error and
CLIP score are of the generated frames and the one before them.

A second suite takes one trained CAM and spoils what it is given: noise on the carried frames, or further trips through
the VAE at each hand-over.
"""

from __future__ import annotations

import dataclasses
import math
import time

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from st2v_lib.backbone import decode_latents, encode_frames
from st2v_lib.evaluation.cases import Case, rendered, visible_case
from st2v_lib.evaluation.generate import continue_videos
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
from st2v_lib.metrics.motion import motion
from st2v_lib.sampling import chunk_generator, randn
from st2v_lib.streaming import StreamState
from st2v_lib.world.scores import overlap_fidelity

STREAM = 8
ARMS = (
    Arm("none", {"conditioning": "none", "apm": None}),
    Arm("cam-shipped", {"apm": None}),
    Arm("replacement", {"conditioning": "replacement", "apm": None}),
    Arm("cam-shipped-replacement", {"conditioning": "cam+replacement", "apm": None}),
    Arm("full-shipped"),
    Arm("rendering", how={"source": "rendering"}),
)
CONDITION_ARMS = (
    Arm("as_it_is", {"apm": None}),
    *(Arm(f"noise{level:g}", {"apm": None}, how={"noise": level}) for level in (0.02, 0.05, 0.1, 0.2, 0.4)),
    *(Arm(f"vae{trips}", {"apm": None}, how={"trips": trips}) for trips in (1, 2, 4)),
)


def run(bench: Bench, cases: list[Case], seeds: list[int]) -> list[Scored]:
    """Continues rendered first chunks and scores joints, repeats, motion and cuts."""
    cfg, frames, how = bench.pipe.cfg, bench.frames, bench.arm.how
    truth = rendered(cases, frames, cfg.size)
    began = time.perf_counter()
    if how.get("source") == "rendering":
        videos, carried, discarded = truth, [], []
        seams = list(range(cfg.chunk_frames, frames, cfg.chunk_frames // 2))
    else:
        stream = continue_videos(
            bench.pipe, [c.prompt for c in cases], truth[:, : cfg.chunk_frames], seeds, frames,
            before=lambda state: spoil(bench, state, seeds), overlaps=True,
        )  # fmt: skip
        videos, seams, carried, discarded = stream.video, stream.seams, stream.carried, stream.discarded
    seconds = (time.perf_counter() - began) / max(1, len(cases) * len(seams))
    out = []
    for i, case in enumerate(cases):
        again = [overlap_fidelity(d[i], c[i], bench.reader) for d, c in zip(discarded, carried)]
        scored = score(bench, case, videos[i], truth[i], seams)
        for part in ("psnr", "position", "found"):
            scored.values[f"overlap_{part}"] = nanmean([a[part] for a in again])
        scored.values["seconds_per_chunk"] = seconds
        if case.index == 0 and carried:
            new = cfg.chunk_frames - carried[0].shape[1]
            scored.values["gflop_per_frame"] = gflop(bench, case, truth[i : i + 1, : cfg.chunk_frames]) / new
        out.append(scored)
    return out


def score(bench: Bench, case: Case, video, truth, seams: list[int]) -> Scored:
    """Values of one video ``f 3 h w`` that goes on from a true first chunk."""
    n, sprites, reader = bench.pipe.cfg.chunk_frames, bench.options.sprites, bench.reader
    reading, true = read(video, reader, sprites), read(truth, reader, sprites)
    values = seam_values(reading, seams, start=n)
    values |= caption_values(reading[len(video) - n :], case.prompt, reader, "late_")
    values["permanence"] = permanence(reading, case.prompt, n, len(video))
    values |= identity_values(reading[n:], reading[:n], "late_")
    shade = case.scene.background.shade
    values["late_background_shade_error"] = background_shade_error(reading[len(video) - n :], shade)
    values |= {"speed": speed(reading, n, len(video)), "true_speed": speed(true, n, len(video))}
    values["speed_over_true"] = values["speed"] / values["true_speed"] if values["true_speed"] else math.nan
    metrics, _ = measured(video[n - 1 :], case.prompt, bench.clip)
    values["motion_over_true"] = metrics["motion"] / motion(truth[n - 1 :].numpy()).value
    values["cuts_per_100_seams"] = 100 * metrics["scuts"] / len(seams)
    return Scored(values | metrics, {"xt": slice_xt(video), "strip": strip(video)})


def gflop(bench: Bench, case: Case, first: torch.Tensor) -> float:
    """Arithmetic of one chunk of one video, condition and decoding included, in 10⁹ operations.

    Attention runs as plain matrix products here: the counter knows none of the CPU's fused kernels.
    """
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        continue_videos(bench.pipe, [case.prompt], first, [0], first.shape[1] + 1)
    return counter.get_total_flops() / 1e9


def spoil(bench: Bench, state: StreamState, seeds: list[int]) -> StreamState:
    """The state with noise on its carried frames, or with these sent through the VAE again."""
    level, trips = bench.arm.how.get("noise", 0.0), bench.arm.how.get("trips", 0)
    cond = state.cond
    if level:
        noise = [randn(tuple(cond[:1].shape), chunk_generator(s, 2**30 + state.chunk_index), cond) for s in seeds]
        cond = (cond + level * torch.cat(noise)).clamp(-1, 1)
    for _ in range(trips):
        cond = decode_latents(bench.pipe.vae, encode_frames(bench.pipe.vae, cond, 64), 64).float()
    return dataclasses.replace(state, cond=cond)


def case(split: str, index: int, options: Options) -> Case:
    """A scene from a moment on in which its sprites are seen whole."""
    return visible_case(split, index, STREAM, options.sprites, options.speed)


SUITE = Suite(
    "cam", "CAM, its rivals and no memory, from the same rendered first chunk", ARMS, case, run, stage_2_calls,
    videos=48, frames=80, trained=("cam", "concat_cond", "add_cond", "placed_cam"),
)  # fmt: skip
CONDITION_SUITE = dataclasses.replace(
    SUITE, name="cam-condition", about="noise on what CAM is given, and further VAE trips at each hand-over",
    arms=CONDITION_ARMS,
)  # fmt: skip
