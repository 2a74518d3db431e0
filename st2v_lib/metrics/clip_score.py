"""CLIP score: does each frame show what the prompt says (paper §5)?

Mean over frames of the cosine between the text embedding and the frame's image embedding, times 100. The paper does not
say which CLIP it used; the protocol here names the model, because values of different CLIPs are not comparable.

What it cannot see: time. A frozen, shuffled or reversed video scores the same; so may one with the wrong number, order
or motion of things. Differences of one point are within what wording alone changes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from st2v_lib.errors import WeightsError, first_line
from st2v_lib.metrics.base import MetricResult, mean
from st2v_lib.video_io import as_frames, from_uint8

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def load_clip(folder: str | os.PathLike) -> tuple[torch.nn.Module, Callable]:
    """A transformers ``CLIPModel`` and its tokenizer from a local folder.

    Args:
        folder: a saved ``CLIPModel`` with its tokenizer, or a pipeline's folder, whose ``text_encoder``,
            ``image_encoder`` and ``tokenizer`` are put together (the kit's small CLIP: ``data/weights/tiny``).

    Raises:
        WeightsError: the folder holds neither, or they cannot be read.
    """
    from transformers import AutoTokenizer, CLIPModel
    from transformers.utils import logging

    folder, shown = Path(folder), logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # it loads in a moment, and notebooks keep what is drawn
    parts = [folder / name for name in ("text_encoder", "image_encoder", "tokenizer")]
    try:
        if (folder / "config.json").is_file():
            model = CLIPModel.from_pretrained(folder, local_files_only=True).eval()
            return model, AutoTokenizer.from_pretrained(folder, local_files_only=True)
        if all(part.is_dir() for part in parts):
            return _from_parts(*parts)
    except Exception as error:  # a damaged or foreign file makes many kinds
        raise WeightsError(f"the CLIP model in {folder} cannot be loaded: {first_line(error)}") from None
    finally:
        if shown:
            logging.enable_progress_bar()
    missing = ", ".join(part.name for part in parts if not part.is_dir())
    raise WeightsError(f"no CLIP model in {folder}: neither config.json nor all of its parts ({missing} missing)")


def _from_parts(text_folder: Path, image_folder: Path, tokenizer_folder: Path) -> tuple[torch.nn.Module, Callable]:
    from transformers import CLIPTextModelWithProjection, CLIPVisionModelWithProjection, PreTrainedTokenizerFast

    text = CLIPTextModelWithProjection.from_pretrained(text_folder, local_files_only=True)
    image = CLIPVisionModelWithProjection.from_pretrained(image_folder, local_files_only=True)
    name = f"small CLIP of {text_folder.parent.name}" if text_folder.parent.name == "tiny" else text_folder.parent.name
    return join_towers(text, image, name), PreTrainedTokenizerFast.from_pretrained(tokenizer_folder)


def join_towers(text: torch.nn.Module, image: torch.nn.Module, name: str) -> torch.nn.Module:
    """One float32 ``CLIPModel`` out of the two towers that a pipeline keeps.

    Args:
        text: a ``CLIPTextModelWithProjection``; ``image``: the ``CLIPVisionModelWithProjection`` trained with it.
        name: what the protocol of a score calls the model.
    """
    from transformers import CLIPConfig, CLIPModel

    config = CLIPConfig(
        text_config=text.config.to_dict(),
        vision_config=image.config.to_dict(),
        projection_dim=text.config.projection_dim,
    )
    model = CLIPModel(config)
    weights = {**text.state_dict(), **image.state_dict(), "logit_scale": model.logit_scale.data}
    model.load_state_dict({key: weight.float() for key, weight in weights.items()})
    model.name_or_path = name
    return model.float().eval()  # a config may carry half precision


def clip_preprocess(
    frames: np.ndarray, size: int, mean_rgb: tuple = CLIP_MEAN, std_rgb: tuple = CLIP_STD
) -> torch.Tensor:
    """CLIP's input from ``uint8 f h w c``: shorter side to ``size`` (bicubic, antialiased), centre crop, normalised."""
    x = (from_uint8(frames) + 1) / 2
    h, w = x.shape[-2:]
    new = (max(size, round(h * size / min(h, w))), max(size, round(w * size / min(h, w))))
    if new != (h, w):
        x = F.interpolate(x, size=new, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
    top, left = (new[0] - size) // 2, (new[1] - size) // 2
    x = x[..., top : top + size, left : left + size]
    return (x - torch.tensor(mean_rgb).view(3, 1, 1)) / torch.tensor(std_rgb).view(3, 1, 1)


def area_preprocess(frames: np.ndarray, size: int = 64) -> torch.Tensor:
    """The small CLIP's input from ``uint8 f h w c``, as in its training: area-resized, normalised as CLIP's."""
    x = (from_uint8(frames) + 1) / 2
    if x.shape[-2:] != (size, size):
        x = F.interpolate(x, size=(size, size), mode="area")
    return (x - torch.tensor(CLIP_MEAN).view(3, 1, 1)) / torch.tensor(CLIP_STD).view(3, 1, 1)


area_preprocess.protocol = "area-resized to 64x64, OpenAI mean and std"


def _embedding(output) -> torch.Tensor:
    """Unit vectors; older transformers return the tensor, newer ones an object that carries it."""
    return F.normalize((output if torch.is_tensor(output) else output.pooler_output).float(), dim=-1)


@torch.no_grad()
def embed_text(prompt: str, model, tokenizer) -> torch.Tensor:
    """Unit text embedding ``1 d``."""
    tokens = tokenizer([prompt], padding=True, truncation=True, return_tensors="pt")
    keys = [key for key in ("input_ids", "attention_mask") if key in tokens]
    device = next(model.parameters()).device
    return _embedding(model.get_text_features(**{key: tokens[key].to(device) for key in keys}))


@torch.no_grad()
def embed_frames(frames: np.ndarray, model, preprocess: Callable | None = None) -> torch.Tensor:
    """Unit image embeddings ``f d`` of ``uint8 f h w c``."""
    if preprocess is None:
        pixels = clip_preprocess(frames, model.config.vision_config.image_size)
    else:
        pixels = preprocess(frames)
    return _embedding(model.get_image_features(pixel_values=pixels.to(next(model.parameters()).device)))


def embed_video(frames: np.ndarray, model, preprocess: Callable | None = None, batch: int = 16) -> torch.Tensor:
    """``embed_frames`` by batches, for long videos."""
    return torch.cat([embed_frames(frames[i : i + batch], model, preprocess) for i in range(0, len(frames), batch)])


def agreement(vectors: torch.Tensor, text: torch.Tensor) -> list[float]:
    """100 x cosine of unit image embeddings ``f d`` with a text embedding of ``embed_text``."""
    return (100 * vectors @ text[0]).cpu().double().tolist()


def distance(vector: torch.Tensor, anchor: torch.Tensor) -> float:
    """1 - cosine of two unit embeddings ``d``; never under 0."""
    return max(0.0, 1 - float(vector.double() @ anchor.double()))


def clip_score(
    video,
    prompt: str,
    model,
    tokenizer,
    preprocess: Callable | None = None,
    clip_name: str | None = None,
    batch: int = 16,
    seams: Sequence[int] = (),
) -> MetricResult:
    """Mean over frames of 100 x cosine(text, frame); higher is better.

    Args:
        video: ``uint8 f h w c`` or float ``f c h w`` in [-1, 1]; one frame is enough.
        prompt: the text, cut to the tokenizer's length.
        model: has ``get_text_features``, ``get_image_features``, ``config.vision_config.image_size`` as ``CLIPModel``.
        tokenizer: the tokenizer that belongs to it.
        preprocess: ``uint8 f h w c`` to the model's ``pixel_values``; by default ``clip_preprocess``.
        clip_name: how the protocol names the model; by default its ``name_or_path``.
        batch: frames embedded at once; does not change the value.
        seams: first frame of each chunk but the first; ``protocol["per_chunk"]`` then has the mean of each chunk.

    Raises:
        ValueError: empty prompt, wrong layout or range.
    """
    frames = as_frames(video)
    text = prompt_embedding(prompt, model, tokenizer)
    vectors = embed_video(frames, model, preprocess, batch)
    settings = clip_protocol(model, preprocess) | ({} if clip_name is None else {"clip": clip_name})
    return clip_score_of(agreement(vectors, text), prompt, settings, seams)


def prompt_embedding(prompt: str, model, tokenizer) -> torch.Tensor:
    """``embed_text`` for a prompt that must not be empty."""
    if not prompt or not prompt.strip():
        raise ValueError("expected a prompt for the CLIP score, got an empty text")
    return embed_text(prompt, model, tokenizer)


def name_of(model) -> str:
    """What a model is called, for the protocol; only the last part of a path."""
    path = getattr(model, "name_or_path", "") or getattr(model.config, "_name_or_path", "")
    return Path(path).name or type(model).__name__


def clip_protocol(model, preprocess: Callable | None) -> dict[str, str]:
    """Which CLIP looked at the frames, and how they were prepared, for ``MetricResult.protocol``."""
    steps = "shorter side bicubic, centre crop, OpenAI mean and std"
    if preprocess is not None:
        steps = getattr(preprocess, "protocol", "given by the caller")
    return {"clip": name_of(model), "preprocess": steps}


def clip_score_of(
    scores: Iterable[float], prompt: str, settings: dict[str, str], seams: Sequence[int] = ()
) -> MetricResult:
    """The result from the score of each frame and ``clip_protocol``."""
    scores = tuple(scores)
    protocol = {**settings, "prompt": prompt, "units": "100 x cosine"}
    result = MetricResult("clip_score", mean(scores), per_frame=scores, protocol=protocol)
    if seams:
        protocol["per_chunk"] = list(result.by_chunk(seams))
    return result
