"""High-pass correlation, motion smoothness, long gaps, the seam number, drift to the anchor, LPIPS: derived values."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from st2v_lib import metrics
from st2v_lib.errors import UserError
from st2v_lib.metrics.base import MetricResult, touches
from st2v_lib.metrics.drift import drift
from st2v_lib.metrics.flow_smoothness import flow_smoothness
from st2v_lib.metrics.high_pass import high_pass, high_pass_correlation
from st2v_lib.metrics.long_gap import GAP, long_gap
from st2v_lib.metrics.lpips_distance import load_lpips, lpips_distance
from st2v_lib.metrics.motion_smoothness import motion_smoothness
from st2v_lib.metrics.scene_cuts import scene_cuts
from st2v_lib.metrics.table import measure
from st2v_lib.metrics.xt_slice import xt_seam
from st2v_lib.video_io import from_uint8
from st2v_lib.world.render import render
from st2v_lib.world.scene import sample_scene

from . import videos

H, W = 48, 64


# ------------------------------------------------------------------------------------------------------- chunks


def test_by_chunk_is_the_mean_of_each_chunk():
    result = MetricResult("m", 0.0, per_frame=(1.0, 3.0, 5.0, 7.0, 9.0))
    assert result.by_chunk([2, 4]) == (2.0, 6.0, 9.0)
    assert result.by_chunk([]) == (5.0,)
    with pytest.raises(ValueError, match="each frame"):
        MetricResult("m", 0.0).by_chunk([2])


def test_pairs_that_touch_an_overlap():
    # frames 3 and 4 are shared: the pairs (2, 3), (3, 4), (4, 5) have one of them
    assert [i for i, inside in enumerate(touches([(3, 5)], 9)) if inside] == [2, 3, 4]
    assert touches([(0, 2)], 3) == [True, True, False] and touches([(2, 4)], 3) == [False, True, True]
    assert not any(touches([], 5))
    for bad in ((3, 3), (-1, 2), (8, 12)):
        with pytest.raises(ValueError, match="overlaps"):
            touches([bad], 9)


# --------------------------------------------------------------------------------------------------- fine detail


def test_detail_that_moves_by_whole_pixels_correlates():
    v, flow = videos.translation(5, H, W, 3, 1), videos.constant_flow(5, H, W, 3, 1)
    along = high_pass_correlation(v, flows=flow, backward_flows=-flow)
    assert along.value > 0.95  # the blur sees other neighbours at the border
    assert high_pass_correlation(v, flows=0 * flow).value < 0.5
    assert high_pass_correlation(videos.static(4)).value == pytest.approx(1)


def test_unrelated_detail_does_not_correlate():
    v = videos.noise(6)
    # 3 * 64 * 48 values: the spread of the correlation of independent ones is 0.01
    assert abs(high_pass_correlation(v, flows=videos.constant_flow(6, H, W, 0, 0)).value) < 0.03


def test_mixing_in_unrelated_detail_gives_the_share_of_the_energy():
    a, b = (np.random.default_rng(s).integers(0, 128, (H, W, 3)).astype(np.uint8) for s in (0, 1))
    v = np.stack([a, a // 2 + b // 2])
    result = high_pass_correlation(v, flows=videos.constant_flow(2, H, W, 0, 0))
    assert result.value == pytest.approx(1 / math.sqrt(2), abs=0.03)


def test_flat_frames_are_left_out_and_counted():
    flat = np.full((4, H, W, 3), 90, np.uint8)
    result = high_pass_correlation(flat)
    assert math.isnan(result.value) and result.protocol["flat_pairs"] == [0, 1, 2] and result.protocol["undefined"]
    assert np.abs(high_pass(flat[0])).max() < 1e-3


def test_averaged_overlaps_stand_out():
    v = videos.translation(24, H, W, 2, 0)
    late = np.roll(v, 3, axis=2)
    ghosts = v.copy()
    ghosts[8:16] = (v[8:16].astype(int) + late[8:16]) // 2
    clean, blended = (high_pass_correlation(x, overlaps=[(8, 16)]).protocol for x in (v, ghosts))
    assert abs(clean["difference"]) < 0.02 and blended["difference"] < clean["difference"] - 0.02
    assert blended["elsewhere"] == pytest.approx(clean["elsewhere"], abs=1e-6)


def test_flow_deviation_inside_overlaps_and_elsewhere():
    flow = videos.constant_flow(9, H, W, 1, 0)
    flow[3:5, 0] = 5  # pairs 3 and 4 of 8: the mean is 2, they are 3 away from it and the others 1
    result = flow_smoothness(videos.static(9), flows=flow, overlaps=[(4, 5)])
    assert result.protocol["inside_overlaps"] == pytest.approx(3) and result.protocol["elsewhere"] == pytest.approx(1)
    assert result.value == pytest.approx(math.sqrt((2 * 9 + 6) / 8))
    assert "difference" not in flow_smoothness(videos.static(9), flows=flow).protocol


# --------------------------------------------------------------------------------------------------------- motion


def test_steady_motion_is_smooth_and_alternating_motion_is_its_change():
    flow = videos.constant_flow(7, H, W, 1, 0)
    assert motion_smoothness(videos.static(7), flows=flow).value == 0
    flow[::2] *= 3
    result = motion_smoothness(videos.static(7), flows=flow)
    assert result.value == pytest.approx(2) and math.isnan(result.per_pair[0]) and len(result.per_pair) == 6


def test_a_turn_at_equal_speed_is_seen_though_flow_deviation_is_zero():
    flow = videos.constant_flow(5, H, W, 2, 0)
    flow[2:] = 0
    flow[2:, 1] = 2
    assert flow_smoothness(videos.static(5), flows=flow).value == pytest.approx(0, abs=1e-6)
    assert motion_smoothness(videos.static(5), flows=flow).per_pair[1:] == pytest.approx([0, 2 * math.sqrt(2), 0])


def test_speed_is_followed_along_the_track_and_not_in_place():
    flow = np.zeros((2, 2, H, W), np.float32)
    flow[0, 0, :, :8], flow[1, 0, :, 8:16] = 8, 8  # a bar of 8 px moves on by its width
    turns = motion_smoothness(videos.static(3), flows=flow).value
    # the bar's 8 columns keep their speed; the 8 columns it comes to stood still and now move: 8 of 64 change by 8
    assert turns == pytest.approx(8 * 8 / 64)


def test_motion_is_in_pixels_of_the_video_at_any_measured_size():
    v = videos.translation(4, 90, 90, 3, 0)
    v[2:] = v[1]
    native, doubled = (motion_smoothness(v, size=size).value for size in (None, (180, 180)))
    assert native == pytest.approx(3 / 2, rel=0.25) and doubled == pytest.approx(native, rel=0.25)


# ---------------------------------------------------------------------------------------------------- long gaps


def test_long_gap_is_the_share_of_the_picture_that_stays():
    v = np.full((60, 20, 30, 3), 40, np.uint8)
    v[30:, :5] = 200  # a quarter of each frame
    result = long_gap(v)
    # frames 40..59 look back at 0..19: all across the change
    assert result.value == pytest.approx(0.75) and len(result.per_frame) == 60
    assert math.isnan(result.per_frame[GAP - 1]) and result.per_frame[GAP] == pytest.approx(0.75)
    assert result.protocol["curve"]["1"] == pytest.approx(1 - 0.25 / 59)
    with pytest.raises(ValueError, match="more than 40"):
        long_gap(v[:GAP])


def test_long_gap_does_not_see_where_things_are():
    v = np.repeat(videos.noise(1), 50, axis=0)
    shuffled = v.reshape(50, -1, 3)[:, np.random.default_rng(0).permutation(H * W)].reshape(v.shape)
    assert long_gap(np.concatenate([v[:25], shuffled[25:]])).value == pytest.approx(1)


# ------------------------------------------------------------------------------------------------- seam of a slice


def test_seam_number_of_a_known_step():
    v = np.full((24, 9, 16, 3), 50, np.uint8)
    v[16:] = 80  # one seam of two is a step of 30 levels
    result = xt_seam(v, [8, 16])
    assert result.value == pytest.approx(15) and result.protocol["at_seams"] == 15 and result.per_pair[15] == 30
    v[:, 4] = 7  # the line in the middle of 9 rows now never changes, the picture does
    assert xt_seam(v, [8, 16]).value == 0 and xt_seam(v, [8, 16], position=0).value == pytest.approx(15)


def test_steady_motion_shows_no_seam():
    v = videos.translation(40, 41, 60, 1, 0)
    jump = np.concatenate([v[:16], v[26:]])
    assert abs(xt_seam(v, range(16, 40, 8)).value) < 1
    assert xt_seam(jump, [16]).value > 10
    with pytest.raises(ValueError, match="seams lie between"):
        xt_seam(v, [40])
    assert "no seam" in xt_seam(v, []).protocol["undefined"]


def test_the_detector_finds_the_cuts_of_the_world():
    shots = [render(sample_scene(9, i, "dev"), 8, start=60)[0] for i in range(15)]
    every, default = scene_cuts(torch.cat(shots), min_scene_len=1), scene_cuts(torch.cat(shots))
    assert every.protocol["cuts"] == list(range(8, 120, 8)) and default.value == 7


# --------------------------------------------------------------------------------------------- anchor and LPIPS


class Colours(torch.nn.Module):
    """A CLIP whose embedding of a frame is its mean colour."""

    def __init__(self):
        super().__init__()
        self.anything = torch.nn.Parameter(torch.zeros(1))
        self.config = SimpleNamespace(vision_config=SimpleNamespace(image_size=32))
        self.name_or_path = "colours"

    def get_image_features(self, pixel_values):
        return pixel_values.mean((2, 3))

    @staticmethod
    def raw(frames):
        return torch.as_tensor(frames).permute(0, 3, 1, 2).float() / 255


def test_drift_of_the_clip_distance_to_the_first_frame():
    angle = np.linspace(0, math.pi / 3, 40)  # from red towards blue; 6 frames at each end
    v = np.zeros((40, 16, 16, 3), np.uint8)
    v[..., 0], v[..., 2] = (np.round(250 * f(angle))[:, None, None] for f in (np.cos, np.sin))
    result = drift(v, flow=None, clip=Colours(), preprocess=Colours.raw)["drift_clip_distance_signed"]
    want = (1 - np.cos(angle))[-6:].mean() - (1 - np.cos(angle))[:6].mean()
    assert result.value == pytest.approx(want, abs=2e-3) and result.per_frame[0] == pytest.approx(0, abs=1e-6)
    assert result.protocol["clip"] == "colours"
    got = measure(v, clip=(Colours(), None), size=None, preprocess=Colours.raw)
    assert got["drift_clip_distance_abs"].value == pytest.approx(result.value, abs=1e-6) and "clip_score" not in got


def test_lpips_is_asked_for_each_frame_against_the_first():
    def network(a, b):
        return (a - b).abs().mean((1, 2, 3), keepdim=True)

    v = np.stack([np.full((32, 32, 3), level, np.uint8) for level in (0, 51, 102)])
    result = lpips_distance(v, network)
    assert result.per_frame == pytest.approx([0, 0.4, 0.8]) and result.value == pytest.approx(0.6)
    assert measure(v, size=None, lpips=network)["lpips"].value == pytest.approx(0.6)
    with pytest.raises(ValueError, match="at least 2"):
        lpips_distance(v[:1], network)


def test_lpips_without_its_package_says_what_to_install():
    try:
        import lpips  # noqa: F401
    except ImportError:
        with pytest.raises(UserError, match=r"streamingt2v-kit\[metrics\]"):
            load_lpips()


# ---------------------------------------------------------------------------------------------------------- inputs


def test_public_names_are_functions_and_not_files():
    import st2v_lib.metrics.mawe as again  # noqa: F401  (the file of that name must not take the name's place)

    for name in metrics.__all__:
        assert callable(getattr(metrics, name)), name
    assert metrics.mawe(videos.translation(3, 32, 32, 1, 0), size=None).name == "mawe_code"
    with pytest.raises(AttributeError, match="no attribute"):
        metrics.nonsense  # noqa: B018


NEW = (high_pass_correlation, motion_smoothness, long_gap)


@pytest.mark.parametrize("metric", NEW)
def test_values_do_not_depend_on_dtype(metric):
    v = videos.translation(GAP + 3, 24, 33, 1, 0)
    x = from_uint8(v)
    assert metric(v).value == metric(x).value == metric(x.double()).value == metric(torch.from_numpy(v)).value


@pytest.mark.parametrize("metric", NEW)
def test_one_frame_nan_and_wrong_range_are_clear_errors(metric):
    x = from_uint8(videos.translation(GAP + 3, 24, 33, 1, 0))
    with pytest.raises(ValueError, match="got 1"):
        metric(x[:1])
    with pytest.raises(ValueError, match=r"expected values in \[-1, 1\], got"):
        metric(2 * x)
    x[3, 0, 2, 2] = math.nan
    with pytest.raises(ValueError, match="NaN"):
        metric(x)
    with pytest.raises(ValueError, match="expected"):
        xt_seam(x, [16])
