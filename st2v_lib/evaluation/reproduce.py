"""``st2v reproduce WHAT``: tables and figures of the paper from result files alone; nothing is generated here.

What was not run says so. Below each table stands what of the paper's claims agrees; reasons that were looked into are
kept by hand in ``data/results/<suite>/notes.md`` and shown with it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from st2v_lib.errors import OutputError
from st2v_lib.evaluation import figures, floors_table, paper
from st2v_lib.evaluation.blending import LEVEL_ARMS, SWEEP_ARMS
from st2v_lib.evaluation.hyperparameters import table12
from st2v_lib.evaluation.overview import overview
from st2v_lib.evaluation.results import write_bytes
from st2v_lib.evaluation.statistics import interval
from st2v_lib.evaluation.table1 import table1
from st2v_lib.evaluation.tables import Column, Group, claims_text, differences, groups, learning_curve, show, table
from st2v_lib.evaluation.waiting import not_run
from st2v_lib.manifest import data_dir

CAM_COLUMNS = (
    Column("seam_bend", "bend at seams, px", -1), Column("inside_bend", "bend between seams, px", -1),
    Column("seam_residual", "seam residual, px"), Column("seams_read", "seams read", 1, percent=True),
    Column("overlap_psnr", "overlap PSNR, dB", 1),
    Column("overlap_position", "overlap distance, px", -1), Column("motion_over_true", "motion over true"),
    Column("speed_over_true", "speed over true"), Column("scuts", "SCuts", -1),
    Column("cuts_per_100_seams", "cuts per 100 seams", -1), Column("permanence", "permanence", 1, percent=True),
    Column("late_pattern_kept", "pattern kept", 1, percent=True),
    Column("late_background_shade_error", "background shade error", -1), Column("mawe_code", "MAWE", -1),
    Column("gflop_per_frame", "GFLOP a new frame"),
)  # fmt: skip
CURVES = tuple(c for c in CAM_COLUMNS if c.value in ("seam_bend", "overlap_psnr"))
CAM_ARMS = (
    "none", "replacement", "concat_cond", "concat_cond_aligned", "add_cond", "add_cond_aligned", "add_cond_primed",
    "cam", "cam_primed", "cam_guided", "placed_cam",
)  # fmt: skip
APM_COLUMNS = (
    Column("counts", "counts", 0, percent=True), Column("returned", "returned", 1, percent=True),
    Column("waiting", "frames waited, given return"),
    Column("pattern_kept", "pattern kept, given return", 1, percent=True),
    Column("shade_error", "shade error, given return", -1), Column("size_error", "size error, given return", -1),
    Column("background_shade_error", "background shade error", -1),
)  # fmt: skip
HIDDEN_COLUMNS = tuple(c for c in APM_COLUMNS if c.value in ("counts", "returned", "waiting", "pattern_kept"))
LONG_COLUMNS = (
    Column("end_pattern_kept", "pattern kept, last 64 frames", 1, percent=True),
    Column("end_shade_error", "shade error, last 64", -1),
    Column("end_background_shade_change", "background shade change, last 16", -1),
    Column("last100_permanence", "permanence, last 100", 1, percent=True), Column("motion_kept", "motion kept"),
    Column("drift_colour_signed_share", "colour drift", percent=True),
    Column("drift_colour_abs_share", "colour drift, size", -1, percent=True),
    Column("drift_contrast_signed_share", "contrast drift", percent=True),
    Column("drift_contrast_abs_share", "contrast drift, size", -1, percent=True),
)  # fmt: skip
LONG_ARMS = ("full", "full-replacement", "no_apm", "last_frame_clip", "none", "free_noise", "rendering")
BLENDING_COLUMNS = (
    Column("flow_deviation", "flow deviation, px", -1), Column("flow_deviation_over_true", "less the true one"),
    Column("psnr", "PSNR, dB", 1), Column("fine_energy", "fine energy over true"),
    Column("detail_correlation", "detail like the truth", 1), Column("chunk_agreement", "chunks agree", 1),
    Column("flow_error", "flow off the true one, px", -1), Column("high_pass_correlation", "detail travels", 1),
    Column("high_pass_difference", "in overlaps less elsewhere"),
)  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Entry point of the command line; prints each drawing and writes it to ``--out``."""
    results, out = Path(args.results or data_dir() / "results"), Path(args.out or "outputs/reproduce")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{out} cannot be written: {error.strerror}") from error
    for what in DRAW if args.what == "all" else (args.what,):
        text = DRAW[what](results, args.split, out)
        write_bytes(out / f"{what}.md", text.encode())
        print(text)
    return 0


def tables_of(
    what: str, suites: dict[str, tuple], columns: tuple[Column, ...], beside: dict[str, str], results: Path, split: str
) -> str:
    """Tables of several suites with the same columns; ``suites`` gives each one's arms and reference."""
    parts = [f"## {what}\n"]
    for suite, (arms, reference) in suites.items():
        found = groups(results, suite, split)
        if not found:
            parts.append(not_run(suite, split, {arm: beside[arm] for arm in arms if arm in beside}))
        for group in found:
            parts.append(table(group, arms, columns, beside, reference))
            claims = paper.CLAIMS.get(what if suite == what.removeprefix("table-") else suite)
            if claims:
                parts.append(claims_text(group, claims))
        notes = results / suite / "notes.md"
        if notes.is_file():
            parts.append(notes.read_text())
    return "\n".join(parts)


def table_cam(results: Path, split: str, out: Path) -> str:
    """CAM against its rivals, and what spoils its condition (paper §5.3)."""
    beside = {arm: f"SCuts {value:g}" for arm, value in paper.SCUTS.items()}
    suites = {"cam": (CAM_ARMS, "cam"), "cam-condition": (("as_it_is",), "as_it_is")}
    text = tables_of("table-cam", suites, CAM_COLUMNS, beside, results, split)
    trained = tuple(arm for arm in CAM_ARMS if arm != "replacement" and not arm.endswith("_aligned"))
    hidden = {"cam-hidden": (trained, "cam")}
    text += tables_of("out of sight", hidden, HIDDEN_COLUMNS, {}, results, split)
    return text + "".join(learning_curve(groups(results, "cam", split), c) for c in CURVES)


def table_apm(results: Path, split: str, out: Path) -> str:
    """APM with and without its anchor, and the choice of anchor (paper §5.3, §9.2)."""
    beside = {"apm": paper.APM["with"], "apm_null": paper.APM["without"]}
    suites = {
        "apm": (("apm", "apm_alpha0", "apm_null", "alpha0"), "apm_null"),
        "apm-anchors": (("first_frame", "hidden_frame", "mean_of_8", "wrong_video"), "first_frame"),
    }
    text = tables_of("table-apm", suites, APM_COLUMNS, beside, results, split)
    text += "".join(whose_pattern(group) for group in groups(results, "apm-anchors", split))
    for group in groups(results, "apm", split):
        found = differences(group, ("apm_alpha0",), APM_COLUMNS, "apm")
        text += f"\n### α = 0 at inference, on the weights of `apm`: {group.title}\n{found}" if found else ""
    return text


def whose_pattern(group: Group) -> str:
    """With the anchor of another video: the shares in which the sprite's own pattern returns, and that video's."""
    if "wrong_video" not in group.rows:
        return ""
    names = ("pattern_kept", "wrong_pattern_kept")
    own, its = (interval(list(group.values("wrong_video", name).values()), True) for name in names)
    return (
        f"\nWith the anchor of another video what returns has its own pattern in {show(own, True)} of {own.n} cases, "
        f"and the anchor's in {show(its, True)} of {its.n}.\n"
    )


def table_long(results: Path, split: str, out: Path) -> str:
    """What is left at the end of long videos and what drifts, paired to both memories (paper §5.1, appendix)."""
    suites = {"long": (LONG_ARMS, "full"), "guidance": ((), "guidance3"), "samplers": ((), "sde-dpm++10")}
    return tables_of("table-long", suites, LONG_COLUMNS, {}, results, split)


def table_blending(results: Path, split: str, out: Path) -> str:
    """Blending laws and the enhancer's sweep (paper §5.3, §9.3)."""
    beside = {arm: f"flow deviation {value:g}" for arm, value in paper.FLOW_DEVIATION.items()}
    suites = {
        "blending": (("bicubic", "vae_of_truth", "B", "B+S", "code", "paper"), "code"),
        "blending-sweep": (tuple(a.name for a in SWEEP_ARMS), "start100"),
        "blending-levels": (tuple(a.name for a in LEVEL_ARMS), None),
    }
    return tables_of("table-blending", suites, BLENDING_COLUMNS, beside, results, split)


DRAW: dict[str, Callable[[Path, str, Path], str]] = {
    "overview": overview, "floors": floors_table.floors, "table1": table1, "table-cam": table_cam,
    "table-apm": table_apm, "table-blending": table_blending, "table-long": table_long,
    "motion": figures.motion, "stability": figures.stability, "fig4": figures.fig4, "fig12": figures.fig12,
    "fig14": figures.fig14, "table12": table12,
}  # fmt: skip
