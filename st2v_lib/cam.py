"""CAM, the conditional attention module: the short-term memory (paper §4.1).

The extractor is a copy of the UNet's encoder half that looks at the noisy latents of the chunk's first frames and, in
pixels, at the last frames of the previous chunk. Injectors let every frame of the chunk attend, pixel by pixel, to
the extractor's features in each long skip connection and after the mid block.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin, UNet3DConditionModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.attention_processor import Attention
from einops import rearrange, repeat
from torch import Tensor, nn

from st2v_lib.backbone import StreamingUNet, check_video, encoder_half, use_frame_convs
from st2v_lib.config import CamConfig, UNetConfig

_ENCODER_HALF = ("conv_in", "time_proj", "time_embedding", "transformer_in", "down_blocks", "mid_block")


def skip_channels(unet: Mapping[str, Any]) -> list[int]:
    """Channels of every stored skip of a UNet with these constructor values, then of the mid block's output."""
    widths, layers = unet["block_out_channels"], unet["layers_per_block"]
    skips = [widths[0]]
    for level, width in enumerate(widths):
        skips += [width] * (layers + (level < len(widths) - 1))  # the last level has no down-sampler
    return [*skips, widths[-1]]


class CondEncoder(nn.Module):
    """Pixels of the conditioning frames to features of the latents' size (paper §4.1, E_cond).

    3x3 convolutions with SiLU after each but the last; each width after the first halves the resolution. The last
    convolution starts at zero, so that an untrained extractor sees the noisy latents only.
    """

    def __init__(self, widths: Sequence[int], out_channels: int):
        super().__init__()
        self.conv_in = nn.Conv2d(3, widths[0], 3, padding=1)
        self.blocks = nn.ModuleList()
        for narrow, wide in zip(widths[:-1], widths[1:], strict=True):
            self.blocks += [nn.Conv2d(narrow, narrow, 3, padding=1), nn.Conv2d(narrow, wide, 3, padding=1, stride=2)]
        self.conv_out = nn.Conv2d(widths[-1], out_channels, 3, padding=1)
        nn.init.zeros_(self.conv_out.weight)
        nn.init.zeros_(self.conv_out.bias)

    def forward(self, frames: Tensor) -> Tensor:
        """Frames (n, 3, h, w) in [-1, 1] to features (n, c, h/d, w/d)."""
        hidden = F.silu(self.conv_in(frames))
        for block in self.blocks:
            hidden = F.silu(block(hidden))
        return self.conv_out(hidden)


class CamExtractor(ModelMixin, ConfigMixin):
    """The feature extractor: a trainable copy of a UNet's encoder half, and the pixel encoder (paper §4.1).

    Args:
        unet: constructor values of the UNet it is a copy of.
        num_cond_frames: conditioning frames, and noisy frames it runs on.
        text_len: tokens it reads; later ones (the anchor's) are cut off.
        cond_channels: widths of the pixel encoder.
    """

    @register_to_config
    def __init__(
        self,
        unet: dict[str, Any],
        num_cond_frames: int = 8,
        text_len: int = 77,
        cond_channels: Sequence[int] = (32, 96, 256, 512),
    ):
        super().__init__()
        donor = UNet3DConditionModel(**unet)
        for name in _ENCODER_HALF:
            setattr(self, name, getattr(donor, name))
        use_frame_convs(self)
        self.cond_encoder = CondEncoder(tuple(cond_channels), unet["block_out_channels"][0])

    @classmethod
    def from_unet(cls, unet: UNet3DConditionModel, config: CamConfig) -> CamExtractor:
        """An extractor that starts with the UNet's weights (copied, with stock attention)."""
        extractor = cls(unet_kwargs(unet), config.num_cond_frames, config.text_len, config.cond_channels)
        return extractor.copy_encoder(unet)

    def copy_encoder(self, unet: UNet3DConditionModel) -> CamExtractor:
        """Copies the weights of the UNet's encoder half into this extractor and returns it."""
        for name in _ENCODER_HALF:
            getattr(self, name).load_state_dict(getattr(unet, name).state_dict())
        return nn.Module.to(self, unet.device, unet.dtype)

    def encode_condition(self, cond: Tensor) -> Tensor:
        """Encodes the conditioning frames; constant over a chunk, so call it once for all denoising steps.

        Args:
            cond: the last frames of the previous chunk, ``b n 3 H W`` in [-1, 1].

        Returns:
            Features ``b n c h w`` of the latents' size.

        Raises:
            ValueError: for a wrong layout, range or number of frames.
        """
        n = self.config.num_cond_frames
        if check_video(cond, "cond").shape[1] != n:
            raise ValueError(f"cond: expected {n} frames, got {cond.shape[1]}")
        features = self.cond_encoder(rearrange(cond, "b n c h w -> (b n) c h w").to(self.dtype))
        return rearrange(features, "(b n) c h w -> b n c h w", n=n)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float | int,
        encoder_hidden_states: Tensor,
        cond: Tensor | None = None,
        cond_features: Tensor | None = None,
    ) -> list[Tensor]:
        """Features of the chunk's first frames, for every injector.

        Args:
            sample: the chunk's noisy latents ``b c f h w``; only the first ``num_cond_frames`` are used.
            timestep: a number, or one for each video.
            encoder_hidden_states: tokens ``(r b) l d`` of r guidance branches; only the first ``text_len`` are used.
            cond: conditioning frames ``b' n 3 H W`` in [-1, 1]; or
            cond_features: what ``encode_condition`` made of them, ``b' n c h w``. When b is a multiple of b', as
                where branches are stacked in ``sample`` too, each of these parts gets the same frames.

        Returns:
            One tensor ``(r b) n c h w`` for each skip, then one for the mid block.

        Raises:
            ValueError: unless exactly one of ``cond`` and ``cond_features`` is given, with a fitting shape.
        """
        if (cond is None) == (cond_features is None):
            raise ValueError("give either cond (frames) or cond_features (from encode_condition)")
        features = self.encode_condition(cond) if cond_features is None else cond_features
        n, b = self.config.num_cond_frames, sample.shape[0]
        if (
            sample.shape[2] < n
            or b % features.shape[0]
            or features.shape[1:2] + features.shape[3:] != (n, *sample.shape[3:])
        ):
            raise ValueError(
                f"expected latents (b, c, f >= {n}, h, w) and condition features (b or a divisor, {n}, c, h, w), "
                f"got {tuple(sample.shape)} and {tuple(features.shape)}"
            )
        added = repeat(features, "b n c h w -> (r b n) c h w", r=b // features.shape[0])
        text = encoder_hidden_states[:, : self.config.text_len]
        skips, mid, *_ = encoder_half(self, sample[:, :, :n], timestep, text, added.to(sample.dtype))
        return [rearrange(h, "(b n) c h w -> b n c h w", n=n) for h in (*skips, mid)]


class CamInjector(nn.Module):
    """Temporal cross-attention of a chunk's features to CAM's, pixel by pixel (paper §4.1, eq. for CAM).

    There is no positional code, so the order of CAM's frames does not matter. The last linear layer starts at zero:
    an untrained injector is the identity.
    """

    def __init__(self, channels: int, head_dim: int = 64, norm_groups: int = 32):
        super().__init__()
        self.norm = nn.GroupNorm(norm_groups, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, channels)
        self.attention = Attention(
            channels, heads=channels // head_dim, dim_head=head_dim, cross_attention_dim=channels
        )
        self.proj_out = nn.Linear(channels, channels)
        nn.init.zeros_(self.proj_out.weight)
        nn.init.zeros_(self.proj_out.bias)

    def forward(self, hidden: Tensor, features: Tensor) -> Tensor:
        """Adds to ``hidden``, ``(b f) c h w``, what each pixel's f frames read in the n frames of ``features``.

        Args:
            hidden: a skip or the mid output of the UNet.
            features: CAM's features at the same place, ``b n c h w``; keys and values as they are, not normalised.
        """
        b, _, _, h, w = features.shape
        # statistics over frames and space of a whole clip, not of a frame
        queries = self.norm(rearrange(hidden, "(b f) c h w -> b c f h w", b=b))
        queries = self.proj_in(rearrange(queries, "b c f h w -> (b h w) f c"))
        read = self.read(queries, rearrange(features, "b n c h w -> (b h w) n c"))
        return hidden + rearrange(self.proj_out(read), "(b h w) f c -> (b f) c h w", b=b, h=h, w=w)

    def read(self, queries: Tensor, past: Tensor) -> Tensor:
        """What queries ``p f c`` of each place find among the past frames ``p n c`` there."""
        return self.attention(queries, past)


class CamInjectors(nn.ModuleList):
    """One injector for each skip of a UNet with these constructor values, and a last one for its mid block."""

    def __init__(
        self, unet: Mapping[str, Any], head_dim: int = 64, norm_groups: int = 32, injector: type = CamInjector
    ):
        super().__init__(injector(channels, head_dim, norm_groups) for channels in skip_channels(unet))


class Cam(ModelMixin, ConfigMixin):
    """Extractor and injectors in one checkpoint; arguments are ``CamConfig``'s fields and the UNet's values.

    ``cam.attach(unet)`` once; then ``unet(x, t, tokens, cam_features=cam(x, t, tokens, cond_features=...))``.
    """

    injector = CamInjector  # a variant of CAM has another

    @register_to_config
    def __init__(
        self,
        unet: dict[str, Any],
        num_cond_frames: int = 8,
        text_len: int = 77,
        cond_channels: Sequence[int] = (32, 96, 256, 512),
        injector_head_dim: int = 64,
        injector_norm_groups: int = 32,
    ):
        super().__init__()
        self.extractor = CamExtractor(unet, num_cond_frames, text_len, cond_channels)
        self.injectors = CamInjectors(unet, injector_head_dim, injector_norm_groups, self.injector)

    @classmethod
    def from_configs(cls, unet: UNetConfig, cam: CamConfig) -> Cam:
        """A freshly initialised module for a UNet of that size."""
        return cls(unet=unet.kwargs(), **dataclasses.asdict(cam))

    @classmethod
    def from_unet(cls, unet: UNet3DConditionModel, config: CamConfig) -> Cam:
        """A module whose extractor starts with the UNet's weights, as training begins (paper §10)."""
        cam = cls(unet=unet_kwargs(unet), **dataclasses.asdict(config))
        cam.extractor.copy_encoder(unet)
        return nn.Module.to(cam, unet.device, unet.dtype)

    def attach(self, unet: StreamingUNet) -> Cam:
        """Sets this module's injectors in the UNet (referred to, not registered) and returns this module."""
        unet.set_injectors(self.injectors)
        return self

    def detach(self, unet: StreamingUNet) -> None:
        """Removes injectors from the UNet."""
        unet.set_injectors(None)

    def encode_condition(self, cond: Tensor) -> Tensor:
        """See ``CamExtractor.encode_condition``."""
        return self.extractor.encode_condition(cond)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float | int,
        encoder_hidden_states: Tensor,
        cond: Tensor | None = None,
        cond_features: Tensor | None = None,
    ) -> list[Tensor]:
        """See ``CamExtractor.forward``."""
        return self.extractor(sample, timestep, encoder_hidden_states, cond, cond_features)


def unet_kwargs(unet: UNet3DConditionModel) -> dict[str, Any]:
    """The constructor values of a UNet, without the entries diffusers adds."""
    return {name: value for name, value in unet.config.items() if not name.startswith("_")}
