"""Reads a torch checkpoint of any size without running anything that is in it, and without loading it.

A ``.ckpt`` or ``.pth`` file is a zip archive: one pickle that says what there is, and the tensors' bytes beside it,
uncompressed. The unpickler here knows tensors and plain containers only; every other object that the file names, a
trainer's settings for instance, becomes an inert stand-in. Bytes are mapped one storage at a time.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import math
import pickle
import struct
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from st2v_lib.errors import WeightsError

_STORAGES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
    "UntypedStorage": torch.uint8,
}  # fmt: skip
_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in _STORAGES.values()}


@dataclass(frozen=True)
class Entry:
    """A tensor in a file: its shape and type, and ``read``, which loads it alone.

    ``read`` raises ``WeightsError`` when the bytes in the file are not those that were written.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]

    def squeeze(self, dim: int) -> Entry:
        """Without that axis if its size is 1, as for a tensor."""
        if self.shape[dim : dim + 1 or None] != (1,):
            return self
        shape = list(self.shape)
        del shape[dim]
        return Entry(tuple(shape), self.dtype, lambda: self.read().squeeze(dim))


@dataclass(frozen=True)
class TensorFile:
    """A checkpoint on disk.

    Attributes:
        entries: tensors by name.
        foreign: names of the classes and functions in the file that stand-ins took the place of.
        fingerprint: tells this checkpoint from another one; of its table of contents and size, not of every byte.
    """

    entries: Mapping[str, Entry]
    foreign: tuple[str, ...]
    fingerprint: str


def open_torch_file(path: str | Path) -> TensorFile:
    """Opens a Lightning checkpoint (its ``state_dict``) or a plain state dict.

    Raises:
        WeightsError: if the file is missing, damaged, of another format, or holds no tensors by name.
    """
    path = Path(path)
    try:
        archive = zipfile.ZipFile(path)
    except FileNotFoundError:
        raise WeightsError(f"{path} does not exist") from None
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        size = path.stat().st_size / 1e9 if path.is_file() else 0
        raise WeightsError(
            f"{path} ({size:.2f} GB) is no torch checkpoint in zip format, or its download was cut short: {error}"
        ) from None
    with archive:
        records = {info.filename.partition("/")[2]: info for info in archive.infolist()}
        if "data.pkl" not in records:
            raise WeightsError(f"{path} is a zip archive but no torch checkpoint: it has no data.pkl")
        try:
            if "byteorder" in records and archive.read(records["byteorder"]) != b"little":
                raise WeightsError(f"{path} was written on a big-endian machine; save it again on another")
            table = archive.read(records["data.pkl"])  # checked against its CRC
            found = _Reader(io.BytesIO(table), path, records)
            content = found.load()
        except WeightsError:
            raise
        except Exception as error:  # damage in a pickle makes many kinds
            raise WeightsError(f"{path} is damaged: its table of contents cannot be read ({error})") from None
    state = content.get("state_dict", content) if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not any(isinstance(value, Entry) for value in state.values()):
        raise WeightsError(f"{path} holds no state dict: expected tensors by name, or those under 'state_dict'")
    entries = {str(name): value for name, value in state.items() if isinstance(value, Entry)}
    digest = hashlib.sha256(table + str(path.stat().st_size).encode()).hexdigest()
    return TensorFile(entries, tuple(sorted(found.foreign)), digest)


def open_safetensors(paths: Mapping[Path, str]) -> TensorFile:
    """Opens safetensors files, each with the prefix that its names get.

    Raises:
        WeightsError: for a file that is damaged or no safetensors file, or a name that occurs twice.
    """
    entries, digest = {}, hashlib.sha256()
    for path, prefix in sorted(paths.items()):
        try:
            with safe_open(path, "pt"):  # which checks that the header fits the file
                found = _safetensors_header(path)
            for name, (start, kind, shape) in found.items():
                if prefix + name in entries:
                    raise WeightsError(f"{prefix + name} is in more than one file, {path} is the second")
                if kind not in _SAFE_DTYPES:
                    raise WeightsError(f"{path} has {name} as {kind}, which cannot be read here")
                dtype = _SAFE_DTYPES[kind]
                read = functools.partial(_read_safetensors, path, start, dtype, shape)
                entries[prefix + name] = Entry(shape, dtype, read)
        except WeightsError:
            raise
        except Exception as error:
            raise WeightsError(f"{path} is damaged or no safetensors file: {error}") from None
        digest.update(f"{prefix} {path.stat().st_size}".encode())
    digest.update(repr([(name, e.shape, e.dtype) for name, e in entries.items()]).encode())
    return TensorFile(entries, (), digest.hexdigest())


_SAFE_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


class _Inert:
    """Takes the place of an object of a class that the reader does not know. It can be made and filled."""

    def __new__(cls, *args: Any, **kwargs: Any) -> _Inert:
        return object.__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def _nothing(self, *args: Any, **kwargs: Any) -> None:
        pass

    __setstate__ = __setitem__ = append = extend = add = update = _nothing

    def __call__(self, *args: Any, **kwargs: Any) -> _Inert:
        return self


@dataclass(frozen=True)
class _Storage:
    dtype: torch.dtype
    numel: int
    info: zipfile.ZipInfo


class _Reader(pickle.Unpickler):
    """Tensors become entries, plain containers themselves, and everything else a stand-in: no name is ever imported."""

    def __init__(self, file: io.BytesIO, path: Path, records: Mapping[str, zipfile.ZipInfo]):
        super().__init__(file)
        self.path, self.records, self.foreign = path, records, set()
        self.known: dict[tuple[str, str], Any] = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch", "Size"): tuple,
            ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
            ("torch._utils", "_rebuild_parameter_with_state"): lambda tensor, *_: tensor,
            ("torch._utils", "_rebuild_tensor_v2"): self.tensor,
            ("torch._utils", "_rebuild_tensor_v3"): lambda s, o, n, st, grad, hooks, dtype, *_: self.tensor(
                s, o, n, st, dtype=dtype
            ),
            **{("torch", name): dtype for name, dtype in _DTYPES.items()},
            **{(module, name): dtype for name, dtype in _STORAGES.items() for module in ("torch", "torch.storage")},
        }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in self.known:
            return self.known[module, name]
        self.foreign.add(f"{module}.{name}")
        return self.known.setdefault((module, name), type("Inert", (_Inert,), {}))

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _, numel = pid
        info = self.records.get(f"data/{key}")
        if kind != "storage" or not isinstance(dtype, torch.dtype) or info is None:
            raise WeightsError(f"{self.path} is damaged: the bytes of storage {key!r} are not in it")
        if info.compress_type != zipfile.ZIP_STORED or info.file_size < numel * dtype.itemsize:
            raise WeightsError(f"{self.path} is damaged: storage {key!r} is compressed or too short")
        return _Storage(dtype, numel, info)

    def tensor(
        self, storage: _Storage, offset: int, shape: tuple, stride: tuple, *_: Any, dtype: torch.dtype | None = None
    ) -> Entry:
        dtype = dtype or storage.dtype
        shape, stride = tuple(shape), tuple(stride)
        last = offset + sum((n - 1) * s for n, s in zip(shape, stride, strict=True))
        if min((*shape, *stride, offset), default=0) < 0 or (
            math.prod(shape) and (last + 1) * dtype.itemsize > storage.numel * storage.dtype.itemsize
        ):
            raise WeightsError(f"{self.path} is damaged: a tensor of shape {shape} is larger than its storage")

        return Entry(shape, dtype, functools.partial(_read, self.path, storage, dtype, shape, stride, offset))


def _safetensors_header(path: Path) -> dict[str, tuple[int, str, tuple[int, ...]]]:
    """Where each tensor's bytes start in the file, its type and its shape."""
    with open(path, "rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(size))
    header.pop("__metadata__", None)
    return {k: (8 + size + v["data_offsets"][0], v["dtype"], tuple(v["shape"])) for k, v in sorted(header.items())}


def _read_safetensors(path: Path, start: int, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """One tensor, mapped by itself: all that was ever read of an open ``safe_open`` stays in memory."""
    if not math.prod(shape):
        return torch.empty(shape, dtype=dtype)
    record = np.memmap(path, np.uint8, "c", start, (math.prod(shape) * dtype.itemsize,))
    return torch.frombuffer(record, dtype=dtype).reshape(shape)


def _read(
    path: Path, storage: _Storage, dtype: torch.dtype, shape: tuple[int, ...], stride: tuple[int, ...], offset: int
) -> Tensor:
    """A tensor's values, from the bytes of its storage."""
    if not math.prod(shape):
        return torch.empty(shape, dtype=dtype)
    count = storage.numel * storage.dtype.itemsize // dtype.itemsize
    flat = torch.frombuffer(_bytes_of(path, storage.info), dtype=dtype, count=count)
    return flat.as_strided(shape, stride, offset)


def _bytes_of(path: Path, info: zipfile.ZipInfo) -> np.ndarray:
    """The bytes of an uncompressed record, mapped copy-on-write, after its checksum has been compared."""
    with open(path, "rb") as file:
        file.seek(info.header_offset)
        header = file.read(30)
        if header[:4] != b"PK\x03\x04":
            raise WeightsError(f"{path} is damaged at {info.filename}")
    name, extra = struct.unpack("<HH", header[26:30])
    start = info.header_offset + 30 + name + extra
    try:
        record = np.memmap(path, np.uint8, "c", start, (info.file_size,))
    except (ValueError, OSError) as error:
        raise WeightsError(f"{path} is damaged at {info.filename}: {error}") from None
    if info.CRC and zlib.crc32(record) != info.CRC:  # 0: written without a checksum
        raise WeightsError(f"{path} is damaged at {info.filename}: its checksum differs")
    return record
