"""First chunks against their captions, beside what the reader makes of renderings of the same scenes and length."""

from __future__ import annotations

from st2v_lib.evaluation.cases import Case, any_case, rendered
from st2v_lib.evaluation.generate import base_chunks
from st2v_lib.evaluation.scoring import caption_values, measured, permanence, read
from st2v_lib.evaluation.suite import Arm, Bench, Options, Scored, Suite, strip

STREAM = 7
ARMS = (Arm("generated"), Arm("rendering", how={"source": "rendering"}), Arm("vae", how={"source": "vae"}))


def run(bench: Bench, cases: list[Case], seeds: list[int]) -> list[Scored]:
    """Captions, permanence and truth-free metrics of 16-frame videos."""
    n, sprites = bench.pipe.cfg.chunk_frames, bench.options.sprites
    source = bench.arm.how.get("source")
    if source is None:
        video = base_chunks(bench.pipe, [c.prompt for c in cases], seeds)
    else:
        video = rendered(cases, n, bench.pipe.cfg.size)
    if source == "vae":
        from st2v_lib.backbone import decode_latents, encode_frames

        latents = encode_frames(bench.pipe.vae, video.to(bench.pipe.device), 64)
        video = decode_latents(bench.pipe.vae, latents, 64).float().cpu()
    out = []
    for one, case in zip(video, cases):
        reading = read(one, bench.reader, sprites)
        values = caption_values(reading, case.prompt, bench.reader, "right_")
        values["permanence"] = permanence(reading, case.prompt, 0, n)
        values["right_sprite"] = float(all(values[f"right_{part}"] for part in ("colour", "shape", "motion")))
        metrics, _ = measured(one, case.prompt, bench.clip)
        out.append(Scored(values | metrics, {"strip": strip(one, 8)}))
    return out


def case(split: str, index: int, options: Options) -> Case:
    """A scene from any moment on, as training clips are."""
    return any_case(split, index, STREAM, options.sprites, options.speed)


SUITE = Suite(
    "first-chunk", "first chunks against their captions, with the reader's ceiling", ARMS, case, run,
    lambda options, frames, cfg: 1.0, videos=300, frames=16,
    parts=("vae", "text_encoder", "image_encoder", "unet", "reader"),
)  # fmt: skip
