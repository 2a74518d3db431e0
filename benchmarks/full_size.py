"""Seconds and memory of the full-size model with random weights: measured on CUDA, computed elsewhere.

    python benchmarks/full_size.py                  # what the tensors of a step take, computed without any weight
    python benchmarks/full_size.py --measure        # seconds of a tiny step; on CUDA, the full size too, by rung
    python benchmarks/full_size.py --convert 3      # peak memory of st2v convert on a made file of full size

Random weights are as large and as fast as trained ones. Their pictures mean nothing and none is made. What is computed
adds up tensors that live at the same time, with fused attention; an allocator needs some more. "the released way" of a
denoising step computes again at each step what is constant over a chunk, as the released code does.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import gzip
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from st2v_lib.apm import Apm, apm_processors
from st2v_lib.backbone import make_unet, make_vae
from st2v_lib.cam import Cam
from st2v_lib.config import MODELSCOPE, TINY, StreamingT2VConfig
from st2v_lib.enhancer import shape_quirks
from st2v_lib.memory import RUNGS, PeakCounter, chunk_feed_forward
from st2v_lib.sampling import Contexts, guided, make_predictor
from st2v_lib.training.checkpointing import checkpoint_blocks

GB = 1e9
TEXT, DIM = 77, 1024


def stage2(device: str, dtype: torch.dtype, cfg: StreamingT2VConfig = MODELSCOPE):
    """UNet, CAM and APM, attached, with random weights; and one chunk's inputs."""
    with torch.device(device):
        unet = make_unet(cfg.unet).to(dtype).eval()
        cam = Cam.from_unet(unet, cfg.cam).attach(unet).eval()
        apm = Apm.from_unet(unet, cfg.apm).attach(unet).eval()
        cells, text, image = cfg.size // cfg.vae.downscale, cfg.apm.text_len, cfg.apm.num_image_tokens
        x = torch.zeros(1, cfg.unet.in_channels, cfg.chunk_frames, cells, cells)
        cond = torch.zeros(1, cfg.cam.num_cond_frames, 3, cfg.size, cfg.size)
        dim = cfg.unet.cross_attention_dim
        tokens = [torch.zeros(1, n, dim, dtype=dtype) for n in (text, text, image, image)]
    return unet, cam, apm, x, cond, Contexts(*tokens)


def released_way(unet, cam, cond) -> Callable:
    """A step that encodes CAM's pixels for both branches and mixes APM's tokens for each frame, as released."""

    def predict(x, t, tokens):
        x = x.to(unet.dtype)
        return unet(x, t, tokens, cam(x, t, tokens, cond=cond.repeat(len(x), 1, 1, 1, 1))).float()

    return predict


def weight_bytes(*nets: torch.nn.Module) -> float:
    """Bytes of their parameters."""
    return sum(p.numel() * p.element_size() for net in nets for p in net.parameters())


@torch.no_grad()
def computed() -> dict[str, dict[str, float]]:
    """GB of weights and of other tensors, for the steps that set the peak."""
    rows = {}
    unet, cam, apm, x, cond, contexts = stage2("meta", torch.float16)
    cond = torch.empty(cond.shape, device="meta")
    t = torch.zeros((), device="meta")
    cam.extractor.encode_condition = lambda c: cam.extractor.cond_encoder(c.half().flatten(0, 1)).unflatten(0, (-1, 8))
    with PeakCounter() as counter:
        guided(make_predictor(unet, cam, cond), x, t, contexts)
    rows["stage 2, a step, 256 px"] = {"weights": weight_bytes(unet, cam, apm) / GB, "tensors": counter.peak / GB}
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
    with torch.enable_grad():
        return rows | computed_training()


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


# ------------------------------------------------------------------------------------------------------ measured, CUDA


@torch.no_grad()
def timed(action: Callable[[], object], repeat: int = 5) -> tuple[float, float]:
    """Seconds of the fastest run after one to warm up, and on CUDA the peak of allocated GB."""
    cuda = torch.cuda.is_available()
    action()
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(repeat):
        start = time.perf_counter()
        action()
        if cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return min(seconds), torch.cuda.max_memory_allocated() / GB if cuda else 0.0


def tiny_step() -> dict[str, dict[str, float]]:
    """Seconds of a denoising step of the tiny model on the CPU, both ways."""
    unet, cam, _, x, cond, contexts = stage2("cpu", torch.float32, TINY)
    ways = {"a step": make_predictor(unet, cam, cond), "a step, the released way": released_way(unet, cam, cond)}
    t = torch.tensor(500)
    return {
        f"tiny, CPU, {name}": {"seconds": timed(functools.partial(guided, predict, x, t, contexts), 20)[0]}
        for name, predict in ways.items()
    }


def measured() -> dict[str, dict[str, float]]:
    """Seconds and peak GB of the same steps on a CUDA device."""
    rows = {}
    unet, cam, apm, x, cond, contexts = stage2("cuda", torch.float16)
    t, predict = torch.tensor(500, device="cuda"), make_predictor(unet, cam, cond)
    seconds, peak = timed(functools.partial(guided, predict, x, t, contexts))
    rows["stage 2, a step, 256 px"] = {"seconds": seconds, "peak": peak}
    slow = released_way(unet, cam, cond)
    seconds, peak = timed(functools.partial(guided, slow, x, t, contexts))
    rows["stage 2, a step, the released way"] = {"seconds": seconds, "peak": peak}
    assert apm_processors(unet)
    del unet, cam, apm, predict, slow
    torch.cuda.empty_cache()
    with torch.device("cuda"):
        enhancer = shape_quirks(make_unet(MODELSCOPE.enhancer.unet).half().eval())
    for rung in RUNGS:
        chunk_feed_forward(enhancer, rung.feed_forward_rows)
        x, tokens = torch.zeros(2, 4, 24, 90, 160).half().cuda(), torch.zeros(2, TEXT, DIM).half().cuda()

        def step(x=x, tokens=tokens, one=rung.one_branch):
            parts = zip(x.split(1), tokens.split(1)) if one else ((x, tokens),)
            return [enhancer(part, 599, text) for part, text in parts]

        seconds, peak = timed(step, 3)
        rows[f"stage 3, a step, 720 px, rung {rung.name!r}"] = {"seconds": seconds, "peak": peak}
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


def main() -> None:
    """Prints one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--measure", action="store_true", help="seconds, and on CUDA memory")
    parser.add_argument("--convert", type=float, metavar="GB", help="limit of the conversion's memory")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers there")
    args = parser.parse_args()
    machine = f"{platform.machine()}, torch {torch.__version__}"
    if args.convert:
        rows = {"convert a file of the released size": convert_memory(args.convert)}
    elif args.measure:
        rows = tiny_step()
        if torch.cuda.is_available():
            machine += f", {torch.cuda.get_device_name()}"
            rows |= measured()
        else:
            print("full size: not measured, there is no CUDA device here")
    else:
        rows = computed()
    kind = "computed on meta tensors, not measured" if not (args.convert or args.measure) else "measured"
    print(f"{machine}: {kind}")
    for name, values in rows.items():
        print(f"{name:<58}" + "".join(f"{key} {value:8.3f}   " for key, value in values.items()))
    if args.json:
        config = dataclasses.asdict(MODELSCOPE)
        args.json.write_text(json.dumps({"machine": machine, "kind": kind, "rows": rows, "config": config}, indent=1))


if __name__ == "__main__":
    main()
