"""CAM, APM and the UNet against the recorded outputs (cases 1-5), and the checkpoint's names against our modules."""

import pytest
import torch
from diffusers import UNet3DConditionModel
from einops import rearrange
from parity_tools import error, frames_from_u8, read_gz

from st2v_lib.apm import Apm, preprocess_for_clip
from st2v_lib.backbone import make_unet
from st2v_lib.cam import Cam
from st2v_lib.checkpoints import map_official_state_dict
from st2v_lib.config import MODELSCOPE


@pytest.mark.parametrize("name", ["down_blocks.0", "down_blocks.10", "mid_block", "small"])
def test_injector(case, official, name):
    c = case("case1_cam_merger")
    index = {"small": 0, "mid_block": -1}.get(name, int(name.split(".")[-1]) if name[-1].isdigit() else 0)
    injector = official.cam.injectors[index]
    sample, out = (c[f"{name}.{k}"].flatten(0, 1) for k in ("sample", "output"))
    assert error(injector(sample, c[f"{name}.conditioning"]), out) < 1e-4


def test_extractor(case, official):
    c = case("case2_cam_features")
    cond = frames_from_u8(c["controlnet_cond_u8"], 2)
    features = official.cam(c["sample"], c["timestep"], c["encoder_hidden_states"], cond=cond)
    expected = [c[k] for k in sorted(k for k in c if k.startswith("down."))] + [c["mid"]]
    assert len(features) == len(expected) == 13
    for got, want in zip(features, expected, strict=True):
        assert error(got.flatten(0, 1), want) < 1e-4


def test_unet_without_and_with_anchor(case, official):
    inputs, c = case("case2_cam_features"), case("case3_base_unet")
    x, t, tokens = inputs["sample"], inputs["timestep"], inputs["encoder_hidden_states"]
    plain = official.unet(x, t, tokens[:, :77])
    assert error(plain, c["noise_pred_plain"]) < 1e-4
    assert torch.equal(plain, UNet3DConditionModel.forward(official.unet, x, t, tokens[:, :77]).sample)
    official.apm.attach(official.unet)
    with_anchor, text_only = official.unet(x, t, tokens), official.unet(x, t, tokens[:, :77])
    official.apm.detach(official.unet)
    assert error(with_anchor, c["noise_pred"]) < 1e-4
    assert torch.equal(text_only, plain)


def test_unet_with_cam_and_apm(case, attached):
    inputs, c = case("case2_cam_features"), case("case4_base_cam_apm")
    features = [
        rearrange(inputs[k], "(b n) c h w -> b n c h w", b=2)
        for k in [*sorted(k for k in inputs if k.startswith("down.")), "mid"]
    ]
    out = attached.unet(inputs["sample"], inputs["timestep"], inputs["encoder_hidden_states"], features)
    assert error(out, c["noise_pred"]) < 1e-4

    x, t, tokens = c["b_sample"], c["b_timestep"], c["b_encoder_hidden_states"]
    features = attached.cam(x, t, tokens, cond=frames_from_u8(c["b_controlnet_cond_u8"], 1))
    assert error(attached.unet(x, t, tokens, features), c["b_noise_pred"]) < 1e-4


def test_anchor_tokens(case, official):
    c, apm = case("case5_apm"), official.apm
    assert error(apm(c["resampler.frames_embedding"]), c["resampler.frames_tokens"]) < 1e-4
    assert error(apm(c["resampler.flat_embedding"]), c["resampler.flat_tokens"]) < 1e-4


def test_token_mixing(case, official):
    c = case("case5_apm")
    layers = {k.removesuffix(".mixed_context") for k in c if k.endswith(".mixed_context")}
    assert len(layers) == 2
    for layer in layers:
        mix = official.apm.mixes[layer.removesuffix(".attn2").replace(".", "_")]
        tokens = c[f"{layer}.encoder_hidden_states"]
        assert error(mix.conv(tokens), c[f"{layer}.conv"]) < 1e-4
        assert error(mix.norm(mix.conv(tokens)), c[f"{layer}.conv_ln"]) < 1e-4
        assert error(mix(tokens), c[f"{layer}.mixed_context"]) < 1e-4
        official.apm.attach(official.unet)
        out = official.unet.get_submodule(layer)(c[f"{layer}.hidden_states"], tokens)
        official.apm.detach(official.unet)
        assert error(out, c[f"{layer}.output"]) < 1e-4


@pytest.mark.parametrize("name", ["down256", "up64", "wide"])
def test_clip_preprocessing(case, name):
    c = case("extra_image_preprocess")
    out = preprocess_for_clip(c[f"{name}.input_u8"].float() / 127.5 - 1)
    assert error(out[:, :, ::7, ::7], c[f"{name}.output_sub7"]) < 1e-4
    assert error(out[:, :, 100], c[f"{name}.output_row100"]) < 1e-4


def test_released_checkpoint_names_and_shapes():
    keys = read_gz("official_keys.json.gz")
    states, others = map_official_state_dict(keys)
    assert not others
    with torch.device("meta"):
        unet = make_unet(MODELSCOPE.unet)
        modules = {
            "unet": unet,
            "cam": Cam.from_configs(MODELSCOPE.unet, MODELSCOPE.cam),
            "apm": Apm.from_unet(unet, MODELSCOPE.apm),
        }
    for name, module in modules.items():
        assert {k: list(v.shape) for k, v in module.state_dict().items()} == states[name]
