"""Trains the small CLIP on frames of the sprite world with dense captions (and some sparse ones), then freezes it.

Most negatives are hard. *Relatives* are eight frames that share shape, colour and background; *twins* share the place
too, and differ in shape and in what memory has to keep: pattern, shade and size; *siblings* differ in one of these
only. Without twins the loss is solved by place and pattern alone (measured: size R² 0.23 at 98 % retrieval); without
siblings by pattern and shade (shape 31 % with chance at 25 %, size R² 0.44, pattern 97 %).
"""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from transformers import CLIPConfig, CLIPModel, CLIPTextModelWithProjection, CLIPVisionModelWithProjection

from st2v_lib.apm import CLIP_MEAN, CLIP_STD
from st2v_lib.config import ClipConfig
from st2v_lib.training.common import save_folder
from st2v_lib.world.captions import (
    SHADES,
    SIZES,
    TEXT_LEN,
    dense_caption,
    make_tokenizer,
    sparse_caption,
    tokenize,
    vocabulary,
)
from st2v_lib.world.render import render
from st2v_lib.world.scene import MOTIONS, PATTERNS, SHAPES, SIZE_RANGE, Scene, Sprite, sample_scene, split_of

GROUP = 8
BATCH = 128
KEPT = 8192  # pairs of each kind
WORD_WEIGHT, WORD_SCALE = 0.5, 10.0
ATTRIBUTE_WEIGHT = 0.5
SIZE_WEIGHT = 4.0  # of size beside shade, which is learnt first (R² 0.82 at equal weights)
WHOLE = 0.95  # visible share from which a sprite's attributes can be asked for


def make_clip(cfg: ClipConfig) -> CLIPModel:
    """A fresh ``CLIPModel`` of the configured size with the world's vocabulary."""
    words = vocabulary()
    shared = dict(
        hidden_size=cfg.hidden_size, num_hidden_layers=cfg.num_layers, num_attention_heads=cfg.num_heads,
        intermediate_size=4 * cfg.hidden_size, projection_dim=cfg.projection_dim,
    )  # fmt: skip
    text = dict(
        shared, num_hidden_layers=cfg.num_text_layers, vocab_size=len(words), max_position_embeddings=TEXT_LEN,
        pad_token_id=words.index("<pad>"),
        bos_token_id=words.index("<start>"), eos_token_id=words.index("<end>"),
    )  # fmt: skip
    vision = dict(shared, image_size=cfg.image_size, patch_size=cfg.patch_size)
    return CLIPModel(
        CLIPConfig(
            text_config=text, vision_config=vision, projection_dim=cfg.projection_dim, attn_implementation="eager"
        )
    )  # eager: its backward pass is the faster one on a CPU


def normalize(frames: torch.Tensor) -> torch.Tensor:
    """Frames ``(n, 3, h, w)`` in [-1, 1] to CLIP's input statistics."""
    mean, std = (torch.tensor(v, device=frames.device).view(1, 3, 1, 1) for v in (CLIP_MEAN, CLIP_STD))
    return ((frames + 1) / 2 - mean) / std


def image_embeds(model: CLIPModel, frames: torch.Tensor) -> torch.Tensor:
    """Projected embeddings ``(n, d)`` of frames ``(n, 3, h, w)`` in [-1, 1], not normalised."""
    pooled = model.vision_model(pixel_values=normalize(frames)).pooler_output
    return model.visual_projection(pooled)


def text_embeds(model: CLIPModel, ids: torch.Tensor) -> torch.Tensor:
    """Projected embeddings ``(n, d)`` of token ids, not normalised."""
    return model.text_projection(model.text_model(input_ids=ids).pooler_output)


class ClipStep(nn.Module):
    """The symmetric contrastive loss over all pairs of the batch, and two that keep words and attributes apart.

    What one frame cannot show, a motion, and what pictures teach slowly, a shape, hardly changes the hidden states of a
    contrastive text encoder (measured: 0.3 to 1.4 of their norm of 11, a colour 14), and a base that reads them cannot
    follow such words. Text encoders trained on rich text tell all words apart. Here each token's hidden state has to
    name its word, by direction.

    On the image side, levels of size and shade that a contrast tells apart need not lie on a line (measured: size
    R² 0.47). A linear head, thrown away later, reads pattern, shade and size of a whole sprite off the embedding.
    """

    def __init__(self, model: CLIPModel):
        super().__init__()
        self.model = model
        text = model.config.text_config
        self.words = nn.Parameter(
            torch.randn(text.vocab_size, text.hidden_size),
            requires_grad=any(p.requires_grad for p in model.text_model.parameters()),
        )
        self.attributes = nn.Linear(model.config.projection_dim, 6)

    def forward(self, batch: dict[str, torch.Tensor]):
        embeds = image_embeds(self.model, batch["frames"]).float()
        images = F.normalize(embeds, dim=-1)
        texts = F.normalize(text_embeds(self.model, batch["ids"]).float(), dim=-1)
        logits = self.model.logit_scale.exp().clamp(max=100) * images @ texts.T
        target = torch.arange(len(logits), device=logits.device)
        loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        attributes = self.attribute_loss(embeds, batch["identity"])
        loss = loss + ATTRIBUTE_WEIGHT * attributes
        found = {"top1": (logits.argmax(1) == target).float().mean().detach(), "attributes": attributes.detach()}
        if self.words.requires_grad:
            words = self.word_loss(batch["prompts"])
            loss, found["words"] = loss + WORD_WEIGHT * words, words.detach()
        return loss, found

    def attribute_loss(self, embeds: torch.Tensor, identity: torch.Tensor) -> torch.Tensor:
        """Cross-entropy of the pattern, and of shade and size the squared error over their variance, that of size more.

        Args:
            embeds: not normalised, ``(n, d)``.
            identity: pattern in four places, shade and size in 0..1, ``(n, 6)``; nan where there is none to tell.
        """
        told, read = ~identity.isnan().any(-1), self.attributes(embeds).float()
        if not told.any():
            return read.sum() * 0  # several processes: each parameter has a gradient at each step
        read, identity = read[told], identity[told]
        shade, size = (read[:, 4:] - identity[:, 4:]).square().mean(0) * 12  # 1/12: variance of an even draw from 0..1
        return F.cross_entropy(read[:, :4], identity[:, :4].argmax(-1)) + shade + SIZE_WEIGHT * size

    def word_loss(self, ids: torch.Tensor) -> torch.Tensor:
        """Cross-entropy of each token's own word, from the angle between its hidden state and the word's vector."""
        hidden = F.normalize(self.model.text_model(input_ids=ids).last_hidden_state.float(), dim=-1)
        logits = WORD_SCALE * hidden @ F.normalize(self.words.float(), dim=-1).T
        pad = self.model.config.text_config.pad_token_id
        return F.cross_entropy(logits.flatten(0, 1), ids.flatten(), ignore_index=pad)


def _relatives(rng: random.Random) -> tuple[list[Scene], list[int]]:
    """Scenes, with a frame of each, that agree in what the sparse caption names of first sprite and background."""
    first = sample_scene(rng.randrange(2**31), 0)
    fixed = dict(
        shape=first.sprites[0].shape, colour=first.sprites[0].colour, background=first.background.kind,
        background_colour=first.background.colour, num_sprites=len(first.sprites), motion=first.motion,
    )  # fmt: skip
    scenes = [first, *(sample_scene(rng.randrange(2**31), i, **fixed) for i in range(1, GROUP))]
    return scenes, [rng.randrange(400) for _ in scenes]


def _twins(rng: random.Random) -> tuple[list[Scene], list[int]]:
    """One scene at one frame, eight times, with another shape, pattern, shade and size of its sprites each time."""
    scene = sample_scene(rng.randrange(2**31), 0, motion=rng.choice(MOTIONS[:3]))
    low, high = SIZE_RANGE

    def other(sprite: Sprite) -> Sprite:
        ground = scene.background
        shapes = [s for s in SHAPES if split_of(s, sprite.colour, ground.kind, ground.colour) == "train"]
        return replace(
            sprite, shape=rng.choice(shapes), pattern=rng.choice(PATTERNS), shade=rng.random(),
            size=rng.uniform(low, high),
        )  # fmt: skip

    twins = [replace(scene, sprites=tuple(map(other, scene.sprites))) for _ in range(GROUP)]
    return twins, [rng.randrange(400)] * GROUP


def _siblings(rng: random.Random) -> tuple[list[Scene], list[int]]:
    """One scene at one frame, once for each level of one attribute of its first sprite."""
    scene = sample_scene(rng.randrange(2**31), 0, motion=rng.choice(MOTIONS[:3]))
    first, ground = scene.sprites[0], scene.background
    low, high = SIZE_RANGE
    within = lambda i, names: (i + rng.random()) / len(names)  # noqa: E731
    levels = {
        "shape": [s for s in SHAPES if split_of(s, first.colour, ground.kind, ground.colour) == "train"],
        "size": [low + (high - low) * within(i, SIZES) for i in range(len(SIZES))],
        "shade": [within(i, SHADES) for i in range(len(SHADES))],
        "pattern": PATTERNS,
    }
    name = rng.choice(("shape", "shape", "size", "size", "shade", "pattern"))
    siblings = [replace(scene, sprites=(replace(first, **{name: v}), *scene.sprites[1:])) for v in levels[name]]
    return siblings, [rng.randrange(400)] * len(siblings)


GROUPS = {"siblings": _siblings, "twins": _twins, "relatives": _relatives}


def clip_batch(
    rng: random.Random, tokenizer, count: int, kind: str, device: torch.device | str = "cpu"
) -> dict[str, torch.Tensor]:
    """Frames with captions: ``frames (n, 3, 64, 64)`` in [-1, 1] and ``ids (n, 24)`` on the device; ``identity (n, 6)``
    of a sprite that is alone and whole, else nan.

    Args:
        kind: ``"siblings"``, ``"twins"``, ``"relatives"``, ``"strangers"`` (all dense captions) or ``"sparse"``.
    """
    if kind in GROUPS:
        scenes, starts = [], []
        while len(scenes) < count:
            group = GROUPS[kind](rng)
            scenes, starts = scenes + group[0], starts + group[1]
        scenes, starts = scenes[:count], starts[:count]
    else:
        scenes = [sample_scene(rng.randrange(2**31), i) for i in range(count)]
        starts = [rng.randrange(400) for _ in scenes]
    video, truth = render(scenes, 1, starts, device=device, truth="masks")
    if kind == "sparse":
        texts = [sparse_caption(s, rng.randrange(99)) for s in scenes]
    else:
        leave_out = rng if kind not in ("twins", "siblings") else None  # a twin without its words could be any of them
        position, visible = truth.position[:, 0].tolist(), truth.visible[:, 0].tolist()
        texts = [dense_caption(s, position[i], visible[i], leave_out) for i, s in enumerate(scenes)]
    whole = (truth.visible[:, 0, 0] > WHOLE).tolist()
    told = [w and len(s.sprites) == 1 for w, s in zip(whole, scenes)]
    identity = torch.tensor([s.sprites[0].identity if t else [float("nan")] * 6 for t, s in zip(told, scenes)])
    return {"frames": video[:, 0], "ids": tokenize(tokenizer, texts).to(device), "identity": identity.to(device)}


KINDS = ("siblings", "twins", "siblings", "relatives", "siblings", "strangers", "siblings", "sparse")


class PairPool:
    """Pairs of one kind kept for reuse, in runs of :data:`GROUP`; drawing and naming them costs more than a step."""

    def __init__(self, kind: str, tokenizer, device: torch.device | str):
        self.kind, self.tokenizer, self.device, self.made = kind, tokenizer, device, 0
        self.frames = torch.empty(KEPT, 3, 64, 64, dtype=torch.float16, device=device)
        self.ids = torch.empty(KEPT, TEXT_LEN, dtype=torch.long, device=device)
        self.identity = torch.empty(KEPT, 6, device=device)

    def draw(self, rng: random.Random, count: int) -> dict[str, torch.Tensor]:
        """``count`` pairs of the pool, a quarter as many new ones having joined it."""
        fresh = count // 4 // GROUP * GROUP if self.made else count
        new = clip_batch(rng, self.tokenizer, max(GROUP, fresh), self.kind, self.device)
        slots = [(self.made + i) % KEPT for i in range(len(new["ids"]))]
        self.frames[slots], self.ids[slots], self.identity[slots] = new["frames"].half(), new["ids"], new["identity"]
        self.made += len(slots)
        runs = rng.sample(range(min(self.made, KEPT) // GROUP), count // GROUP)
        picks = [GROUP * r + i for r in runs for i in range(GROUP)]
        return {"frames": self.frames[picks].float(), "ids": self.ids[picks], "identity": self.identity[picks]}

    def some_ids(self, rng: random.Random, count: int) -> torch.Tensor:
        """Captions alone, of pairs that the pool holds."""
        if not self.made:
            self.draw(rng, count)
        return self.ids[[rng.randrange(min(self.made, KEPT)) for _ in range(count)]]


def make_batch(seed: int, batch_scale: float = 1.0, device: torch.device | str = "cpu"):
    """Batch number ``n``, of the kinds in turn."""
    tokenizer, count = make_tokenizer(), max(1, round(BATCH * batch_scale / GROUP)) * GROUP
    pools = {kind: PairPool(kind, tokenizer, device) for kind in dict.fromkeys(KINDS)}

    def batch(rank: int, n: int) -> dict[str, torch.Tensor]:
        rng = random.Random(f"clip/{seed}/{rank}/{n}")
        out = pools[KINDS[n % len(KINDS)]].draw(rng, count)
        noise = torch.Generator(device).manual_seed(rng.randrange(2**31))
        out["prompts"] = pools["sparse"].some_ids(rng, count)
        out["frames"] += 0.03 * torch.randn(out["frames"].shape, generator=noise, device=device)
        return out

    return batch


@torch.no_grad()
def _embedded(model: CLIPModel, count: int, split: str):
    """Embeddings of fully visible one-sprite frames with their pattern, shape, size and shade."""
    rng, device = random.Random(f"probe/{split}"), model.device
    embeds, pattern, shape, size, shade = [], [], [], [], []
    while len(pattern) < count:
        scenes = [sample_scene(rng.randrange(2**31), i, split, num_sprites=1) for i in range(128)]
        video, truth = render(scenes, 1, [rng.randrange(400) for _ in scenes], truth="masks")
        seen = truth.visible[:, 0, 0] > 0.95
        embeds.append(image_embeds(model, video[seen, 0].to(device)).float().cpu())
        shape += [SHAPES.index(s.sprites[0].shape) for s, k in zip(scenes, seen.tolist()) if k]
        kept = [s.sprites[0].identity for s, k in zip(scenes, seen.tolist()) if k]
        pattern += [v[:4].index(1.0) for v in kept]
        shade += [v[4] for v in kept]
        size += [v[5] for v in kept]
    return torch.cat(embeds), *(torch.tensor(v) for v in (pattern, shape, size, shade))


def linear_probes(model: CLIPModel, count: int = 6000, split: str = "dev") -> dict[str, float]:
    """How much of a sprite's identity is linear in the frozen image embedding.

    Probes are fitted on training scenes and scored on ``split``: accuracy of pattern and shape (logistic), R² of the
    size, mean absolute error of the shade (both ridge; both attributes span 0 to 1).
    """
    x, pattern, shape, size, shade = _embedded(model, count, "train")
    y, pattern2, shape2, size2, shade2 = _embedded(model, count // 4, split)
    mean, std = x.mean(0), x.std(0)
    x, y = (x - mean) / std, (y - mean) / std

    def accuracy(seen: torch.Tensor, held: torch.Tensor) -> float:
        head = nn.Linear(x.shape[1], 4)
        optimizer = torch.optim.LBFGS(head.parameters(), max_iter=200, line_search_fn="strong_wolfe")

        def closure():
            optimizer.zero_grad()
            loss = F.cross_entropy(head(x), seen) + 1e-4 * head.weight.square().sum()
            loss.backward()
            return loss

        with torch.enable_grad():
            optimizer.step(closure)
        return float((head(y).argmax(1) == held).float().mean())

    one = lambda a: torch.cat([a, torch.ones(len(a), 1)], 1).double()  # noqa: E731
    gram = one(x).T @ one(x) + torch.eye(x.shape[1] + 1).double()
    solve = lambda target: (one(y) @ torch.linalg.solve(gram, one(x).T @ target.double())).float()  # noqa: E731
    r2 = 1 - (solve(size) - size2).square().mean() / size2.var()
    return {
        "pattern_accuracy": accuracy(pattern, pattern2), "shape_accuracy": accuracy(shape, shape2),
        "size_r2": float(r2), "shade_error": float((solve(shade) - shade2).abs().mean()),
    }  # fmt: skip


@torch.no_grad()
def retrieval_top1(model: CLIPModel, rounds: int = 10, split: str = "dev") -> float:
    """Share of frames whose own dense caption scores best among 100 scenes."""
    tokenizer, hits = make_tokenizer(), []
    for r in range(rounds):
        rng = random.Random(f"retrieval/{split}/{r}")
        scenes = [sample_scene(rng.randrange(2**31), i, split) for i in range(100)]
        video, truth = render(scenes, 1, [rng.randrange(400) for _ in scenes], truth="masks")
        texts = [dense_caption(s, truth.position[i, 0], truth.visible[i, 0]) for i, s in enumerate(scenes)]
        images = F.normalize(image_embeds(model, video[:, 0].to(model.device)), dim=-1)
        words = F.normalize(text_embeds(model, tokenize(tokenizer, texts).to(model.device)), dim=-1)
        hits.append(((images @ words.T).argmax(1).cpu() == torch.arange(100)).float().mean())
    return float(torch.stack(hits).mean())


def restore(model: CLIPModel, folder: Path) -> None:
    """Loads what :func:`finish` wrote back into a ``CLIPModel``."""
    text = CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder").float()
    image = CLIPVisionModelWithProjection.from_pretrained(folder / "image_encoder").float()
    model.load_state_dict({**text.state_dict(), **image.state_dict(), "logit_scale": model.logit_scale.data})


def finish(model: CLIPModel, out: Path) -> None:
    """Writes ``text_encoder``, ``image_encoder`` (fp16 safetensors) and ``tokenizer`` as a pipeline's folders."""
    text = CLIPTextModelWithProjection(model.config.text_config)
    text.text_model.load_state_dict(model.text_model.state_dict())
    text.text_projection.load_state_dict(model.text_projection.state_dict())
    image = CLIPVisionModelWithProjection(model.config.vision_config)
    image.vision_model.load_state_dict(model.vision_model.state_dict())
    image.visual_projection.load_state_dict(model.visual_projection.state_dict())
    parts = {"text_encoder": text.half(), "image_encoder": image.half(), "tokenizer": make_tokenizer()}
    for name, part in parts.items():
        save_folder(out / name, part.save_pretrained)


__all__ = ["ClipStep", "finish", "linear_probes", "make_batch", "make_clip", "retrieval_top1"]
