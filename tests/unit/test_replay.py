"""Steps that are recorded and replayed: the same numbers, begun anew when need be, given up when they cannot be."""

import warnings

import pytest
import torch
from torch import nn

from st2v_lib import replay
from st2v_lib.memory import Ladder
from st2v_lib.replay import Replayed


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Linear(4, 4)


@pytest.fixture
def captured(monkeypatch):
    """Stands in for a card: what is recorded runs again into the same place, as a graph does. Lists the recordings."""
    made = []

    def capture(step):
        out = step()
        made.append(out)
        return lambda: out.copy_(step()), out

    monkeypatch.setattr(replay, "capture", capture)
    monkeypatch.setattr(replay, "on_card", lambda *_: True)
    monkeypatch.setattr(Replayed, "possible", True)
    return made


def counted(net, calls):
    def predict(latents, timestep, tokens):
        calls.append(float(timestep))
        return net(latents) * timestep + tokens

    return predict


def inputs(k):
    return torch.randn(2, 4, generator=torch.Generator().manual_seed(k)), torch.tensor(float(k))


@torch.no_grad()
def test_every_step_gives_what_it_would_have_given(net, captured):
    step, tokens = Replayed(counted(net, []), net), torch.ones(4)
    found = []
    for k in range(1, 6):
        x, t = inputs(k)
        found.append(step(x, t, tokens))
    for k, prediction in enumerate(found, 1):  # afterwards: a result is not overwritten by later ones
        x, t = inputs(k)
        torch.testing.assert_close(prediction, net(x) * t + tokens)
    assert len(captured) == 1


@torch.no_grad()
def test_two_are_computed_and_the_rest_replayed(net, captured, monkeypatch):
    calls, plays = [], []
    capture = replay.capture

    def counting(step):
        again, out = capture(step)
        return lambda: plays.append(again()), out

    monkeypatch.setattr(replay, "capture", counting)
    step, tokens = Replayed(counted(net, calls), net), torch.ones(4)
    for k in range(5):
        step(*inputs(k), tokens)
    assert len(plays) == 1 + 3, "one to check it, three in use"
    assert len(calls) == 2 + 1 + len(plays), "computed twice, recorded once; a card does not call Python in a replay"


@torch.no_grad()
@pytest.mark.parametrize("what", ["tokens", "shape", "dtype", "weights"])
def test_it_begins_anew_with_other(what, net, captured):
    step, tokens = Replayed(counted(net, []), net), torch.ones(4)
    for k in range(4):
        step(*inputs(k), tokens)
    x, t = inputs(9)
    if what == "tokens":
        tokens = 2 * torch.ones(4)
    elif what == "shape":
        x = torch.cat([x, x])
    elif what == "dtype":
        net.double()
        x = x.double()
    else:
        net.weight.data = net.weight.data * 3
    for _ in range(3):
        torch.testing.assert_close(step(x, t, tokens), net(x) * t + tokens)
    assert len(captured) == 2


@torch.no_grad()
def test_a_call_that_moves_the_weights_is_not_taken_for_their_place(net, captured):
    def moving(latents, timestep, tokens):
        if float(timestep) == 0:
            net.weight.data = net.weight.data.clone()
        return net(latents)

    step, tokens = Replayed(moving, net), torch.ones(4)
    for _ in range(2):
        step(*inputs(0), tokens)
    assert not captured, "in the second call, too, they moved"
    for k in range(1, 4):
        torch.testing.assert_close(step(*inputs(k), tokens), net(inputs(k)[0]))
    assert len(captured) == 1


def test_steps_are_computed_where_gradients_are_wanted_and_where_hooks_listen(net, captured):
    step, tokens = Replayed(counted(net, []), net), torch.ones(4)
    for k in range(4):
        step(*inputs(k), tokens).sum().backward()
    assert not captured and net.weight.grad is not None
    heard = []
    hook = net.register_forward_hook(lambda *_: heard.append(1))
    with torch.no_grad():
        for k in range(4):
            step(*inputs(k), tokens)
        assert not captured and len(heard) == 4
        hook.remove()
        for k in range(4):
            step(*inputs(k), tokens)
        assert len(captured) == 1
        net.register_forward_pre_hook(lambda *_: heard.append(2))
        step(*inputs(5), tokens)
    assert heard[-1] == 2, "a hook that comes later is heard, too"


@torch.no_grad()
@pytest.mark.parametrize("error", ["operation not permitted when stream is capturing", None])
def test_a_step_that_cannot_be_recorded_is_computed_and_said_once(error, net, captured, monkeypatch):
    def capture(step):
        if error:
            raise RuntimeError(error)
        return lambda: None, torch.full((2, 4), 1e3)

    monkeypatch.setattr(replay, "capture", capture)
    step, tokens = Replayed(counted(net, []), net), torch.ones(4)
    step(*inputs(1), tokens)
    with pytest.warns(UserWarning, match=error or "other numbers"):
        step(*inputs(2), tokens)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for again in (step, Replayed(counted(net, []), net)):
            for k in range(3, 7):
                x, t = inputs(k)
                torch.testing.assert_close(again(x, t, tokens), net(x) * t + tokens)


def test_without_a_card_or_when_switched_off_a_step_is_left_as_it_is(net, monkeypatch):
    predict = counted(net, [])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert replay.replayed(predict, net) is predict
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert isinstance(replay.replayed(predict, net), Replayed)
    monkeypatch.setenv("ST2V_REPLAY", "0")
    assert replay.replayed(predict, net) is predict


def test_running_short_of_memory_while_recording_moves_no_rung(monkeypatch):
    def short():
        raise torch.OutOfMemoryError("CUDA out of memory.")

    downs = []
    ladder = object.__new__(Ladder)
    ladder.device, ladder.down = "cuda", lambda: downs.append(1) or len(downs) < 2
    monkeypatch.setattr("st2v_lib.memory.recording", lambda: True)
    with pytest.raises(torch.OutOfMemoryError):
        ladder._retrying(short)()
    assert not downs
    monkeypatch.setattr("st2v_lib.memory.recording", lambda: False)
    with pytest.raises(Exception, match="too small"):
        ladder._retrying(short)()
    assert len(downs) == 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@torch.no_grad()
def test_on_a_card(monkeypatch):
    from st2v_lib.loading import load
    from st2v_lib.sampling import Contexts, guided, make_predictor

    monkeypatch.delenv("ST2V_REPLAY", raising=False)
    models = load("tiny", "cuda").models()
    models.attach()
    cond = torch.rand(1, 8, 3, 64, 64, device="cuda") * 2 - 1
    text, anchor = torch.randn(1, 24, 128, device="cuda"), torch.randn(1, 8, 128, device="cuda")
    contexts = Contexts(text, text * 0, anchor, anchor * 0)
    step = make_predictor(models.unet, models.cam, cond)
    for level in (900, 700, 500, 300):
        x, t = torch.randn(1, 8, 16, 8, 8, device="cuda"), torch.tensor(level, device="cuda")
        torch.testing.assert_close(
            guided(step, x, t, contexts), guided(step.predict, x, t, contexts), rtol=1e-2, atol=1e-2
        )
    assert step.possible and step.recording is not None
