"""``st2v train PHASE --minutes N``: every phase by one command, resumable, ending in valid weight files.

Weights of finished phases are read from ``--out`` first and from the shipped ones otherwise; nothing is written over
the shipped weights unless ``--out`` names their folder. A folder beside it, ``<out>-state``, keeps the losses and the
state to resume from.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import functools
import shutil
import time
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers.configuration_utils import ConfigMixin, FrozenDict

from st2v_lib.baselines import RIVALS, rival_class
from st2v_lib.config import StreamingT2VConfig, preset
from st2v_lib.errors import UserError
from st2v_lib.manifest import weights_dir, write_manifest
from st2v_lib.training import common, diffusion, rivals

SHARES = {
    "vae": 0.15,
    "clip": 0.12,
    "reader": 0.08,
    "image": 0.2,
    "base": 0.17,
    "cam": 0.12,
    "apm": 0.08,
    "enhancer": 0.08,
}
PHASES = tuple(SHARES)


def run(args: argparse.Namespace) -> int:
    """Entry point of the command line; see ``st2v train --help``."""
    cfg = preset(args.preset)
    is_arm = args.data is None and (args.source or args.clips is not None or args.phase not in (*PHASES, "all"))
    given = {
        "lr-scale": args.lr_scale != 1, "temporal-lr-scale": args.temporal_lr_scale != 1, "no-ema": args.no_ema,
        "compile": args.compile, "budget": args.budget is not None,
    }  # fmt: skip
    if is_arm and (unused := [f"--{name}" for name, it_is in given.items() if it_is]):
        raise UserError(f"arms of the fair tests are trained alike and have no use for {', '.join(unused)}")
    if args.lr_scale != 1 and (args.data is not None or args.phase not in (*PHASES, "all")):
        raise UserError("--lr-scale is for the phases of the tiny models, not for --data or the arms of the fair tests")
    if args.temporal_lr_scale != 1 and (args.data is not None or args.phase not in ("base", "all")):
        raise UserError("--temporal-lr-scale is for the tiny base alone: st2v train base")
    minutes = 9.0 if args.minutes is None else args.minutes
    numbers = {"batch-scale": args.batch_scale, "lr-scale": args.lr_scale, "temporal-lr-scale": args.temporal_lr_scale}
    for name, value in {"minutes": minutes, **numbers}.items():
        if not 0 < value < float("inf"):
            raise UserError(f"--{name} must be a positive number, got {value}")
    if args.device not in ("auto", "cpu", "cuda"):
        raise UserError(f"training takes --device auto, cpu or cuda, got {args.device!r}; accelerate launch spreads it")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError("CUDA was asked for and there is none here; choose --device cpu")
    if args.data is not None:
        from st2v_lib.training import folder_data

        options = {"compile": args.compile, "graph": args.graph, "clips": args.clips, "budget": args.budget}
        if ignored := [f"--{name}" for name, value in options.items() if value is not None and value is not False]:
            raise UserError(f"--data has no use for {', '.join(ignored)}; --minutes is its budget")
        return folder_data.run(args, cfg, common.accelerator(args.device))
    if cfg.name != "tiny":
        raise UserError("only the tiny preset can be trained from the sprite world; others need --data FOLDER")
    out = Path(args.out or "runs/tiny")
    acc = common.accelerator(args.device)
    if is_arm:
        return rivals.run(args, cfg, acc)
    for phase, budget in budgets(args.budget, args.phase, minutes).items():
        options = {} if phase == "reader" else {"batch_scale": args.batch_scale}
        options |= {"compiled": args.compile, "graphed": args.graph, "seed": args.seed, "lr_scale": args.lr_scale}
        if phase == "base":
            options["temporal_lr_scale"] = args.temporal_lr_scale
        if args.no_ema:
            options["ema_decay"] = 0.0
        train_phase(phase, cfg, out, budget, acc, resume=args.resume, **options)
    return 0


def budgets(text: str | None, phase: str, minutes: float) -> dict[str, float]:
    """Minutes of each phase to be trained.

    Args:
        text: of ``--budget``, ``"image=1,base=2.5"``: these phases alone, in their order; for ``phase="all"`` only.
        phase, minutes: one phase and its budget, or ``"all"`` and the sum of all.

    Raises:
        UserError: for a text that names no phase, or minutes that are no positive number.
    """
    if text is None:
        return {phase: minutes} if phase != "all" else {p: minutes * share for p, share in SHARES.items()}
    if phase != "all":
        raise UserError(f"--budget is for `train all`; for {phase} alone give --minutes")
    try:
        asked = {name: float(value) for name, value in (part.split("=") for part in text.split(","))}
    except ValueError:
        asked = {}
    if not asked or not set(asked) <= set(PHASES) or not all(0 < m < float("inf") for m in asked.values()):
        raise UserError(f"--budget takes phases with minutes, like image=1,base=2.5; phases: {', '.join(PHASES)}")
    return {p: asked[p] for p in PHASES if p in asked}


def train_phase(
    phase: str,
    cfg: StreamingT2VConfig,
    out: Path,
    minutes: float,
    acc: Accelerator,
    resume: bool = True,
    max_steps: int | None = None,
    seed: int = 0,
    compiled: bool = False,
    graphed: bool = False,
    total_steps: int | None = None,
    lr_scale: float = 1.0,
    temporal_lr_scale: float = 1.0,
    ema_decay: float | None = None,
    **options: object,
) -> dict[str, float]:
    """Trains one phase and writes its weights.

    Args:
        phase: one of :data:`PHASES`.
        cfg: the preset.
        out: folder of component folders; weights found there are the starting point.
        minutes: budget of this run.
        acc: the accelerator.
        resume: go on from ``out/../<name of out>-state`` when it is there; ``False`` starts the phase afresh.
        max_steps: stop earlier.
        seed: of initialisation and data.
        compiled: compile the transformer blocks first (needs a C++ compiler; minutes once, a fifth faster after).
        graphed: record each step as a CUDA graph.
        total_steps: where the whole run ends, resumed parts included; the learning rate then follows steps, not time.
        lr_scale: multiplies the phase's learning rate, for weights that are good already; not for the reader.
        temporal_lr_scale: multiplies that of the base's temporal layers once more.
        ema_decay: of the average of the weights, which is what is written, in place of the phase's; 0 writes the last
            weights. Not for the reader.
        **options: a phase's own, e.g. ``null_anchor=True`` for the APM control.

    Returns:
        What :func:`st2v_lib.training.common.fit` returns.

    Raises:
        UserError: when the weights of an earlier phase are missing, or for an unknown phase.
        OutputError: when ``out`` cannot be written.
    """
    if phase not in (*PHASES, *RIVALS):
        raise UserError(f"unknown phase {phase!r}; choose one of: {', '.join(PHASES)}, all")
    run_dir = common.state_dir(out) / phase
    common.check_writable(out, run_dir)
    if not resume and acc.is_main_process:
        shutil.rmtree(run_dir, ignore_errors=True)
    acc.wait_for_everyone()
    torch.manual_seed(seed)
    if phase == "reader":
        from st2v_lib.training import reader

        result = reader.train(minutes, out / "reader", run_dir, str(acc.device), seed, max_steps)
        if acc.is_main_process:
            write_manifest(out)
        return result
    rates = lr_scale, temporal_lr_scale
    step, batches, fit_config, finish, groups = _prepare(phase, cfg, out, minutes, acc, resume, seed, options, *rates)
    if compiled:
        common.compile_blocks(step)
    given = {"max_steps": max_steps, "total_steps": total_steps, "seed": seed, "graphed": graphed}
    given |= {} if ema_decay is None else {"ema_decay": ema_decay}
    fit_config = dataclasses.replace(fit_config, **given)
    with diffusion.fast_attention(acc.device):
        result = common.fit(step, batches, fit_config, run_dir, acc, groups)
    if acc.is_main_process:
        from st2v_lib.loading import write_index

        finish()
        write_index(out, cfg)
        write_manifest(out)
    acc.wait_for_everyone()
    return result


def find(out: Path, component: str) -> Path:
    """The folder of a component's weights: in ``out`` or among the shipped ones.

    Raises:
        UserError: when it is in neither.
    """
    for place in (out, weights_dir("tiny")):
        if (place / component / "config.json").exists():
            return place / component
    raise UserError(
        f"no weights of {component!r} in {out} or {weights_dir('tiny')}; train the phases in order: {', '.join(PHASES)}"
    )


def load(cls: type, out: Path, component: str, device: torch.device):
    """A component in float32 on the device."""
    return cls.from_pretrained(find(out, component)).float().to(device)


def _fresh_or_saved(cls: type, out: Path, component: str, make, resume: bool):
    """The component as saved in ``out``, or a new one."""
    if resume and (out / component / "config.json").exists():
        return cls.from_pretrained(out / component).float()
    return make()


def _prepare(
    phase: str,
    cfg: StreamingT2VConfig,
    out: Path,
    minutes: float,
    acc: Accelerator,
    resume: bool,
    seed: int,
    options: dict,
    lr_scale: float = 1.0,
    temporal_lr_scale: float = 1.0,
):
    """The step module, batch function, optimiser numbers, writer and parameter groups of a phase."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextModelWithProjection, CLIPVisionModelWithProjection

    from st2v_lib.apm import Apm
    from st2v_lib.backbone import PatchedAutoencoderKL, StreamingUNet, make_unet, make_vae
    from st2v_lib.cam import Cam
    from st2v_lib.training import apm, base, cam, clip, enhancer, vae

    fit = lambda lr, **kw: common.FitConfig(phase, minutes, lr=lr * lr_scale, **kw)  # noqa: E731
    saved = lambda cls, component, make: _fresh_or_saved(cls, out, component, make, resume)  # noqa: E731
    if phase == "vae":
        model = saved(PatchedAutoencoderKL, "vae", lambda: make_vae(cfg.vae))
        if (out / "unet" / "config.json").exists():  # a base was trained on these latents: they may not change
            model.encoder.requires_grad_(False)
            model.quant_conv.requires_grad_(False)
        return (
            vae.VaeStep(model),
            vae.make_batch(seed, device=acc.device, **options),
            fit(1e-3, decay=0.5),
            lambda: vae.finish(model, out / "vae"),
            None,
        )
    if phase == "clip":
        model = clip.make_clip(cfg.clip)
        if resume and (out / "text_encoder" / "config.json").exists():
            clip.restore(model, out)
        if (out / "unet" / "config.json").exists():  # a base was trained on these text tokens: they may not change
            model.text_model.requires_grad_(False)
        batches = clip.make_batch(seed, device=acc.device, **options)
        return clip.ClipStep(model), batches, fit(1e-3, decay=0.4), lambda: clip.finish(model, out), None

    frozen = load(PatchedAutoencoderKL, out, "vae", acc.device).requires_grad_(False).eval()
    text = load(CLIPTextModelWithProjection, out, "text_encoder", acc.device)
    rate = scaled(1e-3, options, most=1.0)
    if phase == "image":
        twin = quiet(saved(UNet2DConditionModel, "image_unet", lambda: base.make_image_unet(cfg.unet)))
        batches, config = base.make_image_batch(frozen, seed, **options), fit(rate, decay=0.4, ema_decay=0.999)
        return base.ImageStep(cfg, twin, text), batches, config, lambda: save(twin, out / "image_unet"), None
    if phase == "base":
        unet = quiet(saved(StreamingUNet, "unet", lambda: make_unet(cfg.unet)))
        if (out / "image_unet").exists() and not (resume and (out / "unet").exists()):
            base.inflate(unet, load(UNet2DConditionModel, out, "image_unet", torch.device("cpu")))
        module, config = base.BaseStep(cfg, unet, text), fit(rate, decay=0.4, ema_decay=0.999)
        batches, groups = base.make_batch(frozen, seed, **options), module.groups(config.lr, temporal_lr_scale)
        return module, batches, config, lambda: save(unet, out / "unet"), groups
    if phase == "enhancer":
        unet = quiet(saved(StreamingUNet, "enhancer", lambda: make_unet(cfg.enhancer.unet)))
        batches = enhancer.make_batch(cfg, frozen, seed, **options)
        return enhancer.EnhancerStep(unet, text), batches, fit(1e-3), lambda: save(unet, out / "enhancer"), None

    unet = quiet(load(StreamingUNet, out, "unet", acc.device))
    if phase in (*RIVALS, "cam"):
        began, cls = time.monotonic(), Cam if phase == "cam" else rival_class(phase)
        begun = resume and (common.state_dir(out) / phase / "state.pt").exists()
        prime = options.pop("primed", phase == "cam") and not begun
        guide = cam.GUIDE * options.pop("guided", phase == "cam")
        make = functools.partial((cam if issubclass(cls, Cam) else rivals).make_batch, cfg, frozen, seed, **options)
        fresh = lambda: Cam.from_unet(unet, cfg.cam) if cls is Cam else rivals.prepare(phase, cfg, unet, frozen)  # noqa: E731
        start = (lambda: cam.primed(fresh(), unet, make(), acc.device, minutes)) if prime else fresh
        memory = rivals.with_vae(quiet(saved(cls, phase, start)), frozen)
        minutes = max(minutes / 2, minutes - (time.monotonic() - began) / 60)  # priming took its share
        step = cam.CamStep(cfg, unet, text, memory, guide=guide)
        return step, make(), fit(scaled(5e-4, options)), lambda: save(memory, out / phase), None
    memory = quiet(load(Cam, out, "cam", acc.device))
    image = load(CLIPVisionModelWithProjection, out, "image_encoder", acc.device)
    anchor = saved(Apm, "apm", lambda: Apm.from_unet(unet, cfg.apm))
    train = {name: bool(options.pop(f"train_{name}", False)) for name in ("unet", "cam")}
    module = apm.ApmStep(cfg, unet, text, image, memory, anchor, train["unet"], train_cam=train["cam"])

    def finish() -> None:
        for name, part in (("apm", anchor), ("cam", memory), ("unet", unet)):
            if train.get(name, True):
                save(part, out / name)

    config = fit(scaled(2e-3, options))
    groups = module.groups(config.lr, cam=0.15, unet=0.05)  # these are good already
    return module, apm.make_batch(cfg, frozen, seed, **options), config, finish, groups


def scaled(lr: float, options: dict, most: float = 2.0) -> float:
    """The learning rate for another batch size: by the square-root rule, at most ``most`` times."""
    return lr * min(most, float(options.get("batch_scale", 1.0)) ** 0.5)


def quiet(module: torch.nn.Module) -> torch.nn.Module:
    """Dropout off: it costs a sixth of the time and these models underfit."""
    for m in module.modules():
        if isinstance(m, torch.nn.Dropout):
            m.p = 0.0
    return module


STEP = 0.08  # of what weights are rounded to, over their tensor's spread; the base's loss rises by 0.1 to 0.6 %
FEW = 2000  # elements of a tensor that is not rounded


@torch.no_grad()
def save(module: torch.nn.Module, folder: Path) -> None:
    """Writes a component as fp16 safetensors in diffusers' layout, rounded so that git packs it to half its size.

    The module is left as it was: training goes on from its own weights.
    """
    packed = copy.deepcopy(module).cpu()
    for weight in packed.parameters():
        if weight.numel() >= FEW and weight.std() > 0:
            step = 2.0 ** (STEP * weight.std()).log2().floor()
            weight.copy_((weight / step).round() * step)
    if isinstance(packed, ConfigMixin):  # where it was loaded from says nothing of it
        kept = {name: value for name, value in packed.config.items() if name != "_name_or_path"}
        packed._internal_dict = FrozenDict(kept)
    common.save_folder(folder, packed.half().save_pretrained)
