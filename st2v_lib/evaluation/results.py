"""Result files: one for each run, that is for each suite, arm, split and seed; written whole or not at all.

A run's *identity* is all that its numbers depend on (config, weights, cases). A file is gone on with only if its
identity is the same. While a run is under way every batch is a small file of its own in ``<name>.parts``, so an
interruption loses one batch, and processes never write to one file; ``merge`` makes one file of them.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

from st2v_lib.errors import OutputError, UserError, first_line


class Run:
    """One result file.

    Args:
        folder: of all results.
        name: file name without ``.json``, ``"cam/add_cond-test-seed0"``.
        identity: plain JSON values; ``videos`` with another identity are refused.

    Raises:
        UserError: when the file is there and was made otherwise.
    """

    def __init__(self, folder: Path, name: str, identity: dict[str, Any]):
        self.path = Path(folder) / f"{name}.json"
        self.parts = self.path.with_suffix(".parts")
        self.identity = json.loads(json.dumps(plain(identity)))  # as it is read back
        self.videos: dict[int, dict[str, Any]] = {}
        self.made_with: list[dict[str, Any]] = []
        for file in [self.path, *sorted(self.parts.glob("*.json"))]:
            if file.is_file():
                self._take(file)

    def _take(self, file: Path) -> None:
        try:
            found = read_result(file)
            theirs, videos = found["identity"], found["videos"]
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f"{file} is no result file of this kit; move it away") from None
        if theirs != self.identity:
            changed = sorted(k for k in {*theirs, *self.identity} if theirs.get(k) != self.identity.get(k))
            raise UserError(
                f"{file} was made with other {', '.join(changed)}; remove it, or choose another folder with --results"
            )
        self.videos |= {v["index"]: v for v in videos}
        self.made_with += [m for m in found.get("made_with", []) if m not in self.made_with]

    def add(self, videos: list[dict[str, Any]], made_with: dict[str, Any]) -> None:
        """Writes one batch's videos, each with its ``index``, as a part."""
        name = f"{videos[0]['index']:05d}.json"
        write_result(self.parts / name, {"identity": self.identity, "made_with": [made_with], "videos": videos})

    def merge(self) -> Path:
        """Makes one file of what there is and removes the parts; a file without parts is left as it is."""
        parts = sorted(self.parts.glob("*.json"))
        if not parts and self.path.is_file():
            return self.path
        for file in parts:
            self._take(file)
        seconds = math.fsum(v.get("seconds", 0.0) for v in self.videos.values())
        content = {
            "identity": self.identity, "made_with": self.made_with, "seconds": round(seconds, 1),
            "videos": [self.videos[i] for i in sorted(self.videos)],
        }  # fmt: skip
        write_result(self.path, content)
        shutil.rmtree(self.parts, ignore_errors=True)
        return self.path


def write_result(path: Path, content: dict[str, Any]) -> None:
    """A result file: the names of its videos' values stand once, in ``names``, and each video's values in their order.

    Raises:
        OutputError: when the place cannot be written.
    """
    names = list({name: None for video in content["videos"] for name in video["values"]})
    rows = [video | {"values": [video["values"].get(name) for name in names]} for video in content["videos"]]
    write_json(path, content | {"names": names, "videos": rows})


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Strict JSON with a line for each of its ``videos``, nan as null, under its name only when it is whole.

    Raises:
        OutputError: when the place cannot be written.
    """
    lines = json.dumps(plain({k: v for k, v in content.items() if k != "videos"}), allow_nan=False, indent=1)
    videos = ",\n".join(json.dumps(plain(v), allow_nan=False, separators=(",", ":")) for v in content["videos"])
    text = f'{lines.rstrip().removesuffix("}").rstrip()},\n "videos": [\n{videos}\n ]\n}}\n'
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """A file that appears under its name only when it is whole.

    Raises:
        OutputError: when the place cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def read_result(path: Path) -> dict[str, Any]:
    """A result file, its videos with their values by name.

    Raises:
        UserError: for a file that is damaged, or none of ours.
    """
    try:
        content = json.loads(path.read_text())
        names = content.pop("names")
        for video in content["videos"]:
            video["values"] = dict(zip(names, video["values"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is no result file, or damaged ({first_line(error)}); move it away") from None
    return content


def plain(value: Any) -> Any:
    """JSON types: nan and infinities become None, floats keep six digits."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


def read_results(folder: Path, suite: str) -> list[dict[str, Any]]:
    """All result files of a suite, by name; an empty list when there is none."""
    return [read_result(f) for f in sorted((Path(folder) / suite).glob("*.json"))]


def values_of(result: dict[str, Any], name: str) -> dict[int, float]:
    """One value a video, by the video's index; nan where it is missing or not defined."""
    found = {v["index"]: v["values"].get(name) for v in result["videos"]}
    return {index: math.nan if value is None else float(value) for index, value in found.items()}
