"""Phase 1 of the memories: CAM's extractor and injectors learn, the base stays frozen (paper §4.1, appendix §10).

The condition is the clean version of the first 8 of the 16 frames being denoised, exactly the alignment of inference.
In half of the clips it passes the VAE once, as every hand-over between chunks does, its latents a little noisy.
"""

from __future__ import annotations

import random

import torch
from transformers import CLIPTextModelWithProjection

from st2v_lib.backbone import PatchedAutoencoderKL, StreamingUNet, decode_latents
from st2v_lib.baselines.concat_cond import ConcCond
from st2v_lib.baselines.rival import Rival
from st2v_lib.cam import Cam
from st2v_lib.config import StreamingT2VConfig
from st2v_lib.sampling import make_scheduler
from st2v_lib.training.base import TEXT_DROPOUT
from st2v_lib.training.common import fast_math
from st2v_lib.training.data import SEGMENT, Captioner, growing_pool
from st2v_lib.training.diffusion import TOWARDS_NOISE, DiffusionStep, at_random_levels, weighted_mse
from st2v_lib.world.render import render

ROUND_TRIP = 0.5  # share of clips whose condition has been through the VAE
TRIP_NOISE = 0.15  # largest deviation of the noise such latents get: at inference they are generated, not true
BATCH = 8


class CamStep(DiffusionStep):
    """Denoising loss of the frozen UNet with CAM, or with a rival in its place. ``shift``: of the timesteps."""

    def __init__(
        self,
        cfg: StreamingT2VConfig,
        unet: StreamingUNet,
        text_encoder: CLIPTextModelWithProjection,
        cam: Cam | Rival,
        shift: float = TOWARDS_NOISE,
    ):
        super().__init__(text_encoder)
        self.shift = shift
        self.unet = unet.requires_grad_(False).eval()
        self.cam = cam.requires_grad_(True).attach(unet)
        self.scheduler = make_scheduler(cfg.scheduler, "ddim")

    @torch.no_grad()
    def prepare(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """As every phase's; a condition that passes frozen networks only is encoded here too."""
        batch = super().prepare(batch)
        if isinstance(self.cam, ConcCond):
            batch["cond_features"] = self.cam.encode_condition(batch.pop("cond"))
        return batch

    def loss(self, batch: dict[str, torch.Tensor]):
        x, t, target = at_random_levels(self.scheduler, batch["latents"], self.shift)
        condition = {name: batch[name] for name in ("cond", "cond_features") if name in batch}
        features = self.cam(x, t, batch["text"], **condition)
        return weighted_mse(self.unet(x, t, batch["text"], cam_features=features), target, batch["mask"]), {}


@torch.no_grad()
def seen_frames(vae: PatchedAutoencoderKL, latents: torch.Tensor, scenes, starts, rng: random.Random) -> torch.Tensor:
    """Frames in pixels, each clip either as rendered or as the VAE gives its slightly noisy latents back.

    Args:
        latents: of the wanted frames, ``(b, c, n, h, w)``.
        scenes, starts: whose frames they are, and the first one's index.

    Returns:
        ``(b, n, 3, H, W)`` in [-1, 1].
    """
    n = latents.shape[2]
    device = next(vae.parameters()).device
    trips = [i for i in range(len(scenes)) if rng.random() < ROUND_TRIP]
    clean = [i for i in range(len(scenes)) if i not in set(trips)]
    size = latents.shape[-1] * vae.config.patch_size * 2 ** (len(vae.config.block_out_channels) - 1)
    out = torch.empty(len(scenes), n, 3, size, size, device=device)
    if clean:
        out[clean] = render([scenes[i] for i in clean], n, [starts[i] for i in clean], size, device)
    if trips:
        out[trips] = through_vae(vae, latents[trips], rng, batch_size=64 if device.type == "cpu" else 2048)
    return out


@torch.no_grad()
def through_vae(vae: PatchedAutoencoderKL, latents: torch.Tensor, rng: random.Random, batch_size: int) -> torch.Tensor:
    """What the VAE gives back of latents ``b c n h w`` with up to :data:`TRIP_NOISE` of noise, ``(b, n, 3, H, W)``."""
    device, (count, channels, n) = next(vae.parameters()).device, latents.shape[:3]
    generator = torch.Generator(device).manual_seed(rng.randrange(2**31))
    latents = latents.to(device)
    level = torch.rand(count, 1, 1, 1, 1, generator=generator, device=device) * TRIP_NOISE
    whole = (count, channels, SEGMENT, *latents.shape[3:])  # a frame's noise is the same for any n
    latents = latents + level * torch.randn(whole, generator=generator, device=device)[:, :, :n]
    with fast_math(device):
        return decode_latents(vae, latents, batch_size=batch_size).float()


def make_batch(cfg: StreamingT2VConfig, vae: PatchedAutoencoderKL, seed: int = 0, batch_scale: float = 1.0):
    """Batch number ``n`` of clips with their conditioning frames."""
    captions, pool = Captioner(), growing_pool(seed, 1, batch_scale, vae=vae)
    keep, count = cfg.cam.num_cond_frames, max(1, round(BATCH * batch_scale))

    def batch(rank: int, n: int) -> dict[str, torch.Tensor]:
        rng = random.Random(f"cam/{seed}/{rank}/{n}")
        latents, mask, scenes, starts, _ = pool(rank, n).draw(rng, count, cfg.chunk_frames)
        cond = seen_frames(vae, latents[:, :, :keep], scenes, starts, rng)
        return {"latents": latents, "mask": mask, "cond": cond, "ids": captions(scenes, rng, TEXT_DROPOUT)}

    return batch
