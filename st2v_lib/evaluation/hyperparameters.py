"""Tab. 12: hyper-parameters, the paper's beside what the two presets really use, read from their configs.

Where the paper does not say, the value is the released code's; README lists the reasons for each difference.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from st2v_lib.config import MODELSCOPE, TINY, StreamingT2VConfig
from st2v_lib.evaluation.tables import markdown

CODE = "(released code)"
Read = Callable[[StreamingT2VConfig], object]
ROWS: tuple[tuple[str, str, Read], ...] = (
    ("network predicts", "epsilon", lambda c: c.scheduler.prediction_type),
    ("noise schedule", "linear", lambda c: c.scheduler.beta_schedule),
    ("β₀, β_T", "0.0085, 0.012", lambda c: f"{c.scheduler.beta_start:g}, {c.scheduler.beta_end:g}"),
    ("zero terminal SNR", f"False {CODE}", lambda c: c.scheduler.rescale_betas_zero_snr),
    ("sampler", f"ddim {CODE}", lambda c: c.sampling.sampler),
    ("steps a chunk", f"50 {CODE}", lambda c: c.sampling.num_inference_steps),
    ("η", f"1 {CODE}", lambda c: f"{c.sampling.eta:g}"),
    ("guidance, text", "7.5 (eq. 12)", lambda c: c.sampling.guidance_scale),
    ("guidance, anchor", "7.5 (eq. 12)", lambda c: c.sampling.anchor_guidance_scale or c.sampling.guidance_scale),
    ("pixels, stages 1 and 2", "256 (§10)", lambda c: c.size),
    ("frames a chunk", "16 (§10)", lambda c: c.chunk_frames),
    ("frames carried to CAM", "8 (§4.1)", lambda c: c.cam.num_cond_frames),
    ("widths of CAM's pixel encoder", f"32, 96, 256, 512 {CODE}", lambda c: ", ".join(map(str, c.cam.cond_channels))),
    ("anchor tokens, text tokens", f"16, 77 {CODE}", lambda c: f"{c.apm.num_image_tokens}, {c.apm.text_len}"),
    ("pixels, stage 3", "720 (§10)", lambda c: c.enhancer.size),
    ("chunk and overlap, stage 3", "24, 8 (§10)", lambda c: f"{c.enhancer.chunk_frames}, {c.enhancer.overlap_frames}"),
    ("start level, stage 3", f"599 {CODE}", lambda c: c.enhancer.start_timestep),
    ("steps, stage 3", f"30 {CODE}", lambda c: c.enhancer.num_inference_steps),
    ("guidance, stage 3", f"7.5 {CODE}", lambda c: c.enhancer.guidance_scale),
)


def table12(results: Path, split: str, out: Path) -> str:
    """One row a value; a star marks what differs from the paper (or the released code) at full size."""
    rows = []
    for name, theirs, read in ROWS:
        ours = str(read(MODELSCOPE))
        differs = not same(theirs, ours)
        rows.append([name, theirs, ours + (" *" if differs else ""), str(read(TINY))])
    head = ["value", "paper", f"`{MODELSCOPE.name}`", f"`{TINY.name}`"]
    return f"## table12\n\n{markdown(head, rows)}\n\n\\* differs from the paper on purpose; the README says why.\n"


def same(theirs: str, ours: str) -> bool:
    """Is it the paper's value, its source in brackets aside?"""
    return theirs.split(" (")[0] == ours.removesuffix(".0")
