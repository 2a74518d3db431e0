"""Does a louder anchor bring a hidden sprite back as itself? Its guidance weight, or APM's mix, turned up.

    python -m st2v_lib.evaluation.louder_anchor --weight 6
    python -m st2v_lib.evaluation.louder_anchor --gain 2
    python -m st2v_lib.evaluation.louder_anchor --paste

The last turns nothing up: it pastes the carried frames in as well, whose emptiness may keep the sprite away.

The suite ``apm`` waits until generated frames show no sprite, which most cases never do. Here the first chunk is given
the *true* frames without the sprite, so that nearly every case can be read: is a sprite there in the first eight new
frames, where it should hardly be yet, and has what returns the anchor's pattern, shade and size?
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import torch

from st2v_lib.evaluation.apm import NEEDED, STREAM
from st2v_lib.evaluation.cases import hidden_case, rendered
from st2v_lib.evaluation.generate import continue_videos, video_seed
from st2v_lib.evaluation.results import plain
from st2v_lib.evaluation.scoring import identity_values, read
from st2v_lib.evaluation.statistics import interval, paired_difference
from st2v_lib.manifest import weights_dir
from st2v_lib.world.reader import Reader, load_reader

AT_ONCE, CHUNKS = 16, 2


@torch.no_grad()
def returns(pipe, reader: Reader, indices: Sequence[int], split: str = "dev") -> dict[str, dict[int, float]]:
    """Value -> case -> number: ``early``, ``early_true`` (shares of eight frames), ``returned`` and its identity.

    Identity (``pattern_kept``, ``shade_error``, ...) is only of cases in which two frames in a row show a sprite.
    """
    n, out = pipe.cfg.chunk_frames, {}
    for start in range(0, len(indices), AT_ONCE):
        cases = [hidden_case(split, i, STREAM) for i in indices[start : start + AT_ONCE]]
        truth = rendered(cases, 8 + n + 8 * CHUNKS, pipe.cfg.size)
        seeds = [video_seed(0, case.index) for case in cases]
        given = truth[:, 8 : 8 + n]  # its second half is carried, and shows no sprite
        stream = continue_videos(pipe, [c.prompt for c in cases], given, seeds, n + 8 * CHUNKS, truth[:, :1])
        for case, video, true in zip(cases, stream.video, truth, strict=True):
            made = read(video[n:], reader)
            early, early_true = ((r.count[:8] > 0).float().mean() for r in (made, read(true[8 + n :], reader)))
            held = (made.count > 0).float().unfold(0, NEEDED, 1).min(-1).values
            values = {"early": float(early), "early_true": float(early_true), "returned": float(held.any())}
            if held.any():
                values |= identity_values(made[int(held.argmax()) :], read(true[:n], reader))
            for name, value in values.items():
                out.setdefault(name, {})[case.index] = value
    return out


def main() -> None:
    """Command line of this module: the shipped loudness, then the one asked for, on the same cases."""
    from st2v_lib.loading import load

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, default=weights_dir("tiny"), help="a folder with APM")
    parser.add_argument("--weight", type=float, help="anchor_guidance_scale; by default the prompt's")
    parser.add_argument("--gain", type=float, default=1.0, help="of the mix in each of APM's layers")
    parser.add_argument("--paste", action="store_true", help="carried frames pasted in (baselines.replacement)")
    parser.add_argument("--cases", type=int, default=64)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, help="write the numbers to this JSON file")
    args = parser.parse_args()
    pipe = load("tiny", args.device, args.weights, dtype=torch.bfloat16)
    reader = load_reader(pipe.device)
    shipped = returns(pipe, reader, range(args.cases))
    sampling = dataclasses.replace(pipe.cfg.sampling, anchor_guidance_scale=args.weight)
    pipe.cfg = pipe.cfg.replace(sampling=sampling)
    if args.paste:
        pipe.cfg = pipe.cfg.replace(conditioning="cam+replacement")
    for mix in pipe.apm.mixes.values():
        mix.norm.weight.data *= args.gain
        mix.norm.bias.data *= args.gain
    changed = returns(pipe, reader, range(args.cases))
    for name in shipped:
        cells = [interval(list(values[name].values())) for values in (shipped, changed)]
        print(f"{name:>16}: {cells[0]}, n = {cells[0].n};  changed {cells[1]}, n = {cells[1].n};  "
              f"difference {paired_difference(changed[name], shipped[name])}")  # fmt: skip
    if args.out:
        args.out.write_text(json.dumps(plain({"shipped": shipped, "changed": changed}), indent=1) + "\n")


if __name__ == "__main__":
    main()
