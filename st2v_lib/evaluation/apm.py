"""APM: does a sprite that was out of sight come back as the one it was (paper §5.3, §9.2, Fig. 14)?

Every case starts from a rendered first chunk with the sprite whole in frame 0 and gone in frames 16-23. It *counts*
only if the frames that were generated and carried show no sprite, so that no short-term memory can know it. Then: does
a sprite return, after how many frames, and, given that it does, with which pattern, shade and size? Where it returns is
not judged. Pattern is drawn evenly from four, so a quarter is chance.

Without APM the same cases ask another question of the short-term memories alone: the text still names the sprite, but
all that is carried shows it gone. Axis, fixed beforehand: does a sprite return?
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from st2v_lib.evaluation.cases import Case, hidden_case, rendered
from st2v_lib.evaluation.generate import continue_videos
from st2v_lib.evaluation.scoring import background_shade_error, caption_values, identity_values, read
from st2v_lib.evaluation.suite import Arm, Bench, Options, Scored, Suite, stage_2_calls, strip
from st2v_lib.world.reader import Reading

STREAM = 9
NEEDED = 2  # frames in a row that show a sprite: one alone may be the reader's invention
ARMS = (
    Arm("with"), Arm("alpha0", {"apm": None}), Arm("grey_anchor", how={"anchor": "null"}),
    Arm("last_frame_clip", {"anchor": "last"}), Arm("rendering", how={"source": "rendering"}),
)  # fmt: skip
ANCHOR_ARMS = (
    Arm("first_frame"),
    Arm("hidden_frame", how={"anchor": "hidden"}),
    Arm("mean_of_8", how={"anchor": "mean"}),
    Arm("wrong_video", how={"anchor": "wrong"}),
    *(Arm(f"weight{w:g}", sampling={"anchor_guidance_scale": w}) for w in (0.0, 1.0, 2.0, 4.0, 7.5)),
)


def run(bench: Bench, cases: list[Case], seeds: list[int]) -> list[Scored]:
    """Continues rendered first chunks whose sprite goes away, and scores what comes back."""
    cfg, frames = bench.pipe.cfg, bench.frames
    truth = rendered(cases, frames, cfg.size)
    first = truth[:, : cfg.chunk_frames]
    anchor = anchor_frames(bench, cases, first)
    if bench.arm.how.get("source") == "rendering":
        videos, seams = truth, list(range(cfg.chunk_frames, frames, cfg.chunk_frames // 2))
    else:
        stream = continue_videos(bench.pipe, [c.prompt for c in cases], first, seeds, frames, anchor)
        videos, seams = stream.video, stream.seams
    out = []
    for i, case in enumerate(cases):
        reading = read(videos[i], bench.reader)
        values = returned(reading, read(first[i], bench.reader), seams)
        if bench.arm.how.get("anchor") == "wrong":
            other = read(anchor[i].expand(cfg.chunk_frames, -1, -1, -1), bench.reader)
            if values["returned"] == 1:
                later = reading[int(values["blank_until"] + values["waiting"]) :]
                values |= identity_values(later, other, "wrong_")
        shade = case.scene.background.shade
        values["background_shade_error"] = background_shade_error(reading[frames - 16 :], shade)
        values |= caption_values(reading[frames - 16 :], case.prompt, bench.reader, "late_")
        out.append(Scored(values, {"strip": strip(videos[i], 14)}))
    return out


def returned(reading: Reading, anchor: Reading, seams: list[int]) -> dict[str, float]:
    """Return, waiting time and identity of one case; all but ``counts`` are nan where the case does not count.

    Args:
        reading: of the whole video.
        anchor: of its true first chunk.
        seams: first frame of each chunk but the first; the carried frames of a chunk are those before its seam.

    Returns:
        ``counts``: some chunk was given generated frames without any sprite; ``blank_until`` its first new frame;
        ``returned`` 1 or 0, ``waiting`` frames from there to the first of two that show a sprite; and
        ``identity_values`` of the frames from there on.
    """
    names = ("returned", "waiting", "blank_until", "pattern_error", "shade_error", "size_error", "pattern_kept")
    out = dict.fromkeys(names, math.nan)
    gaps = [b for a, b in zip(seams, seams[1:]) if bool((reading.count[a:b] == 0).all())]
    out["counts"] = float(bool(gaps))
    if not gaps:
        return out
    out["blank_until"] = float(gaps[0])
    seen = (reading.count[gaps[0] :] > 0).float()
    held = seen.unfold(0, NEEDED, 1).min(-1).values if len(seen) >= NEEDED else seen[:0]
    out["returned"] = float(bool(held.any()))
    if held.any():
        out["waiting"] = float(held.argmax())
        out |= identity_values(reading[gaps[0] + int(held.argmax()) :], anchor)
    return out


def anchor_frames(bench: Bench, cases: list[Case], first: Tensor) -> Tensor | None:
    """What APM keeps to, ``n k 3 h w``: the first frame (``None``) or what the arm says in its place."""
    kind = bench.arm.how.get("anchor")
    if kind is None or bench.pipe.cfg.apm is None:
        return None
    if kind == "null":
        return torch.zeros_like(first[:, :1])
    if kind == "hidden":
        return first[:, -1:]
    if kind == "mean":
        return first[:, :8]
    others = [hidden_case("train", 50_000 + c.index, STREAM) for c in cases]  # of no split that is reported
    return rendered(others, 1, bench.pipe.cfg.size)


def case(split: str, index: int, options: Options) -> Case:
    """A hidden-sprite case; they have one sprite at the world's speeds."""
    return hidden_case(split, index, STREAM)


SUITE = Suite(
    "apm", "hidden sprites: do they return, and as themselves? With, without and with a grey anchor", ARMS, case, run,
    stage_2_calls, videos=100, frames=72, trained=("apm",),
)  # fmt: skip
ANCHOR_SUITE = dataclasses.replace(
    SUITE, name="apm-anchors", about="which frame is the anchor, and how much it weighs", arms=ANCHOR_ARMS
)
MEMORIES_SUITE = dataclasses.replace(
    SUITE, name="cam-hidden", about="hidden sprites without APM: does CAM, or a rival, leave room for them to return?",
    arms=(
        Arm("none", {"conditioning": "none", "apm": None}), Arm("cam-shipped", {"apm": None}),
        Arm("rendering", how={"source": "rendering"}),
    ),
    trained=("cam", "concat_cond", "add_cond", "placed_cam"),
)  # fmt: skip
