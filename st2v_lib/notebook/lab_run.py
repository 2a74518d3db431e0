"""Runs a state of the ablation lab: both arms from one seed and one first chunk, a denoising step a tick.

    python -m st2v_lib.notebook.lab_run --precompute     # makes data/results/lab again, about a minute

``run(state)`` is a plain function; ``run_steps(state, bench)`` the generator behind it, which a panel drives from the
notebook's event loop. What is shared: the first chunk (the baseline's), and for equal seeds all noise. Arms with the
same sampler and number of steps go through the UNet in one batch; others take turns.
"""

from __future__ import annotations

import argparse
import itertools
import time
import warnings
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from st2v_lib.backbone import decode_latents, encode_frames
from st2v_lib.blending import chunk_starts, stage_key
from st2v_lib.enhancer import unet_denoiser, upscale
from st2v_lib.manifest import data_dir, weights_mark
from st2v_lib.notebook.lab_batch import ArmChunk, enhance_steps, joint_chunk
from st2v_lib.notebook.lab_bench import Bench, enhancer_config, load_bench, models_of, sampling_of, scene_of, start_of
from st2v_lib.notebook.lab_record import LabResult, recorded, save
from st2v_lib.notebook.lab_score import score
from st2v_lib.notebook.lab_state import CHUNK, Arm, LabState, check, notes
from st2v_lib.pipeline import ENHANCER_COST
from st2v_lib.sampling import chunk_generator
from st2v_lib.stages import ENHANCER_NOISE, base_steps
from st2v_lib.video_io import as_frames

RECORDED = {  # what is precomputed: a name and a state each
    "memories": LabState(),
    "apm": LabState(changes={"apm": "off"}),
    "guidance": LabState(changes={"guidance": 1.0}),
    "steps": LabState(changes={"steps": 3}),
    "blending": LabState(changes={"blend_law": "B"}, stage=3),
}


@dataclass(frozen=True)
class Tick:
    """What one tick did: ``done`` of ``total`` ticks, and in words."""

    done: int
    total: int
    text: str


def run(state: LabState, bench: Bench | None = None) -> LabResult:
    """Both arms of a state, to the end.

    Raises:
        InputError: for a state that cannot be run, before anything is computed.
    """
    steps = run_steps(state, bench or load_bench())
    for note in notes(state):
        warnings.warn(note, stacklevel=2)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def run_steps(state: LabState, bench: Bench) -> Generator[Tick, None, LabResult]:
    """``run``, yielding after each denoising step and each arm's scores.

    Raises:
        InputError: for a state that cannot be run, at the first ``next``.
    """
    check(state, bench.found)
    began, (total, _) = time.perf_counter(), work(state)
    steps, metrics, curves = _videos(state, bench), {}, {}
    for done in itertools.count(1):
        try:
            text = next(steps)
        except StopIteration as end:
            videos, seams, truth = end.value
            break
        yield Tick(done, total, text)
    for i, (who, arm) in enumerate(state.arms.items()):
        metrics[who], curves[who] = score(videos[who][0], arm, state, seams[who], bench, truth)
        yield Tick(done + i, total, f"{who}: measured")
    return LabResult(
        state, {who: as_frames(video[0]) for who, video in videos.items()}, seams, metrics, curves,
        time.perf_counter() - began, weights_mark(bench.folder),
    )  # fmt: skip


def work(state: LabState) -> tuple[int, float]:
    """Ticks of a run, and its cost in denoising steps of one arm's chunk, which is what its seconds go with."""
    arms, ticks, cost = list(state.arms.values()), 2, 2.0
    if state.first == "generated":
        ticks, cost = ticks + state.baseline.steps, cost + state.baseline.steps
    lengths = dict.fromkeys(range(len(arms)), CHUNK)
    if state.stage == 3:
        for arm in arms:
            calls = len(chunk_starts(state.frames, arm.chunk, arm.overlap)) * arm.enhancer_steps
            ticks, cost = ticks + calls, cost + ENHANCER_COST * calls * arm.chunk / 24
        arms, lengths = arms[:1], {0: CHUNK if state.first == "generated" else state.frames}
    while any(length < state.frames for length in lengths.values()):
        now = [i for i, length in lengths.items() if length < state.frames]
        ticks += sum(arms[group[0]].steps for group in _groups(arms, now))
        cost += sum(arms[i].steps for i in now)
        lengths |= {i: lengths[i] + CHUNK - arms[i].carried for i in now}
    return ticks, cost


def _groups(arms: list[Arm], now: list[int]) -> list[list[int]]:
    """Arms whose steps can share a batch: equal sampler, equal number of steps."""
    groups: dict[tuple, list[int]] = {}
    for i in now:
        groups.setdefault((arms[i].sampler, arms[i].steps), []).append(i)
    return list(groups.values())


def _videos(state: LabState, bench: Bench) -> Generator[str, None, tuple[dict, dict, Tensor | None]]:
    """Videos ``1 f 3 h w``, seams, and in stage 3 the truth ``f 3 h w``, if there is one."""
    rendered = state.first == "rendered"
    scene = scene_of(state.baseline) if rendered else None
    if state.stage == 3:
        if rendered:
            small = scene.frames(state.frames)[None]
        else:
            first = yield from _first_chunk(state.baseline, bench)
            (small,), _ = yield from _stream([state.baseline], first, state.frames, bench)
        videos = yield from _enhance(state, small, bench)
        seams = {w: tuple(chunk_starts(state.frames, a.chunk, a.overlap)[1:]) for w, a in state.arms.items()}
        return videos, seams, scene.frames(state.frames, bench.pipe.cfg.enhancer.size) if rendered else None
    first = scene.frames(CHUNK)[None] if rendered else (yield from _first_chunk(state.baseline, bench))
    made, seams = yield from _stream(list(state.arms.values()), first, state.frames, bench)
    return dict(zip(state.arms, made)), dict(zip(state.arms, seams)), None


def _first_chunk(arm: Arm, bench: Bench) -> Generator[str, None, Tensor]:
    """Stage 1 with the baseline's numbers, ``1 16 3 h w``."""
    pipe, models = bench.pipe, models_of(arm, bench)
    steps = base_steps(
        models,
        pipe.cfg.replace(sampling=sampling_of(arm)),
        pipe.encode_text(arm.prompt),
        pipe.encode_text(""),
        arm.seed,
    )
    return (yield from _told(steps, "first chunk"))


def _told(steps: Generator, what: str) -> Generator[str, None, Any]:
    """A generator of steps as one of words; returns what it returned."""
    while True:
        try:
            step = next(steps)
        except StopIteration as end:
            return end.value
        yield f"{what}, step {step.index + 1} of {step.num_steps}"


def _stream(arms: list[Arm], first: Tensor, frames: int, bench: Bench) -> Generator[str, None, tuple[list, list]]:
    """Stage 2 of several arms from one first chunk: videos ``1 f 3 h w`` and their seams."""
    pipe = bench.pipe
    models, null = [models_of(arm, bench) for arm in arms], pipe.encode_text("")
    texts, videos, seams = [pipe.encode_text(arm.prompt) for arm in arms], [first] * len(arms), [()] * len(arms)
    states = [start_of(arm, model, first) for arm, model in zip(arms, models)]
    while now := [i for i, video in enumerate(videos) if video.shape[1] < frames]:
        groups = _groups(arms, now)
        running = {
            tuple(g): joint_chunk([ArmChunk(models[i], states[i], texts[i], null, sampling_of(arms[i])) for i in g])
            for g in groups
        }
        while running:  # one step of each group in turn
            for group in list(running):
                try:
                    step = next(running[group])
                except StopIteration as end:
                    del running[group]
                    for i, block, after in zip(group, *end.value):
                        seams[i] += (videos[i].shape[1],)
                        videos[i], states[i] = torch.cat([videos[i], block], dim=1), after
                else:
                    yield f"chunk {states[group[0]].chunk_index}, step {step.index + 1} of {step.num_steps}"
    return [video[:, :frames] for video in videos], seams


def _enhance(state: LabState, small: Tensor, bench: Bench) -> Generator[str, None, dict[str, Tensor]]:
    """Stage 3 of one video ``1 f 3 h w`` by both arms, which take turns: enhanced videos ``1 f 3 H W``."""
    pipe, done, running = bench.pipe, {}, {}
    with torch.no_grad():
        latents = encode_frames(pipe.vae, upscale(small, pipe.cfg.enhancer.size), 16)
        for who, arm in state.arms.items():
            config = enhancer_config(arm, pipe.cfg.enhancer)
            network = unet_denoiser(pipe.enhancer, pipe.encode_text(arm.prompt), pipe.encode_text(""), config)
            key = stage_key(chunk_generator(arm.seed, ENHANCER_NOISE))
            running[who] = enhance_steps(latents, network, config, key)
    while running:
        for who in list(running):
            try:
                step = next(running[who])
            except StopIteration as end:
                del running[who]
                with torch.no_grad():
                    done[who] = decode_latents(pipe.vae, end.value, 16).float()
            else:
                yield f"enhancing, step {step + 1} of {state.arms[who].enhancer_steps}"
    return {who: done[who] for who in state.arms}


def precompute(folder: Path | None = None) -> None:
    """Runs the states of ``RECORDED`` and writes them where the panel looks for them."""
    folder, bench = folder or data_dir() / "results" / "lab", load_bench()
    for name, state in RECORDED.items():
        result = run(state, bench)
        save(result, folder, name)
        print(
            f"{name:<10}{result.seconds:5.1f} s, {(folder / (name + '.webp')).stat().st_size / 1000:.0f} kB", flush=True
        )


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description="The ablation lab's recorded results.")
    parser.add_argument(
        "--precompute", action="store_true", help="run all recorded states again with the present weights"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="where they go (default: data/results/lab)")
    args = parser.parse_args()
    if args.precompute:
        precompute(args.out)
    for name, result in recorded(args.out).items():
        fresh = "present weights" if result.weights == weights_mark() else "other weights: --precompute makes it again"
        print(f"{name:<10}{result.seconds:5.1f} s, {fresh}")


if __name__ == "__main__":
    main()
