"""Where the shipped data lies, and whether a folder of weights is complete and undamaged.

A manifest is ``manifest.json`` in the folder it describes: relative path → ``{"sha256": ..., "bytes": ...}``.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection
from pathlib import Path

from st2v_lib.errors import WeightsError

MANIFEST = "manifest.json"


def data_dir() -> Path:
    """The kit's data folder: the environment variable ``ST2V_DATA``, else ``data/`` at the top of the repository."""
    return Path(os.environ.get("ST2V_DATA") or Path(__file__).resolve().parent.parent / "data")


def weights_dir(preset: str = "tiny") -> Path:
    """The folder of a preset's weights inside ``data_dir()``; it need not exist."""
    return data_dir() / "weights" / preset


def sha256(path: str | Path) -> str:
    """The SHA-256 of a file as 64 hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(folder: str | Path) -> dict[str, dict]:
    """Writes ``manifest.json`` for all files below ``folder`` and returns its content.

    Hidden files, Markdown (a card may be reworded) and the manifest itself are left out.
    """
    folder = Path(folder)
    entries = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in name.parts)
        if path.is_file() and not hidden and path.suffix != ".md" and name != Path(MANIFEST):
            entries[name.as_posix()] = {"sha256": sha256(path), "bytes": path.stat().st_size}
    unfinished = folder / f".{MANIFEST}.part"
    unfinished.write_text(json.dumps(entries, indent=1, sort_keys=True) + "\n")
    unfinished.replace(folder / MANIFEST)
    return entries


def verify_manifest(folder: str | Path, digests: bool = True) -> list[str]:
    """Compares ``folder`` with its manifest.

    Args:
        folder: what it describes.
        digests: ``False`` compares sizes alone, which takes no time however large the files are.

    Returns:
        One line for each problem; an empty list when every listed file is there with the listed content.
    """
    folder = Path(folder)
    try:
        entries = json.loads((folder / MANIFEST).read_text())
        expected = [(name, entry["sha256"], entry["bytes"]) for name, entry in entries.items()]
    except FileNotFoundError:
        return [f"{MANIFEST} is missing"]
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        return [f"{MANIFEST} cannot be read ({error})"]
    if not expected:
        return [f"{MANIFEST} lists no file"]
    problems = []
    for name, digest, size in expected:
        path = folder / name
        if not path.is_file():
            problems.append(f"{name} is missing")
        elif path.stat().st_size != size:
            problems.append(f"{name} has {path.stat().st_size} bytes instead of {size}")
        elif digests and sha256(path) != digest:
            problems.append(f"{name} is damaged (its SHA-256 differs)")
    return problems


def require_intact(folder: str | Path, remedy: str | None = None, digests: bool = True) -> None:
    """Raises an error that names the problems unless ``folder`` agrees with its manifest.

    Args:
        folder: with a manifest.
        remedy: what to do about problems; ``None``: git has the files.
        digests: see ``verify_manifest``.

    Raises:
        WeightsError: when a file or the manifest is missing or damaged.
    """
    problems = verify_manifest(folder, digests)
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise WeightsError(
            f"the weights in {folder} are not intact: {'; '.join(problems[:3])}{more}. "
            + (remedy or f"Restore them with: git checkout -- {folder}")
        )


def weights_mark(folder: Path | None = None, idle: Collection[str] = ()) -> str:
    """Twelve hex digits that change when any of the kit's weights does; those of ``idle`` components do not count."""
    path = (folder or weights_dir("tiny")) / MANIFEST
    if not path.is_file() or not idle:
        return sha256(path)[:12] if path.is_file() else ""
    entries = {name: e["sha256"] for name, e in json.loads(path.read_text()).items() if name.split("/")[0] not in idle}
    return hashlib.sha256(json.dumps(sorted(entries.items())).encode()).hexdigest()[:12]
