"""APM, the appearance preservation module: the long-term memory (paper §4.2).

The CLIP embedding of one anchor frame becomes a few tokens. In every spatial text cross-attention of the main UNet
they are mixed into the text tokens, as much as that layer's learned weight allows; keys and values come from the mix.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin, UNet3DConditionModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from einops import rearrange
from torch import Tensor, nn

from st2v_lib.config import ApmConfig

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class ApmTokens(nn.Module):
    """CLIP image embedding to ``num_tokens`` tokens of size ``token_dim``: a two-layer network (paper §4.2)."""

    def __init__(self, embed_dim: int, hidden_dim: int, num_tokens: int, token_dim: int):
        super().__init__()
        self.num_tokens = num_tokens
        self.mlp = nn.Sequential(
            nn.Linear(embed_dim, hidden_dim), nn.SiLU(), nn.Linear(hidden_dim, num_tokens * token_dim)
        )

    def forward(self, embeds: Tensor) -> Tensor:
        """Embeddings ``b e`` of one anchor, or ``b n e`` of several (averaged), to tokens ``b k d``.

        Raises:
            ValueError: for another shape.
        """
        embed_dim = self.mlp[0].in_features
        if embeds.ndim not in (2, 3) or embeds.shape[-1] != embed_dim:
            raise ValueError(f"embeds: expected (b, {embed_dim}) or (b, n, {embed_dim}), got {tuple(embeds.shape)}")
        if embeds.ndim == 3:
            embeds = embeds.mean(dim=1)
        return rearrange(self.mlp(embeds), "b (k d) -> b k d", k=self.num_tokens)


class ApmMix(nn.Module):
    """One layer's mixing of text and anchor tokens (paper §4.2): text + SiLU(alpha) · LN(Conv(text ⧺ anchor)).

    The convolution's channels are the tokens and it slides along their features. alpha starts at 0, so an untrained
    layer sees the text only.
    """

    def __init__(self, text_len: int, num_image_tokens: int, token_dim: int):
        super().__init__()
        self.text_len, self.num_tokens = text_len, text_len + num_image_tokens
        self.conv = nn.Conv1d(self.num_tokens, text_len, kernel_size=3, padding=1)
        self.norm = nn.LayerNorm(token_dim)
        self.alpha = nn.Parameter(torch.zeros(()))

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens ``b (text_len + k) d`` to the mixed context ``b text_len d``; text alone is returned as it is.

        Raises:
            ValueError: for another number of tokens.
        """
        if tokens.shape[1] == self.text_len:
            return tokens
        if tokens.shape[1] != self.num_tokens:
            raise ValueError(
                f"expected {self.text_len} tokens or {self.num_tokens} with an anchor, got {tokens.shape[1]}"
            )
        return tokens[:, : self.text_len] + self.norm(self.conv(tokens)) * F.silu(self.alpha)


class ApmProcessor(AttnProcessor2_0):
    """Stock attention whose keys and values see the mixed context; holds the layer's ``ApmMix`` unregistered.

    ``context``, when set, is used as it is, ``b text_len d``: one for all frames of a video (see ``holding``).
    """

    def __init__(self, mix: ApmMix):
        super().__init__()
        self.mix = mix
        self.context: Tensor | None = None

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        if self.context is None:
            return super().__call__(attn, hidden_states, self.mix(encoder_hidden_states), attention_mask, temb)
        queries = hidden_states.reshape(len(self.context), -1, hidden_states.shape[-1])  # (b f) n c -> b (f n) c
        return super().__call__(attn, queries, self.context, attention_mask, temb).reshape(hidden_states.shape)


class Apm(ModelMixin, ConfigMixin):
    """The token network and the mixing of every layer, in one checkpoint.

    ``apm.attach(unet)`` once; then pass ``torch.cat([text, apm(embeds)], dim=1)`` to the UNet as its tokens.

    Args:
        layers: names in the UNet of the text cross-attentions it acts on.
        token_dim: size of a token, the UNet's ``cross_attention_dim``.
        image_embed_dim, hidden_dim, num_image_tokens, text_len: see ``ApmConfig``.
    """

    @register_to_config
    def __init__(
        self,
        layers: Sequence[str],
        token_dim: int = 1024,
        image_embed_dim: int = 1024,
        hidden_dim: int = 1280,
        num_image_tokens: int = 16,
        text_len: int = 77,
    ):
        super().__init__()
        self.tokens = ApmTokens(image_embed_dim, hidden_dim, num_image_tokens, token_dim)
        self.mixes = nn.ModuleDict({_key(name): ApmMix(text_len, num_image_tokens, token_dim) for name in layers})

    @classmethod
    def from_unet(cls, unet: UNet3DConditionModel, config: ApmConfig) -> Apm:
        """A freshly initialised module for that UNet: it mixes in all its spatial text cross-attentions."""
        apm = cls(text_attentions(unet), unet.config.cross_attention_dim, **dataclasses.asdict(config))
        return nn.Module.to(apm, unet.device, unet.dtype)

    def attach(self, unet: UNet3DConditionModel) -> Apm:
        """Wires the mixing into the UNet's text cross-attentions (its state dict stays as it is); returns itself."""
        for name in self.config.layers:
            attention, mix = unet.get_submodule(name), self.mixes[_key(name)]
            if getattr(attention.processor, "mix", None) is not mix:  # one that is there may be in use, between steps
                attention.set_processor(ApmProcessor(mix))
        return self

    def detach(self, unet: UNet3DConditionModel) -> None:
        """Gives the UNet its stock attention back."""
        for name in self.config.layers:
            unet.get_submodule(name).set_processor(AttnProcessor2_0())

    def forward(self, embeds: Tensor) -> Tensor:
        """Anchor embeddings ``b e`` or ``b n e`` to tokens ``b k d``, to be appended to the text tokens."""
        return self.tokens(embeds)

    def alphas(self) -> dict[str, float]:
        """Each layer's alpha; the layer uses SiLU(alpha) of the mix, nothing at 0."""
        return {name: self.mixes[_key(name)].alpha.item() for name in self.config.layers}


def text_attentions(unet: UNet3DConditionModel) -> list[str]:
    """Names of the spatial transformers' text cross-attentions; temporal transformers are left out."""
    return [n for n, _ in unet.named_modules() if n.endswith(".attn2") and ".attentions." in n]


def apm_processors(unet: UNet3DConditionModel) -> list[ApmProcessor]:
    """The layers of a UNet that an attached ``Apm`` works in; none without one."""
    attentions = (m for m in unet.modules() if isinstance(m, Attention))
    return [m.processor for m in attentions if isinstance(m.processor, ApmProcessor)]


@contextlib.contextmanager
def holding(processors: Sequence[ApmProcessor], contexts: Sequence[Tensor]) -> Iterator[None]:
    """Inside, these layers use these contexts and mix nothing, whatever tokens the UNet is given.

    Tokens are constant over a chunk: ``[p.mix(tokens) for p in processors]`` once, in place of at each step and for
    each frame. Keys and values are then made once for all frames of a video, too.
    """
    for processor, context in zip(processors, contexts, strict=True):
        processor.context = context
    try:
        yield
    finally:
        for processor in processors:
            processor.context = None


def _key(layer: str) -> str:
    return layer.removesuffix(".attn2").replace(".", "_")  # a ModuleDict takes no dots


def preprocess_for_clip(
    frames: Tensor, size: int = 224, mean: Sequence[float] = CLIP_MEAN, std: Sequence[float] = CLIP_STD
) -> Tensor:
    """Frames ``n 3 h w`` in [-1, 1] as the CLIP image tower wants them, ``n 3 size size``.

    Bicubic with aligned corners. When a side shrinks, a Gaussian blur comes first, on each axis with standard
    deviation (in/out - 1) / 2 pixels. The bicubic overshoot is kept.
    """
    factors = [side / size for side in frames.shape[-2:]]
    if max(factors) > 1:
        sigmas = [max((factor - 1) / 2, 0.001) for factor in factors]
        ky, kx = (_gaussian(sigma, frames) for sigma in sigmas)
        pad = (len(kx) // 2, len(kx) // 2, len(ky) // 2, len(ky) // 2)
        channels = frames.shape[1]
        frames = F.pad(frames, pad, mode="reflect")
        frames = F.conv2d(frames, ky[None, None, :, None].expand(channels, -1, -1, -1), groups=channels)
        frames = F.conv2d(frames, kx[None, None, None, :].expand(channels, -1, -1, -1), groups=channels)
    frames = F.interpolate(frames, (size, size), mode="bicubic", align_corners=True)
    mean, std = (frames.new_tensor(v)[:, None, None] for v in (mean, std))
    return ((frames + 1) / 2 - mean) / std


def _gaussian(sigma: float, like: Tensor) -> Tensor:
    length = int(max(4 * sigma, 3)) | 1  # odd
    x = torch.arange(length, device=like.device, dtype=like.dtype) - length // 2
    weights = torch.exp(-(x**2) / (2 * sigma**2))
    return weights / weights.sum()
