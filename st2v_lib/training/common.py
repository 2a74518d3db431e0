"""The loop that every phase shares: a time budget, gradient clipping, EMA, a log file, and checkpoints to resume from.

A phase gives a module whose ``forward(batch)`` returns the loss and what to log, and a function that makes batch number
``n``. Batches depend on ``(seed, rank, n)`` only, so a resumed run goes on with fresh data.
"""

from __future__ import annotations

import csv
import os
import random
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.training_utils import EMAModel
from torch import nn
from tqdm.auto import tqdm

from st2v_lib.errors import OutputError, WeightsError, first_line
from st2v_lib.training.graphed import GraphedPass

WARMUP_SHARE = 0.05
SAVE_SHARE = 0.02


@dataclass(frozen=True)
class FitConfig:
    """How one phase is optimised. ``minutes`` is this run's budget; the learning rate falls over its last ``decay``.

    With ``total_steps``, resumed ones included, it follows the steps, ``minutes`` only ends this run, and at most
    :data:`WARMUP_SHARE` of the steps are warm-up. ``graphed`` records the step as a CUDA graph, where there is CUDA.
    ``ema_decay`` 0 leaves the last weights in place of an average. Saving takes at most :data:`SAVE_SHARE` of the time,
    so where a state is large it comes less often than every ``save_seconds``.
    """

    name: str
    minutes: float
    lr: float = 1e-3
    weight_decay: float = 0.01
    warmup_steps: int = 100
    decay: float = 0.25
    ema_decay: float = 0.998
    clip: float = 1.0
    save_seconds: float = 120.0
    max_steps: int | None = None
    total_steps: int | None = None
    seed: int = 0
    graphed: bool = False


def multiplies_bf16(device: torch.device | str) -> bool:
    """Does the processor multiply bfloat16 faster than float32?"""
    if torch.device(device).type == "cuda":
        return torch.cuda.is_bf16_supported()
    units = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")  # 1.7 times faster training with the second alone
    return any(getattr(torch.cpu, unit, lambda: False)() for unit in units)


def fast_math(device: torch.device | str):
    """Autocast to bfloat16 where that is faster, for frozen networks that only prepare data."""
    device = torch.device(device)
    return torch.autocast(device.type, torch.bfloat16, enabled=multiplies_bf16(device))


def accelerator(device: str = "auto") -> Accelerator:
    """An accelerator in bfloat16 where the processor multiplies it fast, in float32 elsewhere."""
    cpu = device == "cpu" or not torch.cuda.is_available()
    fast = multiplies_bf16("cpu" if cpu else "cuda")
    return Accelerator(mixed_precision="bf16" if fast else "no", cpu=cpu)


def compile_blocks(module: nn.Module) -> None:
    """Compiles an image UNet whole and every transformer block of a video UNet, whose rest gains nothing on a CPU."""
    torch._dynamo.config.recompile_limit = 64  # all blocks share one code object and differ in shape
    images = [m for m in module.modules() if isinstance(m, UNet2DConditionModel)]
    for part in images or [m for m in module.modules() if isinstance(m, BasicTransformerBlock)]:
        part.compile(dynamic=False)


def save_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Calls ``write`` with a temporary name beside ``path`` and renames the result, so no half-written file is left."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """As ``save_atomically``, for a component's folder: each file gets its name when all are whole, the config last."""
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        write(part)
        folder.mkdir(parents=True, exist_ok=True)
        for file in sorted(part.iterdir(), key=lambda f: f.name == "config.json"):
            os.replace(file, folder / file.name)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def check_writable(*folders: Path) -> None:
    """Makes the folders and a file in each, to be removed at once: better to know before the training than after it.

    Raises:
        OutputError: when one cannot be written.
    """
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            probe = folder / f".write.{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise OutputError(f"{folder} cannot be written: {error.strerror}; name another place with --out") from None


def state_dir(out: Path) -> Path:
    """Where the losses and the states of a run lie that writes to ``out``."""
    return out.parent / f"{out.name}-state"


def noise_seed(seed: int, rank: int, step: int) -> int:
    """The seed of a run's noise and timesteps: another for each process and each step gone on from."""
    return seed + 1 + rank if step == 0 else random.Random(f"noise/{seed}/{rank}/{step}").randrange(2**31)


def fit(
    step_module: nn.Module,
    make_batch: Callable[[int, int], Any],
    cfg: FitConfig,
    run_dir: Path,
    acc: Accelerator,
    groups: list[dict[str, Any]] | None = None,
) -> dict[str, float]:
    """Trains the trainable parameters of ``step_module`` and leaves their average in it. Seeds torch's generators.

    Args:
        step_module: ``forward(batch) -> (loss, {name: scalar})``; if it has a ``prepare(batch)``, that comes first.
        make_batch: ``(rank, n) -> batch`` of tensors, moved to the device here.
        cfg: the budget and the optimiser's numbers.
        run_dir: where ``state.pt`` (resumed when present) and ``log.csv`` go.
        acc: the accelerator; under ``accelerate launch`` gradients are averaged over its processes.
        groups: parameter groups with their own ``lr``; all trainable parameters when ``None``.

    Returns:
        The last logged values, with ``step`` and ``seconds``.
    """
    names, trainable = zip(*((n, p) for n, p in step_module.named_parameters() if p.requires_grad))
    names, trainable = list(names), list(trainable)
    fused = acc.device.type == "cuda"
    step_module.to(acc.device)
    optimizer = torch.optim.AdamW(
        groups or trainable, lr=cfg.lr, weight_decay=cfg.weight_decay, betas=(0.9, 0.99), fused=fused
    )
    base_lr = [g["lr"] for g in optimizer.param_groups]
    state_file, step, seconds_before, average = run_dir / "state.pt", 0, 0.0, None
    if state_file.exists():
        try:
            state = torch.load(state_file, map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged file makes many kinds
            why = f"{state_file} cannot be read ({first_line(error)})"
            raise WeightsError(f"{why}; remove it to go on from the weights alone") from None
        step, seconds_before = state["step"], state["seconds"]
        same = len(state["optimizer"]["param_groups"]) == len(optimizer.param_groups)
        if same and state.get("names") == names:  # else other parts are trained now: go on from the weights alone
            with torch.no_grad():
                for p, q in zip(trainable, state["model"], strict=True):
                    p.copy_(q)
            optimizer.load_state_dict(state["optimizer"])
            average = state["ema"]
    averaged = trainable if cfg.ema_decay else []
    ema = EMAModel(averaged, decay=cfg.ema_decay, use_ema_warmup=True, power=0.75, foreach=True)
    if average is not None and len(average["shadow_params"]) == len(averaged):  # else averaging starts or ends here
        ema.load_state_dict(average)
    torch.manual_seed(noise_seed(cfg.seed, acc.process_index, step))
    ema.to(acc.device)
    wrapped, optimizer = acc.prepare(step_module, optimizer)

    def one_pass(batch: dict[str, torch.Tensor]):
        with acc.autocast():
            loss, extra = wrapped(batch)
        acc.backward(loss)
        return loss, extra

    prepare = getattr(step_module, "prepare", None)
    if cfg.graphed and acc.device.type == "cuda":
        one_pass = GraphedPass(one_pass, trainable)
    warmup = cfg.warmup_steps
    if cfg.total_steps is not None:
        warmup = max(1, min(warmup, round(WARMUP_SHARE * cfg.total_steps)))
    start = last_save = last_log = time.time()
    first_step, sums, logged, save_every = step, {}, {}, cfg.save_seconds

    def save() -> None:
        if not acc.is_main_process:
            return
        state = {
            "names": names, "model": [p.detach().cpu() for p in trainable], "optimizer": optimizer.state_dict(),
            "ema": ema.state_dict(), "step": step, "seconds": seconds_before + time.time() - start,
        }  # fmt: skip
        save_atomically(state_file, lambda f: torch.save(state, f))

    def log() -> None:
        logged.update({k: float(total) / n for k, (total, n) in sums.items()})
        sums.clear()
        _log(run_dir / "log.csv", step, seconds_before + time.time() - start, logged, acc)
        bar.set_postfix({k: f"{v:.4f}" for k, v in logged.items()} | {"step": step})

    goal, unit = (cfg.total_steps, "step") if cfg.total_steps is not None else (round(cfg.minutes * 60), "s")
    bar = tqdm(total=goal, desc=cfg.name, unit=unit, initial=first_step if unit == "step" else 0,
               disable=not acc.is_main_process)  # fmt: skip
    while True:
        elapsed = time.time() - start
        share = late = elapsed / (cfg.minutes * 60)
        if cfg.total_steps is not None:
            share = step / cfg.total_steps
        enough = cfg.max_steps is not None and step - first_step >= cfg.max_steps
        stop = torch.tensor(float(max(share, late) >= 1 or enough))
        if acc.num_processes > 1:  # all processes stop at the same step
            stop = acc.gather(stop.to(acc.device)[None]).max()
        if stop > 0:
            break
        factor = min(1.0, (step - first_step + 1) / warmup, max(0.02, (1 - share) / cfg.decay))
        for group, lr in zip(optimizer.param_groups, base_lr):
            group["lr"] = lr * factor
        batch = make_batch(acc.process_index, step)
        batch = {k: v.to(acc.device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
        if prepare is not None:
            with acc.autocast():
                batch = prepare(batch)
        loss, extra = one_pass(batch)
        acc.clip_grad_norm_(trainable, cfg.clip)
        optimizer.step()
        optimizer.zero_grad()
        if averaged:
            ema.step(averaged)
        step += 1
        for k, v in {"loss": loss, **extra}.items():
            total, n = sums.get(k, (0.0, 0))
            sums[k] = (total + torch.as_tensor(v).detach(), n + 1)  # stays on the device: no waiting at each step
        now = time.time()
        if now - last_log > 10:
            log()
            last_log = now
        if now - last_save > save_every:
            save()
            last_save = time.time()
            save_every = max(cfg.save_seconds, (last_save - now) / SAVE_SHARE)
        bar.update((step if unit == "step" else min(round(now - start), goal)) - bar.n)
    if sums:  # of the steps since the last line
        log()
    bar.close()
    save()
    if averaged:
        ema.copy_to(averaged)
    trained = sum(p.numel() for p in trainable)
    return {**logged, "step": step, "seconds": seconds_before + time.time() - start, "trained_parameters": trained}


def _log(path: Path, step: int, seconds: float, values: dict[str, float], acc: Accelerator) -> None:
    if not acc.is_main_process:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open("a", newline="") as f:
        writer = csv.writer(f)
        if new:
            writer.writerow(["step", "seconds", "name", "value"])
        writer.writerows([step, f"{seconds:.1f}", k, f"{v:.6g}"] for k, v in values.items())
