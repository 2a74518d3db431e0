"""Activation checkpointing for diffusers' 3-D UNet, which has none of its own.

The parts of a block (ResNet, temporal convolution, spatial and temporal transformer) and CAM's injectors keep their
inputs only and compute the rest again in the backward pass: about a third more work for a fraction of the memory.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from diffusers.models.resnet import ResnetBlock2D, TemporalConvLayer
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.transformers.transformer_temporal import TransformerTemporalModel
from torch import nn
from torch.utils.checkpoint import checkpoint

from st2v_lib.cam import CamInjector

PARTS = (ResnetBlock2D, TemporalConvLayer, Transformer2DModel, TransformerTemporalModel, CamInjector)


def checkpoint_blocks(net: nn.Module, enable: bool = True) -> nn.Module:
    """Switches checkpointing of a UNet's or a CAM's parts on or off, in place; names and weights stay as they are."""
    for module in net.modules():
        if isinstance(module, PARTS):
            module.__dict__.pop("forward", None)
            if enable:
                module.forward = functools.partial(_recomputed, module.forward)
    return net


def _recomputed(forward: Any, *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)
