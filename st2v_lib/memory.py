"""Three rungs of memory, from fastest to smallest: chosen from what is free, and left for the next when it is short.

Whatever the rung, a network is given the same tensors, so frames change by rounding only. A network's call has no side
effects: when it runs out of memory, it is made again one rung down and nothing that came before is lost.
"""

from __future__ import annotations

import functools
import gc
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.models.attention import FeedForward
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from st2v_lib.errors import DeviceError, InputError, first_line
from st2v_lib.replay import recording


@dataclass(frozen=True)
class Rung:
    """How memory is spent.

    Attributes:
        name: what is printed.
        needs_gb: free memory from which it is chosen for the full-size model, 720-pixel enhancement included.
        offload: networks of idle stages wait in the machine's own memory.
        slice_vae: the VAE works frame by frame.
        feed_forward_rows: tokens that a feed-forward layer takes at once; ``None`` for all.
        one_branch: the enhancer's guidance branches run one after another.
    """

    name: str
    needs_gb: float
    offload: bool
    slice_vae: bool
    feed_forward_rows: int | None
    one_branch: bool


RUNGS = (
    Rung("fastest", 28.0, offload=False, slice_vae=False, feed_forward_rows=None, one_branch=False),
    Rung("16 GB", 13.0, offload=True, slice_vae=True, feed_forward_rows=2**16, one_branch=False),
    Rung("smallest", 0.0, offload=True, slice_vae=True, feed_forward_rows=2**14, one_branch=True),
)
GROUPS = (("text_encoder",), ("image_encoder",), ("base",), ("unet", "cam"), ("enhancer",))  # one is on the device
RESIDENT = ("vae", "apm")  # small, and used between the others


def device_class(device: torch.device | str) -> str:
    """What a number was measured on, by class and not by name: ``"2 CPU threads"``, ``"cuda, 16 GB, sm 7.5"``."""
    kind = torch.device(device).type
    if kind != "cuda":
        return f"{torch.get_num_threads()} CPU threads" if kind == "cpu" else kind
    card = torch.cuda.get_device_properties(device)
    return f"cuda, {card.total_memory / 1e9:.0f} GB, sm {card.major}.{card.minor}"


def choose_rung(free_bytes: float, name: str = "auto") -> Rung:
    """The fastest rung that fits, or the one of that name.

    Raises:
        InputError: for an unknown name.
    """
    names = [rung.name for rung in RUNGS]
    if name != "auto":
        if name not in names:
            raise InputError(f"unknown memory rung {name!r}; choose auto, {', '.join(names)}")
        return RUNGS[names.index(name)]
    return next(rung for rung in RUNGS if free_bytes / 1e9 >= rung.needs_gb)


def free_memory(device: torch.device) -> int:
    """Free bytes of a CUDA device, or of the machine."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    import psutil

    return psutil.virtual_memory().available


class Ladder:
    """Runs a pipeline's networks on a device, on a rung; goes down when memory is short.

    Args:
        pipe: the pipeline, with its networks in the machine's memory. It is changed in place. Its weights stay where
            they are, in files mapped by the loader for instance; the device has a copy. Another type may be given to
            them later, ``pipe.to(torch.float32)``.
        device: where to compute.
        rung: where to start; ``"auto"`` goes by what is free.
        report: gets a line when a rung is taken.

    Raises:
        InputError: for an unknown rung.
        DeviceError: when not even the smallest rung fits.
    """

    def __init__(
        self,
        pipe: DiffusionPipeline,
        device: torch.device,
        rung: str = "auto",
        report: Callable[[str], object] = print,
    ):
        self.pipe, self.device, self.report = pipe, device, report
        free = free_memory(device)
        self.rung = choose_rung(free * 2 / pipe.unet.dtype.itemsize, rung)  # rungs are in half precision
        self.inside: tuple[str, ...] | None = None
        names = (*RESIDENT, *(name for group in GROUPS for name in group))
        self.nets = {name: getattr(pipe, name) for name in names if getattr(pipe, name, None) is not None}
        self.home = {name: [t.data for t in _tensors(net)] for name, net in self.nets.items()}
        for group in GROUPS:
            for name in group:
                if name in self.nets:
                    self._guard(self.nets[name], group)
        if "vae" in self.nets:
            pipe.vae.encode, pipe.vae.decode = (self._retrying(f) for f in (pipe.vae.encode, pipe.vae.decode))
        if "cam" in self.nets:  # called without CAM's own forward, once a chunk
            self._guard(pipe.cam.extractor.cond_encoder, ("unet", "cam"))
        self._take(self.rung)
        self.report(f"memory: rung {self.rung.name!r} on {device} ({free / 1e9:.1f} GB free)")

    def apply(self, rung: Rung) -> None:
        """Changes the networks to that rung."""
        self.rung, self.inside = rung, None
        idle = "cpu" if rung.offload else self.device
        for name in (name for group in GROUPS for name in group):  # first: off-loading makes room for the resident
            self._move(name, idle)
        for name in RESIDENT:
            self._move(name, self.device)
        if "vae" in self.nets:
            self.nets["vae"].use_slicing = rung.slice_vae
        for name in {"base", "unet", "cam", "enhancer"} & self.nets.keys():
            chunk_feed_forward(self.nets[name], rung.feed_forward_rows)

    def down(self) -> bool:
        """Takes the next rung that fits; ``False`` on the last one."""
        at = RUNGS.index(self.rung) + 1
        if at == len(RUNGS):
            return False
        self._take(RUNGS[at], self.inside)
        self.report(f"memory: out of memory, going on with rung {self.rung.name!r}")
        return True

    def _take(self, rung: Rung, group: tuple[str, ...] | None = None) -> None:
        """Changes to that rung, or one further down if moving the weights takes too much; then enters the stage."""
        for candidate in RUNGS[RUNGS.index(rung) :]:
            try:
                self.apply(candidate)
                self._free()
                if group:
                    self.enter(group)
                return
            except torch.OutOfMemoryError as error:
                short = first_line(error)
            self._free()  # outside the handler, as in _retrying
        raise self._too_small(short)

    def _free(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _too_small(self, short: str) -> DeviceError:
        return DeviceError(f"{self.device} is too small even for the smallest rung: {short}")

    def enter(self, group: tuple[str, ...]) -> None:
        """Brings a stage's networks to the device and, when off-loading, the others away from it."""
        if group == self.inside or not self.rung.offload:
            return
        self.inside = None  # until all are there
        for name in (name for other in GROUPS if other != group for name in other):
            self._move(name, "cpu")
        for name in group:
            self._move(name, self.device)
        self.inside = group

    def _move(self, name: str, device: torch.device | str) -> None:
        if name in self.nets:
            for i, tensor in enumerate(_tensors(self.nets[name])):
                home = self.home[name][i]
                if tensor.dtype != home.dtype:  # changed since, as by pipe.to(torch.float32)
                    home = self.home[name][i] = tensor.data.cpu()
                if torch.device(device).type == "cpu":
                    tensor.data = home
                elif tensor.device != torch.device(device):
                    tensor.data = home.to(device)

    def _guard(self, net: nn.Module, group: tuple[str, ...]) -> None:
        whole = net.forward

        def entering(*args: Any, **kwargs: Any) -> Any:
            self.enter(group)
            if "enhancer" in group and self.rung.one_branch:
                return one_by_one(whole, *args, **kwargs)
            return whole(*args, **kwargs)

        net.forward = self._retrying(entering)

    def _retrying(self, call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def retrying(*args: Any, **kwargs: Any) -> Any:
            while True:
                try:
                    return call(*args, **kwargs)
                except torch.OutOfMemoryError as error:
                    if recording():  # a step of which a graph is being made: it goes on without one
                        raise
                    short = first_line(error)
                # outside the handler: until here the exception kept the failed call's tensors alive
                if not self.down():
                    raise self._too_small(short)

        return retrying


def _tensors(net: nn.Module) -> list[Tensor]:
    return [*net.parameters(), *net.buffers()]


def one_by_one(forward: Callable[..., Tensor], sample: Tensor, timestep: Any, tokens: Tensor, *rest: Any) -> Tensor:
    """A network's call on each video in turn, and of each on one guidance branch after the other."""
    n = len(sample)
    times = timestep.expand(n) if isinstance(timestep, Tensor) else [timestep] * n
    turns = [(k % n, row) for k, row in enumerate(tokens.split(1))]
    return torch.cat([forward(sample[i : i + 1], times[i], row, *rest) for i, row in turns])


def chunk_feed_forward(net: nn.Module, rows: int | None) -> nn.Module:
    """Lets the feed-forward layers of a network take at most ``rows`` tokens at once; ``None``: all of them.

    As diffusers' ``enable_forward_chunking``, for any number of tokens. Tokens do not mix in these layers.
    """
    for module in net.modules():
        if isinstance(module, FeedForward):
            module.__dict__.pop("forward", None)
            if rows is not None:
                module.forward = functools.partial(_in_rows, module.forward, rows)
    return net


def _in_rows(forward: Callable[[Tensor], Tensor], rows: int, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    if hidden.shape[:-1].numel() <= rows:
        return forward(hidden, *args, **kwargs)
    flat = hidden.reshape(-1, hidden.shape[-1])
    return torch.cat([forward(part, *args, **kwargs) for part in flat.split(rows)]).reshape(*hidden.shape[:-1], -1)


# ------------------------------------------------------------------------------------- how much a call needs, computed


class PeakCounter(TorchDispatchMode):
    """Adds up the bytes of the tensors that live at the same time; on meta tensors it costs no memory itself.

    What it finds is a lower bound: it knows nothing of a library's workspace or of an allocator's gaps, and it takes
    attention to be the fused kernel that keeps no scores.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._seen: set[int] = set()
        self._fused = _FusedAttention()

    def __enter__(self) -> PeakCounter:
        self._fused.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._fused.__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        if key in self._seen:
            return
        self._seen.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._release, key, size)

    def _release(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.live -= size


class _FusedAttention(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is nn.functional.scaled_dot_product_attention:
            return torch.empty_like(args[0])
        return func(*args, **(kwargs or {}))
