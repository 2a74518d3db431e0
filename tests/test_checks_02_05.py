"""The checkers of notebooks 02, 03 and 05 accept the right answer and name the likely mistake in a wrong one."""

import pytest
import torch
import torch.nn.functional as F

from st2v_lib.notebook.checks_02 import check_paste
from st2v_lib.notebook.checks_03 import check_gradients, check_mix
from st2v_lib.notebook.checks_05 import check_bookkeeping, check_bytes, check_hand_over


def mix(text, anchor, weight, bias, alpha, gate=F.silu, base=1):
    mixed = F.conv1d(torch.cat([text, anchor], dim=1), weight, bias, padding=1)
    return base * text + gate(alpha) * F.layer_norm(mixed, (text.shape[-1],))


def paste(latents, known, noise, alpha, root=0.5, rest=None):
    n = known.shape[2]
    pasted = alpha**root * known + (1 - alpha) ** root * noise[:, :, :n]
    return torch.cat([pasted, latents[:, :, n:] if rest is None else rest[:, :, n:]], dim=2)


def slope(alpha):
    return torch.sigmoid(alpha) * (1 + alpha * (1 - torch.sigmoid(alpha)))


def gradients(alpha, mixed, upstream, of_alpha=slope, reduce=torch.sum):
    return of_alpha(alpha) * reduce(upstream * mixed), F.silu(alpha) * upstream


def numbers(frames, side, chunk=16, stream=24, chunks=None, byte=4, colours=3):
    chunks = 1 + (frames - 16) // 8 if chunks is None else chunks(frames)
    return tuple(n * colours * side**2 * byte for n in (frames, chunk * chunks, stream))


def bookkeeping(asked, more=lambda n: -(-(n - 16) // 8)):
    return more(asked), 16 + 8 * more(asked), asked // 8 * 8


@pytest.mark.parametrize(
    "check, right",
    [
        (check_paste, paste),
        (check_mix, mix),
        (check_gradients, gradients),
        (check_bookkeeping, bookkeeping),
        (check_bytes, numbers),
        (check_hand_over, lambda chunk, n: (chunk[:, n:], chunk[:, -n:])),
    ],
)
def test_the_right_answer_passes(check, right, capsys):
    check(right)
    assert capsys.readouterr().out == f"PASS {check.__name__.removeprefix('check_')}\n"


@pytest.mark.parametrize(
    "check, wrong, lesson",
    [
        (check_paste, lambda *a: paste(*a, root=1), "take roots"),
        (check_paste, lambda x, known, noise, alpha: paste(x, known, noise, 1.0), "pasted clean"),
        (check_paste, lambda *a: paste(*a, rest=a[2]), "as they were"),
        (check_paste, lambda x, known, noise, alpha: x, "frames come third"),
        (check_mix, lambda *a: mix(*a, base=0), "text itself is missing"),
        (check_mix, lambda *a: mix(*a, gate=lambda x: x), "through SiLU first"),
        (check_mix, lambda *a: mix(*a, gate=torch.sigmoid), "open by a half"),
        (check_gradients, lambda *a: gradients(*a, reduce=lambda x: x), "one number for all tokens"),
        (check_gradients, lambda *a: gradients(*a, reduce=torch.mean), "not a mean"),
        (check_gradients, lambda *a: gradients(*a, of_alpha=F.silu), "not its derivative"),
        (check_gradients, lambda a, m, u: gradients(torch.sigmoid(a), m, u), "derivative of alpha"),
        (check_gradients, lambda *a: gradients(*a, of_alpha=torch.sigmoid), "product rule"),
        (check_gradients, lambda a, m, u: (gradients(a, m, u)[0], u), "closed lets no gradient through"),
        (check_gradients, lambda a, m, u: gradients(a, m, u)[0], "return two things"),
        (check_bookkeeping, lambda n: bookkeeping(n, lambda n: (n - 16) // 8), "round up"),
        (check_bookkeeping, lambda n: bookkeeping(n, lambda n: 1 - (-(n - 16) // 8)), "not among those after"),
        (check_bytes, lambda *a: numbers(*a, byte=1), "not bytes"),
        (check_bytes, lambda *a: numbers(*a, colours=1), "three colours"),
        (check_bytes, lambda *a: numbers(*a, chunks=lambda n: (n - 16) // 8), "the first chunk is kept"),
        (check_bytes, lambda n, s: (numbers(n, s)[0], numbers(n, s)[0], numbers(n, s)[2]), "a whole chunk has 16"),
        (check_bytes, lambda *a: numbers(*a, stream=16), "holds two things"),
        (check_bytes, lambda n, s: numbers(n, s, stream=n + 24), "does not grow with"),
        (check_hand_over, lambda chunk, n: (chunk[:, :n], chunk[:, -n:]), "the rest is new"),
        (check_hand_over, lambda chunk, n: (chunk[:, n:], chunk[:, n:]), "always sees the last"),
    ],
)
def test_a_wrong_answer_is_told_why(check, wrong, lesson):
    with pytest.raises(AssertionError, match=lesson):
        check(wrong)
