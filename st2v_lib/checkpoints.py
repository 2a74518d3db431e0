"""From the released checkpoint's names to this library's."""

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
