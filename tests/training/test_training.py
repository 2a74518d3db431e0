"""The training loop resumes and spreads over processes; every phase takes a step and leaves loadable weights."""

import json
import math
import os
import random
import subprocess
import sys
import types
import zlib
from pathlib import Path

import pytest
import torch
from diffusers.models.resnet import TemporalConvLayer
from diffusers.models.transformers.transformer_temporal import TransformerTemporalModel
from torch import nn

from st2v_lib import cli as command_line
from st2v_lib.backbone import StreamingUNet, encode_frames, make_unet, make_vae
from st2v_lib.cam import Cam
from st2v_lib.config import TINY
from st2v_lib.errors import UserError
from st2v_lib.manifest import verify_manifest, weights_dir
from st2v_lib.sampling import make_scheduler
from st2v_lib.training import apm, base, cam, cli, clip, common, data, diffusion, enhancer, graphed, rivals, vae
from st2v_lib.world.render import render


class Line(nn.Module):
    """Fits y = 3x; enough to see the loop work."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1))

    def forward(self, batch):
        return (self.w * batch["x"] - 3 * batch["x"]).square().mean(), {}


def line_batch(rank, n):
    return {"x": torch.randn(8, generator=torch.Generator().manual_seed(100 * rank + n))}


@pytest.fixture(scope="module")
def acc():
    return common.accelerator("cpu")


def fit_line(folder, acc, steps):
    line = Line()
    cfg = common.FitConfig("line", minutes=5, lr=0.1, warmup_steps=1, max_steps=steps)
    return line, common.fit(line, line_batch, cfg, folder, acc)


def test_fit_learns_logs_and_resumes(tmp_path, acc):
    line, result = fit_line(tmp_path, acc, 150)
    assert result["step"] == 150
    rows = (tmp_path / "log.csv").read_text().splitlines()
    assert rows[0] == "step,seconds,name,value" and rows[-1].startswith("150,"), "however short the run"
    assert float(rows[-1].split(",")[-1]) == pytest.approx(result["loss"], rel=1e-4)
    assert abs(line.w.item() - 3) < 0.3
    again, result = fit_line(tmp_path, acc, 10)
    assert result["step"] == 160, "the second run goes on where the first stopped"
    assert abs(again.w.item() - 3) < 0.3, "from the weights of the first"


def test_resumed_run_equals_an_uninterrupted_one(tmp_path, acc):
    _, _ = fit_line(tmp_path / "parts", acc, 20)
    _, _ = fit_line(tmp_path / "parts", acc, 20)
    _, _ = fit_line(tmp_path / "whole", acc, 40)
    parts, whole = (
        torch.load(tmp_path / name / "state.pt", weights_only=True)["model"][0] for name in ("parts", "whole")
    )
    torch.testing.assert_close(parts, whole)


def test_a_short_run_is_not_all_warm_up(tmp_path, acc, monkeypatch):
    rates = []

    class Watched(torch.optim.AdamW):
        def step(self, *arguments, **options):
            rates.append(self.param_groups[0]["lr"])
            return super().step(*arguments, **options)

    monkeypatch.setattr(torch.optim, "AdamW", Watched)
    for total, warmup in ((40, 2), (4, 1), (None, 100)):
        rates.clear()
        cfg = common.FitConfig("line", 5, lr=1.0, max_steps=4, total_steps=total)
        common.fit(Line(), line_batch, cfg, tmp_path / str(total), acc)
        assert rates[:2] == pytest.approx([min(1, (k + 1) / warmup) for k in range(2)])


def test_saving_takes_a_small_share_of_the_time_however_large_the_state(tmp_path, acc, monkeypatch):
    """A clock that each step moves by a second and each save by ``slow`` seconds."""
    now, saved, save = [0.0], [], common.save_atomically
    monkeypatch.setattr(common, "time", types.SimpleNamespace(time=lambda: now[0]))

    class Timed(Line):
        def forward(self, batch):
            now[0] += 1
            return super().forward(batch)

    for slow, most in ((0.05, 5), (2.0, 100)):
        saved.clear()

        def slowly(path, write, slow=slow):
            saved.append(now[0])
            save(path, write)
            now[0] += slow

        monkeypatch.setattr(common, "save_atomically", slowly)
        cfg = common.FitConfig("line", minutes=1e4, save_seconds=4, max_steps=400)
        common.fit(Timed(), line_batch, cfg, tmp_path / str(slow), acc)
        gaps = [b - a - slow for a, b in zip(saved[:-1], saved[1:-1])]  # the last save is the end's
        assert len(gaps) >= 2 and all(gap == pytest.approx(most, abs=1.5) for gap in gaps)
        assert saved[-1] + slow == now[0] and slow * (len(saved) - 2) <= common.SAVE_SHARE * 400


def test_an_average_of_the_weights_is_left_unless_it_is_switched_off(tmp_path, acc):
    def run(folder, decay, steps):
        line, cfg = Line(), common.FitConfig("line", 5, lr=0.1, warmup_steps=1, max_steps=steps, ema_decay=decay)
        common.fit(line, line_batch, cfg, tmp_path / folder, acc)
        state = torch.load(tmp_path / folder / "state.pt", weights_only=True)
        return line.w.detach(), state["model"][0], state["ema"]["shadow_params"]

    averaged, last, shadow = run("run", 0.9, 20)
    assert averaged.equal(shadow[0]) and not averaged.equal(last)
    plain, last_too, shadow = run("plain", 0.0, 20)
    assert plain.equal(last_too) and last_too.equal(last) and shadow == []
    for folder, decay in (("run", 0.0), ("plain", 0.9)):  # switched over in the middle
        given, last, shadow = run(folder, decay, 1)
        assert given.equal(shadow[0] if decay else last) and abs(given - last) < 0.2


def test_no_ema_reaches_every_phase_but_the_arms(tmp_path, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(cli, "train_phase", lambda phase, *_, **options: asked.append(options.get("ema_decay")))
    for extra in ([], ["--no-ema"]):
        assert command_line.main(["train", "base", "--device", "cpu", "--out", str(tmp_path / "w"), *extra]) == 0
    assert asked == [None, 0.0]
    for extra in (["--no-ema"], ["--compile"], ["--lr-scale", "0.1"], ["--budget", "base=1"]):
        for arm in (["add_cond"], ["cam", "--clips", "8"]):
            assert command_line.main(["train", *arm, "--device", "cpu", *extra]) == 2
            shown = capsys.readouterr().err
            assert "arms of the fair tests" in shown and extra[0] in shown
    assert command_line.main(["train", "base", "--device", "cuda:1"]) == 2
    assert "auto, cpu or cuda" in capsys.readouterr().err


def test_arms_tell_whether_they_were_resumed(tmp_path, small, random_weights, acc):
    source, out = random_weights / "weights" / "tiny", tmp_path / "arm"
    for clips, resume, resumed in ((1, True, False), (2, True, True), (1, False, False)):
        rivals.train_arm("cam", TINY, source, out, acc, 5, clips, resume=resume)
        record = json.loads((out / "arm.json").read_text())
        assert record["resumed"] is resumed and record["steps"] == clips
    (tmp_path / "other" / "unet").mkdir(parents=True)
    for part in ("vae", "text_encoder", "cam"):
        (tmp_path / "other" / part).mkdir()
    (tmp_path / "other" / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"another base")
    with pytest.raises(UserError, match="an arm of another base"):
        rivals.train_arm("cam", TINY, tmp_path / "other", out, acc, 5, 1)


class Draw(Line):
    """Keeps the noise of each step."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, batch):
        self.seen.append(torch.rand(()).item())
        return super().forward(batch)


def test_noise_does_not_start_again_when_a_run_goes_on(tmp_path, acc):
    def noise(folder, seed=0):
        draw = Draw()
        common.fit(draw, line_batch, common.FitConfig("line", 5, max_steps=4, seed=seed), tmp_path / folder, acc)
        return draw.seen

    first = noise("a")
    assert noise("b") == first, "the seed alone says what a fresh run draws"
    assert not set(noise("a")) & set(first) and not set(noise("c", seed=1)) & set(first)
    assert len({common.noise_seed(0, rank, step) for rank in range(4) for step in (0, 7, 8)}) == 12


def test_half_written_state_is_never_left(tmp_path):
    def broken(path: Path) -> None:
        path.write_text("half")
        raise OSError("disk full")

    (tmp_path / "state.pt").write_text("good")
    with pytest.raises(OSError, match="disk full"):
        common.save_atomically(tmp_path / "state.pt", broken)
    assert [p.name for p in tmp_path.iterdir()] == ["state.pt"]
    assert (tmp_path / "state.pt").read_text() == "good"


def test_half_written_weights_are_never_left(tmp_path, monkeypatch):
    """A component's files keep their old content until all new ones are whole."""
    model, autoencoder, net = clip.make_clip(TINY.clip), make_vae(TINY.vae).requires_grad_(False), make_unet(TINY.unet)
    writers = {
        "text_encoder": lambda: clip.finish(model, tmp_path),
        "vae": lambda: vae.finish(autoencoder, tmp_path / "vae"),
        "unet": lambda: cli.save(net, tmp_path / "unet"),
    }
    for name, write in writers.items():
        write()
        before = {p.name: p.read_bytes() for p in (tmp_path / name).iterdir()}
        assert "config.json" in before and any(f.endswith(".safetensors") for f in before)

        def broken(self, folder, before=before, **options):
            folder.mkdir()
            for file in before:
                (folder / file).write_text("half")
            raise OSError("disk full")

        with monkeypatch.context() as patch:
            for cls in (type(net), type(autoencoder), clip.CLIPTextModelWithProjection):
                patch.setattr(cls, "save_pretrained", broken)
            with pytest.raises(OSError, match="disk full"):
                write()
        assert {p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} == before
    assert not list(tmp_path.rglob(".*part")), "nothing half-written is left"


@pytest.mark.parametrize("command", [["vae"], ["add_cond", "--clips", "1"]])
def test_a_place_that_cannot_be_written_is_known_before_the_work(tmp_path, monkeypatch, capsys, command):
    monkeypatch.setattr(common, "fit", lambda *arguments: pytest.fail("the work has begun"))
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "weights"):
        assert command_line.main(["train", *command, "--device", "cpu", "--out", str(out)]) == 2
        assert "cannot be written" in capsys.readouterr().err


SCRIPT = """
import sys, torch
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_training import Line, line_batch
from st2v_lib.config import TINY
from st2v_lib.training import cam, cli, common, data

place, acc = Path(sys.argv[2]), common.accelerator("cpu")
line = Line()
cfg = common.FitConfig("line", minutes=5, lr=0.1, warmup_steps=1, max_steps=5)
common.fit(line, line_batch, cfg, place / "run", acc)
weights = acc.gather(line.w.detach())
if acc.is_main_process:
    print("WEIGHTS", acc.num_processes, weights.tolist(), flush=True)

data.PREFILL, cam.BATCH, cam.SEEING_STEPS = 2, 1, 2
fit, seen = common.fit, []

def watched(step, batches, *rest):
    result = fit(step, lambda rank, n: seen.append(batches(rank, n)) or seen[-1], *rest)
    trained = torch.stack([p.detach().double().norm() for p in step.parameters() if p.requires_grad])
    first, second = acc.gather(trained[None])
    assert first.equal(second), "both processes end with the same weights"
    first, second = acc.gather(seen[-1]["latents"].float().contiguous())
    assert not first.equal(second), "from clips of their own"
    return result

common.fit = watched
result = cli.train_phase("cam", TINY, place / "weights", minutes=5, acc=acc, max_steps=2)
print(f"DONE {acc.num_processes} {result['step']}", flush=True)  # one write, or the lines of the two mingle
"""


@pytest.fixture(scope="module")
def two(random_weights, tmp_path_factory):
    """What two processes did, a line fitted and a phase trained in one start of them: their folder and their output."""
    place = tmp_path_factory.mktemp("two")
    script = place / "two.py"
    script.write_text(SCRIPT)
    # on CPUs accelerate's own launcher starts one process; it takes its place in torch's all the same
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    env = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2]), "ST2V_DATA": str(random_weights)}
    arguments = [str(Path(__file__).parent), str(place)]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=240, env=os.environ | env)
    return place, done


def test_two_processes_average_their_gradients(two):
    place, out = two
    found = [line for line in out.stdout.splitlines() if line.startswith("WEIGHTS 2")]
    assert found, out.stderr[-2000:]
    first, second = json.loads(found[0].removeprefix("WEIGHTS 2 "))
    assert first == second

    line = Line()
    optimizer = torch.optim.AdamW(line.parameters(), lr=0.1, weight_decay=0.01, betas=(0.9, 0.99))
    state = torch.load(place / "run" / "state.pt", weights_only=True)
    for n in range(5):
        optimizer.zero_grad()
        loss = sum(line(line_batch(rank, n))[0] for rank in (0, 1)) / 2
        loss.backward()
        nn.utils.clip_grad_norm_(line.parameters(), 1.0)
        optimizer.step()
    torch.testing.assert_close(state["model"][0], line.w.detach(), rtol=1e-4, atol=1e-5)


@pytest.fixture
def small(monkeypatch):
    """Phases at their smallest."""
    monkeypatch.setattr(base, "TURNS", ((16, 1), (1, 2)))
    monkeypatch.setattr(base, "IMAGES", 4)
    monkeypatch.setattr(base, "IMAGE_PREFILL", 4)
    monkeypatch.setattr(data, "PREFILL", 2)
    monkeypatch.setattr(cam, "BATCH", 1)
    monkeypatch.setattr(cam, "SEEING_STEPS", 2)
    monkeypatch.setattr(apm, "BATCH", 2)
    monkeypatch.setattr(apm, "RETURNING", 0.0)
    monkeypatch.setattr(enhancer, "BATCH", 1)
    monkeypatch.setattr(enhancer, "PREFILL", 1)
    monkeypatch.setattr(clip, "BATCH", 16)
    monkeypatch.setattr(vae, "BLOCK", 32)
    monkeypatch.setattr(vae, "POOLS", {64: (32, 2, 64), 128: (32, 2, 64)})


def test_every_phase_takes_a_step_and_ends_in_valid_files(tmp_path, small, acc):
    out = tmp_path / "weights"
    for phase in [p for p in cli.PHASES if p != "reader"]:
        result = cli.train_phase(phase, TINY, out, minutes=5, acc=acc, max_steps=2)
        assert result["step"] == 2
        assert math.isfinite(result["loss"])
    assert verify_manifest(out) == []
    folders = {p.name for p in out.iterdir() if p.is_dir()}
    assert {"vae", "text_encoder", "image_encoder", "tokenizer", "unet", "cam", "apm", "enhancer"} <= folders
    again = cli.train_phase("cam", TINY, out, minutes=5, acc=acc, max_steps=1)
    assert again["step"] == 3


def test_cam_is_trained_by_two_processes(two, random_weights, acc, monkeypatch, small):
    """Two steps of the real phase, the tiny preset with one clip a process; then one process goes on from there."""
    out, run = two[0] / "weights", two[1]
    monkeypatch.setenv("ST2V_DATA", str(random_weights))
    assert run.returncode == 0 and run.stdout.count("DONE 2 2") == 2, run.stderr[-3000:]
    assert verify_manifest(out) == [] and {p.name for p in out.iterdir() if p.is_dir()} == {"cam"}
    before, after = (Cam.from_pretrained(place / "cam") for place in (random_weights / "weights" / "tiny", out))
    changed = [not torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True)]
    assert sum(changed) > 0.5 * len(changed) and all(p.isfinite().all() for p in after.parameters())
    assert cli.train_phase("cam", TINY, out, minutes=5, acc=acc, max_steps=1)["step"] == 3


def test_latents_and_text_stay_once_a_base_is_trained_on_them(tmp_path, small, acc):
    """The decoder and the image tower may go on; what the base has seen is frozen, byte for byte."""
    from safetensors.torch import load_file

    out = tmp_path / "weights"
    file = lambda part: next((out / part).glob("*.safetensors"))  # noqa: E731
    read = lambda part: {k: v.clone() for k, v in load_file(file(part)).items()}  # noqa: E731  (else a memory map)
    for phase in ("vae", "clip"):
        cli.train_phase(phase, TINY, out, minutes=5, acc=acc, max_steps=1)
    scale = lambda: json.loads((out / "vae" / "config.json").read_text())["scaling_factor"]  # noqa: E731
    first = scale()
    before = {part: read(part) for part in ("vae", "text_encoder", "image_encoder")}
    (out / "unet").mkdir()
    (out / "unet" / "config.json").write_text("{}")
    for phase in ("vae", "clip"):  # resumes a state that trained more than is trained now
        assert cli.train_phase(phase, TINY, out, minutes=5, acc=acc, max_steps=4)["step"] == 5
    changed = {part: {k for k, v in read(part).items() if not v.equal(before[part][k])} for part in before}
    assert changed["vae"] and all(k.startswith(("decoder", "post_quant_conv")) for k in changed["vae"])
    assert all(k.startswith("text_projection") for k in changed["text_encoder"]) and changed["image_encoder"]
    assert scale() == first


def test_phases_need_the_ones_before_them(tmp_path, monkeypatch, acc):
    monkeypatch.setenv("ST2V_DATA", str(tmp_path / "nothing"))
    with pytest.raises(UserError, match="train the phases in order"):
        cli.train_phase("base", TINY, tmp_path / "weights", minutes=1, acc=acc, max_steps=1)
    with pytest.raises(UserError, match="unknown phase"):
        cli.train_phase("bass", TINY, tmp_path / "weights", minutes=1, acc=acc, max_steps=1)


def test_roles_of_phase_two():
    """The condition is what the chunk starts with, and the anchor lies in the 16 frames before it."""
    assert data.SEGMENT == 32 and TINY.chunk_frames == 16 and TINY.cam.num_cond_frames == 8
    rng = random.Random(0)
    found = []
    for scene, start in data.draw_scenes(rng, 12, returning=1.0):
        _, truth = render(scene, 32, start, 64, truth="masks")
        seen = truth.visible[0, :, 0]
        found.append(seen[:16].max() > 0.6 and seen[16:24].max() < 0.02 and seen[24:].max() > 0.2)
    assert sum(found) >= 9, "most scenes asked to return hide in the condition and are back in the new frames"


def test_most_base_clips_begin_with_a_sprite_in_sight():
    """A segment whose sprite comes in late is drawn from where it is seen; a window may still start anywhere."""
    pool = data.Pool(vae=make_vae(TINY.vae))
    pool.scenes, pool.latents = [(data.sample_scene(0, 0), 0)], torch.zeros(1, 32, 8, 8, 8)
    pool.masks, pool.peaks = torch.zeros(1, 32, 8, 8), torch.zeros(1, 32)
    pool.peaks[0, 12:] = 1.0
    rng = random.Random(0)
    starts = lambda share: {pool.draw(rng, 1, 16, in_sight=share)[3][0] for _ in range(100)}  # noqa: E731
    assert starts(1.0) == {12, 13, 14, 15, 16}
    assert min(starts(0.0)) < 12
    pool.peaks = torch.zeros(1, 32)
    assert min(starts(1.0)) < 12  # no sprite anywhere: any window


def test_a_pool_keeps_what_was_drawn():
    """Latents, masks and enlarged inputs of a window are those of its scene; the oldest segment makes room."""
    vae = make_vae(TINY.vae).eval()
    pool = data.Pool(vae, seed=3, capacity=3, segment=4, size=128, enlarged=True)
    pool.grow(2)
    pool.grow(3)  # its own call: slots 2, 0, 1
    assert len(pool.scenes) == 3 and pool.made == 5
    latents, masks, scenes, starts, picks = pool.draw(random.Random(1), 6, frames=2)
    assert latents.shape == (6, 8, 2, 16, 16) and masks.shape == (6, 2, 16, 16)
    video, truth = render(scenes, 2, starts, 128, truth="masks")
    small = data.upscale(render(scenes, 2, starts, 64), 128)
    at = [s - pool.scenes[p][1] for s, p in zip(starts, picks)]
    with torch.no_grad():
        for kept, shown in ((latents, video), (pool.take("inputs", picks, at, 2), small)):
            true = encode_frames(vae, shown)
            assert (kept - true).std() < 0.03 * true.std()  # halves, and bfloat16 where the processor has it
    torch.testing.assert_close(masks, data.latent_mask(truth.instances, 16), rtol=1e-3, atol=1e-3)


def test_crops_lie_around_sprites_and_match_their_masks():
    batch = vae.frame_batch(random.Random(0), 64, 16)
    codes = torch.arange(64 * 64.0).view(1, 1, 64, 64).expand(16, 3, 64, 64)
    cut = vae.sprite_crops({"frames": codes, "mask": batch["mask"]}, random.Random(1))
    assert cut["frames"].shape == (16, 3, 32, 32) and cut["mask"].shape == (16, 1, 32, 32)
    for i in range(16):
        places = cut["frames"][i, 0].long()
        assert (places[1:] - places[:-1] == 64).all() and (places[:, 1:] - places[:, :-1] == 1).all()
        assert batch["mask"][i, 0].flatten()[places].equal(cut["mask"][i, 0])
    shown = batch["mask"].flatten(1).any(1)
    assert cut["mask"].flatten(1).any(1)[shown].all()


def test_words_are_told_apart_before_pictures_teach_them():
    """A few steps of the word loss turn the hidden states of two motions away from each other."""
    torch.manual_seed(0)
    model = clip.make_clip(TINY.clip)
    step = clip.ClipStep(model)
    tokenizer = clip.make_tokenizer()
    ids = clip.tokenize(
        tokenizer, [f"a red {s} {v} over plain blue" for s in clip.SHAPES for v in ("bounces", "orbits")]
    )

    def apart():
        with torch.no_grad():
            hidden = nn.functional.normalize(model.text_model(input_ids=ids).last_hidden_state, dim=-1)
        return float(1 - (hidden[0, 4] * hidden[1, 4]).sum())  # the verb's own place

    before = apart()
    optimizer = torch.optim.AdamW(step.parameters(), lr=3e-3)
    for _ in range(30):
        optimizer.zero_grad()
        step.word_loss(ids).backward()
        optimizer.step()
    assert apart() > max(0.3, 3 * before)
    model.text_model.requires_grad_(False)
    assert not clip.ClipStep(model).words.requires_grad  # nothing left to teach


def test_attributes_of_a_sprite_that_is_alone_and_whole_pull_at_its_embedding():
    torch.manual_seed(0)
    batch = clip.clip_batch(random.Random(0), clip.make_tokenizer(), 48, "strangers")
    told = ~batch["identity"].isnan().any(-1)
    assert 8 < told.sum() < 48 and batch["identity"][told, :4].sum(-1).eq(1).all()
    step = clip.ClipStep(clip.make_clip(TINY.clip))
    embeds = torch.randn(48, TINY.clip.projection_dim, requires_grad=True)
    step.attribute_loss(embeds, batch["identity"]).backward()
    assert embeds.grad[told].abs().sum(-1).gt(0).all() and embeds.grad[~told].eq(0).all()
    nothing = torch.full_like(batch["identity"], torch.nan)
    assert step.attribute_loss(embeds, nothing) == 0  # a batch without such a sprite


def test_budgets_name_phases_and_minutes():
    assert cli.budgets(None, "cam", 3.0) == {"cam": 3.0}
    assert abs(sum(cli.budgets(None, "all", 9.0).values()) - 9.0) < 1e-9
    assert list(cli.budgets("base=2,image=0.5", "all", 9.0).items()) == [("image", 0.5), ("base", 2.0)]
    for wrong in ("base", "base=", "base=0", "unet=1", "base=1;cam=2", "base=inf", ""):
        with pytest.raises(UserError, match="--budget"):
            cli.budgets(wrong, "all", 9.0)
    with pytest.raises(UserError, match="--minutes"):
        cli.budgets("base=1", "base", 9.0)


@pytest.mark.parametrize("option", ["--minutes", "--batch-scale", "--lr-scale", "--temporal-lr-scale"])
def test_numbers_of_training_are_positive(option, tmp_path, capsys):
    for wrong in ("0", "-1", "inf", "nan"):
        assert command_line.main(["train", "base", "--out", str(tmp_path / "w"), option, wrong]) != 0
        assert f"{option} must be a positive number" in capsys.readouterr().err
    assert not (tmp_path / "w").exists()


def test_learning_rates_are_scaled():
    rates = {}
    for scale in (1.0, 0.25):
        step, _, config, _, groups = cli._prepare(
            "apm", TINY, weights_dir("tiny"), 1.0, common.accelerator("cpu"), True, 0, {}, scale
        )
        rates[scale] = [config.lr, *(g["lr"] for g in groups)]
    assert rates[0.25] == [lr / 4 for lr in rates[1.0]]


def test_temporal_layers_may_learn_at_their_own_rate(tmp_path, capsys):
    acc = common.accelerator("cpu")
    step, _, config, _, groups = cli._prepare(
        "base", TINY, weights_dir("tiny"), 1.0, acc, True, 0, {}, temporal_lr_scale=3.0
    )
    assert [g["lr"] for g in groups] == [config.lr, 3 * config.lr]
    spatial, temporal = ({id(p) for p in g["params"]} for g in groups)
    assert spatial | temporal == {id(p) for p in step.unet.parameters()} and not spatial & temporal
    assert {id(p) for p in step.unet.mid_block.temp_convs.parameters()} < temporal
    assert command_line.main(["train", "cam", "--out", str(tmp_path / "w"), "--temporal-lr-scale", "3"]) != 0
    assert "st2v train base" in capsys.readouterr().err


def test_timesteps_lean_towards_noise():
    scheduler = make_scheduler(TINY.scheduler, "ddim")
    torch.manual_seed(0)
    even, leaning = (diffusion.random_timesteps(scheduler, 8000, "cpu", shift).float() for shift in (1.0, 2.0))
    assert abs(even.mean() - 499.5) < 1
    assert abs((leaning < 500).float().mean() - 1 / 3) < 0.01  # u / (2 - u) is the even draw behind it
    few = diffusion.random_timesteps(scheduler, 4, "cpu", 1.0).sort().values
    assert (few // 250).tolist() == [0, 1, 2, 3], "one from each stratum"


def test_siblings_differ_in_one_attribute():
    rng = random.Random(3)
    seen = set()
    for _ in range(40):
        scenes, starts = clip._siblings(rng)
        first = [s.sprites[0] for s in scenes]
        changed = {k for k in ("shape", "size", "shade", "pattern") if len({getattr(s, k) for s in first}) > 1}
        assert len(changed) <= 1 and len(set(starts)) == 1
        seen |= changed
    assert seen == {"shape", "size", "shade", "pattern"}


@torch.no_grad()
def test_inflated_unet_is_the_image_model_frame_by_frame():
    twin = base.make_image_unet(TINY.unet).eval()
    for p in twin.parameters():
        p.add_(0.02 * torch.randn_like(p))
    unet = base.inflate(make_unet(TINY.unet).eval(), twin)
    x, t, text = torch.randn(2, 8, 5, 8, 8), torch.tensor([3, 700]), torch.randn(2, 24, 128)
    frames = torch.stack([twin(x[:, :, f], t, text).sample for f in range(5)], 2)
    torch.testing.assert_close(unet(x, t, text), frames, rtol=1e-4, atol=1e-5)  # batches of other sizes round otherwise
    assert frames.std() > 0.1
    with torch.enable_grad():
        unet(x, t, text).square().mean().backward()
    closed = [m.conv4[-1] for m in unet.modules() if isinstance(m, TemporalConvLayer)]
    closed += [m.proj_out for m in unet.modules() if isinstance(m, TransformerTemporalModel)]
    assert closed and all(m.weight.grad.abs().max() > 0 for m in closed), "closed, and still able to open"


class FakeGraph:
    """Stands in for a CUDA graph on a CPU: replaying runs the recorded pass again on the recorded buffers."""

    def __init__(self):
        self.again = None

    def replay(self):
        self.again()


@pytest.fixture
def fake_cuda(monkeypatch):
    import contextlib

    quiet = type("Stream", (), {"wait_stream": lambda self, other: None})
    monkeypatch.setattr(torch.cuda, "Stream", quiet)
    monkeypatch.setattr(torch.cuda, "current_stream", quiet)
    monkeypatch.setattr(torch.cuda, "stream", lambda s: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(torch.cuda, "graph", lambda g: contextlib.nullcontext())


def test_a_graphed_pass_leaves_each_batchs_own_gradients(fake_cuda, monkeypatch):
    """Two shapes of batch, two graphs: inputs are copied in, and the gradients are those of the graph that ran."""
    line, runs = Line(), []

    def run(batch):
        runs.append(batch)
        loss = (line.w * batch["x"]).sum()
        loss.backward()
        return loss, {}

    passes = graphed.GraphedPass(run, list(line.parameters()))
    record = passes.record

    def recording(batch):
        graph, inputs, gradients, outputs = record(batch)

        @torch.no_grad()
        def again():  # what the device would do: the same kernels on the same buffers
            gradients[0].copy_(inputs["x"].sum())
            outputs[0].copy_((line.w * inputs["x"]).sum())

        graph.again = again
        return graph, inputs, gradients, outputs

    monkeypatch.setattr(passes, "record", recording)
    for x in (torch.ones(2), torch.full((3,), 2.0), torch.full((2,), 5.0)):
        loss, _ = passes({"x": x})
        assert line.w.grad.item() == x.sum() and not loss.requires_grad
    assert len(passes.recorded) == 2 and len(runs) == 2 * (graphed.WARM_UP + 1)


def test_where_no_graph_can_be_recorded_training_goes_on(monkeypatch):
    line = Line()

    def run(batch):
        loss = (line.w * batch["x"]).sum()
        loss.backward()
        return loss, {}

    passes = graphed.GraphedPass(run, list(line.parameters()))
    monkeypatch.setattr(passes, "record", lambda batch: (_ for _ in ()).throw(RuntimeError("not permitted")))
    with pytest.warns(UserWarning, match="not permitted"):
        passes({"x": torch.ones(2)})
    passes({"x": torch.full((2,), 3.0)})
    assert line.w.grad.item() == 6, "fresh gradients, not a sum"


@torch.no_grad()
def test_saved_weights_are_rounded_to_pack_well_and_training_keeps_its_own(tmp_path):
    torch.manual_seed(0)
    net = make_unet(TINY.unet)
    names = dict(net.named_parameters())
    big, zero = names["mid_block.resnets.0.conv1.weight"], names["mid_block.temp_convs.0.conv4.3.weight"]
    big.copy_(torch.randn_like(big)), zero.zero_()
    before = {name: p.clone() for name, p in names.items()}
    cli.save(net, tmp_path / "unet")
    assert all(torch.equal(p, before[name]) for name, p in net.named_parameters())
    saved = StreamingUNet.from_pretrained(tmp_path / "unet").state_dict()
    kept = saved["mid_block.resnets.0.conv1.weight"]
    assert 0.01 < (kept - big).std() < 0.03 and len(kept.unique()) < 300  # of a spread of one
    assert not saved["mid_block.temp_convs.0.conv4.3.weight"].any()
    few = names["conv_out.bias"]
    torch.testing.assert_close(saved["conv_out.bias"], few.half().float(), rtol=0, atol=0)
    assert len(zlib.compress(kept.half().numpy().tobytes())) < 0.65 * len(zlib.compress(big.half().numpy().tobytes()))
