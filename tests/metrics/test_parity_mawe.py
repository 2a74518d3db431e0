"""Case 7 of the numerical oracle: forward splat and MAWE of the released script, 1e-5 relative."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from st2v_lib.metrics.flow import frame_pairs
from st2v_lib.metrics.mawe import mawe, pair_terms
from st2v_lib.metrics.warp import forward_splat

ORACLE = load_file(Path(__file__).parent / "fixtures" / "case7_mawe.safetensors")
NAMES = {kind: sorted({key.split(".")[1] for key in ORACLE if key.startswith(kind)}) for kind in ("warp", "mawe")}


def test_all_cases_are_there():
    assert len(NAMES["warp"]) == 9 and len(NAMES["mawe"]) == 8


@pytest.mark.parametrize("name", NAMES["warp"])
def test_forward_splat(name):
    image, flow, warped, unfilled = (ORACLE[f"warp.{name}.{key}"] for key in ("image", "flow", "warped", "unfilled"))
    got, got_unfilled = forward_splat(image, flow)
    assert torch.equal(got_unfilled.float(), unfilled)
    torch.testing.assert_close(got, warped, rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", NAMES["mawe"])
def test_mawe_code(name):
    frames = ORACLE[f"mawe.{name}.frames_u8"].permute(0, 2, 3, 1).contiguous().numpy()
    size = None
    if name == "resize720":
        flows = ORACLE[f"mawe.{name}.flow_cells"].repeat_interleave(40, 2).repeat_interleave(40, 3).numpy()
        size = (720, 720)
    else:
        flows = ORACLE[f"mawe.{name}.flows"].numpy()
    terms = [pair_terms(pair, "code") for pair in frame_pairs(frames, flows=flows, size=size)]
    np.testing.assert_allclose([t[0] for t in terms], ORACLE[f"mawe.{name}.warp_errors"].numpy(), rtol=1e-5)
    np.testing.assert_allclose([t[1] for t in terms], ORACLE[f"mawe.{name}.motions"].numpy(), rtol=1e-5)
    coefficient = 1.0 if name == "coeff1" else 9.5
    result = mawe(frames, "code", flows=flows, size=size, coefficient=coefficient, motion_floor=0)
    np.testing.assert_allclose(result.value, ORACLE[f"mawe.{name}.mawe"].item(), rtol=1e-5)


def test_the_raw_formula_divides_by_zero_and_the_default_does_not():
    frames = ORACLE["mawe.one_zero_flow_pair.frames_u8"].permute(0, 2, 3, 1).numpy()
    flows = ORACLE["mawe.one_zero_flow_pair.flows"].numpy()
    assert mawe(frames, flows=flows, size=None, motion_floor=0).value == float("inf")
    guarded = mawe(frames, flows=flows, size=None)
    assert np.isfinite(guarded.value)
    assert len(guarded.protocol["static_pairs"]) == 1 and guarded.protocol["pairs"] == 3
