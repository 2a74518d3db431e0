"""Long videos of the shipped weights, recorded: a few of their pictures, and how each chunk looks beside the first.

    python -m st2v_lib.notebook.long_record                          # all arms
    python -m st2v_lib.notebook.long_record --only "last frame"      # one arm, into the record that is there

Stage 2 alone, one prompt, one seed. ``full`` is the whole method, and in ``last frame`` APM keeps to the last frame
made, not to the first of all, so that errors may add up: 1200 frames each. ``without APM`` has only the short-term
memory, ``independent`` has neither, 240 frames each. Frames are measured and dropped as they come, so memory does not
grow. ``data/results/long_record.json`` has the numbers, ``long_record.webp`` the pictures, eight in a row, arm after
arm. One video of each arm is an illustration, not a statistic.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import math
import sys
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from st2v_lib.drift_watch import chunk_look
from st2v_lib.errors import OutputError
from st2v_lib.manifest import data_dir, weights_mark
from st2v_lib.video_io import to_uint8

PROMPT, SEED = "a red circle bounces over green stripes", 0
ARMS: dict[str, dict[str, Any]] = {  # what each changes in the config
    "full": {},
    "last frame": {"anchor": "last"},
    "without APM": {"apm": None},
    "independent": {"apm": None, "conditioning": "none"},
}
LONG = ("full", "last frame")  # arms of full length
FRAMES, OTHERS, EVERY = 1200, 240, 75  # of the long arms, of the others, from one picture to the next
COLUMNS, MAX_BYTES = 8, 120_000
IDLE = ("enhancer",)  # weights that have no part in it


def run(
    frames: int = FRAMES, others: int = OTHERS, every: int = EVERY, only: Collection[str] = tuple(ARMS)
) -> tuple[dict, dict[str, np.ndarray]]:
    """Makes and measures the videos.

    Args:
        frames, others: lengths of the long arms and of the other ones, which are never longer.
        every: frames from one picture that is kept to the next.
        only: names of the arms to make.

    Returns:
        The record, and the pictures of each arm, ``uint8 f h w 3``.
    """
    import torch

    import st2v_lib
    from st2v_lib.session import versions

    pipe = st2v_lib.load("tiny")
    whole, began, arms, pictures = pipe.cfg, time.perf_counter(), {}, {}
    for name in (name for name in ARMS if name in only):
        pipe.cfg = whole.replace(**ARMS[name])
        length = frames if name in LONG else min(frames, others)
        arms[name], pictures[name] = _arm(pipe, length, every)
        print(f"{time.perf_counter() - began:6.0f} s  {name}: {length} frames", flush=True)
    record = {
        "command": "python -m st2v_lib.notebook.long_record", "prompt": PROMPT, "seed": SEED, "stage": 2,
        "weights": weights_mark(idle=IDLE), "config": dataclasses.asdict(whole), "changes": ARMS,
        "versions": versions(), "device": str(pipe.device), "threads": torch.get_num_threads(),
        "every": every, "size": whole.size,
        "seconds": time.perf_counter() - began, "arms": arms,
    }  # fmt: skip
    return _rounded(record), pictures


def _arm(pipe, length: int, every: int) -> tuple[dict, np.ndarray]:
    """One video: numbers of each chunk, and the pictures that are kept."""
    import psutil

    process, memory, began = psutil.Process(), [0.0], time.perf_counter()

    def on_step(_step) -> None:  # inside a chunk, where memory is largest
        memory[-1] = max(memory[-1], process.memory_info().rss / 1e6)

    looks, ends, kept, shown, anchor, before, at = [], [], [], [], None, None, 0
    for block in pipe.stream(PROMPT, length, SEED, callback=on_step, progress=False):
        frames, embeds = to_uint8(block[0]), pipe.encode_image(block)[0].cpu()
        anchor = embeds[0] if anchor is None else anchor
        looks.append(chunk_look(frames, before, embeds, anchor))
        wanted = [t for t in range(at, at + len(frames)) if t % every == 0]
        kept += [frames[t - at].copy() for t in wanted]
        shown += wanted
        before, at = frames[-1].copy(), at + len(frames)
        ends.append(at)
        memory.append(0.0)
    chunks = {key: [look[key] for look in looks] for key in looks[0]}
    numbers = {"frames": at, "seconds": time.perf_counter() - began, "shown": shown, "ends": ends}
    return {**numbers, "chunks": chunks, "memory_mb": memory[:-1]}, np.stack(kept)


def _rounded(x: Any) -> Any:
    if isinstance(x, dict):
        return {key: _rounded(value) for key, value in x.items()}
    if isinstance(x, (list, tuple)):
        return [_rounded(value) for value in x]
    return (float(f"{x:.4g}") if math.isfinite(x) else None) if isinstance(x, float) else x


def write(folder: Path, record: dict, pictures: dict[str, np.ndarray]) -> None:
    """Writes ``long_record.json`` and ``long_record.webp`` into a folder.

    Raises:
        OutputError: it cannot be written, or the pictures are too large at every quality tried.
    """
    from PIL import Image

    blank = lambda v: np.full_like(v[:1], 255).repeat(-len(v) % COLUMNS, axis=0)  # noqa: E731
    rows = np.concatenate([np.concatenate([v, blank(v)]) for v in pictures.values()])
    rows = [np.concatenate(list(rows[i : i + COLUMNS]), axis=1) for i in range(0, len(rows), COLUMNS)]
    sheet = Image.fromarray(np.concatenate(rows))
    for quality in (95, 90, 80, 65, 50):
        out = io.BytesIO()
        sheet.save(out, "WEBP", quality=quality, method=6)
        if out.tell() <= MAX_BYTES:
            break
    else:
        raise OutputError(f"the pictures have {out.tell()} bytes, more than {MAX_BYTES}: keep fewer (--every)")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "long_record.webp").write_bytes(out.getvalue())
        (folder / "long_record.json").write_text(json.dumps(record, allow_nan=False) + "\n")
    except OSError as error:
        raise OutputError(f"{folder} cannot be written: {error.strerror}") from error


def read(folder: Path | None = None) -> tuple[dict, dict[str, np.ndarray]]:
    """What ``write`` wrote; the pictures were compressed with loss.

    Raises:
        OutputError: there is nothing, or nothing that can be read.
    """
    from PIL import Image

    folder = folder or data_dir() / "results"
    try:
        record = json.loads((folder / "long_record.json").read_text())
        sheet = np.asarray(Image.open(folder / "long_record.webp").convert("RGB"))
        size, row, pictures = record["size"], 0, {}
        for name, arm in record["arms"].items():
            places = [(row + k // COLUMNS, k % COLUMNS) for k in range(len(arm["shown"]))]
            pictures[name] = np.stack([sheet[size * r :, size * c :][:size, :size] for r, c in places])
            row = places[-1][0] + 1
    except (OSError, ValueError, KeyError) as error:
        raise OutputError(
            f"no record of long videos in {folder} ({error}); make it: python -m st2v_lib.notebook.long_record"
        ) from None
    return record, pictures


def may_grow(record: dict, every: int = EVERY) -> None:
    """Whether an arm that is made now belongs beside those of a record.

    Raises:
        OutputError: the record is of other weights, of another config or prompt, or has its pictures elsewhere.
    """
    from st2v_lib.loading import load

    config = dataclasses.asdict(load("tiny").cfg)
    now = {"weights": weights_mark(idle=IDLE), "config": config, "prompt": PROMPT, "seed": SEED}
    now = json.loads(json.dumps(_rounded({**now, "every": every})))
    if other := [name for name, value in now.items() if not _agrees(record.get(name), value)]:
        raise OutputError(
            f"the record has another value of {', '.join(other)}: no arm can be added to it; "
            "make all arms again: python -m st2v_lib.notebook.long_record"
        )


def _agrees(old: Any, new: Any) -> bool:
    """Whether two values are equal; a config may have got new fields since."""
    if isinstance(old, dict) and isinstance(new, dict):
        return all(name in new and _agrees(value, new[name]) for name, value in old.items())
    return old == new


def added(old: tuple[dict, dict], new: tuple[dict, dict]) -> tuple[dict, dict[str, np.ndarray]]:
    """A record and its pictures with the arms of another one; an arm that both have is the new one's."""
    fresh = {name: {**arm, "versions": new[0]["versions"]} for name, arm in new[0]["arms"].items()}
    arms, pictures = old[0]["arms"] | fresh, old[1] | new[1]
    order = sorted(arms, key=[*ARMS, *arms].index)
    seconds = sum(arms[name]["seconds"] for name in order)
    record = {**old[0], "changes": new[0]["changes"], "seconds": seconds, "arms": {name: arms[name] for name in order}}
    return record, {name: pictures[name] for name in order}


def label(record: dict) -> str:
    """A line for the head of a figure: that it is recorded, of what, and whether of the weights that lie here now."""
    fresh = record["weights"] == weights_mark(idle=IDLE)
    whose = f"the shipped weights ({record['weights']})" if fresh else f"OTHER WEIGHTS ({record['weights']})"
    return f"recorded, not made live: stage 2, one prompt, seed {record['seed']}, {whose}"


def main(arguments: list[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=FRAMES, help=f"length of the long arms' videos ({FRAMES})")
    parser.add_argument("--others", type=int, default=OTHERS, help=f"length of the other arms' ({OTHERS})")
    parser.add_argument("--every", type=int, default=EVERY, help=f"frames from one picture to the next ({EVERY})")
    parser.add_argument(
        "--only", nargs="+", choices=ARMS, help="make these arms and add them to the record that is there"
    )
    parser.add_argument("--out", type=Path, default=data_dir() / "results", help="folder (default: the kit's results)")
    args = parser.parse_args(arguments)
    if args.only:
        may_grow(read(args.out)[0], args.every)
    made = run(args.frames, args.others, args.every, args.only or tuple(ARMS))
    record, pictures = added(read(args.out), made) if args.only else made
    write(args.out, record, pictures)
    print(f"{args.out / 'long_record.json'}: {label(record)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
