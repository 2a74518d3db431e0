"""``st2v stream PROMPT``: a session on disk and an mp4 that plays while it grows; ``--resume`` and ``--branch``."""

from __future__ import annotations

import argparse
import re
import sys
import time
import warnings
from pathlib import Path

from st2v_lib.checks import check_count, check_sampling, prompt_ranges
from st2v_lib.config import preset
from st2v_lib.errors import InputError
from st2v_lib.live_video import check_place
from st2v_lib.loading import load
from st2v_lib.sampling import make_scheduler
from st2v_lib.session import Session

NEW_ONLY = ("prompt_at", "sampler", "steps", "eta", "no_enhance")


def run(args: argparse.Namespace) -> int:
    """Streams until the video has its length, or until Ctrl-C, after which ``--resume`` goes on.

    Raises:
        UserError: for what the user can put right, before anything expensive is done.
    """
    said, as_usual = set(), warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *place: object) -> None:
        if category is not UserWarning:
            as_usual(message, category, *place)
        elif str(message) not in said:
            said.add(str(message))
            _warn(str(message))

    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = show
        return _run(args)


def _warn(message: str) -> None:
    print(f"st2v stream: warning: {message}", file=sys.stderr)


def _run(args: argparse.Namespace) -> int:
    if args.out is not None:
        check_place(args.out)
    session = _session(args)
    out = args.out or session.folder / "live.mp4"
    session.write_video(out)  # what is there already
    length = session.plan.num_frames
    print(f"{session.plan.prompt_at(session.frames_made)!r}, {length or 'no end of'} frames, session {session.folder}")
    start, before = time.perf_counter(), session.frames_made
    try:
        for block in session.run():
            session.write_video(out)
            numbers = "  ".join(f"{name} {value:.3g}" for name, value in block.look.items())
            rate = (session.frames_made - before) / (time.perf_counter() - start)
            print(f"made {session.frames_made}  in the video {session.frames_out}  {rate:.2f} frames/s  {numbers}")
            for warning in block.warnings:
                _warn(f"chunk {block.index}: {warning}")
    except KeyboardInterrupt:
        print(f"\nstopped at {session.frames_made} frames; st2v stream --resume {session.folder}", file=sys.stderr)
        print(out)
        return 130
    print(out)
    return 0


def _session(args: argparse.Namespace) -> Session:
    """The session that is asked for: a new one, an old one, or a branch."""
    if args.resume is not None and args.branch is not None:
        raise InputError("give --resume to go on, or --branch for another future, not both")
    if args.branch is not None:
        _refuse(args, "--branch", NEW_ONLY)
        if args.at is None or args.session is None:
            raise InputError("--branch needs --at K, the first chunk that is made anew, and --session for its folder")
        old = Session.open(
            args.branch, load(args.preset, args.device, args.weights), upto=check_count(args.at, "--at", 0)
        )
        return old.branch(args.session, args.at, args.prompt, args.seed, args.guidance, args.frames)
    if args.at is not None:
        raise InputError("--at belongs to --branch")
    if args.resume is not None:
        _refuse(args, "--resume", ("prompt", "seed", "session", "guidance", *NEW_ONLY))
        session = Session.open(args.resume, load(args.preset, args.device, args.weights))
        if args.frames is not None:
            session.end(args.frames)
        return session
    cfg = preset(args.preset)
    if args.prompt is None:
        raise InputError('give a prompt, "a red circle bounces over green stripes", or --resume DIR')
    prompts = {0: args.prompt}
    for frame, text in args.prompt_at:
        if not re.fullmatch(r"\d+", frame) or int(frame) in prompts:
            raise InputError(f"--prompt-at: expected a frame of its own, 1 or more, got {frame!r}")
        prompts[int(frame)] = text
    sampling = dict(
        sampler=args.sampler, num_inference_steps=args.steps, eta=args.eta, guidance_scale=args.guidance
    )  # fmt: skip
    seed = 0 if args.seed is None else args.seed
    if args.frames is not None:
        check_count(args.frames, "--frames", cfg.chunk_frames)
    check_count(seed, "--seed", 0)
    prompt_ranges(prompts, cfg, args.frames)
    check_sampling(cfg, make_scheduler(cfg.scheduler, cfg.sampling.sampler), **sampling)
    slug = re.sub(r"[^a-z0-9]+", "-", args.prompt.lower()).strip("-")[:60] or "video"
    folder = args.session or Path("outputs") / f"{slug}-{seed}"
    if (folder / "session.json").exists():
        raise InputError(f"there is a session in {folder}: st2v stream --resume {folder}, or another --session")
    pipe = load(args.preset, args.device, args.weights)
    return Session.create(folder, pipe, prompts, args.frames, seed, not args.no_enhance, **sampling)


def _refuse(args: argparse.Namespace, mode: str, names: tuple[str, ...]) -> None:
    """A session keeps what it was begun with."""
    values = {name: getattr(args, name) for name in names}
    given = [name for name, value in values.items() if value is not None and value is not False and value != []]
    if given:
        name = "PROMPT" if given[0] == "prompt" else "--" + given[0].replace("_", "-")
        raise InputError(f"{name} cannot be given with {mode}: the session keeps its own")
