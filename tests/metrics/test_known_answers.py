"""Videos whose metrics can be derived by hand."""

import math

import numpy as np
import pytest
import torch

from st2v_lib.metrics.drift import drift
from st2v_lib.metrics.flicker import flicker
from st2v_lib.metrics.flow import estimate_flow, make_estimator
from st2v_lib.metrics.flow_smoothness import flow_smoothness
from st2v_lib.metrics.mawe import mawe
from st2v_lib.metrics.motion import motion
from st2v_lib.metrics.scene_cuts import scene_cuts
from st2v_lib.metrics.warp import backward_warp, forward_splat, visible_in_both, warp_error
from st2v_lib.metrics.xt_slice import xt_slice
from st2v_lib.video_io import from_uint8

from . import videos

H, W = 48, 64


# ------------------------------------------------------------------------------------------------------- static


def test_static():
    v = videos.static(6)
    assert motion(v).value == 0
    assert warp_error(v).value == 0
    assert flow_smoothness(v).value == 0
    assert flicker(v).value == 0
    assert scene_cuts(v).value == 0
    for variant in ("code", "paper"):
        result = mawe(v, variant, size=None)
        assert math.isnan(result.value) and result.protocol["static_pairs"] == [0, 1, 2, 3, 4]
        assert "undefined" in result.protocol
        assert math.isnan(mawe(v, variant, size=None, motion_floor=0).value)  # 0 / 0
    assert all(r.value == 0 for r in drift(v).values())


# -------------------------------------------------------------------------------------------------- translation


@pytest.mark.parametrize(("dx", "dy"), [(3, 0), (-2, 1), (0, -4)])
def test_integer_translation_with_true_flow(dx, dy):
    v, flow = videos.translation(5, H, W, dx, dy), videos.constant_flow(5, H, W, dx, dy)
    length = math.hypot(dx, dy)
    assert warp_error(v, flows=flow).value == 0
    assert mawe(v, "code", flows=flow, size=None).value == 0
    assert mawe(v, "paper", flows=flow, backward_flows=-flow, size=None).value == 0
    assert motion(v, flows=flow).value == pytest.approx(length, rel=1e-6)
    assert flow_smoothness(v, flows=flow).value == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("method", ["dis", "farneback"])
def test_estimators_find_a_translation(method):
    flow = estimate_flow(videos.translation(3, 96, 128, 3, -2), method)
    assert flow.shape == (2, 2, 96, 128) and flow.dtype == np.float32
    inner = flow[:, :, 16:-16, 16:-16]
    np.testing.assert_allclose(np.median(inner, axis=(0, 2, 3)), [3, -2], atol=0.1)
    assert motion(videos.translation(3, 96, 128, 3, -2), method).value == pytest.approx(math.hypot(3, 2), rel=0.1)


def test_flow_at_another_size_is_scaled_back_to_pixels_of_the_video():
    v = videos.translation(3, 90, 90, 3, 0)
    assert motion(v, size=(360, 180)).value == pytest.approx(3, rel=0.1)


def test_subpixel_translation():
    v, flow = videos.subpixel(4, H, W, 0.4), videos.constant_flow(4, H, W, 0.4, 0)
    splat = mawe(v, "code", flows=flow, size=None)
    fetch = mawe(v, "paper", flows=flow, backward_flows=-flow, size=None)
    # 0.4 px rounds to 0: the splat error is that of not warping at all; fetching bilinearly leaves far less
    still = np.mean((v[1].astype(float) - v[0]) ** 2)
    assert splat.per_pair[0] == pytest.approx(still / (9.5 * 0.4), rel=1e-5)
    assert fetch.value * 0.4**2 < 0.05 * still
    found = np.median(estimate_flow(videos.subpixel(3, 96, 128, 0.4))[:, 0, 16:-16, 16:-16])
    assert found == pytest.approx(0.4, abs=0.1)


def test_code_and_paper_are_related_by_the_stated_formula_at_constant_speed():
    v, flow = videos.translation(4, H, W, 4, 0), videos.constant_flow(4, H, W, 2, 0)  # flow off by 2 px: an error
    code = mawe(v, "code", flows=flow, size=None)
    w = [r * 9.5 * 2 for r in code.per_pair]
    np.testing.assert_allclose(w, warp_error(v, flows=flow).per_pair, rtol=1e-6)
    paper = mawe(v, "paper", flows=flow, backward_flows=-flow, size=None)
    # same error, seen from the other side: both compare the same pixels, so W is the same and OFS is 2 and 4
    assert paper.value == pytest.approx(code.value * 9.5 * 2 / 4, rel=1e-5)


def test_twice_the_contrast_is_four_times_the_error():
    half = videos.translation(4, H, W, 2, 1) // 2
    flow = videos.constant_flow(4, H, W, 1, 0)
    for variant in ("code", "paper"):
        low, high = (mawe(v, variant, flows=flow, size=None).value for v in (half, half * 2))
        assert high == pytest.approx(4 * low, rel=1e-6)


# ------------------------------------------------------------------------------------------------------ warping


def test_backward_warp_of_whole_and_half_pixels():
    image = torch.arange(20.0).view(1, 1, 4, 5)
    moved, inside = backward_warp(image, torch.tensor([1.0, 0.0]).view(1, 2, 1, 1).expand(1, 2, 4, 5))
    assert torch.equal(moved[..., :-1], image[..., 1:]) and inside.tolist() == [[[True] * 4 + [False]] * 4]
    moved, _ = backward_warp(image, torch.tensor([0.5, 0.5]).view(1, 2, 1, 1).expand(1, 2, 4, 5))
    assert torch.equal(moved[..., :-1, :-1], image[..., :-1, :-1] + 3)  # half a column and half a row of 5


def test_forward_splat_last_in_raster_order_wins_on_any_batch():
    image = torch.arange(12.0).view(1, 1, 3, 4).repeat(2, 1, 1, 1)
    ys, xs = torch.meshgrid(torch.arange(3.0), torch.arange(4.0), indexing="ij")
    warped, unfilled = forward_splat(image, torch.stack([2 - xs, 1 - ys])[None].repeat(2, 1, 1, 1))
    assert (warped[:, 0, 1, 2] == 11).all() and unfilled.sum() == 2 * 11


def test_occluded_pixels_are_left_out():
    forward = torch.zeros(1, 2, 8, 8)
    backward = torch.zeros(1, 2, 8, 8)
    backward[:, 0, :, 4:] = 5.0
    visible = visible_in_both(forward, backward)
    assert visible[..., :4].all() and not visible[..., 4:].any()


# ------------------------------------------------------------------------------------------- flicker and drift


def test_brightness_flicker_scores_its_amplitude():
    base = np.full((8, 20, 24, 3), 120, np.uint8)
    base[::2] += 10  # alternates by +-5 around 125
    assert flicker(base).value == pytest.approx(5, rel=1e-9)
    assert scene_cuts(base).value == 0


def test_a_steady_fade_is_no_flicker_but_drift():
    v = np.stack([np.full((20, 24, 3), 40 + 5 * i, np.uint8) for i in range(20)])
    assert flicker(v).value == pytest.approx(0, abs=1e-9)
    result = drift(v, flow=None)
    # means of the first and the last 3 frames lie 17 frames of 5 levels apart, on each of three channels
    assert result["drift_colour_abs"].value == pytest.approx(85 * math.sqrt(3))
    assert result["drift_colour_signed"].value == 0  # grey stays unsaturated
    assert "drift_motion_abs" not in result


def test_drift_has_a_sign():
    v = videos.static(20).astype(np.float32)
    fade = np.linspace(1, 0.5, 20)[:, None, None, None]
    grey = (127 + (v - 127) * fade).round().astype(np.uint8)
    result = drift(grey, flow=None)
    for quantity in ("colour", "contrast", "sharpness"):
        assert result[f"drift_{quantity}_signed"].value < 0
    assert result["drift_contrast_abs"].value == -result["drift_contrast_signed"].value
    backwards = drift(grey[::-1].copy(), flow=None)
    assert backwards["drift_contrast_signed"].value == -result["drift_contrast_signed"].value


def test_motion_drift_of_a_video_that_freezes():
    v = videos.translation(20, 64, 64, 2, 0)
    v[10:] = v[10]
    assert drift(v)["drift_motion_signed"].value == pytest.approx(-2, rel=0.15)


def test_flow_deviation_of_alternating_speeds():
    flow = videos.constant_flow(7, H, W, 1, 0)
    flow[::2] *= 3
    assert flow_smoothness(videos.static(7), flows=flow).value == pytest.approx(1)  # lengths 3, 1, 3, 1, 3, 1


# --------------------------------------------------------------------------------------------------------- cuts


@pytest.mark.parametrize(("stride", "found_by_default"), [(4, 1), (8, 3), (16, 7), (40, 7)])
def test_hard_cuts(stride, found_by_default):
    v = videos.shots(stride, 8)
    every = scene_cuts(v, min_scene_len=1)
    assert every.value == 7 and every.protocol["cuts"] == [stride * k for k in range(1, 8)]
    default = scene_cuts(v)
    assert default.value == found_by_default and default.protocol["min_scene_len"] == 15


def test_at_stride_8_the_default_finds_7_of_14_cuts():
    v = videos.shots(8, 15)
    assert scene_cuts(v).value == 7
    assert scene_cuts(v, min_scene_len=1).value == 14


def test_three_shots_are_two_cuts_and_one_shot_is_none():
    assert scene_cuts(videos.shots(20, 3)).value == 2
    assert scene_cuts(videos.shots(60, 1)).value == 0


def test_cuts_equal_those_of_scenedetect_reading_the_file(tmp_path):
    from scenedetect import AdaptiveDetector, detect

    from st2v_lib.video_io import read_video, write_video

    path = write_video(tmp_path / "shots.mp4", videos.shots(18, 4, h=288, w=512), fps=8)  # wide: scaled down inside
    scenes = detect(str(path), AdaptiveDetector())
    result = scene_cuts(read_video(path))
    assert result.value == max(len(scenes) - 1, 0) == 3
    assert result.protocol["cuts"] == [scene[0].frame_num for scene in scenes[1:]]


# ------------------------------------------------------------------------------ noise, shuffled, reversed, x-t


def test_noise():
    v = videos.noise(6)
    assert scene_cuts(v).value == 0  # every frame jumps, so none stands out
    # two independent uniform grey levels differ by 255^2 / 6 in the mean square, wherever the flow takes them
    assert warp_error(v, flows=videos.constant_flow(6, H, W, 2, 1)).value == pytest.approx(255**2 / 6, rel=0.02)
    assert flicker(v).value < 2


def test_shuffled_and_reversed():
    v = videos.translation(12, 64, 64, 2, 0)
    shuffled = v[np.random.default_rng(1).permutation(12)]
    assert warp_error(shuffled).value > 3 * warp_error(v).value
    assert flow_smoothness(shuffled).value > 3 * flow_smoothness(v).value
    backwards = v[::-1].copy()
    assert motion(backwards).value == pytest.approx(motion(v).value, rel=0.1)  # time's arrow is not seen
    assert warp_error(backwards).value == pytest.approx(warp_error(v).value, rel=1)
    assert scene_cuts(backwards).value == scene_cuts(v).value == 0
    assert flicker(backwards).value == pytest.approx(flicker(v).value)


def test_xt_slice_is_the_row_over_time():
    v = videos.translation(5, 21, 33, 2, 0)
    image = xt_slice(v)
    assert image.shape == (5, 33, 3) and image.dtype == np.uint8
    np.testing.assert_array_equal(image, v[:, 10])
    np.testing.assert_array_equal(image[1, 2:], image[0, :-2])  # slanted by the speed
    np.testing.assert_array_equal(xt_slice(iter(v), 1.0, axis="y"), v[:, :, -1])


# ------------------------------------------------------------------------------------ dtype, size, wrong inputs


def test_values_do_not_depend_on_dtype():
    v = videos.translation(4, H, W, 2, 1)
    x = from_uint8(v)
    for metric in (motion, warp_error, flicker, flow_smoothness, scene_cuts):
        assert metric(v).value == metric(x).value == metric(x.double()).value == metric(torch.from_numpy(v)).value
    assert mawe(v, size=None).value == mawe(x, size=None).value


@pytest.mark.parametrize(("h", "w"), [(33, 57), (64, 31), (16, 90)])
def test_odd_and_non_square_sizes(h, w):
    v = videos.translation(4, h, w, 1, 0)
    assert np.isfinite(motion(v).value) and np.isfinite(warp_error(v).value) and np.isfinite(flicker(v).value)
    assert mawe(v, flows=videos.constant_flow(4, h, w, 1, 0), size=None).value == 0
    assert scene_cuts(v).value == 0
    assert all(np.isfinite(r.value) for r in drift(v).values())


PAIR_METRICS = (motion, warp_error, flow_smoothness, mawe, flicker, drift, estimate_flow)


@pytest.mark.parametrize("metric", PAIR_METRICS)
def test_one_frame_is_a_clear_error(metric):
    with pytest.raises(ValueError, match="frames, got 1"):
        metric(videos.static(1))


def test_one_frame_has_no_cut():
    assert scene_cuts(videos.static(1)).value == 0
    assert xt_slice(videos.static(1)).shape == (1, W, 3)


@pytest.mark.parametrize("metric", [*PAIR_METRICS, scene_cuts, xt_slice])
def test_nan_wrong_range_and_wrong_layout_are_clear_errors(metric):
    x = from_uint8(videos.translation(4, 24, 32, 1, 0))
    nan = x.clone()
    nan[1, 0, 3, 3] = math.nan
    with pytest.raises(ValueError, match="NaN"):
        metric(nan)
    with pytest.raises(ValueError, match=r"expected values in \[-1, 1\], got"):
        metric(x * 2)
    with pytest.raises(ValueError, match="expected"):
        metric(x.permute(0, 2, 3, 1))
    with pytest.raises(ValueError, match="one video"):
        metric(x[None])
    with pytest.raises(ValueError, match="expected"):
        metric(np.zeros((4, 24, 32, 3), np.int64))


def test_wrong_arguments_name_what_was_expected():
    v = videos.translation(4, 24, 32, 1, 0)
    with pytest.raises(ValueError, match="estimator"):
        motion(v, flow="lucas")
    with pytest.raises(ValueError, match="variant"):
        mawe(v, variant="v3")
    with pytest.raises(ValueError, match="3 given flows"):
        motion(v, flows=videos.constant_flow(6, 24, 32, 1, 0))
    with pytest.raises(ValueError, match="too few"):
        motion(v, flows=videos.constant_flow(2, 24, 32, 1, 0))
    with pytest.raises(ValueError, match=r"flows\[0\]"):
        mawe(v, flows=videos.constant_flow(4, 24, 32, 1, 0))  # measured at 720x720 unless told otherwise
    with pytest.raises(ValueError, match="at least 16x16"):
        motion(v[:, :8])
    with pytest.raises(ValueError, match="position"):
        xt_slice(v, 1.5)
    with pytest.raises(TypeError):
        scene_cuts(v, threshold=3)


def test_raft_without_torchvision_says_so():
    pytest.importorskip("importlib")
    try:
        import torchvision  # noqa: F401
    except ImportError:
        from st2v_lib.errors import UserError

        with pytest.raises(UserError, match="torchvision"):
            make_estimator("raft")


def test_raft_interface_pads_and_crops():
    class Fake(torch.nn.Module):
        def forward(self, a, b):
            assert a.shape[-2] % 8 == 0 and a.shape[-1] % 8 == 0 and min(a.shape[-2:]) >= 128
            return [torch.zeros(1, 2, *a.shape[-2:]), torch.ones(1, 2, *a.shape[-2:])]

    flow = make_estimator("raft", Fake())(*videos.translation(2, 45, 131, 1, 0))
    assert flow.shape == (2, 45, 131) and (flow == 1).all()
