"""Other ways to carry a video on, one file a mechanism, for fair tests against CAM and APM (paper §5.2, §9.1).

A rival of CAM has CAM's interface (``attach``, ``encode_condition``, a call that gives one feature for each skip), so
the streaming loop runs it unchanged: ``pipe.cfg = pipe.cfg.replace(conditioning="add_cond")``. Weights of rivals are
looked for when a rival is first used.

| ``cfg.conditioning`` | file | what it stands for |
|---|---|---|
| ``"none"`` | – | every chunk on its own |
| ``"concat_cond"`` | ``concat_cond.py`` | Conc-Cond; masked concatenation as in SEINE |
| ``"add_cond"`` | ``add_cond.py`` | Add-Cond; additive fusion as in SparseCtrl |
| ``"placed_cam"`` | ``placed_cam.py`` | CAM without the look-up: told which past frame a carried one repeats |
| ``"cam"`` | ``st2v_lib/cam.py`` | the paper's |
| ``"replacement"`` | ``replacement.py`` | no training: carried frames are pasted in, noised to each step's level |
| ``"cam+replacement"`` | the same | CAM, or a rival in its place, and the paste as well |

``cfg.replace(anchor="last")`` (``last_frame_clip.py``) is last-frame CLIP conditioning in place of the fixed anchor.
``free_noise.py`` does not stream: it makes all frames at once from the noise of one chunk.
"""

from __future__ import annotations

import importlib
from pathlib import Path

import torch

from st2v_lib.errors import InputError, WeightsError, first_line

RIVALS = {
    "concat_cond": ("st2v_lib.baselines.concat_cond", "ConcCond"),
    "add_cond": ("st2v_lib.baselines.add_cond", "AddCond"),
    "placed_cam": ("st2v_lib.baselines.placed_cam", "PlacedCam"),
}
CONDITIONINGS = ("none", "cam", *RIVALS, "replacement", "cam+replacement")


def parts_of(conditioning: str) -> tuple[str, bool]:
    """The network that ``cfg.conditioning`` names, ``"none"`` for none, and whether carried frames are replaced."""
    network, _, last = conditioning.rpartition("+")
    return (network or "none", True) if last == "replacement" else (conditioning, False)


def rival_class(name: str) -> type:
    """The class behind ``cfg.conditioning``.

    Raises:
        InputError: for a name that is no rival's.
    """
    if name not in RIVALS:
        raise InputError(f"conditioning {name!r} is unknown; choose one of: {', '.join(CONDITIONINGS)}")
    module, cls = RIVALS[name]
    return getattr(importlib.import_module(module), cls)


def load_rival(name: str, folder: str | Path):
    """A rival's weights from its folder inside ``folder``, in float32, ready for use.

    Raises:
        InputError: for an unknown name.
        WeightsError: when it has not been trained here.
    """
    cls, place = rival_class(name), Path(folder) / name
    if not (place / "config.json").is_file():
        raise WeightsError(
            f"conditioning {name!r} has no weights in {folder}; train them with: "
            f"st2v train {name} --from {folder} --out runs/arms/{name}"
        )
    try:
        return cls.from_pretrained(place).float().eval().requires_grad_(False)
    except Exception as error:  # a damaged file makes many kinds
        raise WeightsError(f"the weights in {place} cannot be loaded: {first_line(error)}") from error


def rival_of(pipe, name: str):
    """The rival that a pipeline's config asks for, from beside the pipeline's own weights; kept once loaded."""
    rivals = pipe.__dict__.setdefault("rivals", {})
    if name not in rivals:
        rivals[name] = load_rival(name, getattr(pipe.config, "_name_or_path", None) or "the pipeline's folder")
    rival = rivals[name]
    if hasattr(rival, "use_vae"):
        rival.use_vae(pipe.vae)
    return torch.nn.Module.to(rival, pipe.unet.device, pipe.unet.dtype)
