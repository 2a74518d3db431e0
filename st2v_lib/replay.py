"""A denoising step recorded as a CUDA graph: launched once, replayed for the rest of the chunk.

A step of the full-size model is a great many kernels. On a fast card, launching them one by one from Python takes about
twice as long as running them (``data/results/full_size_cuda_3.json``); a recorded graph launches them all at once. What
is computed is the same: the pipeline's frames were, bit for bit, in 1.5 times less time (``full_size_cuda_4.json``).

``ST2V_REPLAY=0`` in the environment switches it off.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

CLOSE = 1e-2  # a replayed step may differ from the computed one by this share of its largest value: other kernels


def replayed(predict: Callable[..., Tensor], *nets: nn.Module) -> Callable[..., Tensor]:
    """``predict``; with CUDA :class:`Replayed`, unless ``ST2V_REPLAY=0`` asks for what is launched kernel by kernel."""
    if os.environ.get("ST2V_REPLAY") == "0" or not torch.cuda.is_available():
        return predict
    return Replayed(predict, *nets)


class Replayed:
    """A step ``(latents, timestep, tokens) -> prediction`` that is computed twice and replayed from then on.

    The first call warms up, the second is computed and recorded beside, and the recording has to give what was
    computed. All begins anew with other tokens, another shape or type, or weights that have moved, as they do when idle
    stages are off-loaded. Where gradients are wanted, a forward hook listens or the latents are not on a CUDA device,
    steps are computed as ever. Where recording fails, so they are for good, and one warning says so.

    Args:
        predict: the step. What it reads besides its arguments must stay where it is and as it is.
        nets: all networks that it runs.
    """

    possible = True  # until it fails once

    def __init__(self, predict: Callable[..., Tensor], *nets: nn.Module):
        self.predict = predict
        self.weights = [t for net in nets for t in (*net.parameters(), *net.buffers())]
        self.modules = [module for net in nets for module in net.modules()]
        self.tokens: Tensor | None = None
        self.kind: tuple[Any, ...] = ()
        self.recording: tuple[Callable[[], object], Tensor, Tensor, Tensor] | None = None

    def __call__(self, latents: Tensor, timestep: Tensor, tokens: Tensor) -> Tensor:
        """The prediction, like ``latents``."""
        if not (self.possible and self.follows(latents, timestep)):
            self.recording, self.kind = None, ()
            return self.predict(latents, timestep, tokens)
        if tokens is not self.tokens or self.kind != self.kind_of(latents, timestep):
            self.recording = None
            found = self.predict(latents, timestep, tokens)
            self.tokens, self.kind = tokens, self.kind_of(latents, timestep)  # now: the call may have moved weights
            return found
        if self.recording is None:
            found = self.predict(latents, timestep, tokens)
            if self.kind == self.kind_of(latents, timestep):
                self.record(latents, timestep, tokens, found)
            return found
        replay, x, t, out = self.recording
        x.copy_(latents), t.copy_(timestep)
        replay()
        return out.clone()

    def follows(self, latents: Tensor, timestep: Tensor) -> bool:
        """Whether a graph could do what is asked for."""
        if torch.is_grad_enabled() or not on_card(latents, timestep):
            return False
        return not any(module._forward_hooks or module._forward_pre_hooks for module in self.modules)

    def kind_of(self, latents: Tensor, timestep: Tensor) -> tuple[Any, ...]:
        """All that a recording is bound to, but for the tokens."""
        shapes = (latents.shape, latents.dtype, timestep.shape, timestep.dtype)
        return (*shapes, *(weight.data_ptr() for weight in self.weights))

    def record(self, latents: Tensor, timestep: Tensor, tokens: Tensor, computed: Tensor) -> None:
        """Records the step; the recording is kept if it gives ``computed``."""
        x, t = latents.clone(), timestep.clone()
        try:
            replay, out = capture(lambda: self.predict(x, t, tokens))
            replay()
            scale = computed.nan_to_num().abs().max().item()
            if not torch.allclose(out, computed, rtol=CLOSE, atol=CLOSE * scale, equal_nan=True):
                raise RuntimeError("replayed, it gives other numbers")
        except RuntimeError as error:  # out of memory is one, too
            Replayed.possible = False
            warnings.warn(f"no CUDA graph of a step, its kernels are launched one by one: {error}", stacklevel=2)
            return
        self.recording = replay, x, t, out


def on_card(*tensors: Tensor) -> bool:
    """Whether all of them are on a CUDA device."""
    return all(isinstance(tensor, Tensor) and tensor.is_cuda for tensor in tensors)


def capture(step: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
    """A function that runs the step again, and where its result then lies; nothing is computed here.

    Raises:
        RuntimeError: when the step does what a graph cannot hold, as waiting for the card.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        out = step()
    return graph.replay, out


def recording() -> bool:
    """Whether a graph is being recorded in this moment, when nothing may be moved and no memory given back."""
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
