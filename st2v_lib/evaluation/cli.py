"""``st2v evaluate SUITE``: what to run, from the command line; the work is in ``runner``."""

from __future__ import annotations

import argparse

from st2v_lib.errors import InputError, UserError
from st2v_lib.evaluation import apm, blending, cam, first_chunk, long
from st2v_lib.evaluation.runner import evaluate
from st2v_lib.evaluation.suite import Arm, Options, Suite, trained_arm, without_apm
from st2v_lib.generate_cli import DTYPES

SUITES: dict[str, Suite] = {
    s.name: s
    for s in (
        first_chunk.SUITE, long.SUITE, long.GUIDANCE_SUITE, long.SAMPLER_SUITE, cam.SUITE, cam.CONDITION_SUITE,
        apm.MEMORIES_SUITE, apm.SUITE, apm.ANCHOR_SUITE, blending.SUITE, blending.SWEEP_SUITE, blending.LEVELS_SUITE,
    )
}  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Entry point of the command line; see ``st2v evaluate --help``."""
    suite = SUITES[args.suite]
    options = Options(args.frames, args.sprites, args.speed)
    videos = suite.videos if args.prompts is None else args.prompts
    check(suite, videos, args.seeds, options, args.batch)
    files = evaluate(
        suite, arms_of(suite, args.arms, args.only), args.split, videos, args.seeds, options, args.weights,
        args.results, args.preset, args.device, args.batch, args.estimate, DTYPES[args.dtype],
    )  # fmt: skip
    for file in files:
        print(f"written: {file}")
    return 0


def check(suite: Suite, videos: int, seeds: list[int], options: Options, batch: int | None) -> None:
    """Raises ``InputError`` for a number outside its range, or options that the suite has no cases for."""
    for name, value in (("--prompts", videos), ("--frames", options.frames), ("--batch", batch)):
        if value is not None and value < 1:
            raise InputError(f"{name}: expected 1 or more, got {value}")
    if options.frames is not None and options.frames < 16:
        raise InputError(f"--frames: expected 16 or more, got {options.frames}")
    if any(seed < 0 for seed in seeds) or len(set(seeds)) < len(seeds):
        raise InputError(f"--seeds: expected different numbers of 0 or more, got {' '.join(map(str, seeds))}")
    if suite.name == "first-chunk" and options.frames not in (None, suite.frames):
        raise InputError(f"--frames: a first chunk has {suite.frames}")
    if suite.name.startswith("cam") and options.frames is not None and options.frames < 17:
        raise InputError(f"--frames: {suite.name} scores what follows 16 true frames, got {options.frames}")
    if suite.case is apm.case and (options.sprites, options.speed) != (1, "world"):
        raise InputError(f"{suite.name} has cases with one sprite at the world's speeds only")
    if suite.case is apm.case and options.frames is not None and options.frames < 48:
        raise InputError(f"--frames: a hidden sprite may be away until frame 48, got {options.frames}")


def arms_of(suite: Suite, folders: list, only: list[str] | None) -> list[Arm]:
    """The suite's arms and the trained ones, or those of them that are named.

    Raises:
        UserError: for a folder that is no arm of this suite, or a name that is not there.
    """
    arms = list(suite.arms)
    for folder in folders:
        arm = trained_arm(folder)
        if arm.record["phase"] not in suite.trained:
            raise UserError(f"{folder} holds an arm of {arm.record['phase']!r}, which is none of {suite.name}'s")
        arms.append(arm)
        if suite.name == "apm" and arm.record["arm"] in ("apm", "apm_unet"):
            arms.append(without_apm(arm))
    if only is None:
        return arms
    names = [arm.name for arm in arms]
    kind = {arm.name: arm.record["arm"] if arm.record else arm.name for arm in arms}
    missing = [name for name in only if name not in names and name not in kind.values()]
    if missing:
        raise UserError(f"{suite.name} has no arm {', '.join(missing)}; it has: {', '.join(names)}")
    return [arm for arm in arms if arm.name in only or kind[arm.name] in only]
