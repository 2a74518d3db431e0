"""The converter on files of the released structure: what is kept, what is refused, and that nothing in a file runs."""

from __future__ import annotations

import argparse
import functools
import gzip
import json
import os
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from st2v_lib import cli, convert
from st2v_lib.apm import Apm, text_attentions
from st2v_lib.backbone import StreamingUNet, make_unet
from st2v_lib.cam import Cam
from st2v_lib.checkpoints import map_vid2vid_state_dict, vid2vid_name
from st2v_lib.config import MODELSCOPE, TINY, ApmConfig, CamConfig, EnhancerConfig, UNetConfig
from st2v_lib.errors import OutputError, WeightsError
from st2v_lib.torch_file import open_torch_file

KEYS = Path(__file__).parent / "official_keys.json.gz"  # all 3407 names and shapes of the released state dict
UNET = UNetConfig(sample_size=8, block_out_channels=(8, 8, 16, 16), norm_num_groups=4, cross_attention_dim=12,
                  attention_head_dim=4)  # fmt: skip
SMALL = MODELSCOPE.replace(
    unet=UNET,
    cam=CamConfig(cond_channels=(4, 4, 6, 8), injector_head_dim=4, injector_norm_groups=4),
    apm=ApmConfig(image_embed_dim=6, hidden_dim=10),
    enhancer=EnhancerConfig(unet=UNET),
)


class Foreign:
    """An object of a class that the reader does not know; unpickled in the usual way it would leave a mark."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


@functools.cache
def official_shapes(cfg=SMALL):
    """The released names at that size with their shapes, made the other way round from our modules."""
    with torch.device("meta"):
        unet = make_unet(cfg.unet)
        cam, apm = Cam.from_configs(cfg.unet, cfg.cam), Apm.from_unet(unet, cfg.apm)
    state = OrderedDict((f"base_model.{k}", v.shape) for k, v in unet.state_dict().items())
    last = len(cam.injectors) - 1
    for key, value in cam.state_dict().items():
        part, _, rest = key.partition(".")
        if part == "extractor":
            state["unet." + rest.replace("cond_encoder", "controlnet_cond_embedding")] = value.shape
        else:
            index, _, rest = rest.partition(".")
            at = "mid_block" if int(index) == last else f"down_blocks.{index}"
            state[f"base_model.cross_attention_merger_{at}.temporal_transformer.{rest}"] = value.shape
    layers = {name.removesuffix(".attn2").replace(".", "_"): name for name in apm.config.layers}
    for key, value in apm.state_dict().items():
        if key.startswith("tokens.mlp."):
            state[key.replace("tokens.mlp.", "resampler.context_embedding.")] = value.shape
        else:
            _, layer, rest = key.split(".", 2)
            state[f"base_model.{layers[layer]}.{rest.replace('norm.', 'conv_ln.')}"] = value.shape
    return state


def official_names():
    """Random values under the released names, always the same; some names of public models, too."""
    generator = torch.Generator().manual_seed(0)
    state = OrderedDict((k, torch.randn(shape, generator=generator)) for k, shape in official_shapes().items())
    state["vae.encoder.conv_in.weight"] = torch.randn(8, 3, 3, 3, generator=generator)
    state["text_encoder.text_model.final_layer_norm.weight"] = torch.randn(12, generator=generator)
    state["image_encoder.model.logit_scale"] = torch.tensor(1.0)
    return state


def write_lightning(path: Path, state, mark: Path | None = None) -> Path:
    """A file of the structure of Lightning's: foreign settings, optimiser state, loops and the weights."""
    optimizer = {"state": {0: {"exp_avg": torch.zeros(5)}}, "param_groups": [{"lr": 5e-5, "params": [0]}]}
    content = {
        "epoch": 3, "global_step": 9, "pytorch-lightning_version": "2.0.9", "state_dict": state,
        "optimizer_states": [optimizer], "hyper_parameters": argparse.Namespace(rate=5e-5, where=Path("x")),
        "callbacks": {"mark": Foreign(mark or path.parent / "mark")}, "loops": {"fit_loop": OrderedDict(total=[1, 2])},
    }  # fmt: skip
    torch.save(content, path)
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("official")
    return write_lightning(folder / "streaming_t2v.ckpt", official_names(), folder / "mark")


@pytest.fixture
def small(monkeypatch):
    """The command converts to the small size."""
    monkeypatch.setattr(convert, "convert", functools.partial(convert.convert, cfg=SMALL))


def test_the_small_file_has_the_released_names():
    """Names of the list, but for the shortcuts that exist where the width changes, at other levels here."""
    listed = json.loads(gzip.decompress(KEYS.read_bytes()))
    kept = {k for k in listed if k.split(".")[0] in ("base_model", "unet", "resampler")}
    made = {k for k in official_names() if k.split(".")[0] in ("base_model", "unet", "resampler")}
    assert all("conv_shortcut" in name for name in kept ^ made)


def test_every_released_name_is_accounted_for_at_full_size():
    from st2v_lib.torch_file import Entry

    listed = json.loads(gzip.decompress(KEYS.read_bytes()))
    entries = {name: Entry(tuple(shape), torch.float32, lambda: None) for name, shape in listed.items()}
    states, public, strange = convert.sort_entries(entries)
    assert strange == []
    modules = convert.make_modules(MODELSCOPE, states)
    assert convert.compare(states, {name: convert.shapes_of(module) for name, module in modules.items()}) == []
    assert sum(len(s) for s in states.values()) + sum(public.values()) == len(listed) == 3407
    numbers = {name: sum(map(convert._count, s.values())) for name, s in states.items()}
    assert numbers == {"unet": 1_411_233_860, "cam": 621_981_664 + 68_867_200, "apm": 22_299_904 + 377_744}
    assert 2 * sum(numbers.values()) == pytest.approx(4.25e9, rel=0.01), "fp16, about 4.3 GB"
    for state in states.values():
        sizes = [2 * sum(convert._count(state[n]) for n in part) for part in convert.plan_shards(state, torch.float16)]
        assert max(sizes) <= convert.SHARD_BYTES


def test_convert_keeps_values_and_runs_nothing(checkpoint, tmp_path):
    done = convert.convert(checkpoint, tmp_path, SMALL)
    assert not (checkpoint.parent / "mark").exists(), "an object of the file was executed"
    file = open_torch_file(checkpoint)
    assert {"argparse.Namespace", "posix.system"} <= set(file.foreign)
    assert done.public == {"vae": 1, "text_encoder": 1, "image_encoder": 1}
    state = official_names()
    unet = StreamingUNet.from_pretrained(tmp_path / "unet")
    cam, apm = Cam.from_pretrained(tmp_path / "cam"), Apm.from_pretrained(tmp_path / "apm")
    for got, want in (
        (unet.state_dict()["conv_in.weight"], state["base_model.conv_in.weight"]),
        (cam.extractor.conv_in.weight, state["unet.conv_in.weight"]),
        (cam.injectors[-1].proj_out.bias,
         state["base_model.cross_attention_merger_mid_block.temporal_transformer.proj_out.bias"]),
        (apm.tokens.mlp[2].weight, state["resampler.context_embedding.2.weight"]),
        (apm.mixes["mid_block_attentions_0_transformer_blocks_0"].alpha,
         state["base_model.mid_block.attentions.0.transformer_blocks.0.attn2.alpha"]),
    ):  # fmt: skip
        assert torch.equal(got.half(), want.half())
    saved = load_file(tmp_path / "unet" / "diffusion_pytorch_model.safetensors")
    assert {v.dtype for v in saved.values()} == {torch.float16}
    assert list(apm.config.layers) == text_attentions(unet)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_and_layouts_in_the_file(tmp_path, dtype):
    state = official_names()
    state = {k: v.to(dtype).contiguous(memory_format=torch.channels_last) if v.ndim == 4 else v.to(dtype)
             for k, v in state.items()}  # fmt: skip
    shared = torch.randn(5, 8, dtype=dtype)
    state["base_model.conv_in.bias"] = shared[2]  # a view into a larger storage
    convert.convert(write_lightning(tmp_path / "x.ckpt", state), tmp_path / "out", SMALL)
    saved = load_file(tmp_path / "out" / "unet" / "diffusion_pytorch_model.safetensors")
    assert torch.equal(saved["conv_in.bias"], shared[2].half())
    assert torch.equal(saved["conv_in.weight"], state["base_model.conv_in.weight"].half())


def test_interrupted_it_goes_on_and_gives_the_same(checkpoint, tmp_path, monkeypatch):
    convert.convert(checkpoint, tmp_path / "whole", SMALL)
    monkeypatch.setattr(convert, "SHARD_BYTES", 20_000)

    def stop(name, i, n):
        if name == "unet" and i == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert.convert(checkpoint, tmp_path / "out", SMALL, on_shard=stop)
    assert not (tmp_path / "out" / "unet" / "config.json").exists(), "not taken for a complete component"
    first = next((tmp_path / "out" / "unet").glob("*-00001-of-*"))
    before = first.stat().st_mtime_ns
    done = convert.convert(checkpoint, tmp_path / "out", SMALL)
    assert first.stat().st_mtime_ns == before, "parts that are there are kept"
    assert done.tensors["unet"] == len(make_unet(UNET).state_dict())
    assert len(list((tmp_path / "out" / "unet").glob("*.safetensors"))) > 3
    assert not list((tmp_path / "out").rglob(".*part")), "nothing half-written is left"
    whole, parts = (StreamingUNet.from_pretrained(tmp_path / n / "unet").state_dict() for n in ("whole", "out"))
    assert all(torch.equal(whole[k], parts[k]) for k in whole)


def test_a_folder_of_another_conversion_is_left_alone(checkpoint, tmp_path):
    convert.convert(checkpoint, tmp_path / "out", SMALL)
    other = write_lightning(tmp_path / "other.ckpt", {k: v.clone() for k, v in official_names().items()} | {
        "vae.more": torch.zeros(1)})  # fmt: skip
    with pytest.raises(OutputError, match="made from another file"):
        convert.convert(other, tmp_path / "out", SMALL)
    (tmp_path / "mine" / "unet").mkdir(parents=True)
    with pytest.raises(OutputError, match="made from another file"):
        convert.convert(checkpoint, tmp_path / "mine", SMALL)


def without(state, *names):
    return {k: v for k, v in state.items() if k not in names}


def test_what_is_wrong_is_listed_and_nothing_is_written(tmp_path):
    state = without(official_names(), "base_model.conv_in.weight", "resampler.context_embedding.0.bias")
    state["base_model.conv_out.bias"] = torch.zeros(7)
    state["unet.stranger"] = torch.zeros(1)
    state["ema.decay"] = torch.zeros(1)
    state["unet.conv_in.bias"] = torch.zeros(8, dtype=torch.int64)
    with pytest.raises(WeightsError) as caught:
        convert.convert(write_lightning(tmp_path / "x.ckpt", state), tmp_path / "out", SMALL)
    for line in (
        "unet: conv_in.weight is missing", "apm: tokens.mlp.0.bias is missing", "cam: extractor.stranger is left over",
        "ema.decay is left over", "unet: conv_out.bias has shape (7,) instead of (4,)",
        "cam: extractor.conv_in.bias has type torch.int64",
    ):  # fmt: skip
        assert line in str(caught.value)
    assert not (tmp_path / "out").exists()


def flip(path, where):
    data = bytearray(path.read_bytes())
    data[where(len(data)) if callable(where) else where] ^= 0xFF
    path.write_bytes(data)


def test_damage_is_named(checkpoint, tmp_path):
    content = checkpoint.read_bytes()
    state = official_names()
    cut = tmp_path / "cut.ckpt"
    cut.write_bytes(content[: len(content) // 2])
    with pytest.raises(WeightsError, match="cut short"):
        convert.convert(cut, tmp_path / "out", SMALL)

    bad = tmp_path / "bad.ckpt"
    bad.write_bytes(content)
    at = content.index(state["base_model.conv_in.weight"].numpy().tobytes())
    other = content.index(state["unet.conv_in.weight"].numpy().tobytes())
    flip(bad, at + 5)
    flip(bad, other + 5)
    with pytest.raises(WeightsError, match=r"conv_in.weight.*checksum.*extractor\.conv_in\.weight"):
        convert.convert(bad, tmp_path / "out", SMALL)
    assert not list((tmp_path / "out").rglob("config.json"))

    table = tmp_path / "table.ckpt"
    table.write_bytes(content)
    flip(table, content.index(b"global_step"))
    with pytest.raises(WeightsError, match="table of contents"):
        convert.convert(table, tmp_path / "out2", SMALL)

    for value in (float("nan"), 1e30):
        state["base_model.conv_in.bias"] = torch.full((8,), value)
        with pytest.raises(WeightsError, match="not finite|too large"):
            convert.convert(write_lightning(tmp_path / "x.ckpt", state), tmp_path / f"out{value}", SMALL)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "does not exist"),
        (b"not a checkpoint", "no torch checkpoint"),
        ([1, 2], "holds no state dict"),
        ({"state_dict": {"lin.weight": torch.zeros(2)}}, "begin lin"),
        ({"lin.weight": torch.zeros(2)}, "begin lin"),
    ],
)
def test_foreign_files_are_refused(tmp_path, content, says):
    path = tmp_path / "x.ckpt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(WeightsError, match=says):
        convert.convert(path, tmp_path / "out", SMALL)


@pytest.mark.parametrize("layout", ["one file", "folders", "bare folders"])
def test_the_public_split(tmp_path, layout):
    heads = {"base_model": "unet", "unet": "controlnet"}
    split = {}
    for name, value in official_names().items():
        head, _, rest = name.partition(".")
        split[f"{heads.get(head, head)}.{rest}"] = value.half().contiguous()
    source = tmp_path / "split.safetensors"
    if layout == "one file":
        save_file(split, source)
    else:
        source = tmp_path / "split"
        for part in ("unet", "controlnet", "resampler"):
            (source / part).mkdir(parents=True)
            skip = len(part) + 1 if layout == "bare folders" else 0
            save_file(
                {k[skip:]: v for k, v in split.items() if k.startswith(part + ".")}, source / part / "model.safetensors"
            )
    convert.convert(source, tmp_path / "out", SMALL)
    unet, cam = (
        load_file(tmp_path / "out/unet" / f"{convert.WEIGHTS}.safetensors"),
        Cam.from_pretrained(tmp_path / "out/cam"),
    )
    assert torch.equal(unet["conv_in.weight"], split["unet.conv_in.weight"])
    assert torch.equal(cam.extractor.conv_in.weight, split["controlnet.conv_in.weight"].float())


# ------------------------------------------------------------------------------------------------ MS-Vid2Vid-XL


def vid2vid_names(levels=4, layers=2):
    """Stock name -> the enhancer checkpoint's, written down the other way round: reference 5.1."""
    res = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
           "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}  # fmt: skip
    outer = {"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
             "conv_in": "input_blocks.0.0", "transformer_in": "input_blocks.0.1", "conv_norm_out": "out.0",
             "conv_out": "out.2"}  # fmt: skip

    def name(stock):
        for new, old in outer.items():
            if stock.startswith(new + "."):
                return old + stock[len(new) :]
        block, _, rest = stock.partition(".")
        level = 0
        if block != "mid_block":
            level, _, rest = rest.partition(".")
        kind, j, rest = rest.split(".", 2)
        level, j = int(level), int(j)
        has_attention = level < levels - 1 if block == "down_blocks" else level > 0
        if kind == "downsamplers":
            return f"input_blocks.{(layers + 1) * (level + 1)}.op{rest.removeprefix('conv')}"
        if kind == "upsamplers":
            return f"output_blocks.{(layers + 1) * level + layers}.{3 if has_attention else 1}.{rest}"
        sub = {"resnets": 0, "temp_convs": 0, "attentions": 1, "temp_attentions": 2}[kind]
        if kind == "temp_convs":
            rest = f"temopral_conv.{rest}"
        elif kind == "resnets":
            first = next(k for k in res if rest.startswith(k + "."))
            rest = res[first] + rest[len(first) :]
        if block == "mid_block":
            return f"middle_block.{3 if kind in ('resnets', 'temp_convs') and j else sub}.{rest}"
        if block == "down_blocks":
            return f"input_blocks.{1 + (layers + 1) * level + j}.{sub}.{rest}"
        return f"output_blocks.{(layers + 1) * level + j}.{sub}.{rest}"

    return name


def vid2vid_state(unet, fill=True):
    to_theirs, state = vid2vid_names(), {}
    for stock, value in unet.state_dict().items():
        temporal = "temp_attentions" in stock or stock.startswith("transformer_in")
        if temporal and stock.endswith(("proj_in.weight", "proj_out.weight")):
            value = value[..., None]
        state[to_theirs(stock)] = torch.randn(value.shape) if fill else value
    return state


def test_enhancer_names_and_shapes_at_full_size():
    with torch.device("meta"):
        unet = make_unet(MODELSCOPE.enhancer.unet)
    theirs = vid2vid_state(unet, fill=False)
    assert len(theirs) == 1480
    for name in ("input_blocks.3.op.weight", "output_blocks.2.1.conv.weight", "output_blocks.8.3.conv.bias",
                 "middle_block.3.temopral_conv.conv4.3.weight", "input_blocks.11.0.out_layers.3.weight"):  # fmt: skip
        assert name in theirs
    ours, strange = map_vid2vid_state_dict(theirs)
    assert not strange
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in unet.state_dict().items()}


@pytest.mark.parametrize(
    "name",
    [
        "input_blocks.12.0.in_layers.0.weight", "middle_block.4.norm.weight", "out.1.weight", "output_blocks.12.0.x",
        "input_blocks.1.3.norm.weight", "input_blocks.1", "input_blocks.3.conv.weight", "y_embed.weight",
    ],
)  # fmt: skip
def test_names_without_a_place(name):
    assert vid2vid_name(name) is None


@pytest.mark.parametrize("nested", [True, False])
def test_convert_an_enhancer(tmp_path, nested):
    with torch.device("meta"):
        unet = make_unet(UNET)
    state = vid2vid_state(unet)
    path = tmp_path / "non_ema_0035000.pth"
    torch.save({"state_dict": state} if nested else state, path)
    convert.convert(path, tmp_path / "out", SMALL)
    loaded = StreamingUNet.from_pretrained(tmp_path / "out" / "enhancer")
    theirs = state["input_blocks.0.1.proj_in.weight"]
    assert theirs.ndim == 3 and torch.equal(loaded.transformer_in.proj_in.weight.half(), theirs[..., 0].half())
    assert torch.equal(
        loaded.up_blocks[0].upsamplers[0].conv.weight.half(), state["output_blocks.2.1.conv.weight"].half()
    )


def test_command(checkpoint, tmp_path, small, capsys):
    assert cli.main(["convert", str(checkpoint), "--out", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert "unet " in shown and "vae " in shown and "left out" in shown
    assert cli.main(["convert", str(tmp_path / "nothing.ckpt"), "--out", str(tmp_path / "out")]) == 2
    assert "does not exist" in capsys.readouterr().err


def test_tiny_has_another_size(checkpoint, tmp_path):
    with pytest.raises(WeightsError, match="cannot be converted"):
        convert.convert(checkpoint, tmp_path / "out", TINY)
