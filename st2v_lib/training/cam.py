"""Phase 1 of the memories: CAM's extractor and injectors learn, the base stays frozen (paper §4.1, appendix §10).

The condition is the clean version of the first 8 of the 16 frames being denoised, exactly the alignment of inference.
In half of the clips it passes the VAE once, as every hand-over between chunks does, its latents a little noisy.

Differs from the paper: a fresh CAM is *primed* first, and its attention is *guided* while it learns. As the paper
starts it, a pixel encoder that has never seen a frame is read by attention that prefers no frame, and a tiny CAM learns
several times more slowly. The arm of the fair tests, ``st2v train cam --clips N``, starts and learns as the paper's;
``cam_primed`` and ``cam_guided`` are the other two.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from einops import rearrange, reduce
from torch import nn
from tqdm.auto import tqdm
from transformers import CLIPTextModelWithProjection

from st2v_lib.backbone import PatchedAutoencoderKL, StreamingUNet, decode_latents
from st2v_lib.baselines.add_cond import AddCond
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
GUIDE = 0.03  # weight of `misplaced` in the loss; 0.1 gives the same after 4 000 clips, 0.3 is worse
SEEING_STEPS, SEEING_LR, SEEING_SHARE = 400, 2e-3, 0.2  # the pixel encoder alone; share: of the minutes, at most


def primed(
    module: Cam | AddCond,
    unet: StreamingUNet,
    make_batch: Callable[[int, int], dict[str, torch.Tensor]],
    device: torch.device,
    minutes: float,
) -> Cam | AddCond:
    """A fresh module that can see, and whose frames ask the right frame, before it learns what to do with that.

    Sight: for a few hundred batches the pixel encoder alone learns to give, of a frame, what the UNet's first layer
    makes of that frame's clean latents; the extractor adds it to what that layer makes of the noisy ones. Attention
    (CAM only): queries and keys start as the features are. The extractor is a copy of the UNet and meets the same
    noise, so a frame's features are most like CAM's of the frame in the same place, and that one is read most.
    As before, nothing is added to the UNet until the last layers, zero still, have learnt.

    Args:
        module: to prime; changed in place and returned.
        unet: frozen, on the device.
        make_batch: batches of the phase, of a pool of their own.
        device: where to compute.
        minutes: of the whole phase.
    """
    if isinstance(module, Cam):
        for injector in module.injectors:
            for layer in (injector.proj_in, injector.attention.to_q, injector.attention.to_k):
                nn.init.eye_(layer.weight)
            nn.init.zeros_(injector.proj_in.bias)
    eyes = module.extractor.cond_encoder if isinstance(module, Cam) else module.cond_encoder
    module.to(device)
    optimizer = torch.optim.AdamW(eyes.parameters(), lr=SEEING_LR)
    start = time.time()
    for step in (bar := tqdm(range(SEEING_STEPS), desc="pixel encoder", unit="step")):
        share = max(step / SEEING_STEPS, (time.time() - start) / (60 * SEEING_SHARE * minutes))
        if share >= 1:
            break
        optimizer.param_groups[0]["lr"] = SEEING_LR * min(1.0, (step + 1) / 20, max(0.02, (1 - share) / 0.4))
        batch = {name: v.to(device) for name, v in make_batch(0, step).items() if name in ("cond", "latents")}
        with fast_math(device):
            loss = blindness(module.encode_condition(batch["cond"]), batch, unet.conv_in)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 20 == 0:
            bar.set_postfix(unexplained=f"{loss.item():.3f}")
    return module


def blindness(seen: torch.Tensor, batch: dict[str, torch.Tensor], conv_in: nn.Conv2d) -> torch.Tensor:
    """Share that features leave unexplained of what the UNet's first layer makes of the same frames' clean latents.

    Args:
        seen: features of a chunk's first frames, ``b n c h w``.
        batch: with the clean ``latents`` ``b z f h w`` and the condition ``cond``, ``b n 3 H W`` or, masked,
            ``b n 4 H W``, of which only the frames count that are given.
        conv_in: the UNet's first layer, frozen.
    """
    count, cond = seen.shape[1], batch["cond"]
    with torch.no_grad():
        clean = rearrange(batch["latents"][:, :, :count], "b c n h w -> (b n) c h w")
        wanted = F.conv2d(clean, conv_in.weight, padding=conv_in.padding).float().unflatten(0, (-1, count))
    error = (seen.float() - wanted).square().mean((2, 3, 4))
    given = reduce(cond[:, :, 3], "b n h w -> b n", "max") if cond.shape[2] == 4 else torch.ones_like(error)
    return (error * given).sum() / given.sum() / wanted.var()


@contextlib.contextmanager
def watching(cam: Cam) -> Iterator[list[tuple[Attention, torch.Tensor, torch.Tensor]]]:
    """Inside, each call of an injector's attention is noted: layer, queries ``p f c`` and past frames ``p n c``."""
    seen: list[tuple[Attention, torch.Tensor, torch.Tensor]] = []
    note = lambda layer, arguments, _: seen.append((layer, *arguments))  # noqa: E731
    hooks = [injector.attention.register_forward_hook(note) for injector in cam.injectors]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def misplaced(seen: list[tuple[Attention, torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    """Cross-entropy of the attention of a chunk's first frames with the past frame that each of them repeats.

    Not in the paper. There is no positional code, so attention must find that frame by what it shows, and the denoising
    loss alone teaches it slowly. This says it outright, in training only: the module stays the paper's. The new frames,
    which repeat nothing, look where they like. ln n means that no frame is preferred, 0 that none but the right one is
    read.

    Args:
        seen: what :func:`watching` noted.

    Returns:
        The mean over layers, heads, frames and places.
    """
    found = []
    for layer, queries, past in seen:
        n = past.shape[1]
        q, k = (to(x).unflatten(-1, (layer.heads, -1)) for to, x in ((layer.to_q, queries[:, :n]), (layer.to_k, past)))
        scores = torch.einsum("pfad,pnad->pafn", q, k).float() * layer.scale
        place = torch.arange(n, device=past.device).expand(scores.shape[:-1])
        found.append(F.cross_entropy(scores.flatten(0, -2), place.flatten()))
    return torch.stack(found).mean()


class CamStep(DiffusionStep):
    """Denoising loss of the frozen UNet with CAM, or with a rival in its place.

    Args:
        cfg, unet, text_encoder: the base model, frozen.
        cam: what learns.
        shift: of the timesteps.
        guide: weight of :func:`misplaced`, for CAM alone; 0, the paper's: none.
    """

    def __init__(
        self,
        cfg: StreamingT2VConfig,
        unet: StreamingUNet,
        text_encoder: CLIPTextModelWithProjection,
        cam: Cam | Rival,
        shift: float = TOWARDS_NOISE,
        guide: float = 0.0,
    ):
        super().__init__(text_encoder)
        self.shift, self.guide = shift, guide
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
        with watching(self.cam) if self.guide else contextlib.nullcontext() as seen:
            found = self.unet(x, t, batch["text"], cam_features=features)
        loss = weighted_mse(found, target, batch["mask"])
        if not self.guide:
            return loss, {}
        elsewhere = misplaced(seen)
        return loss + self.guide * elsewhere, {"misplaced": elsewhere.detach()}


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
