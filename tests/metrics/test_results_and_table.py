"""MetricResult, the mean over videos, the CLIP score, and the one-pass table with its command."""

import json
import math
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from st2v_lib.errors import UserError
from st2v_lib.metrics import cli
from st2v_lib.metrics.base import MetricResult, mean_over_videos
from st2v_lib.metrics.clip_score import clip_score, load_clip
from st2v_lib.metrics.drift import drift
from st2v_lib.metrics.flicker import flicker
from st2v_lib.metrics.mawe import mawe
from st2v_lib.metrics.motion import motion
from st2v_lib.metrics.scene_cuts import scene_cuts
from st2v_lib.metrics.table import format_table, measure
from st2v_lib.video_io import read_video, write_video

from . import videos


class TinyClip(torch.nn.Module):
    """Embeds a frame as its mean colour and a prompt as the colour it names."""

    colours = {"red": (1.0, 0, 0), "blue": (0, 0, 1.0)}

    def __init__(self):
        super().__init__()
        self.anything = torch.nn.Parameter(torch.zeros(1))
        self.config = SimpleNamespace(vision_config=SimpleNamespace(image_size=32))
        self.name_or_path = "/somewhere/tiny-clip"

    def get_text_features(self, input_ids):
        return SimpleNamespace(pooler_output=input_ids.float())

    def get_image_features(self, pixel_values):
        return pixel_values.mean((2, 3))

    def tokenizer(self, texts, **_):
        return {"input_ids": torch.tensor([self.colours[t] for t in texts])}


def raw_colours(frames):
    return torch.as_tensor(frames).permute(0, 3, 1, 2).float() / 255


@pytest.fixture
def clip():
    model = TinyClip()
    return model, model.tokenizer


def half_red_half_blue():
    v = np.zeros((10, 24, 40, 3), np.uint8)
    v[:5, ..., 0], v[5:, ..., 2] = 200, 200
    return v


def test_clip_score_by_frame(clip):
    v = half_red_half_blue()
    result = clip_score(v, "red", *clip, preprocess=raw_colours)
    np.testing.assert_allclose(result.per_frame, [100] * 5 + [0] * 5, atol=1e-4)
    assert result.value == pytest.approx(50) and result.protocol["clip"] == "tiny-clip"
    assert clip_score(v, "red", *clip, preprocess=raw_colours, batch=3).value == pytest.approx(result.value, abs=1e-6)
    backwards = clip_score(v[::-1].copy(), "red", *clip, preprocess=raw_colours)
    assert backwards.value == pytest.approx(result.value, abs=1e-6)  # blind to time
    assert np.isfinite(clip_score(v[:1], "blue", *clip).value)
    chunks = clip_score(v, "red", *clip, preprocess=raw_colours, seams=[4, 8])
    assert chunks.protocol["per_chunk"] == pytest.approx([100, 25, 0], abs=1e-4) and chunks.value == result.value
    with pytest.raises(ValueError, match="empty"):
        clip_score(v, " ", *clip)


def test_clip_score_with_transformers_model():
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**small, "vocab_size": 20, "max_position_embeddings": 8, "eos_token_id": 2, "bos_token_id": 1}
    vision = {**small, "image_size": 32, "patch_size": 16}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).eval()

    def tokenizer(texts, **_):
        return {"input_ids": torch.tensor([[1, 5, 2]]), "attention_mask": torch.ones(1, 3, dtype=torch.long)}

    result = clip_score(videos.translation(5, 40, 64, 1, 0), "anything", model, tokenizer)
    assert len(result.per_frame) == 5 and all(-100 <= s <= 100 for s in result.per_frame)


def test_missing_clip_is_a_clear_error(tmp_path):
    with pytest.raises(UserError, match="no CLIP model in"):
        load_clip(tmp_path)


def test_result_to_strict_json():
    result = MetricResult("m", math.inf, per_pair=(1.0, math.nan), protocol={"size": (720, 720)})
    assert json.loads(result.to_json()) == {
        "name": "m",
        "value": "inf",
        "per_pair": [1.0, None],
        "protocol": {"size": [720, 720]},
    }
    with pytest.raises(AttributeError):
        result.value = 1


def test_mean_over_videos_does_not_depend_on_order():
    rng = np.random.default_rng(0)
    results = [
        MetricResult("m", float(x), protocol={"a": 1}) for x in rng.normal(size=200) * 10.0 ** rng.integers(-8, 8, 200)
    ]
    value = mean_over_videos(results).value
    for _ in range(5):
        rng.shuffle(results)
        assert mean_over_videos(results).value == value
    odd = mean_over_videos([MetricResult("m", 1.0), MetricResult("m", math.nan), MetricResult("m", 3.0)])
    assert odd.value == 2 and odd.protocol["undefined_videos"] == 1 and len(odd.per_video) == 3
    with pytest.raises(ValueError, match="one metric"):
        mean_over_videos([MetricResult("a", 1.0), MetricResult("b", 1.0)])
    with pytest.raises(ValueError, match="none"):
        mean_over_videos([])


def test_table_equals_the_metrics_one_by_one(clip):
    v = videos.translation(6, 48, 64, 2, 1)
    size = (96, 96)
    got = measure(v, size=size)
    expected = [
        mawe(v, "code", size=size),
        mawe(v, "paper", size=size),
        motion(v, size=size),
        scene_cuts(v),
        flicker(v),
    ]
    for result in [*expected, *drift(v, size=size).values()]:
        assert got[result.name].to_json() == result.to_json(), result.name
    streamed = measure(iter(v), size=size)
    assert {k: r.to_json() for k, r in streamed.items()} == {k: r.to_json() for k, r in got.items()}


def test_table_of_one_frame_says_what_is_undefined():
    got = measure(videos.static(1), size=None)
    for name in ("mawe_code", "mawe_paper", "motion", "warp_error", "flow_deviation", "flicker", "drift_motion_abs"):
        assert (
            math.isnan(got[name].value) and "fewer than" in got[name].protocol["undefined"] or name.startswith("drift")
        )
    assert got["scuts"].value == 0
    assert "not defined" in format_table(got)


def test_table_with_prompt(clip):
    got = measure(half_red_half_blue(), "red", clip, size=None, preprocess=raw_colours)
    assert got["clip_score"].value == pytest.approx(50, abs=1e-4)
    with pytest.raises(UserError, match="CLIP"):
        measure(half_red_half_blue(), "red")


def test_command_prints_a_table_and_json(tmp_path, capsys):
    path = write_video(tmp_path / "v.mp4", videos.translation(5, 48, 64, 2, 0))
    assert cli.run(SimpleNamespace(video=str(path), prompt=None, json=False)) == 0
    text = capsys.readouterr().out
    for word in ("mawe_code", "mawe_paper", "scuts", "motion", "dis", "native", "min_scene_len 15"):
        assert word in text
    assert cli.run(SimpleNamespace(video=str(path), prompt=None, json=True)) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["scuts"]["value"] == 0 and len(record["motion"]["per_pair"]) == 4
    assert record["motion"]["value"] == pytest.approx(motion(read_video(path)).value)
    large = write_video(tmp_path / "large.mp4", videos.translation(3, 256, 256, 2, 0))
    assert cli.run(SimpleNamespace(video=str(large), prompt=None, json=True)) == 0
    assert json.loads(capsys.readouterr().out)["motion"]["protocol"]["measured_at"] == "720x720"


def test_command_errors_are_one_message(tmp_path):
    missing = SimpleNamespace(video=str(tmp_path / "no.mp4"), prompt=None, json=False)
    with pytest.raises(UserError, match="no such file"):
        cli.run(missing)
    with pytest.raises(UserError, match="prompt is empty"):
        cli.run(SimpleNamespace(video="x.mp4", prompt=" ", json=False))
    with pytest.raises(UserError, match="no CLIP model"):
        cli.run(SimpleNamespace(video="x.mp4", prompt="a", json=False, clip=str(tmp_path)))


def test_memory_does_not_grow_with_the_length():
    v, alive, most = videos.translation(8, 32, 32, 1, 0), [], 0

    def frames(count):
        nonlocal most
        for i in range(count):
            frame = v[i % 8].copy()
            alive.append(weakref.ref(frame))
            most = max(most, sum(ref() is not None for ref in alive))
            yield frame

    got = measure(frames(60), size=None, lpips=lambda a, b: (a - b).abs().mean())
    assert len(got["motion"].per_pair) == 59 and most <= 5  # two pairs, and the first frame for LPIPS
