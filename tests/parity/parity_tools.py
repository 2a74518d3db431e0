"""Fixtures are in ``conftest.py``; here is what the parity tests import by name.

The recorded weights need no file: they are drawn again, bit for bit, from a seed in the order of the official names.
"""

import gzip
import json
import math
from pathlib import Path

import torch

DATA = Path(__file__).parent / "data"


def read_gz(name):
    return json.loads(gzip.decompress((DATA / name).read_bytes()))


def draw_weights(shapes, seed):
    """Name -> weight: matrices N(0, 1/fan-in), norm scales 1 + 0.2 N, biases 0.1 N; in fp16 steps."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name in sorted(shapes):
        z = torch.randn(shapes[name], generator=generator)
        if name.endswith("alpha"):
            z = z + 0.7 * z.sign()
        elif z.ndim == 1:
            z = 1 + 0.2 * z if name.endswith("weight") else 0.1 * z
        else:
            z = z / math.sqrt(z[0].numel()) * (1.7 if "cond_embedding" in name else 1)
        weights[name] = z.half().float()
    return weights


def error(got, expected):
    """Largest absolute error relative to the largest value."""
    assert got.shape == expected.shape
    return ((got - expected).abs().max() / expected.abs().max()).item()


def frames_from_u8(frames, batch):
    """uint8 frames, batch-major or with a batch axis, to ``b n c h w`` in [-1, 1]."""
    return (frames.float() / 127.5 - 1).reshape(batch, -1, *frames.shape[-3:])
