"""From the names of the released checkpoint and of MS-Vid2Vid-XL to this library's.

The maps are pure and tested on names and shapes; they have not yet been seen with the real weights.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeVar

_INJECTOR = re.compile(r"cross_attention_merger_(?:down_blocks\.(\d+)|(mid_block))\.temporal_transformer\.(.+)")
_MIX = re.compile(r"(.+)\.attn2\.(alpha|conv\.\w+|conv_ln\.\w+)")


Value = TypeVar("Value")


def map_official_state_dict(state: Mapping[str, Value]) -> tuple[dict[str, dict[str, Value]], list[str]]:
    """Sorts the released state dict into this library's modules; pure, values are passed on as they are.

    ``base_model.`` holds the UNet, CAM's injectors and APM's mixing; ``unet.`` is CAM's extractor, whatever its name
    says; ``resampler.`` makes APM's tokens.

    Args:
        state: official name to tensor, or to anything else (a shape, a file offset).

    Returns:
        State dicts under ``"unet"``, ``"cam"`` and ``"apm"``; and the names of other prefixes, left out.
    """
    out: dict[str, dict[str, Value]] = {"unet": {}, "cam": {}, "apm": {}}
    others = []
    num_skips = len({m[1] for key in state if (m := re.search(r"merger_down_blocks\.(\d+)\.", key))})
    for key, value in state.items():
        prefix, _, name = key.partition(".")
        if prefix == "resampler":
            out["apm"][name.replace("context_embedding.", "tokens.mlp.")] = value
        elif prefix == "unet":
            out["cam"]["extractor." + name.replace("controlnet_cond_embedding", "cond_encoder")] = value
        elif prefix != "base_model":
            others.append(key)
        elif match := _INJECTOR.fullmatch(name):
            index, mid, rest = match.groups()
            out["cam"][f"injectors.{num_skips if mid else index}.{rest}"] = value
        elif match := _MIX.fullmatch(name):
            layer, rest = match.groups()
            out["apm"][f"mixes.{layer.replace('.', '_')}.{rest.replace('conv_ln', 'norm')}"] = value
        else:
            out["unet"][name] = value
    return out, others


def map_split_names(state: Mapping[str, Value]) -> dict[str, Value]:
    """The public safetensors split under the released checkpoint's names: ``unet`` is the UNet, ``controlnet`` CAM."""
    heads = {"unet": "base_model", "controlnet": "unet"}
    parts = {name: name.partition(".") for name in state}
    return {f"{heads.get(head, head)}.{rest}": state[name] for name, (head, _, rest) in parts.items()}


_RES = {
    "in_layers.0": "norm1", "in_layers.2": "conv1", "emb_layers.1": "time_emb_proj", "out_layers.0": "norm2",
    "out_layers.3": "conv2", "skip_connection": "conv_shortcut",
}  # fmt: skip
_TEMPORAL_CONV = "temopral_conv."  # spelt so in the checkpoint
_LAYERS = ("resnets", "attentions", "temp_attentions")
_OUTER = {
    "time_embed.0": "time_embedding.linear_1", "time_embed.2": "time_embedding.linear_2",
    "input_blocks.0.0": "conv_in", "input_blocks.0.1": "transformer_in", "out.0": "conv_norm_out", "out.2": "conv_out",
}  # fmt: skip
_BLOCK = re.compile(r"(input_blocks|middle_block|output_blocks)\.(\d+)(?:\.(.+))?")


def vid2vid_name(name: str, levels: int = 4, layers: int = 2) -> str | None:
    """MS-Vid2Vid-XL's name of a tensor as the stock UNet has it; ``None`` for a name it does not know (reference 5.1).

    Args:
        name: as in ``non_ema_0035000.pth``.
        levels, layers: of the UNet, ``len(block_out_channels)`` and ``layers_per_block``.
    """
    for old, new in _OUTER.items():
        if name.startswith(f"{old}."):
            return new + name[len(old) :]
    match = _BLOCK.fullmatch(name)
    if not match or match[3] is None:
        return None
    part, index, rest = match[1], int(match[2]), match[3]
    if part == "middle_block":  # ResNet, spatial attention, temporal attention, ResNet
        if index > 3:
            return None
        kind, j = [("resnets", 0), ("attentions", 0), ("temp_attentions", 0), ("resnets", 1)][index]
        return _layer_name("mid_block", kind, j, rest)
    if part == "input_blocks":  # each level: its layers, then a down-sampler
        level, j = divmod(index - 1, layers + 1)
        if index < 1 or level >= levels:
            return None
        if j == layers:
            return f"down_blocks.{level}.downsamplers.0.conv{rest[2:]}" if rest.startswith("op.") else None
        return _sublayer(f"down_blocks.{level}", j, rest)
    level, j = divmod(index, layers + 1)
    if level >= levels:
        return None
    number, _, last = rest.partition(".")
    if last.startswith("conv.") and number.isdigit():  # the up-sampler after a level's last layer
        return f"up_blocks.{level}.upsamplers.0.{last}" if j == layers else None
    return _sublayer(f"up_blocks.{level}", j, rest)


def _sublayer(block: str, j: int, rest: str) -> str | None:
    number, _, last = rest.partition(".")
    return _layer_name(block, _LAYERS[int(number)], j, last) if number in ("0", "1", "2") else None


def _layer_name(block: str, kind: str, j: int, rest: str) -> str | None:
    if kind != "resnets":
        return f"{block}.{kind}.{j}.{rest}"
    if rest.startswith(_TEMPORAL_CONV):
        return f"{block}.temp_convs.{j}.{rest[len(_TEMPORAL_CONV) :]}"
    for old, new in _RES.items():
        if rest.startswith(f"{old}."):
            return f"{block}.resnets.{j}.{new}{rest[len(old) :]}"
    return None


def map_vid2vid_state_dict(
    state: Mapping[str, Value], levels: int = 4, layers: int = 2
) -> tuple[dict[str, Value], list[str]]:
    """MS-Vid2Vid-XL's state dict under the stock UNet's names, and the names that have no place in it.

    The temporal transformers' ``proj_in`` and ``proj_out`` are 1x1 convolutions there and linear layers here: their
    values lose the last axis by ``value.squeeze(-1)``.
    """
    out, others = {}, []
    for name, value in state.items():
        new = vid2vid_name(name, levels, layers)
        if new is None:
            others.append(name)
            continue
        temporal = ".temp_attentions." in new or new.startswith("transformer_in.")
        if temporal and re.search(r"\.proj_(in|out)\.weight$", new):
            value = value.squeeze(-1)
        out[new] = value
    return out, others
