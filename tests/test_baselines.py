"""The rivals of CAM: neutral before training, as large as CAM, fed as the paper says, run by the same loop."""

import dataclasses

import pytest
import torch
from diffusers import EulerDiscreteScheduler
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from st2v_lib import baselines, errors
from st2v_lib.backbone import encode_frames, make_unet, make_vae
from st2v_lib.baselines.add_cond import AddCond
from st2v_lib.baselines.concat_cond import ConcCond
from st2v_lib.baselines.last_frame_clip import anchor_on_last_frame
from st2v_lib.baselines.placed_cam import PlacedCam
from st2v_lib.baselines.replacement import replacing
from st2v_lib.baselines.rival import masked
from st2v_lib.cam import Cam
from st2v_lib.config import TINY
from st2v_lib.loading import load
from st2v_lib.sampling import Contexts, denoise_steps, make_scheduler
from st2v_lib.streaming import next_chunk, start_stream
from st2v_lib.training.cam import CamStep

PROMPT = "a red circle bounces over green stripes"
RIVALS = {"add_cond": AddCond, "concat_cond": ConcCond}


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    return make_unet(TINY.unet).eval()


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(1)
    return make_vae(TINY.vae).eval()


def make(name, unet, vae, **options):
    rival = RIVALS[name].from_unet(unet, TINY.cam, TINY.chunk_frames, **options).eval()
    return rival.use_vae(vae) if name == "concat_cond" else rival


def noisy(batch=1):
    g = torch.Generator().manual_seed(2)
    x = torch.randn(batch, 8, 16, 8, 8, generator=g)
    tokens = torch.randn(batch, 24, 128, generator=g)
    return x, tokens, torch.rand(1, 8, 3, 64, 64, generator=g) * 2 - 1


def count(module):
    return sum(p.numel() for p in module.parameters())


@torch.no_grad()
@pytest.mark.parametrize("name", RIVALS)
def test_an_untrained_rival_is_the_base_model(name, unet, vae):
    x, tokens, cond = noisy(2)
    unet.set_injectors(None)
    stock = unet(x, 500, tokens)
    rival = make(name, unet, vae).attach(unet)
    features = rival(x, 500, tokens, cond_features=rival.encode_condition(cond))
    torch.testing.assert_close(unet(x, 500, tokens, cam_features=features), stock)
    rival.detach(unet)
    assert "vae" not in {n.split(".")[0] for n, _ in rival.named_parameters()}


@pytest.mark.parametrize("name", RIVALS)
def test_trains_as_many_parameters_as_cam(name, unet, vae):
    cam, rival = count(Cam.from_unet(unet, TINY.cam)), count(make(name, unet, vae))
    assert abs(rival / cam - 1) < 0.01, f"{name} trains {rival} parameters, CAM {cam}"
    assert count(make(name, unet, vae, adapter_ratio=0)) < cam, "the paper's plain form is smaller"


@torch.no_grad()
def test_conc_cond_sees_the_latents_of_the_given_frames_and_their_mask(unet, vae):
    _, _, cond = noisy()
    rival = make("concat_cond", unet, vae)
    seen = rival.encode_condition(cond)
    assert seen.shape == (1, 16, 9, 8, 8)
    torch.testing.assert_close(seen[:, :8, :8].movedim(2, 1), encode_frames(vae, cond))
    assert seen[:, :8, 8].eq(1).all() and seen[:, 8:].eq(0).all()
    given = torch.zeros(1, 16, dtype=torch.bool)
    given[0, [0, 3, 15]] = True
    video = torch.cat([cond, cond.flip(1)], dim=1)
    seen = rival.encode_condition(masked(video, given))
    torch.testing.assert_close(seen[0, [3, 15], :8], encode_frames(vae, video[:, [3, 15]])[0].movedim(0, 1))
    assert torch.equal(seen[0, :, 8].amax((-1, -2)) > 0, given[0])


@torch.no_grad()
@pytest.mark.parametrize("name", RIVALS)
def test_a_masked_chunk_of_the_first_frames_is_what_inference_gives(name, unet, vae):
    _, _, cond = noisy()
    rival = make(name, unet, vae)
    torch.nn.init.normal_(rival.conv_in.weight)
    given = (torch.arange(16) < 8)[None]
    video = torch.cat([cond, torch.ones_like(cond)], dim=1)  # what is not given does not count
    assert torch.equal(rival.encode_condition(cond), rival.encode_condition(masked(video, given)))


@torch.no_grad()
@pytest.mark.parametrize("name", RIVALS)
def test_the_condition_reaches_the_output_once_weights_move(name, unet, vae):
    x, tokens, cond = noisy()
    rival = make(name, unet, vae).attach(unet)
    for parameter in rival.parameters():
        parameter += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3))
    run = lambda c: unet(x, 500, tokens, cam_features=rival(x, 500, tokens, cond=c))  # noqa: E731
    assert not torch.equal(run(cond), run(-cond))
    rival.detach(unet)


@torch.no_grad()
def test_wrong_conditions_are_refused(unet, vae):
    x, tokens, cond = noisy()
    with pytest.raises(ValueError, match="expected 8 frames"):
        make("add_cond", unet, vae).encode_condition(cond[:, :5])
    with pytest.raises(ValueError, match="either cond"):
        make("add_cond", unet, vae)(x, 500, tokens)
    with pytest.raises(ValueError, match="use_vae"):
        ConcCond.from_unet(unet, TINY.cam).encode_condition(cond)


@torch.no_grad()
def test_a_placed_cam_reads_the_frame_it_repeats_and_that_alone(unet):
    placed, cam = (cls.from_unet(unet, TINY.cam).eval() for cls in (PlacedCam, Cam))
    assert placed.state_dict().keys() == cam.state_dict().keys()
    for module in (placed, cam):
        torch.nn.init.normal_(module.injectors[0].proj_out.weight, generator=torch.Generator().manual_seed(0))
    cam.load_state_dict(placed.state_dict())
    hidden, past = torch.randn(32, 64, 4, 4), torch.randn(2, 8, 64, 4, 4)
    other = past.clone()
    other[:, 3] += 1.0
    changed = {}
    for module in (placed, cam):
        injector = module.injectors[0]
        difference = (injector(hidden, other) - injector(hidden, past)).abs().view(2, 16, -1).amax((0, 2))
        changed[type(module)] = [i for i, d in enumerate(difference.tolist()) if d > 1e-6]
    assert changed == {PlacedCam: [3, *range(8, 16)], Cam: list(range(16))}
    one = past[:, 5:6].expand(-1, 8, -1, -1, -1)  # where all past frames are alike there is nothing to look up
    torch.testing.assert_close(placed.injectors[0](hidden, one), cam.injectors[0](hidden, one))


@pytest.fixture(scope="module")
def armed(random_weights, quick_config, tmp_path_factory, unet, vae):
    """A pipeline whose folder has the rivals' weights beside the others."""
    import shutil

    folder = tmp_path_factory.mktemp("armed") / "tiny"
    shutil.copytree(random_weights / "weights" / "tiny", folder)
    for name in RIVALS:
        rival = make(name, unet, vae)
        torch.nn.init.normal_(rival.conv_in.weight, std=0.1)
        for injector in rival.injectors:
            last = getattr(injector, "adapter", injector).layers[-1]
            torch.nn.init.normal_(last.weight, std=0.05)
        rival.half().save_pretrained(folder / name)
    placed = PlacedCam.from_unet(unet, TINY.cam)
    for injector in placed.injectors:
        torch.nn.init.normal_(injector.proj_out.weight, std=0.05)
    placed.half().save_pretrained(folder / "placed_cam")
    pipe = load("tiny", "cpu", folder)
    pipe.cfg = quick_config
    return pipe


def low_res(pipe, frames=32, **changes):
    before, pipe.cfg = pipe.cfg, pipe.cfg.replace(**changes)
    try:
        return pipe(PROMPT, num_frames=frames, enhance=False, progress=False).low_res
    finally:
        pipe.cfg = before


def test_every_arm_runs_in_the_pipeline_from_the_same_first_chunk(armed):
    videos = {c: low_res(armed, 24, conditioning=c) for c in baselines.CONDITIONINGS}
    again = low_res(armed, 24, conditioning="cam")
    assert torch.equal(videos["cam"], again), "another arm leaves nothing behind"
    for a in videos:
        assert torch.equal(videos[a][:, :16], videos["none"][:, :16])
        for b in videos:
            assert a == b or not torch.equal(videos[a][:, 16:], videos[b][:, 16:]), (a, b)


def test_replacement_needs_no_network_and_goes_with_any(armed):
    for name, network, pasted in (
        ("replacement", "none", True), ("cam+replacement", "cam", True), ("add_cond+replacement", "add_cond", True),
        ("cam", "cam", False), ("none", "none", False),
    ):  # fmt: skip
        assert baselines.parts_of(name) == (network, pasted)
        before, armed.cfg = armed.cfg, armed.cfg.replace(conditioning=name)
        models, armed.cfg = armed.models(), before
        assert (models.cam is None, models.replacement) == (network == "none", pasted)
    before, armed.cfg = armed.cfg, armed.cfg.replace(conditioning="replacement")
    with pytest.raises(errors.InputError, match="EulerDiscreteScheduler does it otherwise"):
        armed.models(EulerDiscreteScheduler.from_config(armed.scheduler.config))
    armed.cfg = before
    with pytest.raises(errors.InputError, match="'cam\\+magic' is unknown; choose one of: .*cam\\+replacement"):
        low_res(armed, 24, conditioning="cam+magic")


@pytest.mark.parametrize("sampler", ["ddim", "dpm++", "sde-dpm++"])
def test_replaced_frames_are_noised_to_the_level_of_each_step(sampler):
    generator = torch.Generator().manual_seed(0)
    known, noise = torch.randn(2, 4, 3, 2, 2, generator=generator), torch.randn(2, 4, 8, 2, 2, generator=generator)
    scheduler, reference = (make_scheduler(TINY.scheduler, name) for name in (sampler, "ddim"))
    seen = []

    def predict(latents, timestep, tokens):
        seen.append((int(timestep), latents))
        return torch.zeros_like(latents)

    text = torch.zeros(2, 1, 1)
    given = replacing(known, noise, scheduler.alphas_cumprod)
    noises = torch.zeros(4, 16, 4, 2, 2)
    steps = list(denoise_steps(predict, scheduler, noise, Contexts(text, text, scale=1), 4, 0.0, None, noises, given))
    free = list(denoise_steps(predict, scheduler, noise, Contexts(text, text, scale=1), 4, 0.0, None, noises))
    assert torch.equal(steps[-1].latents[:, :, 3:], free[-1].latents[:, :, 3:]), "other frames are not touched"
    assert len(seen) == 8
    for timestep, latents in seen[:4]:
        expected = reference.add_noise(known, noise[:, :, :3], torch.full((2,), timestep))
        torch.testing.assert_close(latents[:, :, :3], expected, rtol=0, atol=1e-3)  # dpm++ has no exact zero SNR


def test_what_is_pasted_are_the_carried_frames(armed):
    before, armed.cfg = armed.cfg, armed.cfg.replace(conditioning="cam+replacement", apm=None)
    models, seen = armed.models(), []
    armed.cfg = before
    frames = torch.rand(1, 16, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    state, text = start_stream(models, frames, 0), armed.encode_text(PROMPT)
    noise = torch.randn(1, 8, 16, 8, 8, generator=torch.Generator().manual_seed(1))
    hook = models.unet.register_forward_pre_hook(lambda _, given: seen.append(given[:2]))
    next_chunk(models, state, text, text, before.sampling, noise=noise)
    hook.remove()
    known, ddim = encode_frames(models.vae, frames[:, 8:]), make_scheduler(before.scheduler, "ddim")
    for latents, timestep in seen:
        expected = ddim.add_noise(known, noise[:, :, :8], timestep.view(1))
        torch.testing.assert_close(latents[:1, :, :8], expected, rtol=0, atol=2e-3)
    assert len(seen) == before.sampling.num_inference_steps


def test_last_frame_anchor(armed):
    fixed, last = (low_res(armed, anchor=a) for a in ("first", "last"))
    assert torch.equal(fixed[:, :24], last[:, :24]), "the first chunk's successor has the same anchor"
    assert not torch.equal(fixed[:, 24:], last[:, 24:])
    models, first = armed.models(), torch.linspace(-1, 1, 16).view(1, 16, 1, 1, 1).expand(1, 16, 3, 64, 64)
    state = start_stream(models, first, 0)
    torch.testing.assert_close(
        anchor_on_last_frame(models, state).anchor, models.apm(models.encode_image(first[:, -1:]))
    )
    without = dataclasses.replace(models, apm=None)
    assert anchor_on_last_frame(without, start_stream(without, first, 0)).anchor is None
    armed_cfg = armed.cfg
    armed.cfg = armed_cfg.replace(anchor="middle")
    with pytest.raises(errors.InputError, match="'first' or 'last'"):
        armed.models()
    armed.cfg = armed_cfg


def test_arms_without_weights_say_what_to_do(random_weights):
    pipe = load("tiny", "cpu", random_weights / "weights" / "tiny")
    pipe.cfg = pipe.cfg.replace(conditioning="add_cond")
    with pytest.raises(errors.WeightsError, match="st2v train add_cond"):
        pipe.models()
    pipe.cfg = pipe.cfg.replace(conditioning="magic")
    with pytest.raises(errors.InputError, match="none, cam, concat_cond, add_cond"):
        pipe.models()


@pytest.fixture
def small(monkeypatch):
    from st2v_lib.training import apm, cam, data

    monkeypatch.setattr(data, "PREFILL", 2)
    for module in (cam, apm):
        monkeypatch.setattr(module, "BATCH", 2)
    monkeypatch.setattr(cam, "SEEING_STEPS", 2)
    monkeypatch.setattr(apm, "RETURNING", 0.0)


def test_rivals_train_on_cams_clips(small, vae):
    from st2v_lib.training import cam, rivals

    theirs = cam.make_batch(TINY, vae, seed=3)(0, 0)
    for mask in ("random", "aligned"):
        ours = rivals.make_batch(TINY, vae, seed=3, mask=mask)(0, 0)
        assert torch.equal(ours["latents"], theirs["latents"]) and torch.equal(ours["ids"], theirs["ids"])
        assert ours["cond"].shape == (2, 16, 4, 64, 64)
        given = ours["cond"][:, :, 3].flatten(2).amax(-1) > 0
        assert given.sum(1).tolist() == [8, 8]
        assert ours["cond"][~given].abs().max() == 0
        assert (mask == "aligned") == bool(given[:, :8].all())
    torch.testing.assert_close(ours["cond"][:, :8, :3], theirs["cond"])
    with pytest.raises(ValueError, match="'random' or 'aligned'"):
        rivals.make_batch(TINY, vae, mask="none")


@torch.no_grad()
@pytest.mark.parametrize("name", RIVALS)
def test_what_no_gradient_needs_is_done_before_the_step(name, unet, vae):
    """A CUDA graph cannot hold Conc-Cond's picking of frames; Add-Cond's pixel encoder is trained and has to stay."""
    sizes = {"hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = CLIPTextModelWithProjection(CLIPTextConfig(vocab_size=99, max_position_embeddings=24, **sizes))
    step = CamStep(TINY, unet, text, make(name, unet, vae))
    x, _, cond = noisy()
    batch = {"latents": x, "mask": torch.ones(1, 16, 8, 8), "cond": step.cam.as_masked(cond)}
    ready = step.prepare(batch | {"ids": torch.zeros(1, 24, dtype=torch.long)})
    assert ("cond" in ready) == (name == "add_cond") and ("cond_features" in ready) == (name == "concat_cond")
    torch.manual_seed(3)
    ours = step(ready)[0]
    torch.manual_seed(3)
    torch.testing.assert_close(step.loss(batch | {"text": ready["text"]})[0], ours)
    step.cam.detach(unet)


def test_an_arm_is_trained_by_one_command_to_its_clips(small, random_weights, tmp_path, monkeypatch):
    import json

    from st2v_lib import cli
    from st2v_lib.evaluation.suite import trained_arm

    monkeypatch.setenv("ST2V_DATA", str(random_weights))
    records = {}
    for name in ("add_cond_primed", "concat_cond_aligned", "cam_1", "cam_guided", "placed_cam"):
        out = tmp_path / name
        assert cli.main(["train", name, "--clips", "4", "--seed", "1", "--device", "cpu", "--out", str(out)]) == 0
        records[name] = json.loads((out / "arm.json").read_text())
        assert records[name]["steps"] == 2 and records[name]["clips"] == 4
        pipe = load("tiny", "cpu", out)
        pipe.cfg = trained_arm(out).config(pipe.cfg)
        assert pipe.models().apm is None
        assert pipe.models().cam.config.num_cond_frames == (1 if name == "cam_1" else 8)
    trained = [r["trained_parameters"] for r in records.values()]
    assert max(trained) / min(trained) < 1.01, "arms train equally many parameters"
    assert len({r["base_sha256"] for r in records.values()}) == 1


def test_arms_that_cannot_start_say_why(random_weights, tmp_path, capsys):
    from st2v_lib import cli

    (tmp_path / "empty").mkdir()
    assert cli.main(["train", "add_cond", "--from", str(tmp_path / "empty"), "--out", str(tmp_path / "o")]) == 2
    assert "arms start from a trained base" in capsys.readouterr().err
    base = str(random_weights / "weights" / "tiny")
    assert cli.main(["train", "cam_1", "--from", base, "--out", base]) == 2
    assert "a folder of its own" in capsys.readouterr().err
    assert cli.main(["train", "cam_1", "--clips", "0", "--from", base]) == 2
    assert "--clips" in capsys.readouterr().err
