"""Seconds of a training step for one image: the 3-D UNet on a single frame, its 2-D twin, and both compiled.

    python benchmarks/training_speed.py [--compile]

Prints milliseconds an image (forward and backward, no optimiser) and the ratio to the first row, all in one run.
Compiling needs a C++ compiler and takes minutes.
"""

from __future__ import annotations

import argparse
import time

import torch

from st2v_lib.backbone import make_unet
from st2v_lib.config import TINY
from st2v_lib.training import base, common, diffusion


def measure(network: torch.nn.Module, inputs: tuple, repeats: int = 3) -> float:
    """Milliseconds an image, after one step to warm up."""

    def step() -> None:
        with common.fast_math("cpu"):
            out = network(*inputs)
            loss = (out if torch.is_tensor(out) else out.sample).float().square().mean()
        loss.backward()

    with diffusion.fast_attention("cpu"):
        step()
        start = time.perf_counter()
        for _ in range(repeats):
            step()
    return (time.perf_counter() - start) / repeats / len(inputs[0]) * 1e3


def main() -> None:
    """Command line of this script."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()
    cfg, n = TINY.unet, args.images
    frames = torch.randn(n, cfg.in_channels, cfg.sample_size, cfg.sample_size)
    rest = (torch.randint(0, 1000, (n,)), torch.randn(n, TINY.apm.text_len, cfg.cross_attention_dim))
    print(f"{torch.get_num_threads()} threads, {n} images a step, bfloat16: {common.multiplies_bf16('cpu')}")
    first = None
    for compiled in (False, True) if args.compile else (False,):
        for name, make, x in (("3-D UNet", make_unet, frames.unsqueeze(2)), ("2-D twin", base.make_image_unet, frames)):
            network = make(cfg)
            if compiled:
                common.compile_blocks(network)
            ms = measure(network, (x, *rest))
            first = first or ms
            label = f"{name}, compiled" if compiled else name
            print(f"{label:20} {ms:7.2f} ms an image, {first / ms:4.1f} times the first")


if __name__ == "__main__":
    main()
