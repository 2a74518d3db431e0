"""StreamingT2V (Henschel et al., CVPR 2025, arXiv 2403.14773): long videos from text, as a library to learn from.

Names below are imported when they are first used, so ``import st2v_lib`` costs milliseconds. diffusers' loader looks
component classes and ``ModelMixin`` up here when it reads a saved pipeline.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_LAZY = {
    "StreamingUNet": "st2v_lib.backbone",
    "PatchedAutoencoderKL": "st2v_lib.backbone",
    "Cam": "st2v_lib.cam",
    "Apm": "st2v_lib.apm",
    "StreamingT2VPipeline": "st2v_lib.pipeline",
    "load": "st2v_lib.loading",
    "ModelMixin": "diffusers",
    "StreamingT2VConfig": "st2v_lib.config",
    "preset": "st2v_lib.config",
}

__all__ = [*_LAZY, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_LAZY[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
