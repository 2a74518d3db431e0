"""Phase 2 of the memories: APM beside CAM on 32-frame segments (paper §4.2, appendix §10).

Roles, counted from 1: the anchor is a random frame of 1–16, the condition 17–24, the denoised chunk 17–32. A share of
the segments shows the sprite in the anchor, hides it in 17–24 and brings it back in 25–32, where only the anchor tells
which one it was. Text, anchor or both are dropped in 5 % of the clips each, for guidance.

Differs from the paper: main UNet and CAM stay frozen here (there, all but the UNet's temporal layers train), so one
UNet and one CAM serve every arm of the ablations. ``train_unet=True`` and ``train_cam=True`` train what the paper does.
"""

from __future__ import annotations

import random

import torch
from transformers import CLIPTextModelWithProjection, CLIPVisionModelWithProjection

from st2v_lib.apm import Apm, preprocess_for_clip
from st2v_lib.backbone import PatchedAutoencoderKL, StreamingUNet
from st2v_lib.cam import Cam
from st2v_lib.config import StreamingT2VConfig
from st2v_lib.sampling import make_scheduler
from st2v_lib.training.base import TEMPORAL
from st2v_lib.training.cam import BATCH, seen_frames
from st2v_lib.training.data import SEGMENT, Captioner, growing_pool
from st2v_lib.training.diffusion import TOWARDS_NOISE, DiffusionStep, at_random_levels, weighted_mse

DROP_TEXT = DROP_ANCHOR = DROP_BOTH = 0.05
RETURNING = 0.5
ALPHA_LR = 5.0  # times the rate of APM's other parameters: alpha alone gates all of its gradient


class ApmStep(DiffusionStep):
    """Denoising loss with both memories; the anchor's embedding is frozen CLIP's. ``shift``: of the timesteps.

    APM trains; CAM and the main UNet, but for its temporal layers, where asked.
    """

    def __init__(
        self,
        cfg: StreamingT2VConfig,
        unet: StreamingUNet,
        text_encoder: CLIPTextModelWithProjection,
        image_encoder: CLIPVisionModelWithProjection,
        cam: Cam,
        apm: Apm,
        train_unet: bool = False,
        shift: float = TOWARDS_NOISE,
        train_cam: bool = True,
    ):
        super().__init__(text_encoder)
        self.shift, self.train_cam = shift, train_cam
        self.unet = unet.requires_grad_(train_unet)
        if train_unet:
            for name, parameter in unet.named_parameters():
                parameter.requires_grad_(not any(part in name for part in TEMPORAL))
        self.image_encoder = image_encoder.requires_grad_(False).eval()
        self.cam, self.apm = cam.requires_grad_(train_cam).attach(unet), apm.requires_grad_(True).attach(unet)
        self.scheduler = make_scheduler(cfg.scheduler, "ddim")
        self.text_len = cfg.apm.text_len

    @torch.no_grad()
    def prepare(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The batch with text tokens in place of ids and the anchor's embedding in place of its frame."""
        batch = super().prepare(batch)
        anchor = preprocess_for_clip(batch.pop("anchor"), self.image_encoder.config.image_size)
        return batch | {"embeds": self.image_encoder(pixel_values=anchor).image_embeds}

    def loss(self, batch: dict[str, torch.Tensor]):
        tokens = torch.cat([batch["text"], self.apm(batch["embeds"])], dim=1)
        x, t, target = at_random_levels(self.scheduler, batch["latents"], self.shift)
        with torch.set_grad_enabled(self.train_cam and torch.is_grad_enabled()):  # it reads the text part alone
            features = self.cam(x, t, tokens, cond=batch["cond"])
        loss = weighted_mse(self.unet(x, t, tokens, cam_features=features), target, batch["mask"])
        alphas = torch.stack([m.alpha.detach() for m in self.apm.mixes.values()])
        return loss, {"alpha": alphas.abs().mean()}

    def groups(self, lr: float, cam: float = 1.0, unet: float = 1.0) -> list[dict]:
        """Parameter groups: alpha learns faster than the rest of APM; what was trained before at these shares of it."""
        rates = {self.apm: lr, self.cam: cam * lr, self.unet: unet * lr}
        alphas = [m.alpha for m in self.apm.mixes.values()]
        found = [{"params": alphas, "lr": ALPHA_LR * lr, "weight_decay": 0.0}]
        for module, rate in rates.items():
            rest = [p for p in module.parameters() if p.requires_grad and all(p is not a for a in alphas)]
            found += [{"params": rest, "lr": rate}] if rest else []
        return found


def make_batch(
    cfg: StreamingT2VConfig,
    vae: PatchedAutoencoderKL,
    seed: int = 0,
    null_anchor: bool = False,
    batch_scale: float = 1.0,
):
    """Batch number ``n`` of segments; ``null_anchor=True`` is the control arm whose anchor is always grey."""
    captions, pools = Captioner(), growing_pool(seed, 2, batch_scale, vae=vae, returning=RETURNING)
    chunk, keep = cfg.chunk_frames, cfg.cam.num_cond_frames

    def batch(rank: int, n: int) -> dict[str, torch.Tensor]:
        rng = random.Random(f"apm/{seed}/{rank}/{n}")
        pool = pools(rank, n)
        first = SEGMENT - chunk
        latents, mask, scenes, starts, picks = pool.draw(rng, max(1, round(BATCH * batch_scale)), chunk, start=first)
        cond = seen_frames(vae, latents[:, :, :keep], scenes, starts, rng)
        at = [anchor_frame(pool.areas[i, :chunk].tolist(), rng) for i in picks]
        anchor_latents = pool.take("latents", picks, at, 1)
        anchor_starts = [s - first + a for s, a in zip(starts, at)]
        anchor = seen_frames(vae, anchor_latents, scenes, anchor_starts, rng)[:, 0]
        ids = captions(scenes, rng, 0.0)
        empty = captions(scenes[:1], rng, 1.0)[0]
        for i in range(len(scenes)):
            u = rng.random()
            if u < DROP_TEXT + DROP_BOTH:
                ids[i] = empty
            if null_anchor or DROP_TEXT <= u < DROP_TEXT + DROP_BOTH + DROP_ANCHOR:
                anchor[i] = cfg.null_pixel
        return {"latents": latents, "mask": mask, "cond": cond, "anchor": anchor, "ids": ids}

    return batch


def anchor_frame(areas: list[float], rng: random.Random) -> int:
    """A random frame in which the sprite is seen well, if there is one (inference anchors frame 0 of such a chunk)."""
    good = [i for i, a in enumerate(areas) if a >= 0.9 * max(areas) and a > 0]
    return rng.choice(good) if good else rng.randrange(len(areas))
