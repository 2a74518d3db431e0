"""Recorded outputs of the released code with random weights at a tiny size, and our classes with the same weights."""

import json
from types import SimpleNamespace

import pytest
import torch
from parity_tools import DATA, draw_weights, read_gz
from safetensors.torch import load_file

from st2v_lib.apm import Apm
from st2v_lib.backbone import StreamingUNet
from st2v_lib.cam import Cam
from st2v_lib.checkpoints import map_official_state_dict
from st2v_lib.config import ApmConfig


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


@pytest.fixture(scope="session")
def case():
    return lambda name: load_file(DATA / f"{name}.safetensors")


@pytest.fixture(scope="session")
def config():
    return json.loads((DATA / "config.json").read_text())


@pytest.fixture(scope="session")
def official(config):
    """Our modules with the recorded weights, not attached to each other."""
    weights = draw_weights(read_gz("weights_shapes.json.gz"), config["seed"])
    assert sum(w.double().abs().sum().item() for w in weights.values()) == pytest.approx(342649.0073645711, rel=1e-9)
    states, others = map_official_state_dict(weights)
    assert not others
    unet = StreamingUNet(**config["unet"])
    merger, resampler = config["cam_merger"], config["resampler"]
    cam = Cam(
        unet=config["unet"],
        cond_channels=config["cam"]["conditioning_embedding_out_channels"],
        num_cond_frames=config["cam"]["num_frames"],
        injector_head_dim=merger["attention_head_dim"],
        injector_norm_groups=merger["norm_num_groups"],
    )
    dim = resampler["cross_attention_dim"]
    apm = Apm.from_unet(unet, ApmConfig(dim, resampler["inner_dim"], resampler["expansion_factor"], text_len=77))
    for name, module in (("unet", unet), ("cam", cam), ("apm", apm)):
        module.load_state_dict(states[name])
        module.eval()
    return SimpleNamespace(unet=unet, cam=cam, apm=apm)


@pytest.fixture
def attached(official):
    official.cam.attach(official.unet)
    official.apm.attach(official.unet)
    yield official
    official.cam.detach(official.unet)
    official.apm.detach(official.unet)
