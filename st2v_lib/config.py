"""Frozen configurations of every component and the two presets, ``tiny`` and ``modelscope``.

One implementation, two sizes: a component reads its shapes from here and nowhere else. An ablation is a changed
config, ``cfg.replace(apm=None)`` or ``cfg.replace(conditioning="concat_cond")``. Paper: Tab. 12 and appendix §10.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class UNetConfig:
    """Constructor values of diffusers' ``UNet3DConditionModel`` (paper §3, the ModelScope text-to-video base)."""

    sample_size: int = 32
    in_channels: int = 4
    out_channels: int = 4
    down_block_types: tuple[str, ...] = ("CrossAttnDownBlock3D",) * 3 + ("DownBlock3D",)
    up_block_types: tuple[str, ...] = ("UpBlock3D",) + ("CrossAttnUpBlock3D",) * 3
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int = 2
    norm_num_groups: int = 32
    cross_attention_dim: int = 1024
    attention_head_dim: int = 64

    def kwargs(self) -> dict[str, Any]:
        """The keyword arguments for ``UNet3DConditionModel``."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class CamConfig:
    """Conditional attention module, the short-term memory (paper §4.1).

    Attributes:
        num_cond_frames: clean frames of the previous chunk that CAM sees, and noisy frames it runs on.
        text_len: text tokens; tokens that follow them (the anchor's) are not shown to CAM.
        cond_channels: widths of the pixel encoder; each step after the first halves the resolution.
        injector_head_dim: channels of one attention head in the injectors.
        injector_norm_groups: groups of the injectors' spatio-temporal GroupNorm.
    """

    num_cond_frames: int = 8
    text_len: int = 77
    cond_channels: tuple[int, ...] = (32, 96, 256, 512)
    injector_head_dim: int = 64
    injector_norm_groups: int = 32


@dataclass(frozen=True)
class ApmConfig:
    """Appearance preservation module, the long-term memory (paper §4.2).

    Attributes:
        image_embed_dim: size of the CLIP image embedding of the anchor frame.
        hidden_dim: width of the two-layer token network.
        num_image_tokens: tokens made from one embedding.
        text_len: text tokens, the length every mixed context keeps.
    """

    image_embed_dim: int = 1024
    hidden_dim: int = 1280
    num_image_tokens: int = 16
    text_len: int = 77


@dataclass(frozen=True)
class VaeConfig:
    """Constructor values of ``PatchedAutoencoderKL``: pixels are unshuffled by ``patch_size`` before the stock VAE."""

    patch_size: int = 1
    latent_channels: int = 4
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    norm_num_groups: int = 32
    scaling_factor: float = 0.18215

    @property
    def downscale(self) -> int:
        """Pixels along one side of a latent cell."""
        return self.patch_size * 2 ** (len(self.block_out_channels) - 1)


@dataclass(frozen=True)
class SchedulerConfig:
    """Constructor values shared by diffusers' DDIM and DPM-Solver++ schedulers (reference: ModelScope's own file)."""

    num_train_timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: str = "scaled_linear"
    prediction_type: str = "epsilon"
    rescale_betas_zero_snr: bool = False
    timestep_spacing: str = "leading"
    steps_offset: int = 1
    set_alpha_to_one: bool = False


@dataclass(frozen=True)
class SamplingConfig:
    """How a chunk is denoised: ``sampler`` is ``"ddim"``, ``"dpm++"`` or ``"sde-dpm++"``, see ``make_scheduler``."""

    sampler: str = "ddim"
    num_inference_steps: int = 50
    eta: float = 1.0
    guidance_scale: float = 7.5
    anchor_guidance_scale: float | None = None  # None: as guidance_scale (two branches)


@dataclass(frozen=True)
class EnhancerConfig:
    """Stage 3: SDEdit by a video model over overlapping chunks (paper §4.3).

    Attributes:
        size: height and width of the enhanced video in pixels, one number for a square.
        canvas_width: the network sees the video on a black canvas at least this wide; ``None``: as small as it takes.
        chunk_frames, overlap_frames: the paper's 24 and 8.
        upscale_mode: the paper's ``"bilinear"``, or the released code's ``"bicubic"``.
        start_timestep: SDEdit noise level, an index of 1000.
        num_inference_steps: network evaluations per chunk.
        guidance_scale, guidance_rescale: classifier-free guidance and the std rescale.
        blend_law: ``"code"`` draws the cut from {0..O-1}, ``"paper"`` from {0..O}; ``"B"``, ``"B+S"``: no blending.
        official_start_scale: keep the released sampler's start-up slip (state scaled by sigma/alpha).
        shape_quirks: the released network's asymmetric down- and up-sampling.
    """

    unet: UNetConfig = field(default_factory=UNetConfig)
    size: int | tuple[int, int] = 720
    canvas_width: int | None = 1280
    chunk_frames: int = 24
    overlap_frames: int = 8
    upscale_mode: str = "bilinear"
    start_timestep: int = 599
    num_inference_steps: int = 30
    guidance_scale: float = 7.5
    guidance_rescale: float = 0.2
    blend_law: str = "code"
    official_start_scale: bool = False
    shape_quirks: bool = True


@dataclass(frozen=True)
class ClipConfig:
    """The small CLIP (``transformers.CLIPModel``) of the sprite world; ``None`` at full size: public CLIPs serve."""

    hidden_size: int = 128
    num_layers: int = 4
    num_text_layers: int = 2
    num_heads: int = 4
    projection_dim: int = 128
    image_size: int = 64
    patch_size: int = 8


@dataclass(frozen=True)
class StreamingT2VConfig:
    """Everything about one size of the method.

    Attributes:
        size: height and width of stages 1 and 2 in pixels.
        chunk_frames: frames denoised together; ``cam.num_cond_frames`` of them repeat the previous chunk.
        conditioning: short-term mechanism: ``"cam"``, ``"none"``, ``"concat_cond"``, ``"add_cond"`` …
        apm: ``None`` switches the long-term memory off.
        anchor: what it keeps to: the ``"first"`` frame of all, or, as rivals do, the ``"last"`` before each chunk.
        null_pixel: value of the image that stands for no anchor: 0, mid-grey, as released; -1, black, as in the paper.
    """

    name: str = "modelscope"
    size: int = 256
    chunk_frames: int = 16
    fps: int = 8
    conditioning: str = "cam"
    anchor: str = "first"
    null_pixel: float = 0.0
    unet: UNetConfig = field(default_factory=UNetConfig)
    vae: VaeConfig = field(default_factory=VaeConfig)
    cam: CamConfig | None = field(default_factory=CamConfig)
    apm: ApmConfig | None = field(default_factory=ApmConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    enhancer: EnhancerConfig | None = field(default_factory=EnhancerConfig)
    clip: ClipConfig | None = None

    def replace(self, **changes: Any) -> StreamingT2VConfig:
        """A copy with fields changed, ``cfg.replace(apm=None)``; unknown names raise ``TypeError``."""
        return dataclasses.replace(self, **changes)

    def to_json(self) -> str:
        """The config as JSON text."""
        return json.dumps(dataclasses.asdict(self), indent=1)

    @classmethod
    def from_json(cls, text_or_path: str | Path) -> StreamingT2VConfig:
        """Reads what ``to_json`` wrote, from its text or from a file."""
        text = str(text_or_path)
        return _build(cls, json.loads(text if text.lstrip().startswith("{") else Path(text).read_text()))


_NESTED = {
    "unet": UNetConfig, "vae": VaeConfig, "cam": CamConfig, "apm": ApmConfig, "scheduler": SchedulerConfig,
    "sampling": SamplingConfig, "enhancer": EnhancerConfig, "clip": ClipConfig,
}  # fmt: skip


def _build(cls: type, values: dict[str, Any]) -> Any:
    known = {f.name for f in dataclasses.fields(cls)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise ValueError(f"{cls.__name__} has no field {', '.join(unknown)}; it has {', '.join(sorted(known))}")

    def value(name: str, v: Any) -> Any:
        if name in _NESTED and isinstance(v, dict):
            return _build(_NESTED[name], v)
        return tuple(v) if isinstance(v, list) else v

    return cls(**{name: value(name, v) for name, v in values.items()})


MODELSCOPE = StreamingT2VConfig()

_TINY_UNET = UNetConfig(
    sample_size=8,
    in_channels=8,
    out_channels=8,
    down_block_types=("CrossAttnDownBlock3D", "CrossAttnDownBlock3D"),
    up_block_types=("CrossAttnUpBlock3D", "CrossAttnUpBlock3D"),
    block_out_channels=(64, 128),
    layers_per_block=1,
    norm_num_groups=16,
    cross_attention_dim=128,
    attention_head_dim=16,
)

TINY = StreamingT2VConfig(
    name="tiny",
    size=64,
    unet=_TINY_UNET,
    vae=VaeConfig(
        patch_size=2,
        latent_channels=8,
        block_out_channels=(48, 80, 96),
        layers_per_block=1,
        norm_num_groups=16,
        scaling_factor=1.0,
    ),
    cam=CamConfig(text_len=24, cond_channels=(16, 32, 48, 64), injector_head_dim=16, injector_norm_groups=16),
    apm=ApmConfig(image_embed_dim=128, hidden_dim=160, num_image_tokens=8, text_len=24),
    scheduler=SchedulerConfig(
        prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing", steps_offset=0
    ),
    sampling=SamplingConfig(sampler="sde-dpm++", num_inference_steps=10, eta=0.0, guidance_scale=3.0),
    enhancer=EnhancerConfig(
        unet=dataclasses.replace(_TINY_UNET, sample_size=16, block_out_channels=(48, 64)),
        size=128,
        canvas_width=None,
        start_timestep=100,
        num_inference_steps=6,
        guidance_scale=1.0,
        guidance_rescale=0.0,
        shape_quirks=False,
    ),
    clip=ClipConfig(),
)

PRESETS = {"tiny": TINY, "modelscope": MODELSCOPE}


def preset(name: str) -> StreamingT2VConfig:
    """The preset of that name.

    Raises:
        ValueError: for a name that is neither ``tiny`` nor ``modelscope``.
    """
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}; choose one of: {', '.join(PRESETS)}")
    return PRESETS[name]
