"""Forward and backward pass of a training step as one CUDA graph, recorded once for each shape of batch.

A step of the tiny models is thousands of small kernels, and launching them one by one may well take longer than running
them. Base, CAM, APM, Conc-Cond and Add-Cond have been recorded, on one card: frozen encoders, one of which picks frames
by a mask, work in ``prepare``. The same run with and without a graph has not been timed. The optimiser, clipping and
the average of weights stay outside, as they are.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Batch = dict[str, Tensor]
WARM_UP = 3  # passes before recording: kernels are chosen and buffers made then


class GraphedPass:
    """``run(batch) -> (loss, extra)``, its backward pass included, recorded once for each shape of batch.

    Where recording fails, it says so once and goes on without.
    """

    def __init__(self, run: Callable[[Batch], tuple[Tensor, dict[str, Any]]], parameters: Sequence[nn.Parameter]):
        self.run, self.parameters, self.recorded, self.possible = run, list(parameters), {}, True

    def __call__(self, batch: Batch) -> tuple[Tensor, dict[str, Any]]:
        """Leaves the batch's gradients in the parameters; returns its loss and what is logged with it."""
        key = tuple((name, tuple(v.shape), v.dtype) for name, v in batch.items())
        if self.possible and key not in self.recorded:
            noise = [g.clone_state() for g in torch.cuda.default_generators]
            try:
                self.recorded[key] = self.record(batch)
            except RuntimeError as error:
                for generator, state in zip(torch.cuda.default_generators, noise):
                    generator.graphsafe_set_state(state)  # a failed recording leaves it waiting for the rest
                self.possible = False
                warnings.warn(f"no CUDA graph of this step, it is launched piece by piece: {error}", stacklevel=2)
        if not self.possible:
            self.forget()
            return self.run(batch)
        graph, inputs, gradients, outputs = self.recorded[key]
        for name, kept in inputs.items():
            kept.copy_(batch[name])
        graph.replay()
        for parameter, gradient in zip(self.parameters, gradients):
            parameter.grad = gradient
        return outputs

    def record(self, batch: Batch) -> tuple[Any, Batch, list[Tensor | None], tuple[Tensor, dict[str, Any]]]:
        """The graph, the buffers it reads, and the gradients and outputs that it writes."""
        inputs = {name: v.clone() for name, v in batch.items()}
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                self.forget()
                self.run(inputs)
        torch.cuda.current_stream().wait_stream(side)
        self.forget()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            loss, extra = self.run(inputs)
        return graph, inputs, [p.grad for p in self.parameters], (loss.detach(), extra)

    def forget(self) -> None:
        """Leaves no gradient, so that the next pass writes fresh ones."""
        for parameter in self.parameters:
            parameter.grad = None
