"""What the notebooks show and check; nothing here is needed to generate a video.

* ``show``: a video as an animated GIF, contact sheets, x-t slices. ``show_video({"title": video, ...})`` puts several
  side by side, in step; all take ``f c h w`` or ``b f c h w`` float in [-1, 1], or the same in uint8 with c last.
* ``checks``: exercise checkers, ``checks.check_xt_slice(my_function)``, and ``checks.expect`` for single numbers.
* ``setup``: ``environment()``, what runs here; ``install_missing()`` for Colab.
* ``repository``: the address behind every badge, and the first code cell that all notebooks share.

A notebook begins with a Markdown cell (``# title``, ``repository.badge("notebooks/06_metrics.ipynb")``, what you will
learn, needs, minutes), then a code cell that is ``repository.setup_cell()``, tagged ``nbval-ignore-output``;
``python -m st2v_lib.notebook.repository`` writes both into all notebooks again. ``tests/test_notebooks_lint.py``
has the other rules. From then on::

    from st2v_lib.notebook import checks, contact_sheet, show_video, show_xt
    show_video({"without CAM": a, "with CAM": b}, fps=8, zoom=3)  # the last line of a cell: the GIF is its output
    show_xt({"without CAM": a, "with CAM": b}, seams=range(16, 80, 8))

Names are imported on first use.
"""

from importlib import import_module

_FILES = ("checks", "repository", "setup", "show")
_NAMES = {
    "contact_sheet": "show", "show_figure": "show", "show_video": "show", "show_xt": "show",
    "environment": "setup",
}  # fmt: skip
__all__ = [*_FILES, *_NAMES]


def __getattr__(name: str):
    if name in _NAMES:
        return getattr(import_module(f"{__name__}.{_NAMES[name]}"), name)
    if name in _FILES:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
