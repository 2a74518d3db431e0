"""``st2v download``: a folder with everything the full-size model needs, from the hub or from folders at hand.

Before anything is fetched it says what would be: files, sizes, what the disk and the memory have. The revision of each
repository is resolved once, written to ``sources.json`` in the folder, and used from then on; ``--revision`` names
another. With ``HF_HUB_OFFLINE=1`` nothing but the local cache is asked. Of weights only safetensors are taken, and of
the two checkpoints that exist only as pickles what ``st2v convert`` reads without running it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import torch

from st2v_lib.config import MODELSCOPE, StreamingT2VConfig
from st2v_lib.convert import convert
from st2v_lib.errors import InputError, OutputError, WeightsError, first_line
from st2v_lib.manifest import weights_dir, write_manifest

LOCK = "sources.json"
MEMORY_GB = 4.0  # to convert and to re-save the largest public part
RESULT_GB = {"base": 3.7, "clip": 1.3, "streaming": 4.3, "enhancer": 2.9}  # on disk afterwards, in fp16
TEXTS = (".json", ".txt")


@dataclass(frozen=True)
class Source:
    """A repository, and which of its files are wanted: folders of diffusers components, or files by name."""

    repo: str
    folders: tuple[str, ...] = ()
    files: tuple[str, ...] = ()


SOURCES = {
    "base": Source("ali-vilab/text-to-video-ms-1.7b", folders=("unet", "vae", "text_encoder", "tokenizer")),
    "clip": Source("laion/CLIP-ViT-H-14-laion2B-s32B-b79K", files=("config.json", "model.safetensors")),
    "streaming": Source("PAIR/StreamingT2V", files=("streaming_t2v.ckpt",)),
    "enhancer": Source("ali-vilab/MS-Vid2Vid-XL", files=("non_ema_0035000.pth",)),
}


@dataclass(frozen=True)
class Plan:
    """What one source needs: its place, its pinned revision (``None`` for a folder), and bytes by file, to be fetched
    and in all; ``done``: what is made of it is there already, and nothing is fetched.
    """

    place: str
    revision: str | None
    files: dict[str, int] = field(default_factory=dict)
    missing: int = 0
    done: bool = False


MADE = {  # what is made of each source
    "base": ("base", "vae", "text_encoder", "tokenizer"),
    "clip": ("image_encoder",),
    "streaming": ("unet/config.json", "cam/config.json", "apm/config.json"),
    "enhancer": ("enhancer/config.json",),
}


def run(args: argparse.Namespace) -> int:
    """The command."""
    places, revisions = (_pairs(values) for values in (args.source, args.revision))
    out = Path(args.out or weights_dir("modelscope"))
    plans = plan(out, places, revisions)
    print(format_plans(plans, out))
    check_room(plans, out)
    if args.dry_run:
        return 0
    download(plans, out)
    print(f'{out}\nnow: st2v generate "…" --preset modelscope')
    return 0


def _pairs(values: list[str]) -> dict[str, str]:
    pairs = dict(value.partition("=")[::2] for value in values)
    for name, value in pairs.items():
        if name not in SOURCES or not value:
            raise InputError(f"expected NAME=VALUE with a name of {', '.join(SOURCES)}, got {name}={value}")
    return pairs


def plan(out: Path, places: Mapping[str, str] = {}, revisions: Mapping[str, str] = {}) -> dict[str, Plan]:  # noqa: B006
    """What each source needs. Asks the hub for lists of files, and for no file.

    Args:
        out: its ``sources.json`` holds the revisions of an earlier call.
        places: folders, or other repositories, by name of the source.
        revisions: of a repository, by name of the source.

    Raises:
        WeightsError: for a file that a source does not have, or one that is not cached in offline mode.
    """
    try:
        lock = json.loads((out / LOCK).read_text()) if (out / LOCK).is_file() else {}
    except ValueError:
        raise WeightsError(f"{out / LOCK} is damaged; remove it, and the revisions are asked for again") from None
    plans = {}
    for name, source in SOURCES.items():
        place = places.get(name, source.repo)
        if all((out / made).exists() for made in MADE[name]):
            known = lock.get(name, {"place": place, "revision": None, "files": {}})
            plans[name] = Plan(known["place"], known["revision"], known["files"], done=True)
            continue
        if Path(place).is_dir():
            listing = {p.relative_to(place).as_posix(): p.stat().st_size for p in Path(place).rglob("*") if p.is_file()}
            plans[name] = Plan(place, None, wanted(listing, source, place))
            continue
        known = lock.get(name, {})
        same = known.get("place") == place and revisions.get(name) in (None, known.get("revision"))
        if same and known.get("revision"):
            revision, files = known["revision"], known["files"]
        else:
            revision, listing = _ask_hub(place, revisions.get(name))
            files = wanted(listing, source, place)
        cached = {file for file in files if _cached(place, file, revision)}
        if is_offline() and cached != set(files):
            raise WeightsError(f"offline, and {', '.join(sorted(set(files) - cached)[:3])} of {place} is not cached")
        plans[name] = Plan(place, revision, files, sum(n for file, n in files.items() if file not in cached))
    return plans


def is_offline() -> bool:
    """Has the user said that the network must not be used?"""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def _ask_hub(repo: str, revision: str | None) -> tuple[str, dict[str, int]]:
    """The commit of a revision (the newest one by default) and its files' sizes."""
    if is_offline():
        raise WeightsError(
            f"offline, and the revision of {repo} is not known yet: call st2v download once with a network, "
            "or name a folder with --source"
        )
    from huggingface_hub import HfApi

    try:
        info = HfApi().model_info(repo, revision=revision, files_metadata=True)
    except Exception as error:  # no network, no such repository or revision, a gate: many kinds
        raise WeightsError(f"{repo} cannot be asked: {first_line(error)}") from None
    return info.sha, {sibling.rfilename: sibling.size or 0 for sibling in info.siblings}


def _cached(repo: str, file: str, revision: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(repo, file, revision=revision), str)


def wanted(listing: Mapping[str, int], source: Source, place: str) -> dict[str, int]:
    """The files to take from a listing: fp16 safetensors of a component if there are, else its safetensors.

    Raises:
        WeightsError: if something is not there.
    """
    files = {name: listing[name] for name in source.files if name in listing}
    if absent := [name for name in source.files if name not in listing]:
        raise WeightsError(f"{place} has no {', '.join(absent)}")
    for folder in source.folders:
        inside = {name: size for name, size in listing.items() if name.startswith(f"{folder}/")}
        weights = {name: size for name, size in inside.items() if name.endswith(".safetensors")}
        half = {name: size for name, size in weights.items() if ".fp16." in name}
        found = half or weights
        if not found and folder != "tokenizer":
            raise WeightsError(f"{place} has no safetensors in {folder}/; other files could run code and are not taken")
        files |= found | {name: size for name, size in inside.items() if name.endswith(TEXTS)}
        if not any(name.endswith(TEXTS) for name in inside):
            raise WeightsError(f"{place} has no {folder}/")
    return files


def format_plans(plans: Mapping[str, Plan], out: Path) -> str:
    """The plan as a table."""
    lines = []
    for name, item in plans.items():
        where = item.place if item.revision is None else f"{item.place} @ {item.revision[:12]}"
        lines.append(f"{name:<10} {where}{', made already' if item.done else ''}")
        large = {} if item.done else {file: size for file, size in item.files.items() if size > 1e6}
        lines += [f"{'':<10} {size / 1e9:>7.2f} GB  {file}" for file, size in large.items()]
    total = sum(item.missing for item in plans.values()) / 1e9
    lines.append(f"{'download':<10} {total:>7.2f} GB, {_free(_cache()) / 1e9:.1f} GB free in {_cache()}")
    lines.append(f"{'result':<10} {_result_gb(plans):>7.2f} GB, {_free(out) / 1e9:.1f} GB free in {out}")
    lines.append(f"{'memory':<10} {MEMORY_GB:>7.2f} GB, {psutil.virtual_memory().available / 1e9:.1f} GB free")
    return "\n".join(lines)


def check_room(plans: Mapping[str, Plan], out: Path) -> None:
    """Raises ``OutputError`` unless disks and memory suffice for the download and for its result."""
    download, result = sum(item.missing for item in plans.values()), _result_gb(plans) * 1e9
    same = os.stat(_existing(_cache())).st_dev == os.stat(_existing(out)).st_dev
    needs = {_cache(): download + (result if same else 0), out: result}
    for place, count in needs.items():
        if _free(place) < count:
            raise OutputError(f"{place} has {_free(place) / 1e9:.1f} GB free and {count / 1e9:.1f} GB are needed")
    if result and psutil.virtual_memory().available < MEMORY_GB * 1e9:
        raise OutputError(f"{psutil.virtual_memory().available / 1e9:.1f} GB of memory are free, {MEMORY_GB} GB needed")


def _result_gb(plans: Mapping[str, Plan]) -> float:
    return sum(RESULT_GB[name] for name, item in plans.items() if not item.done)


def _cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _existing(path: Path) -> Path:
    return next(p for p in (path, *path.absolute().parents) if p.exists())


def _free(path: Path) -> int:
    return shutil.disk_usage(_existing(path)).free


def download(plans: Mapping[str, Plan], out: Path, cfg: StreamingT2VConfig = MODELSCOPE) -> None:
    """Fetches what is missing, and writes the pipeline folder. What is complete already is not made again."""
    from st2v_lib.loading import write_index

    text = json.dumps({name: _locked(item) for name, item in plans.items()}, indent=1)
    unfinished = out / f".{LOCK}.part"
    try:
        out.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(text + "\n")
        unfinished.replace(out / LOCK)
    except OSError as error:
        raise OutputError(f"cannot write {out}: {error.strerror or error}") from None
    if not plans["base"].done:
        base = _fetched(plans["base"])
        for name in ("unet", "vae", "text_encoder", "tokenizer"):
            _resave(name, base / name, out / ("base" if name == "unet" else name))
    if not plans["clip"].done:
        _resave("image_encoder", _fetched(plans["clip"]), out / "image_encoder")
    for name in ("streaming", "enhancer"):
        if not plans[name].done:
            convert(_fetched(plans[name]) / SOURCES[name].files[0], out, cfg)
    write_index(out, cfg)
    write_manifest(out)


def _locked(item: Plan) -> dict:
    return {"place": item.place, "revision": item.revision, "files": item.files}


def _fetched(item: Plan) -> Path:
    """The folder with a source's files, fetched if they are not cached."""
    if item.revision is None:
        return Path(item.place)
    from huggingface_hub import snapshot_download

    options = dict(revision=item.revision, allow_patterns=list(item.files), local_files_only=is_offline())
    try:
        return Path(snapshot_download(item.place, **options))
    except Exception as error:  # the network, the disk, the hub: many kinds
        kept = "what has come already is kept, so call it again"
        raise WeightsError(f"{item.place} could not be fetched: {first_line(error)}; {kept}") from error


def _resave(name: str, source: Path, target: Path) -> None:
    """Loads a public component as fp16 and writes it to ``target`` under its final name only when it is whole."""
    if target.exists():
        return
    from transformers import AutoTokenizer, CLIPTextModel, CLIPVisionModelWithProjection

    from st2v_lib.backbone import PatchedAutoencoderKL, StreamingUNet

    options = {"local_files_only": True}
    if name != "tokenizer":
        options |= {"torch_dtype": torch.float16, "use_safetensors": True}
        if any(".fp16." in path.name for path in source.glob("*.safetensors")):
            options["variant"] = "fp16"
    classes = {
        "unet": StreamingUNet, "vae": PatchedAutoencoderKL, "text_encoder": CLIPTextModel, "tokenizer": AutoTokenizer,
        "image_encoder": CLIPVisionModelWithProjection,
    }  # fmt: skip
    part = target.with_name(f".{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        component = classes[name].from_pretrained(source, **options)
    except Exception as error:  # a damaged or foreign file makes many kinds
        raise WeightsError(f"{source} cannot be loaded: {first_line(error)}; get it again") from error
    component.save_pretrained(part)
    part.replace(target)
