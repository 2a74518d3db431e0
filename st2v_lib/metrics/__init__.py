"""Metrics, one file each: what it measures, in which units, and what it cannot see stands at the top of each file.

Every metric takes one video (``uint8 f h w c``, or float ``f c h w`` in [-1, 1]) and returns a ``MetricResult``: the
value, the per-pair or per-frame values behind it, and the protocol it was measured with. ``metrics.mawe`` is the file,
``metrics.mawe.mawe`` the function in it. Files are loaded on first use, so importing this package costs nothing.
"""

from importlib import import_module

_FILES = (
    "base", "clip_score", "drift", "flicker", "flow", "flow_smoothness",
    "mawe", "motion", "scene_cuts", "table", "truth", "warp", "xt_slice",
)  # fmt: skip
_NAMES = {"MetricResult": "base", "mean_over_videos": "base", "measure": "table", "format_table": "table"}
__all__ = [*_FILES, *_NAMES]


def __getattr__(name: str):
    if name in _NAMES:
        return getattr(import_module(f"{__name__}.{_NAMES[name]}"), name)
    if name in _FILES:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
