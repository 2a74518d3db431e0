"""A fragmented mp4: plays while it grows, whole after any cut, the same bytes from the same frames."""

from __future__ import annotations

import subprocess

import numpy as np
import pytest

from st2v_lib.errors import InputError, OutputError
from st2v_lib.live_video import encode_fragment, grow
from st2v_lib.video_io import ffmpeg_exe, iter_video, probe, read_video

COUNTS = (16, 8, 8, 3)


@pytest.fixture(scope="module")
def video():
    """A square that moves on a gradient, 35 frames of odd size."""
    frames = np.zeros((sum(COUNTS), 31, 45, 3), np.uint8)
    frames[..., 0] = np.arange(45) * 5
    for t, frame in enumerate(frames):
        frame[8:20, t : t + 10] = (30, 220, 60)
    return frames


@pytest.fixture(scope="module")
def parts(video):
    out, at = [], 0
    for index, count in enumerate(COUNTS):
        init, piece = encode_fragment(video[at : at + count], 8, index, at, {"prompt": "a; b=c\n“d”", "seed": 7})
        out.append((init, piece))
        at += count
    assert len({init for init, _ in out}) == 1
    return [out[0][0], *(piece for _, piece in out)]


def test_it_plays_at_every_length(video, parts, tmp_path):
    path, total = tmp_path / "a.mp4", 0
    for index, count in enumerate(COUNTS):
        grow(path, parts[: index + 2])
        total += count
        shown = read_video(path)
        assert shown.shape == (total, 31, 45, 3)
        assert np.abs(shown.astype(int) - video[:total]).mean() < 6
    info = probe(path)
    assert info["metadata"] == {"prompt": "a; b=c\n“d”", "seed": 7} and info["fps"] == 8
    assert info["frames"] == len(video)


def test_its_times_are_evenly_spaced(parts, tmp_path):
    grow(tmp_path / "a.mp4", parts)
    command = [ffmpeg_exe(), "-v", "error", "-copyts", "-i", str(tmp_path / "a.mp4"), "-f", "framecrc", "-"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    times = [int(line.split(",")[1]) for line in lines if line and not line.startswith("#")]
    assert times == list(range(sum(COUNTS)))


def test_a_writer_that_died_leaves_a_playable_file(parts, tmp_path):
    """Cut in the middle of a piece, which is where a dying process may leave it."""
    whole = b"".join(parts)
    before = len(b"".join(parts[:3]))
    for cut in (before + 1, before + 60, before + len(parts[3]) // 2):
        path = tmp_path / f"{cut}.mp4"
        path.write_bytes(whole[:cut])
        command = [ffmpeg_exe(), "-v", "quiet", "-i", str(path), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
        data = subprocess.run(command, capture_output=True, check=False).stdout
        assert len(data) // (32 * 46 * 3) >= 24
        grow(path, parts)  # and is mended
        assert path.read_bytes() == whole


def test_growing_keeps_what_agrees(parts, tmp_path):
    path = tmp_path / "a.mp4"
    grow(path, parts[:2])
    with open(path, "rb") as player:  # the same file goes on: no new one under its name
        grow(path, parts)
        assert player.read() == b"".join(parts)
    path.write_bytes(b"".join(parts[:2]) + b"something else that is long enough" * 400)
    grow(path, parts[:3])
    assert path.read_bytes() == b"".join(parts[:3])


def test_the_same_frames_give_the_same_bytes(video, parts):
    assert encode_fragment(video[16:24], 8, 1, 16, {"prompt": "a; b=c\n“d”", "seed": 7}) == (parts[0], parts[2])


def test_wrong_places(parts, tmp_path):
    with pytest.raises(InputError, match="mp4"):
        grow(tmp_path / "a.avi", parts)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        grow(tmp_path / "file" / "a.mp4", parts)
    with pytest.raises(OutputError, match="could not be encoded"):
        encode_fragment(np.zeros((1, 4, 4, 3), np.uint8), -1, 0, 0)


def test_another_fps(video, tmp_path):
    init, first = encode_fragment(video[:5], 29.97, 0, 0)
    _, second = encode_fragment(video[5:9], 29.97, 1, 5)
    grow(tmp_path / "a.mp4", [init, first, second])
    assert len(list(iter_video(tmp_path / "a.mp4"))) == 9
    assert probe(tmp_path / "a.mp4")["fps"] == pytest.approx(29.97, abs=0.1)
