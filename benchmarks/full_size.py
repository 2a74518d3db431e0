"""Seconds and memory of the full-size model with random weights: measured on CUDA, computed elsewhere.

    python benchmarks/full_size.py                  # what the tensors of a step take, computed without any weight
    python benchmarks/full_size.py --measure        # seconds and peak memory of each part: on CUDA of the full size
    python benchmarks/full_size.py --convert 3      # peak memory of st2v convert on a made file of full size

Random weights are as large and as fast as trained ones. Their pictures mean nothing and none is made. What is computed
adds up tensors that live at the same time, with fused attention; an allocator needs some more. What is measured is in
``full_size_measured.py``; ``--preset tiny`` tries the same rows on any device. "the released way" of a denoising step
computes again at each step what is constant over a chunk, as the released code does.
"""

from __future__ import annotations

import argparse
import dataclasses
import gzip
import json
import platform
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from full_size_measured import GB, measure, released_way, rows_of, stage2
from torch.utils.flop_counter import FlopCounterMode

from st2v_lib.backbone import make_unet, make_vae
from st2v_lib.blending import chunk_starts
from st2v_lib.cam import Cam
from st2v_lib.config import MODELSCOPE, PRESETS, preset
from st2v_lib.enhancer import enhance_latents, shape_quirks, unet_denoiser
from st2v_lib.memory import RUNGS, PeakCounter, chunk_feed_forward, device_class
from st2v_lib.sampling import guided, make_predictor
from st2v_lib.training.checkpointing import checkpoint_blocks

TEXT, DIM = 77, 1024


def weight_bytes(*nets: torch.nn.Module) -> float:
    """Bytes of their parameters."""
    return sum(p.numel() * p.element_size() for net in nets for p in net.parameters())


@torch.no_grad()
def computed() -> dict[str, dict[str, float]]:
    """GB of weights and of other tensors, for the steps that set the peak; of a denoising step also its TFLOP."""
    rows = {}
    unet, cam, apm, x, cond, contexts = stage2("meta", torch.float16, MODELSCOPE)
    cond = torch.empty(cond.shape, device="meta")
    t = torch.zeros((), device="meta")
    cam.extractor.encode_condition = lambda c: cam.extractor.cond_encoder(c.half().flatten(0, 1)).unflatten(0, (-1, 8))
    ways = {"": make_predictor(unet, cam, cond), ", the released way": released_way(unet, cam, cond)}
    for way, predict in ways.items():
        guided(predict, x, t, contexts)  # what is kept over a chunk
        with PeakCounter() as counter:
            guided(predict, x, t, contexts)
        with FlopCounterMode(display=False) as flop:
            guided(predict, x, t, contexts)
        row = {"weights": weight_bytes(unet, cam, apm) / GB, "tensors": counter.peak / GB}
        rows[f"stage 2, a step, 256 px{way}"] = row | {"TFLOP": flop.get_total_flops() / 1e12}
    vae = make_vae(MODELSCOPE.vae).to("meta", torch.float16)
    for frames, side in ((16, (32, 32)), (1, (32, 32)), (8, (90, 160)), (1, (90, 160))):
        with PeakCounter() as counter:
            vae.decode(torch.empty(frames, 4, *side, dtype=torch.float16, device="meta"))
        name = f"VAE, {frames} frames of {8 * side[0]} x {8 * side[1]} px"
        rows[name] = {"weights": weight_bytes(vae) / GB, "tensors": counter.peak / GB}
    with torch.device("meta"):
        enhancer = shape_quirks(make_unet(MODELSCOPE.enhancer.unet).half().eval())
        for rung in RUNGS:
            chunk_feed_forward(enhancer, rung.feed_forward_rows)
            batch = 1 if rung.one_branch else 2
            x = torch.empty(batch, 4, 24, 90, 160, dtype=torch.float16)
            with PeakCounter() as counter:
                enhancer(x, 599, torch.empty(batch, TEXT, DIM, dtype=torch.float16))
            name = f"stage 3, a step, 720 px, rung {rung.name!r}"
            rows[name] = {"weights": weight_bytes(enhancer) / GB, "tensors": counter.peak / GB}
            if rung.name == "16 GB":
                rows[f"stage 3, 240 frames, law 'B', rung {rung.name!r}"] = naive_blending(enhancer, 240)
    with torch.enable_grad():
        return rows | computed_training()


def naive_blending(enhancer: torch.nn.Module, frames: int) -> dict[str, float]:
    """GB of law "B", where every chunk keeps a trajectory: those of a video, while the last chunk is in the network."""
    config = dataclasses.replace(MODELSCOPE.enhancer, blend_law="B", num_inference_steps=2)
    last = len(chunk_starts(frames, config.chunk_frames, config.overlap_frames)) - 1
    text = torch.empty(1, TEXT, DIM, dtype=torch.float16)
    with PeakCounter() as counter:
        low = torch.empty(1, frames, 3, MODELSCOPE.size, MODELSCOPE.size)
        latents = torch.empty(1, 4, frames, 90, 160, dtype=torch.float16)
        with torch.device("cpu"):  # noise, its keys and the schedule are numbers
            network = unet_denoiser(enhancer, text, text, config)
            denoise = lambda x, t, k: network(x, t, k) if k == last else torch.empty_like(x)  # noqa: E731
            enhance_latents(latents, denoise, config, torch.Generator().manual_seed(0))
    assert low.is_meta
    return {"weights": weight_bytes(enhancer) / GB, "tensors": counter.peak / GB}


def computed_training() -> dict[str, dict[str, float]]:
    """GB of phase-1 training, batch 1, frozen UNet in bfloat16: what is held, and what the forward pass leaves."""
    rows = {}
    for checkpointing in (False, True):
        with torch.device("meta"):
            unet = make_unet(MODELSCOPE.unet).bfloat16().requires_grad_(False)
            cam = Cam.from_configs(MODELSCOPE.unet, MODELSCOPE.cam).bfloat16().attach(unet)
            x, tokens = torch.empty(1, 4, 16, 32, 32).bfloat16(), torch.empty(1, TEXT, DIM).bfloat16()
            features = torch.empty(1, 8, 320, 32, 32).bfloat16()
            if checkpointing:
                checkpoint_blocks(unet), checkpoint_blocks(cam)
            with PeakCounter() as counter:
                out = unet(x, 500, tokens, cam(x, 500, tokens, cond_features=features))
        assert out.requires_grad
        trained = sum(p.numel() for p in cam.parameters())
        held = weight_bytes(unet) + trained * 4 * 5  # weight, gradient, two moments, average: float32
        name = f"train cam, batch 1, {'with' if checkpointing else 'without'} checkpointing"
        rows[name] = {"weights": held / GB, "tensors": counter.peak / GB}
    return rows


# ---------------------------------------------------------------------------------------------------------- conversion

WORK = """
import json, resource, sys, time
from st2v_lib.convert import convert
start = time.perf_counter()
convert(sys.argv[1], sys.argv[2])
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps({"seconds": time.perf_counter() - start, "peak": peak / 1e9}))
"""


def made_checkpoint(path: Path, keys: Path) -> None:
    """A file of the released names, shapes and size, in float32 and empty: its bytes take no room on most disks."""
    names = json.loads(gzip.decompress(keys.read_bytes()))
    with torch.device("meta"):
        state = {name: torch.empty(shape) for name, shape in names.items()}
    with torch.serialization.skip_data():
        torch.save({"state_dict": {name: torch.empty_like(v, device="cpu") for name, v in state.items()}}, path)


def convert_memory(limit_gb: float) -> dict[str, float]:
    """Peak memory of the conversion of such a file, in a process of its own; 4.3 GB are written and removed."""
    keys = Path(__file__).parent.parent / "tests" / "full_size" / "official_keys.json.gz"
    with tempfile.TemporaryDirectory() as folder:
        made_checkpoint(Path(folder) / "made.ckpt", keys)
        command = [sys.executable, "-c", WORK, f"{folder}/made.ckpt", f"{folder}/out"]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    found["limit"] = limit_gb
    return found


def line(name: str, values: dict[str, float | str]) -> str:
    """A row as text."""
    numbers = (v if isinstance(v, str) else f"{key} {v:8.3f}" for key, v in values.items())
    return f"{name:<62}" + "   ".join(numbers)


def main() -> None:
    """Prints one table; measured rows as they come."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--measure", action="store_true", help="seconds and memory of every row")
    parser.add_argument("--preset", choices=tuple(PRESETS), help="to measure (default: modelscope on CUDA, else tiny)")
    parser.add_argument("--device", help="to measure on (default: cuda where there is one, else cpu)")
    parser.add_argument("--only", metavar="PATTERN", default="", help="measure rows in whose name it is found")
    parser.add_argument("--convert", type=float, metavar="GB", help="limit of the conversion's memory")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers there")
    args = parser.parse_args()
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    cfg = preset((args.preset or ("modelscope" if device.type == "cuda" else "tiny")) if args.measure else "modelscope")
    machine = f"{platform.machine()}, torch {torch.__version__}"
    if args.measure:
        machine += f", {device_class(device)}"
    kind = "measured" if args.measure or args.convert else "computed on meta tensors, not measured"
    print(f"{cfg.name} on {machine}: {kind}", flush=True)
    if args.measure:
        if cfg.name == "modelscope" and device.type != "cuda":
            parser.error("the full size is measured on CUDA; there, or with --preset tiny")
        wanted = {name: row for name, row in rows_of(cfg, device).items() if re.search(args.only, name)}
        rows = measure(wanted, lambda name, values: print(line(name, values), flush=True))
    else:
        rows = {"convert a file of the released size": convert_memory(args.convert)} if args.convert else computed()
        for name, values in rows.items():
            print(line(name, values))
    if args.json:
        config = dataclasses.asdict(cfg)
        words = [word.replace(str(args.json), args.json.name) for word in sys.argv[1:]]  # no folder of this machine
        how = {"command": f"python benchmarks/full_size.py {shlex.join(words)}", "machine": machine, "kind": kind}
        args.json.write_text(json.dumps({**how, "rows": rows, "config": config}, indent=1) + "\n")


if __name__ == "__main__":
    main()
