"""What the rivals of CAM share: a trained copy of the UNet's encoder half that sees a whole chunk, and adapters.

Their condition is the paper's masked video (§9.1.1): V ⊙ M and M for all frames of the chunk. At inference the frames
given are the last ones of the previous chunk, which the new chunk begins with. In training they are, as in the paper,
any 8 of the 16 ("random"), or the first 8 as at inference ("aligned").
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin, UNet3DConditionModel
from einops import rearrange, repeat
from torch import Tensor, nn

from st2v_lib.backbone import StreamingUNet, check_video, encoder_half
from st2v_lib.cam import _ENCODER_HALF, skip_channels


def masked(frames: Tensor, given: Tensor) -> Tensor:
    """V ⊙ M and M: frames ``b f 3 h w`` and ``given``, ``b f`` bool, to ``b f 4 h w``; frames not given are grey."""
    mask = rearrange(given, "b f -> b f 1 1 1").to(frames)
    return torch.cat([frames * mask, mask.expand(-1, -1, 1, *frames.shape[-2:])], dim=2)


class Adapter(nn.Module):
    """What a rival's features pass before they meet the UNet; its last layer starts at zero.

    Args:
        channels: of the features.
        ratio: hidden channels over ``channels`` of a two-layer network, the rival's share of what CAM has in its
            injectors; 0 for the paper's single 1x1 convolution.
    """

    def __init__(self, channels: int, ratio: float):
        super().__init__()
        hidden = round(ratio * channels)
        layers = [nn.Conv2d(channels, hidden, 1), nn.SiLU()] if hidden else []
        self.layers = nn.Sequential(*layers, nn.Conv2d(hidden or channels, channels, 1))
        nn.init.zeros_(self.layers[-1].weight)
        nn.init.zeros_(self.layers[-1].bias)

    def forward(self, features: Tensor) -> Tensor:
        """Features ``(b f) c h w`` to what is added."""
        return self.layers(features)


class Rival(ModelMixin, ConfigMixin):
    """Base of the rivals: encoder half, mask handling and CAM's interface. A subclass says how the condition enters
    (``encode_condition``, ``forward``) and, by its injectors, how the features meet the UNet."""

    def build(self, unet: dict[str, Any], injector: type, adapter_ratio: float) -> None:
        """Makes the encoder half of a UNet with these values and one injector for each skip and for the mid block."""
        donor = UNet3DConditionModel(**unet)
        for name in _ENCODER_HALF:
            setattr(self, name, getattr(donor, name))
        self.injectors = nn.ModuleList(injector(c, adapter_ratio) for c in skip_channels(unet))

    def attach(self, unet: StreamingUNet):
        """Sets this module's injectors in the UNet (referred to, not registered) and returns this module."""
        unet.set_injectors(self.injectors)
        return self

    def detach(self, unet: StreamingUNet) -> None:
        """Removes injectors from the UNet."""
        unet.set_injectors(None)

    def as_masked(self, cond: Tensor) -> Tensor:
        """The carried frames ``b n 3 h w`` as a masked chunk ``b f 4 h w``; a masked chunk is returned as it is.

        Raises:
            ValueError: for another layout, range or number of frames.
        """
        n, f = self.config.num_cond_frames, self.config.chunk_frames
        if cond.ndim == 5 and cond.shape[1:3] == (f, 4):
            return cond
        if check_video(cond, "cond").shape[1] != n:
            raise ValueError(f"cond: expected {n} frames, or {f} masked ones with 4 channels, got {tuple(cond.shape)}")
        frames = cond.new_zeros(len(cond), f, *cond.shape[2:])
        frames[:, :n] = cond
        return masked(frames, (torch.arange(f, device=cond.device) < n).expand(len(cond), f))

    def features(
        self, sample: Tensor, timestep: Tensor | float | int, tokens: Tensor, added: Tensor | None = None
    ) -> list[Tensor]:
        """The encoder half's skips and mid output, ``(r b) f c h w``; arguments as of ``backbone.encoder_half``."""
        skips, mid, *_ = encoder_half(self, sample, timestep, tokens[:, : self.config.text_len], added)
        return [rearrange(h, "(b f) c h w -> b f c h w", f=sample.shape[2]) for h in (*skips, mid)]


def branches(features: Tensor, sample: Tensor) -> Tensor:
    """A condition's features, repeated for guidance branches where ``sample`` stacks them in its batch.

    Raises:
        ValueError: when batch or frames do not fit.
    """
    if len(sample) % len(features) or features.shape[1] != sample.shape[2]:
        raise ValueError(
            f"expected features (b or a divisor, f, c, h, w) for latents (b, c, f, h, w), "
            f"got {tuple(features.shape)} and {tuple(sample.shape)}"
        )
    return repeat(features, "b f c h w -> (r b) f c h w", r=len(sample) // len(features))


def one_of(rival: Rival, cond: Tensor | None, cond_features: Tensor | None) -> Tensor:
    """The condition's features from exactly one of the two.

    Raises:
        ValueError: for both or neither.
    """
    if (cond is None) == (cond_features is None):
        raise ValueError("give either cond (frames) or cond_features (from encode_condition)")
    return rival.encode_condition(cond) if cond_features is None else cond_features
