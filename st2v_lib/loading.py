"""The shipped weights as a pipeline: intact, complete, ready to use; and the index that makes a folder one."""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Iterator
from pathlib import Path

import diffusers
import torch
import transformers

from st2v_lib.checks import check_device
from st2v_lib.config import StreamingT2VConfig
from st2v_lib.config import preset as preset_config
from st2v_lib.errors import InputError, WeightsError, first_line
from st2v_lib.manifest import require_intact, weights_dir
from st2v_lib.memory import Ladder
from st2v_lib.pipeline import StreamingT2VPipeline
from st2v_lib.sampling import make_scheduler

INDEX = "model_index.json"
CLASSES = {  # what the folder of each component holds
    "vae": ("st2v_lib", "PatchedAutoencoderKL"),
    "text_encoder": ("transformers", "CLIPTextModelWithProjection"),
    "tokenizer": ("transformers", "PreTrainedTokenizerFast"),
    "unet": ("st2v_lib", "StreamingUNet"),
    "image_encoder": ("transformers", "CLIPVisionModelWithProjection"),
    "cam": ("st2v_lib", "Cam"),
    "apm": ("st2v_lib", "Apm"),
    "enhancer": ("st2v_lib", "StreamingUNet"),
    "base": ("st2v_lib", "StreamingUNet"),
}
DENOISERS = ("unet", "cam", "apm", "enhancer", "base")  # what bfloat16 speeds up in the tiny preset
REQUIRED = ("vae", "text_encoder", "tokenizer", "unet")


def load(
    preset: str = "tiny",
    device: str = "auto",
    folder: str | Path | None = None,
    memory: str = "auto",
    dtype: torch.dtype | None = None,
) -> StreamingT2VPipeline:
    """The pipeline of a preset, from the weights that come with the kit.

    Args:
        preset: ``"tiny"``, or ``"modelscope"`` once ``st2v download`` has fetched its public weights.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``.
        folder: other weights than the kit's.
        memory: rung of ``memory.RUNGS`` that the full-size model starts on; ``"auto"`` goes by what is free.
        dtype: ``torch.float16``, ``bfloat16`` or ``float32`` for ``modelscope``; ``None``: float16 on CUDA, else
            float32. With bfloat16 ``tiny`` keeps VAE and CLIP in float32: faster on processors that multiply it.

    Raises:
        InputError: unknown preset, rung or dtype.
        DeviceError: a device that is not there.
        WeightsError: weights that are missing, damaged or made for another config, with what to do about it.
    """
    try:
        cfg = preset_config(preset)
    except ValueError as error:
        raise InputError(str(error)) from None
    tiny = cfg.name == "tiny"
    choices = (torch.float32, torch.bfloat16) if tiny else (torch.float16, torch.bfloat16, torch.float32)
    if dtype not in (None, *choices):
        raise InputError(
            f"dtype: {preset!r} runs in {', '.join(_type_name(t) for t in choices)}, got {_type_name(dtype)}"
        )
    target, folder = check_device(device), Path(folder or weights_dir(preset))
    if not folder.is_dir() or not any(folder.iterdir()):
        way = "st2v train all" if cfg.name == "tiny" else "its public weights are not part of the kit: st2v download"
        raise WeightsError(f"there are no weights of {preset!r} in {folder}: {way}")
    if cfg.name != "tiny":
        _require_downloaded(folder)
    else:
        shipped = folder.resolve() == weights_dir(preset).resolve()
        require_intact(folder, None if shipped else "They do not come with the kit: st2v train writes such a folder")
    if not (folder / INDEX).is_file():
        missing = [name for name in REQUIRED if not (folder / name).is_dir()]
        raise WeightsError(
            f"{folder} is no pipeline: {', '.join(missing) or INDEX} missing; finish the training of the base model"
        )
    if dtype is None:
        dtype = torch.float16 if cfg.name == "modelscope" and target.type == "cuda" else torch.float32
    with _quiet():
        try:
            whole = torch.float32 if tiny else dtype
            pipe = StreamingT2VPipeline.from_pretrained(folder, local_files_only=True, torch_dtype=whole)
        except WeightsError:
            raise
        except Exception as error:  # a damaged or foreign file makes many kinds
            raise WeightsError(f"the weights in {folder} cannot be loaded: {first_line(error)}") from error
        if cfg.name == "modelscope" and target.type == "cuda":
            pipe.ladder = Ladder(pipe, target, memory)
            return pipe
        pipe.to(target, whole)
        for part in DENOISERS if tiny else ():
            if (module := getattr(pipe, part, None)) is not None:
                torch.nn.Module.to(module, dtype)  # past diffusers' override, which warns
        return pipe


def _require_downloaded(folder: Path) -> None:
    """Weights that do not come with the kit are there; sizes are compared, digests are left to ``st2v doctor``."""
    absent = [name for name in CLASSES if not (folder / name).is_dir()]
    if absent and not (folder / INDEX).is_file():
        raise WeightsError(
            f"{folder} is no pipeline yet, {', '.join(absent)} missing: st2v download --out {folder} fetches and makes "
            f"all that is not there; st2v convert SOURCE --out {folder} makes unet, cam, apm, enhancer alone"
        )
    require_intact(
        folder,
        f"Remove what is damaged and make it again with st2v download --out {folder} (or st2v convert)",
        digests=False,
    )


def write_index(folder: str | Path, cfg: StreamingT2VConfig) -> bool:
    """Makes a folder of trained components a pipeline: writes ``model_index.json`` and the scheduler's folder.

    Components that are not there yet are left out; without the base model nothing is written.

    Returns:
        Whether the folder is a pipeline now.
    """
    folder = Path(folder)
    if not all((folder / name).is_dir() for name in REQUIRED):
        return False
    scheduler = make_scheduler(cfg.scheduler, cfg.sampling.sampler)
    scheduler.save_pretrained(folder / "scheduler")
    found = {name: entry if (folder / name).is_dir() else (None, None) for name, entry in CLASSES.items()}
    if not (folder / "image_encoder").is_dir():
        found["apm"] = (None, None)
    kinds = json.loads((folder / "text_encoder" / "config.json").read_text()).get("architectures")
    found["text_encoder"] = ("transformers", (kinds or [CLASSES["text_encoder"][1]])[0])  # public ones: no projection
    index = {
        "_class_name": "StreamingT2VPipeline",
        "_diffusers_version": diffusers.__version__,
        **found,
        "scheduler": ("diffusers", type(scheduler).__name__),
        "cfg": json.loads(cfg.to_json()),
    }
    unfinished = folder / f".{INDEX}.part"
    unfinished.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
    unfinished.replace(folder / INDEX)
    return True


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the progress bars of loading, which takes a second, and diffusers' remark on every change of type."""
    logs = [diffusers.utils.logging, transformers.utils.logging]
    shown = [log for log in logs if log.is_progress_bar_enabled()]
    for log in shown:
        log.disable_progress_bar()
    verbosity = diffusers.utils.logging.get_verbosity()
    diffusers.utils.logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # `torch_dtype`: the only name that old versions know
            yield
    finally:
        diffusers.utils.logging.set_verbosity(verbosity)
        for log in shown:
            log.enable_progress_bar()


def _type_name(dtype: object) -> str:
    return str(dtype).removeprefix("torch.")
