"""Every metric on every video of which we know the answer: one table, a derived value or a bound in each cell.

An entry is ``value`` (within 1e-6), ``(low, high)``, or ``UNDEFINED`` (NaN, and the reason is in the protocol). All
videos have 48 frames. What can be derived is derived in the comments; bounds leave room for another OpenCV.
"""

import math

import numpy as np
import pytest

from st2v_lib.metrics import measure
from st2v_lib.metrics.mawe import mawe
from st2v_lib.metrics.warp import warp_error

from . import videos

FRAMES, H, W = 48, 48, 64
UNDEFINED = "undefined"
NAMES = (
    "warp_error", "mawe_code", "mawe_paper", "motion", "high_pass_correlation", "flow_deviation", "motion_smoothness",
    "scuts", "flicker", "long_gap", "xt_seam", "drift_colour_abs", "drift_contrast_abs", "drift_sharpness_abs",
    "drift_motion_abs",
)  # fmt: skip


def moving(dx: int = 2) -> np.ndarray:
    return videos.translation(FRAMES, H, W, dx, 0)


VIDEOS = {
    "static": lambda: videos.static(FRAMES, H, W),
    "integer translation": moving,
    "sub-pixel translation": lambda: videos.subpixel(FRAMES, H, W, 0.4),
    "zoom": lambda: videos.zoom(FRAMES, 64, 1.02),
    "brightness flicker": lambda: videos.flicker(FRAMES, 10, H, W),
    "cuts every 4": lambda: videos.shots(4, 12, H, W),
    "cuts every 8": lambda: videos.shots(8, 6, H, W),
    "cuts every 16": lambda: videos.shots(16, 3, H, W),
    "cut at 40": lambda: videos.shots(40, 2, H, W)[:FRAMES],
    "slow drift": lambda: videos.fade(FRAMES, 0.5, H, W),
    "shuffled": lambda: moving()[np.random.default_rng(1).permutation(FRAMES)],
    "reversed": lambda: moving()[::-1].copy(),
    "noise": lambda: videos.noise(FRAMES, H, W),
}


def around(value: float, share: float) -> tuple[float, float]:
    return value * (1 - share), value * (1 + share)


def faded(frames: int, end: float) -> float:
    """Share that a fade takes away between the middles of the first and the last 7 frames."""
    return (1 - end) * (frames - 7) / (frames - 1)


LUMA_STD = float((videos.static(1, H, W)[0] @ np.array([0.299, 0.587, 0.114])).std())
ONE_WAY = (
    (0, 1), (0, 0.1), (0, 0.05), (1.9, 2.1), (0.95, 1), (0, 0.02), (0, 0.05), 0, (0, 0.1), (0.5, 0.95), (-1, 1),
    (0, 10), (0, 1), (0, 2), (0, 0.02),
)  # fmt: skip
# The columns follow NAMES: warp error, MAWE twice, motion, high-pass correlation, flow deviation, motion smoothness,
# cuts, flicker, long gap, seam number, drift of colour, contrast, sharpness, motion.
CASES = {
    # nothing moves: no MAWE, every difference is 0, detail correlates perfectly
    "static": (0, UNDEFINED, UNDEFINED, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0),
    # whole pixels: the splat is exact, motion is 2; only what comes in at the border is new
    "integer translation": ONE_WAY,
    # time's arrow is not seen: the same bounds as forwards
    "reversed": ONE_WAY,
    # 0.4 px round to 0, so the splat error is that of the bare frames; fetching bilinearly leaves a tenth
    "sub-pixel translation": (
        (20, 35), (5, 9), (0, 10), (0.35, 0.47), (0.97, 1), (0, 0.02), (0, 0.05), 0, (0, 0.02), (0.9, 1), (-0.3, 0.3),
        (0, 6), (0, 3), (0, 1), (0, 0.03),
    ),
    # 2 % a frame: 0.02 times the mean distance to the centre of a square, 0.3826 * 64 px: 0.49 px
    "zoom": (
        (2, 25), (0.5, 6), (0.5, 10), around(0.02 * 0.3826 * 64, 0.15), (0.95, 1), (0, 0.05), (0, 0.1), 0, (0, 0.02),
        (0.4, 0.95), (-1, 1), (0, 30), (0, 5), (1, 8), (0, 0.1),
    ),
    # levels go up and down by 20: W = 400; luma's second difference is 40, a quarter of it 10; frames an even gap apart
    # agree. Seven frames begin with one + too many and end with one - too many: 20 / 7 on each of three channels.
    "brightness flicker": (
        around(400, 0.02), UNDEFINED, UNDEFINED, (0, 0.02), (0.99, 1), (0, 0.02), (0, 0.05), 0, 10, 1, 0,
        math.sqrt(3) * 20 / 7, (0, 1e-6), (0, 1e-6), (0, 0.02),
    ),
    # 11, 5, 2, 1 cuts between four colours, which move at 1 px: a cut counts only 15 frames after the last one, so at
    # 16 and 32. Luma jumps by 17, 56, 44, 82 levels, and a jump adds half of itself once: flicker = sum / 2 / 46.
    # Frames 40 apart are of other colours. Drift of colour: 0.8 times the distance of the colours, weighted 4 to 3 at
    # stride 4.
    "cuts every 4": (
        (1000, 5000), (40, 200), (300, 2000), (1.1, 2), (0.6, 0.95), (0.3, 2), (0.5, 3), 2, around(5.6, 0.1), (0, 0.02),
        (20, 100), around(137.6, 0.05), (0, 2), (0, 1), (0, 1),
    ),
    "cuts every 8": (
        (500, 2500), (20, 100), (200, 1500), (1.05, 1.6), (0.8, 0.97), (0.2, 1.5), (0.2, 1.5), 2, around(2.35, 0.1),
        (0, 0.02), (40, 100), around(204, 0.05), (0, 2), (0, 1), (0, 0.1),
    ),
    "cuts every 16": (
        (200, 1200), (8, 50), (150, 1000), (1.02, 1.4), (0.9, 0.99), (0.1, 1), (0.1, 1), 2, around(0.8, 0.15),
        (0, 0.02), (25, 70), around(182, 0.05), (0, 2), (0, 1), (0, 0.1),
    ),
    "cut at 40": (
        (100, 700), (5, 30), (100, 800), (1, 1.2), (0.95, 1), (0.05, 0.6), (0.05, 0.5), 1, around(0.187, 0.25),
        (0, 0.02), (10, 40), around(204, 0.05), (0, 3), (0, 1.5), (0, 0.1),
    ),
    # contrast falls from 1 to a half; each frame by 1/94 of it, which is neither a flicker nor a cut nor a motion
    "slow drift": (
        (0, 1), UNDEFINED, UNDEFINED, (0, 0.02), (0.98, 1), (0, 0.02), (0, 0.05), 0, (0, 0.01), (0.3, 0.8), (-0.1, 0.1),
        (0, 6), around(faded(FRAMES, 0.5) * LUMA_STD, 0.02), (2, 6), (0, 0.02),
    ),
    # neighbours are up to 94 px apart: flow fails; histograms of frames 40 apart are those of frames nearer by
    "shuffled": (
        (800, 3000), (20, 200), (30, 400), (2, 10), (0, 0.5), (0.4, 3), (2, 15), 0, (0.1, 2), (0.75, 0.95), (-15, 15),
        (0, 5), (0, 2), (0, 1), (0, 3),
    ),
    # two levels drawn evenly differ by 255^2 / 6 in the square; every frame jumps, so no cut stands out. 3072 pixels in
    # 512 boxes are 6 a box, two draws differ by sqrt(12) * 0.8 on average: 1 - 2.76 / 12 of them agree.
    "noise": (
        around(255**2 / 6, 0.02), (300, 3000), (500, 10000), (0.5, 5), (-0.1, 0.1), (0, 2), (0.5, 6), 0, (0.2, 0.8),
        around(0.77, 0.02), (-2, 2), (0, 4), (0, 1), (0, 2), (0, 2),
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def found():
    """All metrics of all cases, measured once, at the native size, with seams of chunks of 16 and 8."""
    seams = range(16, FRAMES, 8)
    return {name: measure(make(), size=None, seams=list(seams)) for name, make in VIDEOS.items()}


def test_the_table_is_complete(found):
    assert set(VIDEOS) == set(CASES) and all(len(row) == len(NAMES) for row in CASES.values())
    measured = {name for name in found["static"] if not name.endswith("_signed")}
    assert measured == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("case", CASES)
def test_cell(found, case, name):
    want, result = CASES[case][NAMES.index(name)], found[case][name]
    if want == UNDEFINED:
        assert math.isnan(result.value) and result.protocol["undefined"]
    elif isinstance(want, tuple):
        assert want[0] <= result.value <= want[1]
    else:
        assert result.value == pytest.approx(want, rel=1e-6, abs=1e-6)


def test_backwards_equals_forwards_where_time_has_no_arrow(found):
    for name in ("scuts", "flicker", "long_gap", "drift_colour_abs", "drift_contrast_abs"):
        a, b = found["integer translation"][name].value, found["reversed"][name].value
        assert a == pytest.approx(b, rel=1e-9, abs=1e-9), name


def test_shuffling_is_worse_for_what_compares_neighbours(found):
    for name in ("warp_error", "flow_deviation", "motion_smoothness"):
        assert found["shuffled"][name].value > 3 * found["integer translation"][name].value, name
    name = "high_pass_correlation"
    assert found["shuffled"][name].value < found["integer translation"][name].value - 0.1


def test_zoom_with_its_true_flow():
    """Fetching along the true flow leaves little; OFS is the mean of (0.02 r)^2 = 0.02^2 * 2 * (64^2 - 1) / 12."""
    v, flow = videos.zoom(6, 64, 1.02), videos.zoom_flow(6, 64, 1.02)
    result = mawe(v, "paper", flows=flow, size=None)
    assert result.protocol["mean_motion"] == pytest.approx(0.02**2 * 2 * (64**2 - 1) / 12, rel=1e-4)
    still = np.mean((v[1:].astype(float) - v[:-1]) ** 2)
    assert result.protocol["mean_error"] < 0.05 * still
    assert warp_error(v, flows=flow).value < still
