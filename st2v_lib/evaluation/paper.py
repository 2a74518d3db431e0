"""The paper's numbers that stand beside ours (v2, CVPR 2025), and its claims as differences that can be tested.

Of the claims that are **ours** some test what the paper says in values that it does not measure: it speaks of smooth
joints, but counts cuts; it wants flow that varies little, where here the true flow is known. Others ask about what the
paper has not: a CAM that is primed or guided, a sprite that is out of sight, an APM that has seen more.

Its videos, prompts and networks are others, so only the sign of a difference can agree or not. Its re-identification
and LPIPS have no counterpart in the sprite world; identity given return is what they are about.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

TABLE1 = {  # §5.2, 240 frames, 50 prompts: method -> MAWE, SCuts, CLIP
    "SparseCtrl": (6069.7, 5.48, 29.32), "I2VGen-XL": (2846.4, 0.40, 27.28), "DynamiCrafter-XL": (176.7, 1.30, 27.79),
    "SEINE": (718.9, 0.28, 30.13), "SVD": (857.2, 1.10, 23.95), "FreeNoise": (1298.4, 0, 31.55),
    "Open-Sora v1.2": (1165.7, 0.16, 31.54), "Open-Sora-Plan v1.2": (72.9, 0.24, 29.34),
    "StreamingT2V": (52.3, 0.04, 31.73),
}  # fmt: skip
STANDS_FOR = {  # arm -> the methods of Tab. 1 that carry a video on in this way, each on a base model of its own
    "concat_cond": ("SEINE",), "add_cond": ("SparseCtrl",), "cam": ("StreamingT2V",), "full": ("StreamingT2V",),
    "last_frame_clip": ("SVD", "DynamiCrafter-XL", "I2VGen-XL"), "free_noise": ("FreeNoise",),
}  # fmt: skip
NOT_BUILT = {  # rows of Tab. 1 without an arm
    "Open-Sora v1.2": "a base model of its own, no way to carry a video on",
    "Open-Sora-Plan v1.2": "a base model of its own, no way to carry a video on",
}
SCUTS = {"concat_cond": 0.24, "add_cond": 0.284, "cam": 0.03}  # §5.3: CAM without APM
APM = {"with": "re-ID 94.95, LPIPS 0.151", "without": "re-ID 93.42, LPIPS 0.192"}  # §5.3
FLOW_DEVIATION = {"B": 8.72, "B+S": 6.01, "code": 3.32}  # §5.3; randomized blending is "ours" there
STABILITY = {  # first n frames -> MAWE, CLIP (appendix)
    120: (43.25, 32.45), 140: (46.92, 32.30), 160: (46.79, 32.16), 180: (45.79, 32.02), 200: (45.84, 31.89),
    220: (45.84, 31.79),
}  # fmt: skip


@dataclass(frozen=True)
class Claim:
    """``a`` is better than ``b`` in a value; ``better`` 1 where more is better, -1 where less is.

    ``ours``: the paper does not measure this value.
    """

    text: str
    value: str
    a: str
    b: str
    better: int
    ours: bool = False


CLAIMS = {
    "table-cam": (
        Claim("fewer cuts with CAM than with Conc-Cond", "scuts", "cam", "concat_cond", -1),
        Claim("fewer cuts with CAM than with Add-Cond", "scuts", "cam", "add_cond", -1),
        Claim("smoother joints with CAM than with Conc-Cond", "seam_bend", "cam", "concat_cond", -1, ours=True),
        Claim("smoother joints with CAM than with Add-Cond", "seam_bend", "cam", "add_cond", -1, ours=True),
        Claim("smoother joints with CAM than without memory", "seam_bend", "cam", "none", -1, ours=True),
        Claim("smoother joints with the shipped CAM than by pasting alone", "seam_bend", "cam-shipped", "replacement",
              -1, ours=True),
        Claim("smoother joints with the shipped CAM if frames are pasted as well", "seam_bend",
              "cam-shipped-replacement", "cam-shipped", -1, ours=True),
        Claim("smoother joints with a primed CAM than from the paper's start", "seam_bend", "cam_primed", "cam", -1,
              ours=True),
        Claim("smoother joints with a primed CAM than with Conc-Cond", "seam_bend", "cam_primed", "concat_cond", -1,
              ours=True),
        Claim("smoother joints with a primed CAM than with a primed Add-Cond", "seam_bend", "cam_primed",
              "add_cond_primed", -1, ours=True),
        Claim("smoother joints with a guided CAM than from the paper's start", "seam_bend", "cam_guided", "cam", -1,
              ours=True),
        Claim("smoother joints with a guided CAM than with a primed one", "seam_bend", "cam_guided", "cam_primed", -1,
              ours=True),
        Claim("smoother joints with a guided CAM than with Conc-Cond", "seam_bend", "cam_guided", "concat_cond", -1,
              ours=True),
        Claim("smoother joints with a guided CAM than with Add-Cond", "seam_bend", "cam_guided", "add_cond", -1,
              ours=True),
    ),
    "cam-hidden": (
        Claim("what is out of sight returns more often with CAM than with Conc-Cond", "returned", "cam", "concat_cond",
              1, ours=True),
        Claim("what is out of sight returns more often with CAM than with Add-Cond", "returned", "cam", "add_cond",
              1, ours=True),
    ),
    "table-apm": (
        Claim("APM keeps the identity of what returns", "pattern_kept", "apm", "apm_null", 1),
        Claim("APM keeps the shade of what returns", "shade_error", "apm", "apm_null", -1),
        Claim("the shipped APM keeps the pattern of what returns", "pattern_kept", "with", "alpha0", 1, ours=True),
        Claim("the shipped APM keeps the shade of what returns", "shade_error", "with", "alpha0", -1, ours=True),
    ),
    "table-blending": (
        Claim("shared noise is smoother than naive chunks", "flow_deviation", "B+S", "B", -1),
        Claim("randomized blending is smoother than shared noise", "flow_deviation", "code", "B+S", -1),
        Claim("it moves more like the truth than naive chunks", "flow_error", "code", "B", -1, ours=True),
        Claim("its chunks agree more where they overlap", "chunk_agreement", "code", "B", 1, ours=True),
    ),
}  # fmt: skip
CLAIMS["blending-levels"] = tuple(  # the enhancer's level of the paper
    replace(c, text=f"{c.text}, from level 599", a=f"{c.a}@599", b=f"{c.b}@599") for c in CLAIMS["table-blending"]
)

TABLE1_CLAIMS = {  # suite -> claims; the rivals are trained in "cam" only, last-frame CLIP needs no training
    "long": (
        Claim("lower MAWE than last-frame CLIP (SVD, DynamiCrafter-XL, I2VGen-XL)", "mawe_code", "full",
              "last_frame_clip", -1),
        Claim("fewer cuts than last-frame CLIP", "scuts", "full", "last_frame_clip", -1),
        Claim("higher CLIP score than last-frame CLIP", "clip_score", "full", "last_frame_clip", 1),
        Claim("lower MAWE than FreeNoise", "mawe_code", "full", "free_noise", -1),
        Claim("higher CLIP score than FreeNoise", "clip_score", "full", "free_noise", 1),
    ),
    "cam": (
        Claim("lower MAWE than masked concatenation (SEINE)", "mawe_code", "cam", "concat_cond", -1),
        Claim("higher CLIP score than masked concatenation", "clip_score", "cam", "concat_cond", 1),
        Claim("lower MAWE than addition (SparseCtrl)", "mawe_code", "cam", "add_cond", -1),
        Claim("higher CLIP score than addition", "clip_score", "cam", "add_cond", 1),
    ),
}  # fmt: skip
