"""Trains the tiny text-to-video base: still images first (appearance, captions), then 16-frame clips.

Paper §3 and Tab. 12. As public video models grew out of image models, the 3-D UNet starts as its 2-D twin: the stock
``UNet2DConditionModel`` has the same spatial layers under the same names and trains several times faster on images.
:func:`inflate` carries them over and closes the temporal branches, so that training on clips starts from the image
model exactly. Clips then take turns with single frames (joint training, arXiv 2204.03458): sixteen scenes for the cost
of one clip. The loss is weighted up inside sprites, where all the motion is.
"""

from __future__ import annotations

import random

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.resnet import TemporalConvLayer
from diffusers.models.transformers.transformer_temporal import TransformerTemporalModel
from torch import nn
from transformers import CLIPTextModelWithProjection

from st2v_lib.backbone import PatchedAutoencoderKL, StreamingUNet
from st2v_lib.config import StreamingT2VConfig, UNetConfig
from st2v_lib.sampling import make_scheduler
from st2v_lib.training.data import Captioner, growing_pool
from st2v_lib.training.diffusion import DiffusionStep, at_random_levels, weighted_mse

TEXT_DROPOUT = 0.1
DETAILED = 0.5  # captions that tell size, shade and pattern
IN_SIGHT = 0.8  # clips that begin with a sprite in sight, as a first chunk should
TEMPORAL = ("transformer_in", "temp_attentions", "temp_convs")  # in the names of its temporal layers
TURNS = ((16, 8), (16, 8), (16, 8), (1, 64))  # frames and batch size of the steps, in turn
MOST_IMAGES = 1000  # of 8x8 cells: attention kernels take batches of less than 65 536
IMAGES, IMAGE_PREFILL = 128, 1536  # images a step, and those made before the first
STILLS = 131072  # images kept


def make_image_unet(config: UNetConfig) -> UNet2DConditionModel:
    """The 2-D twin of the UNet: its spatial layers, under the same names."""
    return UNet2DConditionModel(
        sample_size=config.sample_size,
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        down_block_types=tuple(t.replace("3D", "2D") for t in config.down_block_types),
        up_block_types=tuple(t.replace("3D", "2D") for t in config.up_block_types),
        block_out_channels=config.block_out_channels,
        layers_per_block=config.layers_per_block,
        norm_num_groups=config.norm_num_groups,
        cross_attention_dim=config.cross_attention_dim,
        attention_head_dim=tuple(c // config.attention_head_dim for c in config.block_out_channels),  # heads, in truth
        use_linear_projection=True,
    )


@torch.no_grad()
def inflate(unet: StreamingUNet, image_unet: UNet2DConditionModel) -> StreamingUNet:
    """Gives the UNet its twin's spatial layers and closes its temporal branches: each frame is now the twin's image."""
    unet.load_state_dict(image_unet.state_dict(), strict=False)
    for module in unet.modules():
        if isinstance(module, TransformerTemporalModel):
            nn.init.zeros_(module.proj_out.weight), nn.init.zeros_(module.proj_out.bias)
        elif isinstance(module, TemporalConvLayer):  # not its norm: behind a dead one it would never learn
            nn.init.zeros_(module.conv4[-1].weight), nn.init.zeros_(module.conv4[-1].bias)
    return unet


class ImageStep(DiffusionStep):
    """Denoising loss of the 2-D twin with text."""

    def __init__(
        self, cfg: StreamingT2VConfig, image_unet: UNet2DConditionModel, text_encoder: CLIPTextModelWithProjection
    ):
        super().__init__(text_encoder)
        self.unet = image_unet
        self.scheduler = make_scheduler(cfg.scheduler, "ddim")

    def loss(self, batch: dict[str, torch.Tensor]):
        x, t, target = at_random_levels(self.scheduler, batch["latents"])
        prediction = self.unet(x[:, :, 0], t, batch["text"], return_dict=False)[0].unsqueeze(2)
        return weighted_mse(prediction, target, batch["mask"]), {}


def make_image_batch(vae: PatchedAutoencoderKL, seed: int = 0, batch_scale: float = 1.0):
    """Batch number ``n`` of single frames, from a pool in which each is used sixteen times on average."""
    captions, count = Captioner(DETAILED), max(1, round(IMAGES * batch_scale))
    stills = growing_pool(seed, 3, batch_scale, IMAGE_PREFILL, vae=vae, segment=1, capacity=STILLS)

    def batch(rank: int, n: int) -> dict[str, torch.Tensor]:
        rng = random.Random(f"image/{seed}/{rank}/{n}")
        latents, mask, scenes, _, _ = stills(rank, n).draw(rng, count, 1)
        return {"latents": latents, "mask": mask, "ids": captions(scenes, rng, TEXT_DROPOUT)}

    return batch


class BaseStep(DiffusionStep):
    """Denoising loss of the UNet with text."""

    def __init__(self, cfg: StreamingT2VConfig, unet: StreamingUNet, text_encoder: CLIPTextModelWithProjection):
        super().__init__(text_encoder)
        self.unet = unet
        self.scheduler = make_scheduler(cfg.scheduler, "ddim")

    def loss(self, batch: dict[str, torch.Tensor]):
        x, t, target = at_random_levels(self.scheduler, batch["latents"])
        return weighted_mse(self.unet(x, t, batch["text"]), target, batch["mask"]), {}

    def groups(self, lr: float, temporal_scale: float = 1.0) -> list[dict]:
        """Parameter groups: the temporal layers, younger than the image model's, may learn at another rate."""
        temporal, spatial = [], []
        for name, parameter in self.unet.named_parameters():
            (temporal if any(part in name for part in TEMPORAL) else spatial).append(parameter)
        return [{"params": spatial, "lr": lr}, {"params": temporal, "lr": temporal_scale * lr}]


def make_batch(vae: PatchedAutoencoderKL, seed: int = 0, batch_scale: float = 1.0):
    """Batch number ``n``: clips and single frames in turn; ``batch_scale`` multiplies their number."""
    captions = Captioner(DETAILED)
    clips = growing_pool(seed, 0, batch_scale, vae=vae)
    stills = growing_pool(seed, 3, batch_scale, IMAGE_PREFILL // 2, vae=vae, segment=1, capacity=STILLS)

    def batch(rank: int, n: int) -> dict[str, torch.Tensor]:
        rng = random.Random(f"base/{seed}/{rank}/{n}")
        frames, count = TURNS[n % len(TURNS)]
        pool, count = (clips(rank, n), stills(rank, n))[frames == 1], max(1, round(count * batch_scale))
        if frames == 1:
            count = min(count, MOST_IMAGES)
        latents, mask, scenes, _, _ = pool.draw(rng, count, frames, in_sight=IN_SIGHT if frames > 1 else 0.0)
        return {"latents": latents, "mask": mask, "ids": captions(scenes, rng, TEXT_DROPOUT)}

    return batch
