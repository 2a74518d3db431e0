"""The paper's numbers that stand beside ours (v2, CVPR 2025), and its claims as differences that can be tested.

Its videos, prompts and networks are others, so only the sign of a difference can agree or not. Its re-identification
and LPIPS have no counterpart in the sprite world; identity given return is what they are about.
"""

from __future__ import annotations

from dataclasses import dataclass

SCUTS = {"concat_cond": 0.24, "add_cond": 0.284, "cam": 0.03}  # §5.3: CAM without APM
APM = {"with": "re-ID 94.95, LPIPS 0.151", "without": "re-ID 93.42, LPIPS 0.192"}  # §5.3
FLOW_DEVIATION = {"B": 8.72, "B+S": 6.01, "code": 3.32}  # §5.3; randomized blending is "ours" there
STABILITY = {  # first n frames -> MAWE, CLIP (appendix)
    120: (43.25, 32.45), 140: (46.92, 32.30), 160: (46.79, 32.16), 180: (45.79, 32.02), 200: (45.84, 31.89),
    220: (45.84, 31.79),
}  # fmt: skip


@dataclass(frozen=True)
class Claim:
    """``a`` is better than ``b`` in a value; ``better`` 1 where more is better, -1 where less is."""

    text: str
    value: str
    a: str
    b: str
    better: int


CLAIMS = {
    "table-cam": (
        Claim("fewer cuts with CAM than with Conc-Cond", "scuts", "cam", "concat_cond", -1),
        Claim("fewer cuts with CAM than with Add-Cond", "scuts", "cam", "add_cond", -1),
        Claim("smoother joints with CAM than with Conc-Cond", "seam_residual", "cam", "concat_cond", -1),
        Claim("smoother joints with CAM than with Add-Cond", "seam_residual", "cam", "add_cond", -1),
        Claim("smoother joints with CAM than without memory", "seam_residual", "cam", "none", -1),
    ),
    "table-apm": (
        Claim("APM keeps the identity of what returns", "pattern_kept", "apm", "apm_null", 1),
        Claim("and its shade", "shade_error", "apm", "apm_null", -1),
    ),
    "table-blending": (
        Claim("shared noise is smoother than naive chunks", "flow_deviation", "B+S", "B", -1),
        Claim("randomized blending is smoother than shared noise", "flow_deviation", "code", "B+S", -1),
    ),
}
