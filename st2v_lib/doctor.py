"""``st2v doctor``: what this machine has, which presets it can run, and whether the shipped weights are intact."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import shutil
from pathlib import Path
from typing import Any

from st2v_lib.errors import first_line
from st2v_lib.manifest import MANIFEST, verify_manifest, weights_dir

PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "numpy")
TINY_MEMORY_GB = 2.0  # what a generation may take (the project's own budget)
MODELSCOPE_GPU_GB = 15.0  # cards sold as "16 GB" report a little less


def inspect_machine() -> dict[str, Any]:
    """Gathers everything the report shows, as plain JSON values (sizes in GB of 10⁹ bytes)."""
    memory, devices = _memory(), _devices()
    weights = {"tiny": _weights("tiny")}
    if weights_dir("modelscope").is_dir():
        weights["modelscope"] = _weights("modelscope")
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "packages": {name: _version(name) for name in PACKAGES},
        "devices": devices,
        "memory_gb": memory,
        "disk_free_gb": _gb(shutil.disk_usage(Path.cwd()).free),
        "ffmpeg": _ffmpeg(),
        "presets": _presets(memory, devices, weights),
        "weights": weights,
    }


def format_report(found: dict[str, Any]) -> str:
    """The report as text, one topic a line."""
    packages = " · ".join(f"{name} {version or 'MISSING'}" for name, version in found["packages"].items())
    memory = found["memory_gb"]
    lines = [("python", f"{found['python']} on {found['system']}"), ("packages", packages)]
    lines += [("device", _device_line(device)) for device in found["devices"]]
    lines += [
        ("memory", f"{memory['total']:.1f} GB, {memory['free']:.1f} GB free"),
        ("disk", f"{found['disk_free_gb']:.1f} GB free in the current folder"),
        ("ffmpeg", found["ffmpeg"] or "MISSING: pip install imageio-ffmpeg"),
    ]
    for name, preset in found["presets"].items():
        lines.append(("preset", f"{name}: {'can run here' if preset['runs'] else 'cannot run here'}, {preset['why']}"))
    for name, weights in found["weights"].items():
        if weights["problems"]:
            lines.append(("weights", f"{name}: NOT INTACT in {weights['folder']}"))
            lines += [("", problem) for problem in weights["problems"]]
        else:
            lines.append(("weights", f"{name}: {weights['files']} files, {weights['mb']:.1f} MB, intact"))
    return "\n".join(f"{label:<9} {text}" for label, text in lines)


def run(args: argparse.Namespace) -> int:
    """Prints the report; 1 when shipped or downloaded weights are missing or damaged, else 0."""
    found = inspect_machine()
    print(json.dumps(found, indent=1) if args.json else format_report(found))
    return 1 if any(weights["problems"] for weights in found["weights"].values()) else 0


def _gb(count: float) -> float:
    return round(count / 1e9, 1)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _memory() -> dict[str, float]:
    import psutil

    memory = psutil.virtual_memory()
    return {"total": _gb(memory.total), "free": _gb(memory.available)}


def _devices() -> list[dict[str, Any]]:
    """The CPU first, then every accelerator torch can reach."""
    try:
        import torch
    except ImportError:
        return [{"name": "cpu", "kind": "cpu", "detail": "torch is not installed"}]
    devices: list[dict[str, Any]] = [{"name": "cpu", "kind": "cpu", "detail": f"{torch.get_num_threads()} threads"}]
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        device = {"name": f"cuda:{index}", "kind": "cuda", "detail": torch.cuda.get_device_name(index)}
        try:
            free, total = torch.cuda.mem_get_info(index)
            device |= {"free_gb": _gb(free), "total_gb": _gb(total)}
        except RuntimeError as error:  # the card is there but cannot be used now
            device["detail"] += f" (not usable: {first_line(error)})"
        devices.append(device)
    if torch.backends.mps.is_available():
        devices.append({"name": "mps", "kind": "mps", "detail": "Apple GPU, shares the machine's memory"})
    return devices


def _device_line(device: dict[str, Any]) -> str:
    memory = f", {device['free_gb']:.1f} of {device['total_gb']:.1f} GB free" if "total_gb" in device else ""
    return f"{device['name']}: {device['detail']}{memory}"


def _ffmpeg() -> str | None:
    try:
        import imageio_ffmpeg

        return f"{imageio_ffmpeg.get_ffmpeg_version()} (imageio-ffmpeg)"
    except (ImportError, RuntimeError, OSError):
        return None


def _presets(memory: dict, devices: list[dict], weights: dict) -> dict[str, dict[str, Any]]:
    """For each preset whether it can run here, and why or why not."""
    if weights["tiny"]["problems"]:
        tiny = {"runs": False, "why": "its weights are not intact"}
    elif memory["free"] < TINY_MEMORY_GB:
        tiny = {"runs": False, "why": f"it needs {TINY_MEMORY_GB:.0f} GB of free memory"}
    else:
        tiny = {"runs": True, "why": "on any of the devices above"}
    largest = max((device.get("total_gb", 0.0) for device in devices if device["kind"] == "cuda"), default=0.0)
    have = f"the largest here has {largest:.1f} GB" if largest else "there is none here"
    if largest >= MODELSCOPE_GPU_GB:
        from st2v_lib.memory import choose_rung  # brings torch, which doctor can do without

        there = (weights_dir("modelscope") / "model_index.json").is_file()
        place = "are in place" if there else "come by st2v download"
        free = max(device.get("free_gb", 0.0) for device in devices if device["kind"] == "cuda")
        modelscope = {"runs": True, "why": f"on memory rung {choose_rung(free * 1e9).name!r}; public weights {place}"}
    else:
        modelscope = {"runs": False, "why": f"it needs a CUDA device of 16 GB ({have}) and public weights"}
    return {"tiny": tiny, "modelscope": modelscope}


def _weights(preset: str) -> dict[str, Any]:
    folder = weights_dir(preset)
    problems = verify_manifest(folder)
    if problems:
        return {"folder": str(folder), "problems": problems}
    sizes = [entry["bytes"] for entry in json.loads((folder / MANIFEST).read_text()).values()]
    return {"folder": str(folder), "problems": [], "files": len(sizes), "mb": round(sum(sizes) / 1e6, 1)}
