"""Last-frame CLIP conditioning: APM's anchor is the last frame made, not the first of all (paper §5.1's rivals).

Image-to-video models that are run again and again (SVD, DynamiCrafter, I2VGen-XL) see the CLIP embedding of the frame
they go on from. With the same trained APM, the only difference to the paper's fixed anchor is where the embedding comes
from, so what one chunk gets wrong the next one takes for truth: errors can add up.
"""

from __future__ import annotations

import dataclasses

import torch

from st2v_lib.streaming import Models, StreamState


@torch.no_grad()
def anchor_on_last_frame(models: Models, state: StreamState) -> StreamState:
    """The state with APM's tokens of the last carried frame; as it was without APM."""
    if models.apm is None:
        return state
    embeds = models.encode_image(state.cond[:, -1:]).to(state.cond.device, models.apm.dtype)
    return dataclasses.replace(state, anchor=models.apm(embeds))
