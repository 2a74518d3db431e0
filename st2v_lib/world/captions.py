"""Captions of scenes, the vocabulary they use, and their tokenizer.

The *sparse* caption is the prompt: shape and colour of each sprite, motion, kind and colour of the background. The
*detailed* one has size, shade and pattern besides, as people's captions say now more and now less; the base is trained
on both, so that it can be told these by words, or by the anchor. The *dense* caption of one frame names all that the
frame shows, places too; only the small CLIP is trained on it.
"""

from __future__ import annotations

import random
import re
import warnings
from dataclasses import dataclass

from st2v_lib.errors import UserError
from st2v_lib.world.scene import BACKGROUNDS, COLOURS, MOTIONS, PATTERNS, SHAPES, SIZE_RANGE, Scene

TEXT_LEN = 24
VERBS = {  # singular, plural
    "bounce": ("bounces", "bounce"),
    "orbit": ("orbits", "orbit"),
    "zigzag": ("zigzags", "zigzag"),
    "cross": ("crosses and returns", "cross and return"),
    "hide": ("hides behind a pillar", "hide behind a pillar"),
}
WORDINGS = (  # {s} sprites, {v} verb, {g} background
    "{s} {v} over {g}",
    "{s} that {v} over {g}",
    "over {g} {s} {v}",
    "{g} with {s} that {v}",
    "in front of {g} {s} {v}",
    "{s} {v} on {g}",
)
HELD_OUT_WORDINGS = ("on {g} {s} {v}", "{s} {v} in front of {g}")  # never seen in training
SHADES = ("deepest", "deep", "dark", "dim", "mid", "light", "bright", "brightest")
SIZES = ("tiny", "small", "medium", "big", "large", "huge")
COLUMNS, ROWS = ("left", "centre", "right"), ("top", "middle", "bottom")
DETAILS = ("striped", "dotted", "halved", *SHADES, *SIZES)
DENSE_ONLY = (*COLUMNS, *ROWS, "nothing", "part")
_GRAMMAR = ("a", "and", "that", "over", "with", "in", "front", "of", "on", "behind", "pillar", "at", "two")
SPECIAL = ("<pad>", "<unknown>", "<start>", "<end>")  # <end> is not 2: transformers reads 2 as a legacy switch


def vocabulary() -> tuple[str, ...]:
    """All words of all caption kinds, special tokens first; a word's place is its token id."""
    verbs = [w for pair in VERBS.values() for phrase in pair for w in phrase.split()]
    words = (*_GRAMMAR, *SHAPES, *COLOURS, *BACKGROUNDS, *verbs, *DETAILS, *DENSE_ONLY)
    return (*SPECIAL, *dict.fromkeys(words))


def sparse_caption(scene: Scene, wording: int = 0, held_out: bool = False) -> str:
    """The prompt of a scene in one of the wordings.

    Args:
        wording: index into the wordings, wrapped around.
        held_out: use the wordings that training never sees.
    """
    g = scene.background
    ground = f"plain {g.colour}" if g.kind == "plain" else f"{g.colour} {g.kind}"
    sprites = [f"a {s.colour} {s.shape}" for s in scene.sprites]
    return _sentence(scene, sprites, ground, HELD_OUT_WORDINGS if held_out else WORDINGS, wording)


def detailed_caption(scene: Scene, wording: int, rng: random.Random, share: float = 0.6) -> str:
    """A prompt that says more: each of size, shade, pattern and the background's shade with probability ``share``."""
    told = lambda word: f"{word} " if rng.random() < share else ""  # noqa: E731
    sprites = []
    for s in scene.sprites:
        details = told(_level(_relative_size(s), SIZES)) + told(_level(s.shade, SHADES)) + told(s.pattern)
        sprites.append(f"a {details}{s.colour} {s.shape}")
    g = scene.background
    ground = told(_level(g.shade, SHADES)) + (f"plain {g.colour}" if g.kind == "plain" else f"{g.colour} {g.kind}")
    return _sentence(scene, sprites, ground, WORDINGS, wording)


def _sentence(scene: Scene, sprites: list[str], ground: str, wordings: tuple[str, ...], wording: int) -> str:
    verb = VERBS[scene.motion][len(sprites) > 1]
    return wordings[wording % len(wordings)].format(s=" and ".join(sprites), v=verb, g=ground)


def _level(value: float, names: tuple[str, ...]) -> str:
    return names[min(int(float(value) * len(names)), len(names) - 1)]


def _relative_size(sprite) -> float:
    low, high = SIZE_RANGE
    return (sprite.size - low) / (high - low)


def dense_caption(scene: Scene, position, visible, rng: random.Random | None = None) -> str:
    """Everything one frame shows.

    Args:
        position: ``(s, 2)`` centres in frame widths at that frame.
        visible: ``(s,)`` visible share of each sprite.
        rng: leaves phrases out at random, so that the parts are learnt apart; ``None`` keeps all.
    """
    keep = lambda p: rng is None or rng.random() < p  # noqa: E731
    parts = []
    for i, s in enumerate(scene.sprites):
        if float(visible[i]) < 0.12:
            continue
        words = ["part"] if float(visible[i]) < 0.75 else []
        if float(visible[i]) >= 0.75 and keep(0.9):
            words.append(_level(_relative_size(s), SIZES))
        if keep(0.9):
            words.append(_level(s.shade, SHADES))
        if keep(0.9):
            words.append(s.pattern)
        words += [s.colour, s.shape]
        if keep(0.7):
            x, y = (min(max(float(v), 0.0), 0.999) for v in position[i])
            words += ["at", _level(y, ROWS), _level(x, COLUMNS)]
        parts.append(" ".join(words))
    g = scene.background
    ground = f"{_level(g.shade, SHADES)} {g.colour} {g.kind}" if keep(0.9) else f"{g.colour} {g.kind}"
    text = f"{' and '.join(parts) or 'nothing'} over {ground}"
    return f"{text} with pillar" if scene.has_pillar else text


def make_tokenizer():
    """The word-level tokenizer of the tiny CLIP (``transformers.PreTrainedTokenizerFast``), padded to 24 tokens."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    ids = {word: i for i, word in enumerate(vocabulary())}
    tok = Tokenizer(models.WordLevel(ids, unk_token="<unknown>"))
    tok.normalizer = normalizers.Lowercase()
    tok.pre_tokenizer = pre_tokenizers.Whitespace()
    tok.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", ids["<start>"]), ("<end>", ids["<end>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tok, pad_token="<pad>", bos_token="<start>", eos_token="<end>", unk_token="<unknown>",
        model_max_length=TEXT_LEN, padding_side="right",
    )  # fmt: skip


def tokenize(tokenizer, texts: list[str]):
    """Token ids ``(n, 24)`` as a tensor, padded and cut to the model's length."""
    return tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids


@dataclass(frozen=True)
class PromptTruth:
    """What a prompt asks for, as far as the world's words tell; ``None`` where it says nothing."""

    sprites: tuple[tuple[str, str], ...]  # (colour, shape)
    motion: str | None
    background: str | None
    background_colour: str | None


def parse_prompt(prompt: str) -> PromptTruth:
    """Reads shapes, colours, motion and background back out of a prompt."""
    text = " ".join(re.findall(r"[a-z]+", prompt.lower()))
    colour, shape = "|".join(COLOURS), "|".join(SHAPES)
    sprites = tuple(re.findall(rf"\b({colour}) ({shape})\b", text))
    motion = next((m for m in MOTIONS if re.search(rf"\b({'|'.join(v.split()[0] for v in VERBS[m])})\b", text)), None)
    kinds = "|".join(k for k in BACKGROUNDS if k != "plain")
    found = re.search(rf"\b({colour}) ({kinds})\b", text)
    if found:
        return PromptTruth(sprites, motion, found[2], found[1])
    found = re.search(rf"\bplain ({colour})\b(?! (?:{shape}))", text)
    return PromptTruth(sprites, motion, "plain" if found else None, found[1] if found else None)


def check_prompt(prompt: str) -> str:
    """The prompt, cleaned of surrounding space; warns of words the tiny models cannot know.

    Raises:
        UserError: for an empty prompt.
    """
    if not prompt or not prompt.strip():
        raise UserError('the prompt is empty; try "a red circle bounces over green stripes"')
    words = set(re.findall(r"[a-z]+", prompt.lower()))
    known = set(vocabulary()) - set(SPECIAL)
    plain = sorted(known - set(DENSE_ONLY))
    if strange := sorted(words - known):
        warnings.warn(
            f"the sprite world has no word for: {', '.join(strange)}. It knows: {', '.join(plain)}", stacklevel=2
        )
    if dense := sorted(words & set(DENSE_ONLY)):
        warnings.warn(
            f"these words were only used to train CLIP, not to generate: {', '.join(dense)}. Prompts use: "
            f"{', '.join(plain)}",
            stacklevel=2,
        )
    return prompt.strip()


__all__ = ["PATTERNS", "check_prompt", "dense_caption", "make_tokenizer", "parse_prompt", "sparse_caption", "tokenize"]
