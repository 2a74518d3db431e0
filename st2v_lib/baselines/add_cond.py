"""Add-Cond, additive fusion (paper §9.1.1, Fig. 16): CAM's extractor on the whole masked chunk, added to the skips.

The extractor sees the noisy latents of all frames of the chunk and, through CAM's pixel encoder with a fourth input
channel, V ⊙ M and M. Its features pass a zero-initialised layer and are added to the frame at the same place: no
attention, so a frame that was not given gets its neighbours' content through the extractor's temporal layers only.

Differs from the paper: by default the zero layer has a hidden layer as wide as it takes to have CAM's number of trained
parameters; ``adapter_ratio=0`` is the paper's 1x1 convolution.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from diffusers import UNet3DConditionModel
from diffusers.configuration_utils import register_to_config
from einops import rearrange
from torch import Tensor, nn

from st2v_lib.baselines.rival import Adapter, Rival, branches, one_of
from st2v_lib.cam import _ENCODER_HALF, CondEncoder, unet_kwargs
from st2v_lib.config import CamConfig

MATCHED = 3.0  # adapter ratio at which a tiny Add-Cond trains as many parameters as a tiny CAM


class AddInjector(Adapter):
    """Adds the adapted features of each frame to that frame of the UNet."""

    def forward(self, hidden: Tensor, features: Tensor) -> Tensor:
        """``hidden`` ``(b f) c h w`` plus the adapted ``features`` ``b f c h w``."""
        return hidden + super().forward(rearrange(features, "b f c h w -> (b f) c h w"))


class AddCond(Rival):
    """The rival of CAM that adds; arguments as ``Cam``'s, with the chunk's length and the adapters' width.

    Args:
        unet: constructor values of the UNet it works with.
        num_cond_frames: carried frames, the first of a chunk.
        chunk_frames: frames of a chunk.
        text_len: tokens it reads; later ones (the anchor's) are cut off.
        cond_channels: widths of the pixel encoder.
        adapter_ratio: see ``Adapter``.
    """

    @register_to_config
    def __init__(
        self,
        unet: dict[str, Any],
        num_cond_frames: int = 8,
        chunk_frames: int = 16,
        text_len: int = 77,
        cond_channels: Sequence[int] = (32, 96, 256, 512),
        adapter_ratio: float = MATCHED,
    ):
        super().__init__()
        self.build(unet, AddInjector, adapter_ratio)
        self.cond_encoder = CondEncoder(tuple(cond_channels), unet["block_out_channels"][0])
        self.cond_encoder.conv_in = nn.Conv2d(4, cond_channels[0], 3, padding=1)

    @classmethod
    def from_unet(
        cls, unet: UNet3DConditionModel, config: CamConfig, chunk_frames: int = 16, adapter_ratio: float = MATCHED
    ) -> AddCond:
        """A module that starts with the UNet's weights, as CAM does."""
        shape = (config.num_cond_frames, chunk_frames, config.text_len, config.cond_channels)
        rival = cls(unet_kwargs(unet), *shape, adapter_ratio)
        for name in _ENCODER_HALF:
            getattr(rival, name).load_state_dict(getattr(unet, name).state_dict())
        return nn.Module.to(rival, unet.device, unet.dtype)

    def encode_condition(self, cond: Tensor) -> Tensor:
        """Carried frames ``b n 3 H W``, or a masked chunk ``b f 4 H W``, to features ``b f c h w``."""
        cond = self.as_masked(cond).to(self.dtype)
        features = self.cond_encoder(rearrange(cond, "b f c h w -> (b f) c h w"))
        return rearrange(features, "(b f) c h w -> b f c h w", b=len(cond))

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float | int,
        encoder_hidden_states: Tensor,
        cond: Tensor | None = None,
        cond_features: Tensor | None = None,
    ) -> list[Tensor]:
        """Features of every frame of the chunk for each injector; arguments as ``CamExtractor.forward``."""
        added = branches(one_of(self, cond, cond_features), sample)
        added = rearrange(added, "b f c h w -> (b f) c h w").to(sample.dtype)
        return self.features(sample, timestep, encoder_hidden_states, added)
