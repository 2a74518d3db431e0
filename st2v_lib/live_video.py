"""An mp4 that plays while it grows, and stays playable if its writer dies: fragmented, made a few frames at a time.

Each fragment is encoded alone and begins with a whole picture, so its bytes are a function of its frames and its place
in the video. A file is the init part, which holds the metadata, and any number of fragments, one after the other; to
go on with it, or to give two videos the same beginning, is to copy bytes.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from st2v_lib.errors import InputError, OutputError
from st2v_lib.video_io import ffmpeg_exe

TIMESCALE = 1000  # ticks of a frame


def encode_fragment(
    frames: np.ndarray,
    fps: float,
    index: int,
    first_frame: int,
    metadata: dict[str, Any] | None = None,
    crf: int = 12,
) -> tuple[bytes, bytes]:
    """Frames as a piece of a fragmented mp4 (h264, yuv420p).

    Args:
        frames: ``uint8 f h w c``; odd sides are padded as by ``VideoWriter``.
        fps: frames per second.
        index: number of the fragment, from 0.
        first_frame: where in the video its first frame is.
        metadata: kept as JSON in the comment tag of the init part; ``video_io.probe`` reads it.
        crf: constant quality.

    Returns:
        The init part, the same for all fragments with the same metadata and size, and the fragment.

    Raises:
        OutputError: ffmpeg fails.
    """
    h, w = frames.shape[1:3]
    padded = np.pad(frames, ((0, 0), (0, h % 2), (0, w % 2), (0, 0)), mode="edge")
    record = json.dumps({"st2v": {"size": [h, w], "metadata": metadata or {}}}, default=str)
    colour = ["-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709", "-color_range", "tv"]
    command = [ffmpeg_exe(), "-v", "error", "-f", "rawvideo", "-pix_fmt", "rgb24"]
    command += ["-s", f"{w + w % 2}x{h + h % 2}", "-r", str(fps), "-i", "-", "-an"]
    command += ["-vf", "scale=out_color_matrix=bt709:out_range=tv:flags=accurate_rnd+full_chroma_int+bicubic"]
    # one thread and no B frames: the same bytes everywhere, and no frame that waits for the next fragment
    command += ["-c:v", "libx264", "-threads", "1", "-bf", "0", "-g", str(len(frames)), "-pix_fmt", "yuv420p"]
    command += ["-crf", str(crf), *colour, "-fflags", "+bitexact", "-flags:v", "+bitexact"]
    command += ["-video_track_timescale", str(round(fps * TIMESCALE)), "-output_ts_offset", repr(first_frame / fps)]
    command += ["-avoid_negative_ts", "disabled", "-fragment_index", str(index + 1)]
    command += ["-movflags", "+frag_custom+empty_moov+default_base_moof+frag_discont+skip_trailer"]
    command += ["-metadata", f"comment={record}", "-f", "mp4", "-"]
    done = subprocess.run(command, input=padded.tobytes(), capture_output=True, check=False)
    parts = dict.fromkeys((b"ftyp", b"moov", b"moof", b"mdat"), b"")
    for kind, box in _boxes(done.stdout):
        parts[kind] = parts.get(kind, b"") + box
    if done.returncode or not all(parts[kind] for kind in (b"moov", b"moof", b"mdat")):
        lines = done.stderr.decode(errors="replace").strip().splitlines() or ["ffmpeg gave no reason"]
        raise OutputError(f"frames from {first_frame} on could not be encoded: {lines[-1]}")
    return parts[b"ftyp"] + parts[b"moov"], parts[b"moof"] + parts[b"mdat"]


def _boxes(data: bytes) -> Iterable[tuple[bytes, bytes]]:
    at = 0
    while at + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        if size < 8:
            return
        yield kind, data[at : at + size]
        at += size


def check_place(path: Path) -> None:
    """Makes the folder of a video that is to grow, and raises the errors of ``grow`` if it has no place."""
    if path.suffix.lower() != ".mp4":
        raise InputError(f"expected an output path that ends in .mp4, got {path}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from None
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise OutputError(f"cannot write {path}: it is a folder, or writing there is not allowed")


def grow(path: Path, parts: Iterable[bytes], start: int = 0) -> int:
    """Brings a growing file in line with what it should hold: what agrees stays, the rest is cut off and written.

    A player that has the file open goes on. What is added goes to the disk before this returns.

    Args:
        path: the mp4; made if it is not there.
        parts: init part and fragments, in order.
        start: bytes that are known to agree; the parts come after them.

    Returns:
        The size of the file.

    Raises:
        InputError: unless the name ends in .mp4.
        OutputError: the file cannot be written.
    """
    check_place(path)
    try:
        with open(path, "r+b" if path.exists() else "x+b") as file:
            agrees = True
            file.seek(start)
            for part in parts:
                at = file.tell()
                agrees = agrees and file.read(len(part)) == part
                if not agrees:
                    file.seek(at)
                    file.truncate()
                    file.write(part)
            file.truncate()
            file.flush()
            os.fsync(file.fileno())
            return file.tell()
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from None
