"""The text-to-video base: a VAE that may unshuffle pixels first, and a 3-D UNet that can take injectors.

Paper §3 (the base model) and §4.1, Fig. 3 (where the conditional attention module enters it). Both networks are the
stock diffusers classes with their stock parameter names, so public weights load with ``from_pretrained``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet3DConditionModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput
from einops import rearrange, repeat
from torch import Tensor, nn

from st2v_lib.config import UNetConfig, VaeConfig

Injector = Callable[[Tensor, Tensor], Tensor]


class FrameConv(nn.Conv3d):
    """A convolution over frames alone, kernel (k, 1, 1). On CUDA it runs as a 2-D one, over frames and all pixels.

    Meant to be faster there, and not timed on CUDA yet. Parameters, names and results up to round-off are
    ``Conv3d``'s; on a CPU it is ``Conv3d``, bit for bit.
    """

    def forward(self, x: Tensor) -> Tensor:
        """``b c f h w`` to the same."""
        return self.as_2d(x) if x.is_cuda else super().forward(x)

    def as_2d(self, x: Tensor) -> Tensor:
        """The convolution with the pixels in one row."""
        out = F.conv2d(x.flatten(3), self.weight[..., 0], self.bias, padding=(self.padding[0], 0))
        return out.unflatten(3, x.shape[3:])


def use_frame_convs(net: nn.Module) -> None:
    """Makes every 3-D convolution over frames alone a :class:`FrameConv`, weights and names unchanged."""
    for module in net.modules():
        plain = type(module) is nn.Conv3d and module.stride == (1, 1, 1) and module.groups == 1
        if plain and module.kernel_size[1:] == (1, 1) and module.padding[1:] == (0, 0) and module.dilation == (1, 1, 1):
            module.__class__ = FrameConv


class PatchedAutoencoderKL(AutoencoderKL):
    """``AutoencoderKL`` on pixels folded into channels by ``patch_size`` (a small VAE stays fast at full resolution).

    ``patch_size=1`` is the stock VAE, weights and names included. ``in_channels`` and ``out_channels`` are those of
    the inner VAE, ``3 * patch_size ** 2`` for RGB.
    """

    @register_to_config
    def __init__(
        self,
        patch_size: int = 1,
        in_channels: int = 3,
        out_channels: int = 3,
        down_block_types: Sequence[str] = ("DownEncoderBlock2D",),
        up_block_types: Sequence[str] = ("UpDecoderBlock2D",),
        block_out_channels: Sequence[int] = (64,),
        layers_per_block: int = 1,
        act_fn: str = "silu",
        latent_channels: int = 4,
        norm_num_groups: int = 32,
        sample_size: int = 32,
        scaling_factor: float = 0.18215,
        shift_factor: float | None = None,
        latents_mean: Sequence[float] | None = None,
        latents_std: Sequence[float] | None = None,
        force_upcast: bool = True,
        use_quant_conv: bool = True,
        use_post_quant_conv: bool = True,
        mid_block_add_attention: bool = True,
    ):
        super().__init__(
            in_channels=in_channels,
            out_channels=out_channels,
            down_block_types=down_block_types,
            up_block_types=up_block_types,
            block_out_channels=block_out_channels,
            layers_per_block=layers_per_block,
            act_fn=act_fn,
            latent_channels=latent_channels,
            norm_num_groups=norm_num_groups,
            sample_size=sample_size,
            scaling_factor=scaling_factor,
            shift_factor=shift_factor,
            latents_mean=latents_mean,
            latents_std=latents_std,
            force_upcast=force_upcast,
            use_quant_conv=use_quant_conv,
            use_post_quant_conv=use_post_quant_conv,
            mid_block_add_attention=mid_block_add_attention,
        )

    def encode(self, x: Tensor, return_dict: bool = True):
        """Frames (n, 3, h, w) in [-1, 1] to the posterior over latents (n, z, h/d, w/d)."""
        return super().encode(F.pixel_unshuffle(x, self.config.patch_size), return_dict=return_dict)

    def decode(self, z: Tensor, return_dict: bool = True, generator: torch.Generator | None = None):
        """Latents (n, z, h/d, w/d), not scaled, to frames (n, 3, h, w)."""
        (folded,) = super().decode(z, return_dict=False, generator=generator)
        frames = F.pixel_shuffle(folded, self.config.patch_size)
        return DecoderOutput(sample=frames) if return_dict else (frames,)


def make_vae(config: VaeConfig) -> PatchedAutoencoderKL:
    """A freshly initialised VAE of that size."""
    levels, channels = len(config.block_out_channels), 3 * config.patch_size**2
    return PatchedAutoencoderKL(
        patch_size=config.patch_size,
        in_channels=channels,
        out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=config.block_out_channels,
        layers_per_block=config.layers_per_block,
        latent_channels=config.latent_channels,
        norm_num_groups=config.norm_num_groups,
        scaling_factor=config.scaling_factor,
    )


def make_unet(config: UNetConfig) -> StreamingUNet:
    """A freshly initialised UNet of that size."""
    return StreamingUNet(**config.kwargs())


def vae_downscale(vae: AutoencoderKL) -> int:
    """Pixels along one side of a latent cell."""
    return getattr(vae.config, "patch_size", 1) * 2 ** (len(vae.config.block_out_channels) - 1)


def check_video(video: Tensor, name: str = "video") -> Tensor:
    """Returns ``video`` unchanged if it is ``b f 3 h w``, floating point, in [-1, 1].

    Raises:
        ValueError: for another layout, an integer type, a value outside the range or not finite.
    """
    if video.ndim != 5 or video.shape[2] != 3:
        raise ValueError(f"{name}: expected shape (b, f, 3, h, w), got {tuple(video.shape)}")
    if not video.is_floating_point():
        raise ValueError(f"{name}: expected floating point values in [-1, 1], got {video.dtype}")
    if video.is_cuda and torch.cuda.is_current_stream_capturing():
        return video  # a graph is being recorded: there are no values yet
    low, high = (float(v) for v in video.aminmax())
    if not (low >= -1.001 and high <= 1.001):
        raise ValueError(f"{name}: expected values in [-1, 1], got [{low:.4g}, {high:.4g}]")
    return video


def encode_frames(
    vae: AutoencoderKL, video: Tensor, batch_size: int | None = None, generator: torch.Generator | None = None
) -> Tensor:
    """Encodes a video frame by frame.

    Args:
        vae: the autoencoder; its config's ``scaling_factor`` multiplies the latents.
        video: ``b f 3 h w`` in [-1, 1].
        batch_size: frames encoded together; ``None`` for all of them.
        generator: samples the posterior with it; ``None`` takes the posterior's mode, which is deterministic.

    Returns:
        Scaled latents ``b z f h/d w/d``.

    Raises:
        ValueError: for a wrong layout or range, or sides that the VAE's down-scaling ``d`` does not divide.
    """
    b, f, _, h, w = check_video(video).shape
    d = vae_downscale(vae)
    if h % d or w % d:
        raise ValueError(f"video: expected height and width to be multiples of {d}, got {h}x{w}")
    frames = rearrange(video, "b f c h w -> (b f) c h w").to(vae.dtype)
    latents = []
    for part in frames.split(batch_size or b * f):
        posterior = vae.encode(part).latent_dist
        latents.append(posterior.mode() if generator is None else posterior.sample(generator))
    return rearrange(torch.cat(latents), "(b f) c h w -> b c f h w", b=b) * vae.config.scaling_factor


@torch.no_grad()
def decode_latents(vae: AutoencoderKL, latents: Tensor, batch_size: int | None = None) -> Tensor:
    """Decodes scaled latents ``b z f h w`` frame by frame to a video ``b f 3 H W``, clamped to [-1, 1].

    Args:
        vae: the autoencoder.
        latents: what ``encode_frames`` gives.
        batch_size: frames decoded together; ``None`` for all of them.

    Raises:
        ValueError: for latents that are not 5-dimensional.
    """
    if latents.ndim != 5:
        raise ValueError(f"latents: expected shape (b, z, f, h, w), got {tuple(latents.shape)}")
    b, f = latents.shape[0], latents.shape[2]
    flat = rearrange(latents / vae.config.scaling_factor, "b c f h w -> (b f) c h w").to(vae.dtype)
    frames = torch.cat([vae.decode(part).sample for part in flat.split(batch_size or b * f)])
    return rearrange(frames, "(b f) c h w -> b f c h w", b=b).clamp(-1, 1)


def encoder_half(
    net: nn.Module,
    sample: Tensor,
    timestep: Tensor | float | int,
    encoder_hidden_states: Tensor,
    added: Tensor | None = None,
) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
    """The stock down path and mid block; shared by the UNet and by CAM's copy of them.

    Guidance asks for the same latents with other tokens: give the latents once, and what comes before the first text
    cross-attention's block is computed once for all branches.

    Args:
        net: a module with the UNet's ``conv_in, time_proj, time_embedding, transformer_in, down_blocks, mid_block``.
        sample: noisy latents ``b c f h w``.
        timestep: a number, or one for each video.
        encoder_hidden_states: tokens ``(r b) l d``, of r branches; every frame of a video sees the same ones.
        added: features ``(b f) c h w`` added after the first temporal transformer (CAM's pixels; paper §4.1).

    Returns:
        The stored skips and the mid block's output, all ``(r b f) c h w``; then the time embedding and the tokens,
        repeated for each frame, which the up path needs too.

    Raises:
        ValueError: for a number of tokens that is no multiple of that of videos.
    """
    b, _, f = sample.shape[:3]
    if len(encoder_hidden_states) % b:
        raise ValueError(f"expected tokens for {b} videos or a multiple of it, got {len(encoder_hidden_states)}")
    branches = len(encoder_hidden_states) // b
    timesteps = torch.as_tensor(timestep, device=sample.device).expand(b)
    temb = net.time_embedding(net.time_proj(timesteps).to(sample.dtype))
    temb = repeat(temb, "b d -> (r b f) d", r=branches, f=f)
    tokens = repeat(encoder_hidden_states, "b l d -> (b f) l d", f=f)

    hidden = net.conv_in(rearrange(sample, "b c f h w -> (b f) c h w"))
    hidden = net.transformer_in(hidden, num_frames=f, return_dict=False)[0]
    if added is not None:
        hidden = hidden + added
    hidden = hidden.repeat(branches, 1, 1, 1)
    skips = [hidden]
    for block in net.down_blocks:
        text = {"encoder_hidden_states": tokens} if getattr(block, "has_cross_attention", False) else {}
        hidden, stored = block(hidden_states=hidden, temb=temb, num_frames=f, **text)
        skips += stored
    hidden = net.mid_block(hidden, temb, encoder_hidden_states=tokens, num_frames=f)
    return skips, hidden, temb, tokens


class StreamingUNet(UNet3DConditionModel):
    """diffusers' 3-D UNet whose skips and mid output can be changed by injectors (paper §4.1, Fig. 3).

    Constructor, config, weights and names are the stock ones. Injectors are not part of it (see ``set_injectors``).
    """

    injectors: Sequence[Injector] | nn.ModuleList | None = None

    @functools.wraps(UNet3DConditionModel.__init__)  # diffusers reads the config's names off the signature
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        use_frame_convs(self)

    def set_injectors(self, injectors: Sequence[Injector] | nn.ModuleList | None) -> None:
        """Sets one injector for each skip, in the down path's order, and a last one for the mid block's output.

        They are referred to, not registered: neither ``state_dict`` nor ``.to`` of the UNet sees them.
        """
        self.__dict__["injectors"] = injectors  # past nn.Module.__setattr__, which would register a ModuleList

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float | int,
        encoder_hidden_states: Tensor,
        cam_features: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """Predicts the noise (or v) of a chunk.

        Args:
            sample: noisy latents ``b c f h w``.
            timestep: a number, or one for each video.
            encoder_hidden_states: text tokens, then anchor tokens if APM is attached, ``(r b) l d``; with r > 1 the r
                branches of guidance, which read the same latents (see ``encoder_half``).
            cam_features: for each skip and then for the mid block what its injector receives, ``(r b) n c h w`` for
                CAM; ``None`` runs the stock UNet.

        Returns:
            The prediction ``(r b) c f h w`` as a plain tensor.

        Raises:
            ValueError: if features come without injectors, or in another number than the injectors; see
                ``encoder_half``.
        """
        skips, hidden, temb, tokens = encoder_half(self, sample, timestep, encoder_hidden_states)

        if cam_features is not None:
            expected = len(skips) + 1
            if self.injectors is None:
                raise ValueError("cam_features were given but no injectors are set; attach the module first")
            if not len(cam_features) == len(self.injectors) == expected:
                raise ValueError(
                    f"expected {expected} injectors and features (skips, then mid), "
                    f"got {len(self.injectors)} and {len(cam_features)}"
                )
            *skips, hidden = [
                inject(h, k) for inject, h, k in zip(self.injectors, [*skips, hidden], cam_features, strict=True)
            ]

        f = sample.shape[2]
        odd_size = any(side % 2**self.num_upsamplers for side in sample.shape[-2:])
        for block in self.up_blocks:
            n = len(block.resnets)
            skips, used = skips[:-n], tuple(skips[-n:])
            size = skips[-1].shape[2:] if odd_size and skips else None
            text = {"encoder_hidden_states": tokens} if getattr(block, "has_cross_attention", False) else {}
            hidden = block(
                hidden_states=hidden, temb=temb, res_hidden_states_tuple=used, upsample_size=size, num_frames=f, **text
            )
        hidden = self.conv_out(self.conv_act(self.conv_norm_out(hidden)))
        return rearrange(hidden, "(b f) c h w -> b c f h w", f=f)
