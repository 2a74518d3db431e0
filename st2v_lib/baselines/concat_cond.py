"""Conc-Cond, masked concatenation (paper §9.1.1): the UNet's input becomes [z_t, E(V) ⊙ M, M], without any CAM.

E is the VAE's encoder. The added input channels start at zero, so that an untrained Conc-Cond is the base model.

Differs from the paper, which fine-tunes the whole UNet: as for every arm here, the shipped UNet stays frozen. A trained
copy of its encoder half takes the wider input and its features replace the UNet's own; adapters as wide as it takes
bring it to CAM's number of trained parameters (``adapter_ratio=0``: none). The UNet's own encoder still runs, so the
time of one chunk says less about this rival than its parameters do.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKL, UNet3DConditionModel
from diffusers.configuration_utils import register_to_config
from einops import rearrange, reduce
from torch import Tensor, nn

from st2v_lib.backbone import encode_frames
from st2v_lib.baselines.rival import Adapter, Rival, branches, one_of
from st2v_lib.cam import _ENCODER_HALF, unet_kwargs
from st2v_lib.config import CamConfig

MATCHED = 4.23  # adapter ratio at which a tiny Conc-Cond trains as many parameters as a tiny CAM


class ReplaceInjector(nn.Module):
    """Puts the trained encoder's features, adapted, in the place of the UNet's own."""

    def __init__(self, channels: int, ratio: float):
        super().__init__()
        self.adapter = Adapter(channels, ratio) if ratio else None

    def forward(self, hidden: Tensor, features: Tensor) -> Tensor:
        """``features`` ``b f c h w`` as ``(b f) c h w``; ``hidden`` is dropped."""
        features = rearrange(features, "b f c h w -> (b f) c h w")
        return features if self.adapter is None else features + self.adapter(features)


class ConcCond(Rival):
    """The rival of CAM that concatenates; call ``use_vae`` before it meets frames.

    Args:
        unet: constructor values of the UNet it works with.
        num_cond_frames: carried frames, the first of a chunk.
        chunk_frames: frames of a chunk.
        text_len: tokens it reads; later ones (the anchor's) are cut off.
        adapter_ratio: see ``Adapter``; 0 for none.
    """

    vae: AutoencoderKL | None = None

    @register_to_config
    def __init__(
        self,
        unet: dict[str, Any],
        num_cond_frames: int = 8,
        chunk_frames: int = 16,
        text_len: int = 77,
        adapter_ratio: float = MATCHED,
    ):
        super().__init__()
        self.build(unet, ReplaceInjector, adapter_ratio)
        narrow = self.conv_in
        self.conv_in = nn.Conv2d(2 * unet["in_channels"] + 1, narrow.out_channels, 3, padding=1)
        nn.init.zeros_(self.conv_in.weight)

    @classmethod
    def from_unet(
        cls, unet: UNet3DConditionModel, config: CamConfig, chunk_frames: int = 16, adapter_ratio: float = MATCHED
    ) -> ConcCond:
        """A module that starts as the UNet's encoder half and does not see its condition yet."""
        rival = cls(unet_kwargs(unet), config.num_cond_frames, chunk_frames, config.text_len, adapter_ratio)
        for name in _ENCODER_HALF[1:]:
            getattr(rival, name).load_state_dict(getattr(unet, name).state_dict())
        with torch.no_grad():
            rival.conv_in.weight[:, : unet.config.in_channels] = unet.conv_in.weight
            rival.conv_in.bias.copy_(unet.conv_in.bias)
        return nn.Module.to(rival, unet.device, unet.dtype)

    def use_vae(self, vae: AutoencoderKL) -> ConcCond:
        """The frozen VAE that encodes the condition: referred to, not registered. Returns this module."""
        self.__dict__["vae"] = vae  # past nn.Module.__setattr__, which would register it
        return self

    @torch.no_grad()
    def encode_condition(self, cond: Tensor) -> Tensor:
        """Carried frames ``b n 3 H W``, or a masked chunk ``b f 4 H W``, to E(V) ⊙ M and M, ``b f z+1 h w``.

        Raises:
            ValueError: without a VAE.
        """
        if self.vae is None:
            raise ValueError("Conc-Cond encodes frames with the VAE; call use_vae(vae) first")
        cond = self.as_masked(cond)
        given = reduce(cond[:, :, 3], "b f h w -> b f", "max") > 0.5
        latents = rearrange(encode_frames(self.vae, cond[given][None, :, :3]), "1 c n h w -> n c h w")
        out = latents.new_zeros(*given.shape, latents.shape[1] + 1, *latents.shape[2:])
        out[given] = torch.cat([latents, torch.ones_like(latents[:, :1])], dim=1)
        return out.to(self.dtype)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float | int,
        encoder_hidden_states: Tensor,
        cond: Tensor | None = None,
        cond_features: Tensor | None = None,
    ) -> list[Tensor]:
        """The encoder half's features of [z_t, E(V) ⊙ M, M]; arguments as ``CamExtractor.forward``."""
        more = branches(one_of(self, cond, cond_features), sample)
        more = rearrange(more, "b f c h w -> b c f h w").to(sample.dtype)
        return self.features(torch.cat([sample, more], dim=1), timestep, encoder_hidden_states)
