"""Overlap fidelity: does a chunk repeat the frames it was conditioned on? The most direct reading of CAM.

A chunk of stage 2 makes its first eight frames again, which the previous chunk already showed, and they are thrown
away. Compared with the frames that were carried in they tell how much of the short-term memory arrived: PSNR in dB, and
for the sprite world the distance of the sprites in px of the 64-pixel frame and the share of sprites found again. Not
in the paper.

What it cannot see: the frames that are kept. A chunk may repeat its past faithfully and then leave it. PSNR rewards a
blurred copy; a still scene is easy to repeat.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from st2v_lib.metrics.base import MetricResult, mean

UNITS = {
    "psnr": "dB, higher is better",
    "position": "px at 64, lower is better",
    "found": "share of carried sprites that are found again, higher is better",
}


def overlap_fidelity(discarded: Sequence[Tensor], carried: Sequence[Tensor], reader) -> dict[str, MetricResult]:
    """Scores of the overlaps of one video, chunk by chunk.

    Args:
        discarded: what each chunk made of the frames it was given, ``f 3 h h`` float in [-1, 1] or ``f h h 3`` uint8.
        carried: those frames, in the same order and layout.
        reader: of ``world.reader.load_reader``.

    Returns:
        ``overlap_psnr``, ``overlap_position``, ``overlap_found``: means over chunks, with ``protocol["per_chunk"]``.

    Raises:
        ValueError: no chunk, or parts that do not fit each other.
    """
    from st2v_lib.world import scores

    if not discarded or len(discarded) != len(carried):
        raise ValueError(f"expected one carried part for each discarded one, got {len(discarded)}, {len(carried)}")
    found = [scores.overlap_fidelity(again, before, reader) for again, before in zip(discarded, carried)]
    out = {}
    for part, units in UNITS.items():
        values = [chunk[part] for chunk in found]
        protocol = {"units": units, "per_chunk": values, "frames": len(carried[0])}
        if part == "position":
            protocol |= _reader_position()
        defined = [value for value in values if not math.isnan(value)]
        if not defined:
            protocol["undefined"] = "no sprite in both parts"
        out[f"overlap_{part}"] = MetricResult(f"overlap_{part}", mean(defined), protocol=protocol)
    return out


def _reader_position() -> dict[str, str]:
    from st2v_lib.world.scores import reader_error

    try:
        return {"reader_error": f"{reader_error()['noise']['position']:.2f} px"}
    except (OSError, ValueError, KeyError):
        return {}


@torch.no_grad()
def stream_overlap(models, state, text: Tensor, null_text: Tensor, sampling, num_chunks: int, reader):
    """Runs stage 2 and scores what it throws away.

    Args:
        models, state, text, null_text, sampling: of ``streaming.next_chunk``; one video (a batch of one).
        num_chunks: chunks to make.
        reader: of ``world.reader.load_reader``.

    Returns:
        The results of ``overlap_fidelity`` and the new frames ``1 f 3 h w`` in [-1, 1].
    """
    from st2v_lib.backbone import decode_latents
    from st2v_lib.streaming import next_chunk

    discarded, carried, blocks, last = [], [], [], []
    for _ in range(num_chunks):
        cond = state.cond
        block, state = next_chunk(models, state, text, null_text, sampling, callback=last.append)
        again = decode_latents(models.vae, last[-1].latents[:, :, : cond.shape[1]]).float()
        last.clear()
        carried.append(cond[0].float().cpu())
        discarded.append(again[0].cpu())
        blocks.append(block.cpu())
    return overlap_fidelity(discarded, carried, reader), torch.cat(blocks, 1)
