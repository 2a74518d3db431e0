"""A pipeline of all three stages that makes a chunk in a fraction of a second; it has learnt nothing."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from st2v_lib.apm import Apm
from st2v_lib.backbone import make_unet, make_vae
from st2v_lib.cam import Cam
from st2v_lib.config import ClipConfig, StreamingT2VConfig, preset
from st2v_lib.loading import write_index
from st2v_lib.manifest import write_manifest
from st2v_lib.training.clip import finish, make_clip

PROMPT, OTHER = "a red circle bounces over green stripes", "a blue square orbits over plain red"


def micro_config() -> StreamingT2VConfig:
    """16 pixels in stages 1 and 2, 32 in stage 3, two steps a chunk."""
    cfg = preset("tiny")
    sizes = dict(block_out_channels=(8,), norm_num_groups=4, cross_attention_dim=16, attention_head_dim=4)
    sizes |= dict(down_block_types=("CrossAttnDownBlock3D",), up_block_types=("CrossAttnUpBlock3D",))
    unet = dataclasses.replace(cfg.unet, sample_size=4, in_channels=4, out_channels=4, **sizes)
    return cfg.replace(
        size=16,
        unet=unet,
        vae=dataclasses.replace(cfg.vae, latent_channels=4, block_out_channels=(8, 8), norm_num_groups=4),
        cam=dataclasses.replace(cfg.cam, cond_channels=(4, 8, 8), injector_head_dim=4, injector_norm_groups=4),
        apm=dataclasses.replace(cfg.apm, image_embed_dim=16, hidden_dim=16, num_image_tokens=2),
        sampling=dataclasses.replace(cfg.sampling, num_inference_steps=2),
        enhancer=dataclasses.replace(
            cfg.enhancer, unet=unet, size=32, chunk_frames=16, overlap_frames=8, num_inference_steps=2
        ),
        clip=ClipConfig(16, 1, 1, 2, 16, 16, 8),
    )


def write_micro(data: Path, seed: int = 0) -> Path:
    """Writes random weights of ``micro_config`` as ``data/weights/tiny``; both memories are awake."""
    torch.manual_seed(seed)
    cfg, folder = micro_config(), data / "weights" / "tiny"
    unet = make_unet(cfg.unet)
    cam, apm = Cam.from_unet(unet, cfg.cam), Apm.from_unet(unet, cfg.apm)
    for injector in cam.injectors:
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
