"""CAM, APM and the base model: what holds before any training, at any size."""

import dataclasses

import pytest
import torch
from diffusers import AutoencoderKL, UNet3DConditionModel

from st2v_lib.apm import Apm
from st2v_lib.backbone import (
    FrameConv,
    PatchedAutoencoderKL,
    StreamingUNet,
    decode_latents,
    encode_frames,
    make_unet,
    make_vae,
)
from st2v_lib.cam import Cam, CamExtractor, CamInjector, skip_channels
from st2v_lib.config import MODELSCOPE, TINY, ApmConfig, CamConfig, UNetConfig, VaeConfig

FOUR_LEVELS = UNetConfig(
    block_out_channels=(32, 32, 64, 64),
    layers_per_block=2,
    norm_num_groups=16,
    cross_attention_dim=24,
    attention_head_dim=8,
)
THREE_LEVELS = UNetConfig(
    in_channels=5,
    out_channels=5,
    down_block_types=("DownBlock3D", "CrossAttnDownBlock3D", "CrossAttnDownBlock3D"),
    up_block_types=("CrossAttnUpBlock3D", "CrossAttnUpBlock3D", "UpBlock3D"),
    block_out_channels=(32, 48, 64),
    layers_per_block=1,
    norm_num_groups=16,
    cross_attention_dim=24,
    attention_head_dim=8,
)


def build(unet_config, text_len=9):
    torch.manual_seed(0)
    unet = make_unet(unet_config).eval()
    cam = Cam.from_unet(unet, CamConfig(3, text_len, (8, 12, 16, 24), 16, 16)).eval()
    apm = Apm.from_unet(unet, ApmConfig(10, 12, 4, text_len)).eval()
    return unet, cam, apm


def inputs(unet_config, frames=5, side=8, batch=2, text_len=9):
    g = torch.Generator().manual_seed(1)
    x = torch.randn(batch, unet_config.in_channels, frames, side, side, generator=g)
    tokens = torch.randn(batch, text_len, unet_config.cross_attention_dim, generator=g)
    cond = torch.rand(batch, 3, 3, side * 8, side * 8, generator=g) * 2 - 1
    return x, tokens, cond, torch.randn(batch, 10, generator=g)


@torch.no_grad()
@pytest.mark.parametrize("unet_config", [FOUR_LEVELS, THREE_LEVELS])
def test_untrained_memories_change_nothing(unet_config):
    unet, cam, apm = build(unet_config)
    x, text, cond, embeds = inputs(unet_config)
    stock = UNet3DConditionModel.forward(unet, x, 500, text).sample
    names = list(unet.state_dict())
    cam.attach(unet)
    apm.attach(unet)
    tokens = torch.cat([text, apm(embeds)], dim=1)
    out = unet(x, 500, tokens, cam(x, 500, tokens, cond=cond))
    assert torch.equal(out, stock)
    assert list(unet.state_dict()) == names
    assert set(apm.alphas().values()) == {0.0}


@torch.no_grad()
def test_frame_sizes_that_are_no_multiple_of_the_downsampling():
    unet, cam, _ = build(FOUR_LEVELS)
    x, text, cond, _ = inputs(FOUR_LEVELS, side=6)
    stock = UNet3DConditionModel.forward(unet, x, 500, text).sample
    cam.attach(unet)
    assert torch.equal(unet(x, torch.tensor([500, 500]), text, cam(x, 500, text, cond=cond)), stock)


@torch.no_grad()
def test_trained_memories_act_and_detach():
    unet, cam, apm = build(FOUR_LEVELS)
    x, text, cond, embeds = inputs(FOUR_LEVELS)
    stock = unet(x, 500, text)
    for module in (cam, apm):
        for p in module.parameters():
            torch.nn.init.normal_(p, std=0.1)
    cam.attach(unet)
    apm.attach(unet)
    assert torch.equal(unet(x, 500, text), stock)  # neither features nor an anchor
    tokens = torch.cat([text, apm(embeds)], dim=1)
    with_anchor, features = unet(x, 500, tokens), cam(x, 500, tokens, cond=cond)
    with_cam = unet(x, 500, text, features)
    assert not torch.allclose(with_anchor, stock) and not torch.allclose(with_cam, stock)
    again = cam(x, 500, text, cond_features=cam.encode_condition(cond))
    assert all(torch.equal(a, b) for a, b in zip(features, again))
    cam.detach(unet)
    apm.detach(unet)
    assert torch.equal(unet(x, 500, text), stock)
    with pytest.raises(ValueError, match="injectors"):
        unet(x, 500, text, features)


@torch.no_grad()
def test_injector_does_not_see_the_order_of_cams_frames():
    torch.manual_seed(0)
    injector = CamInjector(32, head_dim=16, norm_groups=8)
    torch.nn.init.normal_(injector.proj_out.weight)
    hidden, features = torch.randn(2 * 6, 32, 3, 4), torch.randn(2, 5, 32, 3, 4)
    out = injector(hidden, features)
    assert out.shape == hidden.shape and not torch.allclose(out, hidden)
    shuffled = injector(hidden, features[:, torch.randperm(5)])
    torch.testing.assert_close(shuffled, out)


@torch.no_grad()
def test_guidance_branches_share_the_conditioning_frames():
    unet, cam, _ = build(FOUR_LEVELS)
    torch.nn.init.normal_(cam.extractor.cond_encoder.conv_out.weight)
    x, text, cond, _ = inputs(FOUR_LEVELS, batch=2)
    features = cam.encode_condition(cond)
    stacked = cam(x.repeat(3, 1, 1, 1, 1), 500, text.repeat(3, 1, 1), cond_features=features)
    alone = cam(x, 500, text, cond_features=features)
    for got, want in zip(stacked, alone):
        torch.testing.assert_close(got[2:4], want, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="condition features"):
        cam(x[:1], 500, text[:1], cond_features=features)
    with pytest.raises(ValueError, match="3 frames"):
        cam.encode_condition(cond[:, :2])


@torch.no_grad()
def test_what_branches_share_is_computed_once():
    unet, cam, apm = build(FOUR_LEVELS)
    for layer in (*cam.injectors, cam.extractor.cond_encoder.conv_out):
        torch.nn.init.normal_(getattr(layer, "proj_out", layer).weight, std=0.1)
    cam.attach(unet), apm.attach(unet)
    x, text, cond, _ = inputs(FOUR_LEVELS, batch=2)
    t, tokens = torch.tensor([500, 20]), torch.cat([text, -text, text.flip(1)])
    features = cam.encode_condition(cond)
    stacked = x.repeat(3, 1, 1, 1, 1), t.repeat(3), tokens
    want = unet(*stacked, cam(*stacked, cond_features=features))
    seen = []
    for net in (unet, cam.extractor):
        for name in ("transformer_in", "mid_block"):
            module = getattr(net, name)
            module.register_forward_pre_hook(lambda m, args: seen.append(len(args[0])))
    got = unet(x, t, tokens, cam(x, t, tokens, cond_features=features))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(got[:2], got[2:4], atol=1e-3)
    n, f = cam.config.num_cond_frames, x.shape[2]
    assert seen == [2 * n, 6 * n, 2 * f, 6 * f]  # frames that the first transformer and the mid block see
    with pytest.raises(ValueError, match="2 videos or a multiple"):
        unet(x, t, tokens[:3])


def test_extractor_starts_from_the_unet_and_only_memories_train():
    unet, cam, apm = build(FOUR_LEVELS)
    extractor = CamExtractor.from_unet(unet, CamConfig(3, 9, (8, 12, 16, 24)))
    assert torch.equal(extractor.conv_in.weight, unet.conv_in.weight)
    assert extractor.conv_in.weight is not unet.conv_in.weight
    unet.requires_grad_(False)
    cam.attach(unet)
    apm.attach(unet)
    for p in [*cam.parameters(), *apm.parameters()]:
        torch.nn.init.normal_(p, std=0.05)
    x, text, cond, embeds = inputs(FOUR_LEVELS)
    tokens = torch.cat([text, apm(embeds)], dim=1)
    unet(x, 500, tokens, cam(x, 500, tokens, cond=cond)).square().mean().backward()
    assert all(p.grad is not None for p in [*cam.parameters(), *apm.parameters()])
    assert all(p.grad is None for p in unet.parameters())


@torch.no_grad()
def test_modules_are_saved_loaded_and_cast(tmp_path):
    unet, cam, apm = build(THREE_LEVELS)
    vae = make_vae(VaeConfig(2, 4, (16, 16), 1, 8, 1.0))
    for name, module in (("unet", unet), ("cam", cam), ("apm", apm), ("vae", vae)):
        module.save_pretrained(tmp_path / name)
        loaded = type(module).from_pretrained(tmp_path / name, torch_dtype=torch.bfloat16)
        assert loaded.dtype == torch.bfloat16
        for key, value in module.state_dict().items():
            assert torch.equal(loaded.state_dict()[key], value.bfloat16())
    stock = UNet3DConditionModel(**THREE_LEVELS.kwargs())
    stock.save_pretrained(tmp_path / "stock")
    assert isinstance(StreamingUNet.from_pretrained(tmp_path / "stock"), StreamingUNet)
    for module in (unet, cam, apm):
        torch.nn.Module.to(module, torch.bfloat16)
    x, text, cond, embeds = (v.bfloat16() for v in inputs(THREE_LEVELS))
    cam.attach(unet)
    apm.attach(unet)
    tokens = torch.cat([text, apm(embeds)], dim=1)
    assert unet(x, 500, tokens, cam(x, 500, tokens, cond=cond)).dtype == torch.bfloat16


def test_text_lengths_that_fit_neither_case():
    unet, _, apm = build(THREE_LEVELS)
    apm.attach(unet)
    x, text, *_ = inputs(THREE_LEVELS)
    with pytest.raises(ValueError, match="9 tokens, or 13|9 tokens or 13"):
        unet(x, 500, text[:, :5])
    with pytest.raises(ValueError, match=r"\(b, 10\)"):
        apm(torch.zeros(2, 11))


def test_sizes_of_the_released_model():
    count = lambda module: sum(p.numel() for p in module.parameters())  # noqa: E731
    with torch.device("meta"):
        unet = make_unet(MODELSCOPE.unet)
        cam = Cam.from_configs(MODELSCOPE.unet, MODELSCOPE.cam)
        apm = Apm.from_unet(unet, MODELSCOPE.apm)
    assert count(unet) == 1_411_233_860 and len(unet.state_dict()) == 1480
    assert count(cam.injectors) == 68_867_200 and len(cam.injectors.state_dict()) == 143
    assert count(cam.extractor.cond_encoder) == 3_587_488
    assert count(cam.extractor) == 621_981_664
    assert count(apm.mixes) == 377_744 and len(apm.mixes) == 16 and count(apm.tokens) == 22_299_904
    assert count(unet) + count(cam.injectors) + count(apm.mixes) == 1_480_478_804
    assert skip_channels(unet.config) == [320] * 4 + [640] * 3 + [1280] * 5 + [1280]


@torch.no_grad()
def test_vae_patches_and_stock():
    torch.manual_seed(0)
    video = torch.rand(2, 3, 3, 16, 24) * 2 - 1
    vae = make_vae(VaeConfig(2, 4, (16, 16), 1, 8, 0.5))
    latents = encode_frames(vae, video)
    assert latents.shape == (2, 4, 3, 4, 6)
    torch.testing.assert_close(encode_frames(vae, video, batch_size=2), latents, rtol=1e-4, atol=1e-5)
    sampled = encode_frames(vae, video, generator=torch.Generator().manual_seed(0))
    assert not torch.allclose(sampled, latents)
    out = decode_latents(vae, latents, batch_size=4)
    assert out.shape == video.shape and out.abs().max() <= 1

    config = dataclasses.replace(VaeConfig(1, 4, (16, 16), 1, 8))
    plain = make_vae(config)
    stock = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(16, 16),
        layers_per_block=1,
        norm_num_groups=8,
    )
    stock.load_state_dict(plain.state_dict())
    frame = video[0]
    assert torch.equal(plain.encode(frame).latent_dist.mode(), stock.encode(frame).latent_dist.mode())
    assert torch.equal(plain(frame).sample, stock(frame).sample)
    assert PatchedAutoencoderKL(**{k: v for k, v in stock.config.items() if k[0] != "_"}).config.patch_size == 1


@pytest.mark.parametrize(
    "video, message",
    [
        (torch.zeros(1, 3, 4, 16, 16), r"\(b, f, 3, h, w\), got \(1, 3, 4, 16, 16\)"),
        (torch.zeros(1, 4, 3, 16, 16, dtype=torch.uint8), "uint8"),
        (torch.full((1, 4, 3, 16, 16), 2.0), r"\[-1, 1\], got \[2, 2\]"),
        (torch.full((1, 4, 3, 16, 16), torch.nan), "nan"),
        (torch.zeros(1, 4, 3, 16, 18), "multiples of 4, got 16x18"),
    ],
)
def test_bad_videos_are_named(video, message):
    with pytest.raises(ValueError, match=message):
        encode_frames(make_vae(VaeConfig(2, 4, (16, 16), 1, 8)), video)


def test_tiny_config_agrees_with_itself():
    assert TINY.cam.text_len == TINY.apm.text_len
    assert TINY.vae.latent_channels == TINY.unet.in_channels == TINY.unet.out_channels
    assert TINY.vae.downscale == 2 ** (len(TINY.cam.cond_channels) - 1)


@torch.no_grad()
def test_convolutions_over_frames_are_the_same_in_two_dimensions():
    """All temporal convolutions of the UNet and of CAM are FrameConv, whose two ways agree; none lies in the VAE."""
    unet, cam, _ = build(THREE_LEVELS)
    for net in (unet, cam):
        convs = [m for m in net.modules() if isinstance(m, torch.nn.Conv3d)]
        assert convs and all(type(m) is FrameConv for m in convs)
        x = torch.randn(2, convs[0].in_channels, 5, 4, 6)
        torch.testing.assert_close(convs[0].as_2d(x), torch.nn.Conv3d.forward(convs[0], x), rtol=1e-5, atol=1e-5)
