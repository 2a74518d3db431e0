"""CAM, told the place: each carried frame of the chunk reads the past frame that it repeats, and that one alone.

Not in the paper. CAM's injectors have no positional code, so attention has to learn which of the eight past frames
shows the moment of a slot. This module takes that task away and leaves everything else: the first slots read the past
frame of their own number, the new ones attend to all eight as before. What it gains over CAM at equal training is what
the look-up costs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import UNet3DConditionModel
from einops import rearrange
from torch import Tensor

from st2v_lib.cam import Cam, CamInjector
from st2v_lib.config import CamConfig


class PlacedInjector(CamInjector):
    """``CamInjector`` with its attention closed, for the first frames, to all but the past frame of their number."""

    def read(self, queries: Tensor, past: Tensor) -> Tensor:
        """As ``CamInjector.read``."""
        layers, n = self.attention, past.shape[1]
        pairs = (layers.to_q, queries), (layers.to_k, past), (layers.to_v, past)
        q, k, v = (rearrange(layer(x), "p f (a d) -> p a f d", a=layers.heads) for layer, x in pairs)
        open_to = torch.ones(queries.shape[1], n, dtype=torch.bool, device=past.device)
        open_to[:n] = torch.eye(n, dtype=torch.bool, device=past.device)
        read = F.scaled_dot_product_attention(q, k, v, attn_mask=open_to)
        return layers.to_out[0](rearrange(read, "p a f d -> p f (a d)"))


class PlacedCam(Cam):
    """``Cam`` with placed injectors; arguments, parameters and condition are the same."""

    injector = PlacedInjector

    @classmethod
    def from_unet(cls, unet: UNet3DConditionModel, config: CamConfig, chunk_frames: int = 16) -> PlacedCam:
        """A module that starts with the UNet's weights; the chunk's length makes no difference."""
        return super().from_unet(unet, config)
