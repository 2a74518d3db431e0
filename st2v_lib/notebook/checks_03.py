"""Checkers of the exercises in notebook 03 (APM). The pattern is explained in ``checks``."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from st2v_lib.notebook.checks import call, checker, compare, passed


@checker
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


@checker
def check_gradients(fn: Callable) -> None:
    """``fn(alpha, mixed, upstream)``: gradients of a loss through ``c = text + SiLU(alpha) * mixed``.

    ``upstream`` is the gradient with respect to ``c``, ``b l d`` like ``mixed``. Returns that with respect to
    ``alpha``, a scalar, and that with respect to ``mixed``.
    """
    generator = torch.Generator().manual_seed(4)
    for alpha in (0.0, 0.7, -1.5):
        gate = torch.tensor(alpha, requires_grad=True)
        mixed = torch.randn(2, 3, 5, generator=generator, requires_grad=True)
        upstream = torch.randn(2, 3, 5, generator=generator)
        (F.silu(gate) * mixed * upstream).sum().backward()
        got = call(fn, torch.tensor(alpha), mixed.detach(), upstream)
        assert isinstance(got, (tuple, list)) and len(got) == 2, "return two things: d loss / d alpha, d loss / d mixed"
        hint = _alpha_hint(got[0], alpha, mixed.detach(), upstream)
        compare("d alpha", got[0], gate.grad, hint, rtol=1e-4, atol=1e-5)
        hint = "the chain rule: the gate SiLU(alpha) stands before mixed, so it multiplies the upstream gradient"
        if torch.is_tensor(got[1]) and got[1].shape == upstream.shape and torch.allclose(got[1], upstream, atol=1e-5):
            hint = "this is upstream itself: a gate that is closed lets no gradient through to what lies behind it"
        compare("d mixed", got[1], mixed.grad, hint, rtol=1e-4, atol=1e-5)
    passed("gradients")


def _alpha_hint(got: object, alpha: float, mixed: torch.Tensor, upstream: torch.Tensor) -> str:
    hint = "sum of upstream * mixed, times the derivative of alpha * sigmoid(alpha)"
    if not torch.is_tensor(got):
        return hint
    a, product = torch.tensor(alpha), mixed * upstream
    sigmoid = torch.sigmoid(a)
    slope = sigmoid * (1 + a * (1 - sigmoid))
    near = lambda want: got.shape == want.shape and torch.allclose(got, want, atol=1e-5)  # noqa: E731
    if near(slope * product):
        return "alpha is one number for all tokens and features: add up what each of them says"
    if near(slope * product.mean()):
        return "a gradient is a sum over all places where alpha acts, not a mean"
    if near(sigmoid * product.sum()):
        return "the product rule has two terms: sigmoid(alpha) itself, and alpha times the slope of the sigmoid"
    if near(sigmoid * (1 - sigmoid) * product.sum()):
        return "this is the slope of a sigmoid; SiLU(alpha) is alpha * sigmoid(alpha)"
    if near(F.silu(a) * product.sum()):
        return "this is SiLU(alpha), not its derivative: at alpha = 0 the one is 0 and the other a half"
    return hint
