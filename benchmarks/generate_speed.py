"""Seconds and memory of what a user waits for, with the class of machine they were measured on.

    python benchmarks/generate_speed.py [--repeat 3] [--threads 2] [--weights DIR]

A streaming chunk is 8 new frames, guided, with the preset's sampler; an enhancer chunk is 24 frames through all its
steps, VAE included. The best of the repetitions is shown. Speed does not depend on what the weights have learnt, so
random ones are used where there are none. Peak memory is the whole process's; children start Python afresh.
"""

from __future__ import annotations

import argparse
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from st2v_lib.config import StreamingT2VConfig, preset
from st2v_lib.errors import WeightsError
from st2v_lib.loading import load
from st2v_lib.pipeline import StreamingT2VPipeline

PROMPT = "a red circle bounces over green stripes"
BUDGETS = {  # seconds, on two cores
    "streaming chunk, 8 new frames": 1.5,
    "enhancer chunk, 24 frames": 5.0,
    "st2v --help": 1.0,
    "import st2v_lib": 4.0,
}


def random_pipeline(cfg: StreamingT2VConfig) -> StreamingT2VPipeline:
    """A pipeline of that size that has learnt nothing."""
    from transformers import CLIPTextModelWithProjection, CLIPVisionModelWithProjection

    from st2v_lib.apm import Apm
    from st2v_lib.backbone import make_unet, make_vae
    from st2v_lib.cam import Cam
    from st2v_lib.sampling import make_scheduler
    from st2v_lib.training.clip import make_clip
    from st2v_lib.world.captions import make_tokenizer

    unet, clip = make_unet(cfg.unet), make_clip(cfg.clip).config
    pipe = StreamingT2VPipeline(
        vae=make_vae(cfg.vae),
        text_encoder=CLIPTextModelWithProjection(clip.text_config),
        tokenizer=make_tokenizer(),
        unet=unet,
        scheduler=make_scheduler(cfg.scheduler, cfg.sampling.sampler),
        image_encoder=CLIPVisionModelWithProjection(clip.vision_config),
        cam=Cam.from_unet(unet, cfg.cam),
        apm=Apm.from_unet(unet, cfg.apm),
        enhancer=make_unet(cfg.enhancer.unet),
        cfg=cfg,
    )
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
    return pipe


def best(action: Callable[[], object], repeat: int) -> float:
    """Seconds of the fastest of several runs."""
    seconds = []
    for _ in range(repeat):
        start = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, default=None, help="torch threads (default: torch's own choice)")
    parser.add_argument("--weights", type=Path, help="folder of a pipeline (default: the shipped weights)")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    try:
        pipe, kind = load("tiny", "cpu", args.weights), "trained"
    except WeightsError:
        pipe, kind = random_pipeline(preset("tiny")), "random"
    stream = pipe.stream(PROMPT, progress=False)
    video = torch.cat([next(stream), next(stream)], dim=1)
    run = lambda *command: subprocess.run([sys.executable, *command], check=True, capture_output=True)  # noqa: E731
    rows = {
        "base chunk, 16 frames": best(lambda: next(pipe.stream(PROMPT, progress=False)), args.repeat),
        "streaming chunk, 8 new frames": best(lambda: next(stream), args.repeat),
        "enhancer chunk, 24 frames": best(lambda: list(pipe.enhance(video, PROMPT, progress=False)), args.repeat),
        "st2v --help": best(lambda: run("-m", "st2v_lib.cli", "--help"), args.repeat),
        "import st2v_lib": best(lambda: run("-c", "import st2v_lib"), args.repeat),
        "import st2v_lib.pipeline": best(lambda: run("-c", "import st2v_lib.pipeline"), args.repeat),
    }
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, {kind} weights")
    for name, seconds in rows.items():
        budget = f"  (budget {BUDGETS[name]:.1f})" if name in BUDGETS else ""
        print(f"{name:<32} {seconds:>7.2f} s{budget}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(f"{'peak memory':<32} {peak / 1e9:>7.2f} GB (budget 2.00)")


if __name__ == "__main__":
    main()
