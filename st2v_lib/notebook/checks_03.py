"""Checkers of the exercises in notebook 03 (APM). The pattern is explained in ``checks``."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from st2v_lib.notebook.checks import call, compare, passed


def check_mix(fn: Callable) -> None:
    """``fn(text, anchor, weight, bias, alpha)``: the mixed context of one layer, ``b l d``.

    ``text`` is ``b l d``, ``anchor`` ``b k d``; ``weight`` ``l (l+k) 3``, ``bias`` ``l``: a convolution over tokens
    with padding 1, ``alpha`` a scalar. The norm has no weights here: ``F.layer_norm(x, (d,))``.
    """
    generator = torch.Generator().manual_seed(3)
    for b, length, k, d in ((1, 3, 2, 8), (2, 6, 4, 16), (3, 5, 1, 7)):
        text, anchor = (torch.randn(b, n, d, generator=generator) for n in (length, k))
        weight, bias = torch.randn(length, length + k, 3, generator=generator), torch.randn(length, generator=generator)
        for alpha in (torch.tensor(0.0), torch.tensor(0.7), torch.tensor(-1.5)):
            convolved = F.conv1d(torch.cat([text, anchor], dim=1), weight, bias, padding=1)
            want = text + F.silu(alpha) * F.layer_norm(convolved, (d,))
            got = call(fn, text, anchor, weight, bias, alpha)
            hint = "text + silu(alpha) * layer_norm(conv(text and anchor)); the tokens are the convolution's channels"
            if torch.is_tensor(got) and got.shape == want.shape and not torch.allclose(got, want, atol=1e-5):
                if torch.allclose(got, want - text, atol=1e-5):
                    hint = "the text itself is missing: the mix is added to it"
                elif torch.allclose(got, text + alpha * F.layer_norm(convolved, (d,)), atol=1e-5):
                    hint = "alpha goes through SiLU first"
                elif torch.allclose(got, text + F.silu(alpha) * convolved, atol=1e-4):
                    hint = "the layer norm is missing"
                elif torch.allclose(got, text + torch.sigmoid(alpha) * F.layer_norm(convolved, (d,)), atol=1e-5):
                    hint = (
                        "a sigmoid is open by a half at alpha = 0; SiLU(alpha) = alpha * sigmoid(alpha) is closed there"
                    )
            compare("mixed context", got, want, hint, rtol=1e-4, atol=1e-5)
    passed("mix")


def check_guidance(fn: Callable) -> None:
    """``fn(null, text, full, scale, anchor_scale)``: eq. 12 of the paper, with two weights.

    ``null`` is the prediction with neither prompt nor anchor, ``text`` with the prompt and the grey anchor, ``full``
    with both; three tensors of the same shape.
    """
    generator = torch.Generator().manual_seed(4)
    for scale, anchor_scale in ((7.5, 7.5), (3.0, 1.0), (1.0, 4.0), (0.0, 0.0)):
        null, text, full = (torch.randn(2, 4, 3, generator=generator) for _ in range(3))
        want = null + scale * (text - null) + anchor_scale * (full - text)
        got = call(fn, null, text, full, scale, anchor_scale)
        hint = "walk from null to text, scale times, then from text to full, anchor_scale times"
        if torch.is_tensor(got) and got.shape == want.shape:
            if torch.allclose(got, null + scale * (text - null) + anchor_scale * (full - null), atol=1e-5):
                hint = "the anchor's step starts from the prediction with text, not from the empty one"
        compare("guidance", got, want, hint, rtol=1e-4, atol=1e-5)
    passed("guidance")
