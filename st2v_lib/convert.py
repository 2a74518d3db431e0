"""``st2v convert FILE --out DIR``: public weights of the paper's models, in this library's layout, as fp16 safetensors.

Three kinds of input are told apart by the names in them: the released Lightning checkpoint, its public safetensors
split, and the enhancer MS-Vid2Vid-XL. Only what differs from public models is kept: UNet, CAM and APM, or the enhancer.
Every name and shape is compared with this library's modules before a byte is written. Tensors are read one by one.

The name maps agree with the published lists of names. They have not yet been run on the real files.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from st2v_lib.checkpoints import map_official_state_dict, map_split_names, map_vid2vid_state_dict
from st2v_lib.config import MODELSCOPE, StreamingT2VConfig
from st2v_lib.errors import OutputError, WeightsError
from st2v_lib.torch_file import Entry, TensorFile, open_safetensors, open_torch_file

SHARD_BYTES = 500_000_000  # held in memory at once, twice while they are written
PUBLIC = ("vae", "text_encoder", "image_encoder")  # the checkpoint's copies of public models
RECORD = "conversion.json"
WEIGHTS = "diffusion_pytorch_model"
SHOWN = 12  # problems listed in an error


@dataclass(frozen=True)
class Converted:
    """What a conversion did: tensors and bytes by component, and how many names of public models were left out."""

    tensors: dict[str, int]
    bytes: dict[str, int]
    public: dict[str, int]


def run(args: argparse.Namespace) -> int:
    """The command; prints what becomes of every tensor."""
    done = convert(args.source, args.out, on_shard=lambda name, i, n: print(f"{name}: part {i} of {n}", flush=True))
    for name, count in done.tensors.items():
        print(f"{name:<9} {count:>5} tensors, {done.bytes[name] / 1e9:.2f} GB")
    for name, count in done.public.items():
        print(f"{name:<13} {count:>5} tensors left out: a public model, loaded from its own source")
    print(args.out)
    return 0


def convert(
    source: str | Path,
    out: str | Path,
    cfg: StreamingT2VConfig = MODELSCOPE,
    dtype: torch.dtype = torch.float16,
    on_shard: Callable[[str, int, int], object] | None = None,
) -> Converted:
    """Converts a file, or a folder of safetensors, into component folders below ``out``.

    Interrupted, it goes on where it stopped when called again. A component with a ``config.json`` is complete.

    Args:
        source: ``streaming_t2v.ckpt``, MS-Vid2Vid-XL's ``.pth``, or the split: a file, or a folder with ``unet``,
            ``controlnet`` and ``resampler`` in it.
        out: gets ``unet``, ``cam`` and ``apm``, or ``enhancer``.
        cfg: the sizes the file must have.
        dtype: of what is written.
        on_shard: called with component, part and number of parts after each one is on disk.

    Raises:
        WeightsError: for a foreign or damaged file, with a list of what is wrong with it.
        OutputError: when ``out`` holds a conversion of another file, or the disk is too small.
    """
    out, file = Path(out), open_source(source)
    states, public, problems = sort_entries(file.entries)
    modules = make_modules(cfg, states)
    problems += compare(states, {name: shapes_of(module) for name, module in modules.items()})
    if problems:
        more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise WeightsError(f"{source} cannot be converted: {'; '.join(problems[:SHOWN])}{more}")
    shards = {name: plan_shards(state, dtype) for name, state in states.items()}
    _check_place(out, file, shards, states, dtype)
    damaged: list[str] = []
    for name, parts in shards.items():
        folder = out / name
        folder.mkdir(parents=True, exist_ok=True)
        for i, names in enumerate(parts):
            path = folder / shard_name(i, len(parts))
            if not damaged and not _is_complete(path, names, states[name]):
                damaged += _write_shard(path, names, states[name], dtype)
            elif damaged:  # no more is written; the rest is read so that all damage is known at once
                damaged += [problem for key in names for problem in _read(key, states[name][key], dtype)[1]]
            if on_shard is not None and not damaged:
                on_shard(name, i + 1, len(parts))
    if damaged:
        more = f"; and {len(damaged) - SHOWN} more" if len(damaged) > SHOWN else ""
        raise WeightsError(f"{source} is damaged, download it again: {'; '.join(damaged[:SHOWN])}{more}")
    for name, parts in shards.items():
        _finish(out / name, modules[name], parts, states[name], dtype)
    sizes = {name: sum(map(_count, state.values())) * dtype.itemsize for name, state in states.items()}
    return Converted({name: len(state) for name, state in states.items()}, sizes, public)


def open_source(source: str | Path) -> TensorFile:
    """The tensors of a checkpoint, a safetensors file, or a folder of safetensors.

    In a folder the files of ``unet/``, ``controlnet/`` and ``resampler/`` (or of those names, ``unet.safetensors``) get
    that prefix unless their names carry one already.

    Raises:
        WeightsError: if nothing readable is there.
    """
    source = Path(source)
    if source.suffix == ".safetensors":
        return open_safetensors({source: ""})
    if not source.is_dir():
        return open_torch_file(source)
    prefixes = {}
    for path in sorted(source.rglob("*.safetensors")):
        part = path.parent.name if path.parent != source else path.name.partition(".")[0]
        with _opened(path) as file:
            bare = not any(name.startswith(("unet.", "controlnet.", "resampler.")) for name in file.keys())
        if part in ("unet", "controlnet", "resampler"):
            prefixes[path] = f"{part}." if bare else ""
        elif not bare:
            prefixes[path] = ""
    if not prefixes:
        raise WeightsError(f"{source} has no safetensors of unet, controlnet or resampler in it")
    return open_safetensors(prefixes)


def sort_entries(entries: Mapping[str, Entry]) -> tuple[dict[str, dict[str, Entry]], dict[str, int], list[str]]:
    """The kept components' state dicts; how many names of public models are left out; and what nobody knows.

    Raises:
        WeightsError: if the names are those of no file this can convert.
    """
    heads = {name.partition(".")[0] for name in entries}
    if "input_blocks" in heads:
        state, strange = map_vid2vid_state_dict(entries)
        states, others = {"enhancer": state}, strange
    elif {"base_model", "controlnet"} & heads:
        states, others = map_official_state_dict(entries if "base_model" in heads else map_split_names(entries))
    else:
        raise WeightsError(
            f"its names begin {', '.join(sorted(heads)[:5])}: neither those of the released checkpoint (base_model., "
            "unet., resampler.) nor of its split (unet., controlnet., resampler.) nor of MS-Vid2Vid-XL (input_blocks.)"
        )
    public = {head: sum(name.partition(".")[0] == head for name in others) for head in PUBLIC}
    strange = [f"{name} is left over" for name in others if name.partition(".")[0] not in PUBLIC]
    return states, {head: count for head, count in public.items() if count}, strange


def shapes_of(module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a module's state."""
    return {key: tuple(value.shape) for key, value in module.state_dict().items()}


def make_modules(cfg: StreamingT2VConfig, components: Mapping[str, object]) -> dict[str, torch.nn.Module]:
    """Those components at that size, without a weight (on the meta device)."""
    from st2v_lib.apm import Apm
    from st2v_lib.backbone import make_unet
    from st2v_lib.cam import Cam

    with torch.device("meta"):
        if "enhancer" in components:
            return {"enhancer": make_unet(cfg.enhancer.unet)}
        unet = make_unet(cfg.unet)
        return {"unet": unet, "cam": Cam.from_configs(cfg.unet, cfg.cam), "apm": Apm.from_unet(unet, cfg.apm)}


def compare(states: Mapping[str, Mapping[str, Entry]], expected: Mapping[str, Mapping[str, tuple]]) -> list[str]:
    """One line for each name that is missing or left over, has another shape, or is not of a floating type."""
    problems = []
    for name, shapes in expected.items():
        state = states[name]
        problems += [f"{name}: {key} is missing" for key in shapes.keys() - state.keys()]
        problems += [f"{name}: {key} is left over" for key in state.keys() - shapes.keys()]
        for key in shapes.keys() & state.keys():
            if state[key].shape != shapes[key]:
                problems.append(f"{name}: {key} has shape {state[key].shape} instead of {shapes[key]}")
            elif not state[key].dtype.is_floating_point:
                problems.append(f"{name}: {key} has type {state[key].dtype}")
    return sorted(problems)


def plan_shards(state: Mapping[str, Entry], dtype: torch.dtype, limit: int | None = None) -> list[list[str]]:
    """Names in order, cut into parts of at most ``limit`` bytes, or of one larger tensor."""
    limit = limit or SHARD_BYTES
    parts, size = [[]], 0
    for name in sorted(state):
        count = _count(state[name]) * dtype.itemsize
        if parts[-1] and size + count > limit:
            parts.append([])
            size = 0
        parts[-1].append(name)
        size += count
    return parts


def shard_name(index: int, count: int) -> str:
    """diffusers' file name of a part."""
    return f"{WEIGHTS}.safetensors" if count == 1 else f"{WEIGHTS}-{index + 1:05d}-of-{count:05d}.safetensors"


def _count(entry: Entry) -> int:
    return math.prod(entry.shape)


def _opened(path: Path):
    try:
        return safe_open(path, "pt")
    except Exception as error:
        raise WeightsError(f"{path} is damaged or no safetensors file: {error}") from None


def _check_place(out: Path, file: TensorFile, shards: Mapping, states: Mapping, dtype: torch.dtype) -> None:
    """Refuses a folder with another conversion in it, or a disk that is too small; notes what is about to be made."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        known = json.loads((out / RECORD).read_text()) if (out / RECORD).exists() else {}
    except (OSError, ValueError) as error:
        raise OutputError(f"{out} cannot be written to: {error}") from None
    now = {name: {"fingerprint": file.fingerprint, "dtype": str(dtype), "parts": len(shards[name])} for name in states}
    for name in states:
        if known.get(name, now[name]) != now[name] or ((out / name).exists() and name not in known):
            raise OutputError(f"{out / name} was made from another file; choose another --out, or delete it")
    needed = 0
    for name, parts in shards.items():
        for i, names in enumerate(parts):
            if not (out / name / shard_name(i, len(parts))).exists():
                needed += sum(_count(states[name][key]) for key in names) * dtype.itemsize
    free = shutil.disk_usage(out).free
    if needed > free:
        raise OutputError(f"{out} needs {needed / 1e9:.1f} GB and its disk has {free / 1e9:.1f} GB free")
    _replace(out / RECORD, json.dumps(known | now, indent=1) + "\n")


def _read(name: str, entry: Entry, dtype: torch.dtype) -> tuple[torch.Tensor | None, list[str]]:
    """A tensor in its new type, or what is wrong with it."""
    try:
        value = entry.read()
    except WeightsError as error:
        return None, [f"{name}: {error}"]
    if not value.isfinite().all():
        return None, [f"{name} has values that are not finite"]
    cast = value.to(dtype, memory_format=torch.contiguous_format, copy=True)
    if not cast.isfinite().all():
        return None, [f"{name} has values too large for {dtype}"]
    return cast, []


def _write_shard(path: Path, names: list[str], state: Mapping[str, Entry], dtype: torch.dtype) -> list[str]:
    """Writes one part; returns what is wrong with its tensors, and then nothing is written."""
    tensors, problems = {}, []
    for name in names:
        value, wrong = _read(name, state[name], dtype)
        problems += wrong
        if value is not None and not problems:
            tensors[name] = value
    if not problems:
        unfinished = path.with_name(f".{path.name}.part")
        save_file(tensors, unfinished, {"format": "pt"})
        unfinished.replace(path)
    return problems


def _is_complete(path: Path, names: list[str], state: Mapping[str, Entry]) -> bool:
    """Is this part of the same conversion on disk already? Parts appear under their final name when they are whole."""
    if not path.is_file():
        return False
    with _opened(path) as file:
        return sorted(file.keys()) == names and all(
            tuple(file.get_slice(name).get_shape()) == state[name].shape for name in names
        )


def _finish(
    folder: Path, module: torch.nn.Module, parts: list[list[str]], state: Mapping[str, Entry], dtype: torch.dtype
) -> None:
    """The index of the parts, and the component's config, which makes it complete."""
    if len(parts) > 1:
        where = {key: shard_name(i, len(parts)) for i, names in enumerate(parts) for key in names}
        total = sum(map(_count, state.values())) * dtype.itemsize
        index = {"metadata": {"total_size": total}, "weight_map": where}
        _replace(folder / f"{WEIGHTS}.safetensors.index.json", json.dumps(index, indent=1) + "\n")
    module.save_config(folder)


def _replace(path: Path, text: str) -> None:
    unfinished = path.with_name(f".{path.name}.part")
    unfinished.write_text(text)
    unfinished.replace(path)
