"""Weights that all pipeline tests share: the tiny preset, random but with both memories awake."""

from __future__ import annotations

import dataclasses
import os

import pytest
import torch


def pytest_configure(config):
    """Under ``-n K`` each worker, and what it starts, gets its share of the cores."""
    if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
        threads = max(1, (os.cpu_count() or 1) // int(workers))
        torch.set_num_threads(threads)
        os.environ["OMP_NUM_THREADS"] = str(threads)


@pytest.fixture(scope="session")
def random_weights(tmp_path_factory):
    """A data folder with ``weights/tiny``: component folders as training writes them, index and manifest included."""
    from st2v_lib.apm import Apm
    from st2v_lib.backbone import make_unet, make_vae
    from st2v_lib.cam import Cam
    from st2v_lib.config import preset
    from st2v_lib.loading import write_index
    from st2v_lib.manifest import write_manifest
    from st2v_lib.training.clip import finish, make_clip

    torch.manual_seed(0)
    cfg, data = preset("tiny"), tmp_path_factory.mktemp("data")
    folder = data / "weights" / "tiny"
    unet = make_unet(cfg.unet)
    cam, apm = Cam.from_unet(unet, cfg.cam), Apm.from_unet(unet, cfg.apm)
    for injector in cam.injectors:  # zero at initialisation, when it would change nothing
        torch.nn.init.normal_(injector.proj_out.weight, std=0.05)
    for mix in apm.mixes.values():
        torch.nn.init.constant_(mix.alpha, 0.5)
    parts = {"vae": make_vae(cfg.vae), "unet": unet, "cam": cam, "apm": apm, "enhancer": make_unet(cfg.enhancer.unet)}
    for name, part in parts.items():
        part.half().save_pretrained(folder / name)
    finish(make_clip(cfg.clip), folder)
    write_index(folder, cfg)
    write_manifest(folder)
    return data


@pytest.fixture(scope="session")
def quick_config():
    """The tiny preset with two steps in all stages and a small enhanced picture."""
    from st2v_lib.config import preset

    cfg = preset("tiny")
    return cfg.replace(
        sampling=dataclasses.replace(cfg.sampling, num_inference_steps=2),
        enhancer=dataclasses.replace(cfg.enhancer, size=80, num_inference_steps=2),
    )
