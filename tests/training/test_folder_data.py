"""Training on videos of one's own: the folder's checks, roles of frames, checkpointing, twenty steps on eight clips."""

from __future__ import annotations

import inspect
import json

import numpy as np
import pytest
import torch

from st2v_lib import cli
from st2v_lib.apm import Apm
from st2v_lib.backbone import make_unet, make_vae
from st2v_lib.cam import Cam
from st2v_lib.config import TINY
from st2v_lib.errors import InputError, WeightsError
from st2v_lib.training import apm, cam, common, diffusion, folder_data
from st2v_lib.training.checkpointing import checkpoint_blocks
from st2v_lib.video_io import write_video
from st2v_lib.world.captions import make_tokenizer


def moving(seed: int, frames: int, size: int) -> np.ndarray:
    """A bright square that crosses a dark picture; frame t can be told from its place."""
    video = np.full((frames, size, size, 3), 20, np.uint8)
    for t in range(frames):
        at = (seed * 5 + 2 * t) % (size - 8)
        video[t, 8:16, at : at + 8] = (250, 30 * seed, 90)
    return video


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Eight made clips: square and wide, at the training rate and at twice of it."""
    place, lines = tmp_path_factory.mktemp("clips"), []
    for i in range(8):
        name, video = f"clip {i}.mp4", moving(i, 72 if i % 2 else 36, 64)
        if i == 3:
            video = np.pad(video, ((0, 0), (0, 0), (14, 14), (0, 0)))
        write_video(place / name, video, fps=16 if i % 2 else 8)
        lines.append(json.dumps({"file": name, "caption": "a red circle bounces over green stripes"}))
    (place / "captions.jsonl").write_text("\n".join(lines) + "\n\n")
    return place


def test_folder_is_read_at_the_training_rate(folder, tmp_path):
    clips = folder_data.read_folder(folder, 32, 8)
    assert [c.frames for c in clips] == [36] * 8 and [c.stride for c in clips] == [1, 2] * 4
    frames = folder_data.prepare(clips, 64, tmp_path, progress=False)
    assert all(f.shape == (36, 64, 64, 3) and f.dtype == np.uint8 for f in frames)
    for i, clip in enumerate(clips):
        place = lambda f: np.flatnonzero(f[12, :, 0] > 135).mean()  # noqa: E731
        truth = [place(f) for f in moving(i, 72, 64)[:: clip.stride][:36]]
        assert np.abs(np.subtract([place(f) for f in frames[i]], truth)).max() <= 1
    stamps = [p.stat().st_mtime_ns for p in sorted(tmp_path.iterdir())]
    folder_data.prepare(clips, 64, tmp_path, progress=False)
    assert [p.stat().st_mtime_ns for p in sorted(tmp_path.iterdir())] == stamps, "decoded once"


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (None, "has no captions.jsonl"),
        ([""], "no video is listed"),
        (["{"], "line 1 is not"),
        (['{"file": "a.mp4"}'], "line 1 is not"),
        (['{"file": "gone.mp4", "caption": "x"}'], "no such file"),
        (['{"file": "clip 0.mp4", "caption": " "}'], "empty caption"),
        (['{"file": "clip 0.mp4", "caption": "x"}'], "has 36 frames at 8 a second, 40 are needed"),
        (['{"file": "bad.mp4", "caption": "x"}'], "not a video"),
    ],
)
def test_what_is_wrong_with_a_folder_is_said(folder, tmp_path, lines, says):
    for name in ("clip 0.mp4",):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "bad.mp4").write_bytes(b"nothing")
    if lines is not None:
        (tmp_path / "captions.jsonl").write_text("\n".join(lines))
    with pytest.raises(InputError, match=says):
        folder_data.read_folder(tmp_path, 40, 8)


@pytest.mark.parametrize("phase", ["cam", "apm"])
def test_roles_of_frames(folder, tmp_path, monkeypatch, phase):
    """Frame t has grey value t: condition and anchor are where the paper puts them (reference 6)."""
    monkeypatch.setattr(
        folder_data, "encode_frames", lambda vae, video, batch_size: video.mean((3, 4)).movedim(1, 2)[..., None, None]
    )
    monkeypatch.setattr(cam, "TRIP_NOISE", 0.0)
    monkeypatch.setattr(
        cam, "decode_latents", lambda vae, z, batch_size: z.movedim(2, 1) + torch.zeros(1, 1, 1, 64, 64)
    )
    clips = folder_data.read_folder(folder, 32, 8)[:1]
    frames = [np.broadcast_to(np.arange(36, dtype=np.uint8)[:, None, None, None] * 5, (36, 64, 64, 3))]
    make = folder_data.make_batch(phase, TINY, make_vae(TINY.vae), make_tokenizer(), clips, frames, 64)
    batch = make(0, 0)
    assert torch.equal(batch["latents"], make(0, 0)["latents"]) and not torch.equal(
        batch["latents"], make(0, 1)["latents"]
    )
    index = lambda grey: ((grey + 1) * 127.5 / 5).round()  # noqa: E731
    denoised = index(batch["latents"][:, 0, :, 0, 0])
    assert denoised.shape == (64, 16) and (denoised.diff(dim=1) == 1).all()
    assert torch.equal(index(batch["cond"][:, :, 0, 0, 0]), denoised[:, :8]), "the first 8 of the 16 that are denoised"
    assert batch["mask"].shape == (64, 16, 1, 1) and not batch["mask"].any()
    if phase == "cam":
        assert len({tuple(ids.tolist()) for ids in batch["ids"]}) == 2, "some captions are dropped"
    else:
        kept = batch["anchor"].flatten(1).abs().sum(1) > 0
        distance = denoised[kept, 0] - index(batch["anchor"][kept, 0, 0, 0])
        assert 0 < (~kept).sum() < 20 and distance.min() >= 1 and distance.max() <= 16
        assert distance.unique().numel() > 8, "anywhere in the chunk before"
        black = TINY.replace(null_pixel=-1.0)
        make = folder_data.make_batch(phase, black, make_vae(TINY.vae), make_tokenizer(), clips, frames, 64)
        assert torch.equal((make(0, 0)["anchor"] == -1).flatten(1).all(1), ~kept)


def test_half_of_condition_and_anchor_come_noisy_from_the_vae(folder, monkeypatch):
    clips = folder_data.read_folder(folder, 32, 8)[:1]
    frames, autoencoder = [moving(0, 36, 64)], make_vae(TINY.vae)
    given = []

    def decode(vae, latents, batch_size):
        given.append(latents)
        return torch.full((len(latents), latents.shape[2], 3, 64, 64), 9.0)

    monkeypatch.setattr(cam, "decode_latents", decode)
    make = folder_data.make_batch("apm", TINY, autoencoder, make_tokenizer(), clips, frames, 16)
    seen = [make(0, n) for n in range(2)]
    for name in ("cond", "anchor"):
        share = torch.cat([(batch[name].flatten(1) == 9).all(1) for batch in seen]).float().mean()
        assert 0.2 < share < 0.8, name
    conds, clean = given[0], seen[0]["latents"][(seen[0]["cond"].flatten(1) == 9).all(1), :, :8]
    off = (conds - clean).flatten(1).std(1)
    assert off.min() > 0 and off.max() < 1.1 * cam.TRIP_NOISE and off.max() > 2 * off.min(), "a level for each clip"


def test_timesteps_are_even_with_own_data_alone(folder, random_weights, tmp_path, acc, monkeypatch):
    asked = []

    def levels(scheduler, latents, shift):
        asked.append(shift)
        return diffusion.at_random_levels(scheduler, latents, shift)

    monkeypatch.setattr(cam, "at_random_levels", levels)
    source = random_weights / "weights" / "tiny"
    folder_data.train("cam", TINY, folder, tmp_path / "own", acc, source=source, max_steps=1)
    assert asked == [1.0]
    for step in (cam.CamStep, apm.ApmStep):
        assert inspect.signature(step).parameters["shift"].default == diffusion.TOWARDS_NOISE


def test_checkpointing_gives_the_same_gradients_in_less_memory():
    torch.manual_seed(0)
    unet = make_unet(TINY.unet).requires_grad_(False).double().eval()
    memory = Cam.from_unet(unet, TINY.cam).attach(unet).eval()  # no dropout: two runs would differ by it
    for injector in memory.injectors:
        torch.nn.init.normal_(injector.proj_out.weight, std=0.05)
    x, tokens, cond = (torch.rand(s).double() for s in ((1, 8, 16, 8, 8), (1, 24, 128), (1, 8, 3, 64, 64)))

    def step():
        kept = 0

        def pack(tensor):
            nonlocal kept
            kept += tensor.nbytes
            return tensor

        memory.zero_grad()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            out = unet(x, 500, tokens, cam_features=memory(x, 500, tokens, cond=cond))
        out.square().mean().backward()
        return out.detach(), [p.grad.clone() for p in memory.parameters() if p.grad is not None], kept

    plain, gradients, kept = step()
    checkpoint_blocks(unet), checkpoint_blocks(memory)
    again, others, less = step()
    assert torch.equal(plain, again) and len(gradients) == len(others) > 100
    for a, b in zip(gradients, others, strict=True):
        torch.testing.assert_close(a, b)
    assert less < 0.2 * kept
    checkpoint_blocks(unet, False), checkpoint_blocks(memory, False)
    assert step()[2] == kept


@pytest.fixture(scope="module")
def acc():
    return common.accelerator("cpu")


def test_twenty_steps_on_eight_clips(folder, random_weights, tmp_path, acc, monkeypatch):
    monkeypatch.setattr(folder_data, "LR", 1e-3)
    source = random_weights / "weights" / "tiny"
    options = dict(source=source, minutes=20, batch_size=1, fps=8)
    result = folder_data.train("cam", TINY, folder, tmp_path / "own", acc, max_steps=20, **options)
    assert result["step"] == 20
    before, after = Cam.from_pretrained(source / "cam"), Cam.from_pretrained(tmp_path / "own" / "cam")
    changed = [not torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True)]
    assert sum(changed) > 0.9 * len(changed) and all(p.isfinite().all() for p in after.parameters())
    with pytest.raises(InputError, match="add --resume"):
        folder_data.train("cam", TINY, folder, tmp_path / "own", acc, max_steps=1, **options)
    assert (
        folder_data.train("cam", TINY, folder, tmp_path / "own", acc, max_steps=1, resume=True, **options)["step"] == 21
    )
    monkeypatch.setattr(folder_data, "LR", 0.05)
    result = folder_data.train("apm", TINY, folder, tmp_path / "own", acc, max_steps=2, checkpointing=True, **options)
    assert result["step"] == 2 and {p.name for p in (tmp_path / "own").iterdir() if p.is_dir()} == {"cam", "apm"}
    anchor = Apm.from_pretrained(tmp_path / "own" / "apm")
    assert any(abs(a - 0.5) > 1e-3 for a in anchor.alphas().values()), "alpha moves"


@pytest.mark.parametrize(("preset", "found"), [("tiny", False), ("other", True)])
def test_trained_parts_have_dropout_at_full_size_alone(
    folder, random_weights, tmp_path, acc, monkeypatch, preset, found
):
    """Whether they are new or read back, as after --resume."""
    source = random_weights / "weights" / "tiny"
    modes = {}

    def fit(step, *arguments):
        modes.update({name: getattr(step, name).training for name in ("unet", "cam", "apm")})
        return {}

    new = lambda cls, unet, config: cls.from_unet(unet, config).float()  # noqa: E731
    if not found:
        monkeypatch.setattr(
            folder_data, "_memories", lambda phase, cfg, unet, _: (new(Cam, unet, cfg.cam), new(Apm, unet, cfg.apm))
        )
    monkeypatch.setattr(common, "fit", fit)
    cfg = TINY.replace(name=preset)
    folder_data.train("apm", cfg, folder, tmp_path / "own", acc, source=source, train_unet=True)
    assert modes == dict.fromkeys(("unet", "cam", "apm"), preset != "tiny")


def test_phase_two_needs_phase_one(tmp_path):
    with pytest.raises(WeightsError, match="phase 2 needs the CAM"):
        folder_data._memories("apm", TINY, make_unet(TINY.unet), (tmp_path,))


def test_command(folder, tmp_path, capsys):
    assert cli.main(["train", "vae", "--data", str(folder), "--device", "cpu"]) == 2
    assert "--data trains cam or apm" in capsys.readouterr().err
    assert cli.main(["train", "cam", "--data", str(tmp_path), "--device", "cpu"]) == 2
    assert "captions.jsonl" in capsys.readouterr().err
    assert cli.main(["train", "cam", "--preset", "modelscope", "--device", "cpu"]) == 2
    assert "--data" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--minutes", "0"], "--minutes must be a positive number"),
        (["--batch-scale", "-1"], "--batch-scale must be a positive number"),
        (["--device", "cuda"], "CUDA was asked for"),
        (["--compile", "--budget", "cam=1"], "no use for --compile, --budget"),
        (["--graph", "--clips", "0"], "no use for --graph, --clips"),
    ],
)
def test_options_are_checked_with_data_too(folder, tmp_path, monkeypatch, capsys, options, says):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(folder_data, "run", lambda *arguments: 0)
    assert cli.main(["train", "cam", "--data", str(folder), "--out", str(tmp_path / "own"), *options]) == 2
    assert says in capsys.readouterr().err


def test_place_is_checked_before_the_work(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(folder_data, "prepare", lambda *arguments: pytest.fail("the work has begun"))
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "own"
    assert cli.main(["train", "cam", "--data", str(folder), "--device", "cpu", "--out", str(out)]) == 2
    assert "cannot be written" in capsys.readouterr().err
