"""Frames in, mp4 out while they are made.

Video files are read and written through the ffmpeg that comes with ``imageio-ffmpeg``; no system package is needed.

* Inside the library a video is ``f c h w`` or ``b f c h w``, float RGB in [-1, 1]; at its edges it is
  ``uint8 f h w c``. ``to_uint8`` and ``from_uint8`` convert and check; the rest of this file speaks uint8.
* h264 with yuv420p plays everywhere but needs even sides. An odd side gets one repeated row or column at the bottom or
  right, the true size is kept in the file's metadata, and the readers here cut the extra line off again.
* A file is written under a temporary name in its own folder and gets its final name only when it is complete.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange

from st2v_lib.errors import InputError, OutputError, UserError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
ARRAY_SUFFIXES = (".npy", ".npz")
PIXEL_FORMATS = ("yuv420p", "yuv444p")  # colour at half the resolution, or at all of it
ROUNDING_SLACK = 1e-3  # how far outside [-1, 1] a float video may lie, as rounding error
_TRUNCATION_SIGNS = (
    "partial file",
    "moov atom not found",
    "Invalid data found",
    "error while decoding",
    "ended prematurely",
)


def ffmpeg_exe() -> str:
    """Path of the ffmpeg that is shipped with ``imageio-ffmpeg``."""
    import imageio_ffmpeg

    return imageio_ffmpeg.get_ffmpeg_exe()


def setup_mediapy() -> None:
    """Let mediapy use the shipped ffmpeg; by itself it looks for one on the PATH.

    Showing and writing work. ``mediapy.read_video`` passes an option that the shipped ffmpeg 9 no longer has; use
    ``read_video`` of this file.
    """
    import mediapy

    mediapy.set_ffmpeg(ffmpeg_exe())


# ------------------------------------------------------------------------------------------------- conversion


def to_uint8(video: torch.Tensor | np.ndarray) -> np.ndarray:
    """Convert ``f c h w`` or ``b f c h w`` float RGB in [-1, 1] to ``uint8 f h w c`` or ``b f h w c``.

    The value is ``round((x + 1) * 127.5)``, so ``from_uint8`` followed by ``to_uint8`` changes nothing.

    Raises:
        ValueError: the layout, the type or the range is another one; the message names what was got and expected.
    """
    x = torch.as_tensor(video)
    got = f"{str(x.dtype).removeprefix('torch.')} of shape {tuple(x.shape)}"
    if x.ndim not in (4, 5) or x.shape[-3] != 3 or x.numel() == 0:
        raise InputError(f"expected a float video 'f c h w' or 'b f c h w' with c = 3, got {got}")
    if not x.is_floating_point():
        raise InputError(f"expected a float video in [-1, 1], got {got}")
    x = x.detach().float().cpu()
    if not torch.isfinite(x).all():
        raise InputError(f"expected finite values in [-1, 1], got NaN or infinity in {got}")
    low, high = x.min().item(), x.max().item()
    if low < -1 - ROUNDING_SLACK or high > 1 + ROUNDING_SLACK:
        raise InputError(f"expected values in [-1, 1], got [{low:.4g}, {high:.4g}] in {got}")
    x = ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return rearrange(x, "... c h w -> ... h w c").contiguous().numpy()


def from_uint8(frames: np.ndarray | torch.Tensor) -> torch.Tensor:
    """Convert ``uint8 f h w c`` or ``b f h w c`` to float32 ``f c h w`` or ``b f c h w`` in [-1, 1].

    Raises:
        ValueError: the layout or the type is another one; the message names what was got and expected.
    """
    x = torch.as_tensor(frames)
    got = f"{str(x.dtype).removeprefix('torch.')} of shape {tuple(x.shape)}"
    if x.dtype != torch.uint8 or x.ndim not in (4, 5) or x.shape[-1] != 3 or x.numel() == 0:
        raise InputError(f"expected uint8 'f h w c' or 'b f h w c' with c = 3, got {got}")
    return rearrange(x, "... h w c -> ... c h w").float() / 127.5 - 1


def as_frames(video: torch.Tensor | np.ndarray) -> np.ndarray:
    """One video in either accepted form to ``uint8 f h w c``.

    Args:
        video: ``uint8 f h w c``, or float ``f c h w`` in [-1, 1] (rounded to 8 bit by ``to_uint8``).

    Raises:
        ValueError: anything else, a batch included; the message names what was got and expected.
    """
    x = torch.as_tensor(video)
    if x.dtype == torch.uint8:
        if x.ndim != 4 or x.shape[-1] != 3 or x.numel() == 0:
            raise InputError(f"expected one video, uint8 'f h w c' with c = 3, got uint8 of shape {tuple(x.shape)}")
        return x.cpu().numpy()
    if x.ndim != 4:
        kind = str(x.dtype).removeprefix("torch.")
        raise InputError(
            f"expected one video, uint8 'f h w c' or float 'f c h w', got {kind} of shape {tuple(x.shape)}"
        )
    return to_uint8(x)


# ---------------------------------------------------------------------------------------------------- reading


def iter_video(path: str | os.PathLike) -> Iterator[np.ndarray]:
    """Yield the frames of a video file, a folder of png/jpg, a ``.npy`` or a ``.npz`` as ``uint8 h w c``.

    Memory does not grow with the length (a ``.npz`` is the exception: it is decompressed at once). Images of a folder
    are taken in natural order (frame 2 before frame 10). Arrays follow the rules of ``as_frames``.

    Raises:
        UserError: the path is missing, empty, truncated, unreadable or not a video.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    if path.is_dir():
        yield from _iter_folder(path)
    elif path.stat().st_size == 0:
        raise UserError(f"{path}: the file is empty")
    elif path.suffix.lower() in ARRAY_SUFFIXES:
        yield from _iter_array(path)
    else:
        yield from _iter_ffmpeg(path)


def read_video(path: str | os.PathLike) -> np.ndarray:
    """All frames of ``iter_video`` as one array, ``uint8 f h w c``."""
    return np.stack(list(iter_video(path)))


def _iter_folder(folder: Path) -> Iterator[np.ndarray]:
    def natural(p: Path) -> list:
        return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", p.name)]

    try:
        found = [p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file()]
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror})") from None
    files = sorted(found, key=natural)
    if not files:
        raise UserError(f"{folder}: the folder holds no png or jpg image")
    first_shape = None
    for file in files:
        image = read_image(file)
        first_shape = first_shape or image.shape
        if image.shape != first_shape:
            h, w, _ = first_shape
            raise UserError(f"{file}: got {image.shape[1]}x{image.shape[0]} pixels, the images before have {w}x{h}")
        yield image


def read_image(path: Path) -> np.ndarray:
    """An image file as ``uint8 h w c``.

    Raises:
        UserError: it cannot be read, or is no image.
    """
    import cv2

    try:
        data = np.frombuffer(path.read_bytes(), np.uint8)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    image = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
    if image is None:
        raise UserError(f"{path}: the image is empty or damaged")
    return np.ascontiguousarray(image[:, :, ::-1])


def _iter_array(path: Path) -> Iterator[np.ndarray]:
    try:
        if path.suffix.lower() == ".npy":
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        else:
            with np.load(path, allow_pickle=False) as archive:
                names = archive.files
                name = next((n for n in ("video", "frames") if n in names), names[0] if len(names) == 1 else None)
                if name is None:
                    raise UserError(f"{path}: expected one array, or one named 'video' or 'frames', got {names}")
                array = archive[name]
    except UserError:
        raise
    except Exception as error:  # numpy and zipfile raise many kinds for a damaged file
        raise UserError(f"{path}: damaged or not an array of numbers ({error})") from None
    if array.ndim != 4 or len(array) == 0:
        raise UserError(f"{path}: expected uint8 'f h w c' or float 'f c h w', got shape {array.shape}")
    for i in range(len(array)):
        try:
            yield as_frames(np.array(array[i : i + 1]))[0]
        except ValueError as error:
            raise UserError(f"{path}, frame {i}: {error}") from None


def _iter_ffmpeg(path: Path) -> Iterator[np.ndarray]:
    """Decode with ffmpeg; frames come through a pipe as ppm images, which carry their own size."""
    info = probe(path)
    h, w = info["height"], info["width"]
    command = [ffmpeg_exe(), "-v", "error", "-xerror", "-i", str(path.absolute()), "-map", "0:v:0"]
    command += ["-fps_mode", "passthrough", "-f", "image2pipe", "-vcodec", "ppm", "-pix_fmt", "rgb24", "-"]
    count = 0
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log)
        try:
            while (frame := _read_ppm(process.stdout)) is not None:
                count += 1
                yield frame[:h, :w].copy()
            code = process.wait()
        finally:
            process.stdout.close()
            process.kill()
            process.wait()
        message = _last_line(log)
    if count == 0:
        raise UserError(f"{path}: no frame could be decoded ({message or 'ffmpeg gave no reason'})")
    if code != 0 or any(sign in message for sign in _TRUNCATION_SIGNS):
        raise UserError(f"{path}: truncated or damaged after {count} frames ({message})")


def _read_ppm(stream) -> np.ndarray | None:
    """Next binary ppm image of a stream, or None at its end (an incomplete last image counts as the end)."""
    if stream.readline().strip() != b"P6":
        return None
    size, depth = stream.readline().split(), stream.readline()
    if len(size) != 2 or not depth:
        return None
    w, h = int(size[0]), int(size[1])
    data = stream.read(w * h * 3)
    return np.frombuffer(data, np.uint8).reshape(h, w, 3) if len(data) == w * h * 3 else None


def _last_line(log) -> str:
    log.seek(0)
    lines = [line.strip() for line in log.read().decode(errors="replace").splitlines() if line.strip()]
    return re.sub(r"^\[[^]]*\] *", "", lines[-1]) if lines else ""


def probe(path: str | os.PathLike) -> dict[str, Any]:
    """Size, rate, length and metadata of a video file, without decoding it.

    Returns:
        ``width`` and ``height`` (of the true picture, without a padding line), ``stored_width``, ``stored_height``,
        ``fps``, ``duration`` in seconds (None if the file does not say), ``frames`` (packets that are really there),
        ``codec``, ``pixel_format`` (``yuv420p`` keeps colour at half the resolution; None if ffmpeg does not say), and
        ``metadata``: what ``VideoWriter`` was given (``{}`` for files of others).

    Raises:
        UserError: missing, empty, or not a readable video.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise UserError(f"{path}: the file is empty")
    command = [ffmpeg_exe(), "-hide_banner", "-nostdin", "-i", str(path.absolute()), "-map", "0:v:0", "-c", "copy"]
    command += ["-f", "null", "-", "-f", "ffmetadata", "-"]
    result = subprocess.run(command, capture_output=True, check=False)
    report, tags = result.stderr.decode(errors="replace"), result.stdout.decode(errors="replace")
    stream = re.search(r"Stream #0:\d+.*?: Video: (\w+)(.*?), (\d{1,5})x(\d{1,5})", report)
    if stream is None:
        last = report.strip().splitlines()[-1] if report.strip() else "ffmpeg gave no reason"
        raise UserError(f"{path}: truncated, damaged or not a video ({last})")
    width, height = int(stream[3]), int(stream[4])
    pixels = re.search(r", (yuv\w*|gbr\w*|rgb\w*|bgr\w*|gray\w*|nv\d+|pal8)", stream[2])
    rate = re.search(r"([\d.]+) fps", report[stream.start() :])
    fps = float(rate[1]) if rate else None
    length = re.search(r"Duration: (\d+):(\d+):([\d.]+)", report)
    duration = int(length[1]) * 3600 + int(length[2]) * 60 + float(length[3]) if length else None
    counts = re.findall(r"frame= *(\d+)", report)
    record = _parse_comment(tags)
    true_height, true_width = record.get("size", (height, width))
    return {
        "width": min(true_width, width),
        "height": min(true_height, height),
        "stored_width": width,
        "stored_height": height,
        "fps": fps,
        "duration": duration,
        "frames": int(counts[-1]) if counts else 0,
        "codec": stream[1],
        "pixel_format": pixels[1] if pixels else None,
        "metadata": record.get("metadata", {}),
    }


def _parse_comment(tags: str) -> dict[str, Any]:
    """The JSON that ``VideoWriter`` put into the comment tag, or {} if there is none of ours."""
    found = re.search(r"^comment=((?:\\.|[^\\\n])*)$", tags, flags=re.MULTILINE | re.DOTALL)
    try:
        record = json.loads(re.sub(r"\\(.)", r"\1", found[1], flags=re.DOTALL))["st2v"] if found else {}
    except (json.JSONDecodeError, KeyError, TypeError):
        return {}
    return record if isinstance(record, dict) else {}


# ---------------------------------------------------------------------------------------------------- writing


class VideoWriter:
    """Write an mp4 frame by frame; a context manager that leaves either a complete file or none.

    ::

        with VideoWriter("circle.mp4", fps=8, metadata={"prompt": prompt, "seed": 0}) as out:
            for frames in chunks:  # uint8 f h w c, uint8 h w c, or float f c h w in [-1, 1]
                out.write(frames)

    Codec h264, constant quality ``crf`` (12: visually lossless), colours tagged as BT.709. The default, ``yuv420p``,
    plays everywhere and keeps colour at half the resolution, which small saturated pictures show and flow-based metrics
    punish; ``yuv444p`` keeps it whole, for files that are to be measured, and few players besides ffmpeg's show it.
    Memory does not grow with the length. Frames go to a hidden temporary file beside ``path``; leaving the block gives
    it its name, an exception (or Ctrl-C) inside the block removes it. ``metadata`` is kept as JSON in the comment tag,
    see ``probe``.

    Raises:
        UserError: the folder cannot be written, the disk is full, ffmpeg fails, or no frame was written.
        ValueError: a frame of another layout, range or size; a ``path`` that does not end in ``.mp4``; another pixel
            format.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        fps: float = 8,
        metadata: dict[str, Any] | None = None,
        crf: int = 12,
        preset: str = "medium",
        pixel_format: str = "yuv420p",
    ):
        self.path = Path(path)
        if self.path.suffix.lower() != ".mp4":
            raise InputError(f"expected an output path that ends in .mp4, got {self.path}")
        if not fps > 0:
            raise InputError(f"expected fps > 0, got {fps}")
        if pixel_format not in PIXEL_FORMATS:
            raise InputError(f"expected a pixel format out of {', '.join(PIXEL_FORMATS)}, got {pixel_format!r}")
        if self.path.is_dir():
            raise OutputError(f"cannot write {self.path}: it is a folder")
        self.fps, self.crf, self.preset, self.pixel_format = fps, crf, preset, pixel_format
        self.metadata = json.loads(json.dumps(metadata or {}, default=str))  # fails now, not after an hour's work
        self.frame_count = 0
        self._size: tuple[int, int] | None = None
        self._process: subprocess.Popen | None = None
        self._temporary = self.path.with_name(f".{self.path.stem[:80]}.{uuid.uuid4().hex[:8]}.part.mp4")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._temporary.touch(exist_ok=False)
        except FileExistsError:
            raise OutputError(f"cannot write {self.path}: {self.path.parent} is not a folder") from None
        except OSError as error:
            raise OutputError(f"cannot write {self.path}: {error.strerror or error}") from None
        self._log = tempfile.TemporaryFile()

    def write(self, frames: np.ndarray | torch.Tensor) -> None:
        """Append frames: ``uint8 f h w c`` or ``h w c``, or float ``f c h w`` or ``c h w`` in [-1, 1]."""
        if self._temporary is None:
            raise InputError(f"{self.path}: the writer is closed")
        frames = as_frames(frames[None] if frames.ndim == 3 else frames)
        size = frames.shape[1:3]
        if self._size is None:
            self._start(size)
        if size != self._size:
            raise InputError(f"expected frames of {self._size[1]}x{self._size[0]} pixels, got {size[1]}x{size[0]}")
        h, w = size
        frames = np.pad(frames, ((0, 0), (0, h % 2), (0, w % 2), (0, 0)), mode="edge")
        try:
            for frame in frames:
                self._process.stdin.write(np.ascontiguousarray(frame).data)
                self.frame_count += 1
        except OSError:
            self._fail()

    def _start(self, size: tuple[int, int]) -> None:
        h, w = self._size = size
        record = json.dumps({"st2v": {"size": [h, w], "metadata": self.metadata}})
        if len(record) > 100_000:
            raise InputError(f"expected metadata of at most 100,000 characters as JSON, got {len(record)}")
        colour = ["-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709", "-color_range", "tv"]
        command = [ffmpeg_exe(), "-v", "error", "-y", "-f", "rawvideo", "-pix_fmt", "rgb24"]
        command += ["-s", f"{w + w % 2}x{h + h % 2}", "-r", str(self.fps), "-i", "-", "-an"]
        command += ["-vf", "scale=out_color_matrix=bt709:out_range=tv:flags=accurate_rnd+full_chroma_int+bicubic"]
        command += ["-c:v", "libx264", "-pix_fmt", self.pixel_format, "-crf", str(self.crf), "-preset", self.preset]
        command += colour
        command += ["-movflags", "+faststart", "-metadata", f"comment={record}", str(self._temporary.absolute())]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=self._log)

    def close(self) -> None:
        """Finish the file and give it its final name. Called at the end of the ``with`` block."""
        if self._temporary is None:
            return
        if self._process is None:
            self.abort()
            raise OutputError(f"cannot write {self.path}: no frame was given")
        try:
            self._process.stdin.close()
        except OSError:
            self._fail()
        if self._process.wait() != 0:
            self._fail()
        try:
            os.replace(self._temporary, self.path)
        except OSError as error:
            self.abort()
            raise OutputError(f"cannot write {self.path}: {error.strerror or error}") from None
        self._temporary = None
        self._log.close()

    def abort(self) -> None:
        """Stop and remove the temporary file. Called when the ``with`` block is left by an exception."""
        if self._temporary is None:
            return
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            with contextlib.suppress(OSError):  # what was still in the pipe's buffer has nowhere to go
                self._process.stdin.close()
        self._temporary.unlink(missing_ok=True)
        self._temporary = None
        self._log.close()

    def _fail(self) -> None:
        code = self._process.wait()
        message = _last_line(self._log) or f"ffmpeg stopped with code {code}"
        self.abort()
        free = shutil.disk_usage(self.path.parent).free
        if free < 50e6:
            message = f"the disk is full, {free / 1e6:.0f} MB are left ({message})"
        raise OutputError(f"cannot write {self.path} after {self.frame_count} frames: {message}")

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind, error, trace) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()


def write_video(path: str | os.PathLike, video: np.ndarray | torch.Tensor | Iterable, **options) -> Path:
    """Write a whole video, or an iterable of frames, with ``VideoWriter(path, **options)``; returns the path."""
    with VideoWriter(path, **options) as out:
        for frames in [video] if hasattr(video, "ndim") else video:
            out.write(frames)
    return Path(path)
