"""Reading and writing videos, and what happens when a file or a folder is not what it should be."""

import math
import subprocess
import sys
import textwrap

import cv2
import numpy as np
import pytest
import torch

from st2v_lib.errors import UserError
from st2v_lib.video_io import (
    VideoWriter,
    as_frames,
    from_uint8,
    iter_video,
    probe,
    read_image,
    read_video,
    setup_mediapy,
    to_uint8,
    write_video,
)

from . import videos


def smooth_grey(frames, h, w):
    v = videos.translation(frames, h, w, 1, 0)
    return np.repeat(v[..., :1], 3, axis=-1)  # without colour, the halved chroma of yuv420p costs nothing


# --------------------------------------------------------------------------------------------------- conversion


def test_uint8_round_trip_is_exact():
    v = videos.noise(3, 5, 7)
    x = from_uint8(v)
    assert x.shape == (3, 3, 5, 7) and x.min() >= -1 and x.max() <= 1
    np.testing.assert_array_equal(to_uint8(x), v)
    np.testing.assert_array_equal(to_uint8(x.numpy()), v)
    np.testing.assert_array_equal(to_uint8(from_uint8(v[None])), v[None])
    np.testing.assert_array_equal(as_frames(x), as_frames(v))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.zeros(2, 4, 4, 3), "c = 3"),
        (torch.zeros(3, 4, 4), "f c h w"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.int64), "int64"),
        (torch.full((2, 3, 4, 4), 1.2), r"got \[1.2, 1.2\]"),
        (torch.full((2, 3, 4, 4), math.nan), "NaN"),
        (torch.zeros(0, 3, 4, 4), "shape"),
    ],
)
def test_to_uint8_names_what_it_got(bad, message):
    with pytest.raises(ValueError, match=message):
        to_uint8(bad)


def test_from_uint8_names_what_it_got():
    with pytest.raises(ValueError, match="float32 of shape"):
        from_uint8(np.zeros((2, 4, 4, 3), np.float32))
    with pytest.raises(ValueError, match=r"\(2, 3, 4, 4\)"):
        from_uint8(np.zeros((2, 3, 4, 4), np.uint8))


# --------------------------------------------------------------------------------------------------- round trip


@pytest.mark.parametrize(("h", "w"), [(64, 64), (63, 65), (48, 97), (17, 16)])
def test_mp4_round_trip(tmp_path, h, w):
    v = smooth_grey(9, h, w)
    record = {"prompt": 'a "red" circle; x=1 # \\ é\nnew line', "seed": 3, "config": {"steps": 20}}
    path = write_video(tmp_path / "v.mp4", v, fps=10, metadata=record)
    back = read_video(path)
    assert back.shape == v.shape and back.dtype == np.uint8
    assert np.abs(back.astype(int) - v).mean() < 1.5
    info = probe(path)
    assert (info["height"], info["width"], info["frames"], info["fps"]) == (h, w, 9, 10)
    assert info["stored_height"] % 2 == 0 and info["stored_width"] % 2 == 0
    assert info["metadata"] == record and info["codec"] == "h264"
    assert [p.name for p in tmp_path.iterdir()] == ["v.mp4"]


@pytest.mark.parametrize("colour", [(255, 0, 0), (0, 0, 255), (10, 200, 90), (128, 128, 128)])
def test_colours_survive(tmp_path, colour):
    v = np.full((3, 32, 32, 3), colour, np.uint8)
    assert np.abs(read_video(write_video(tmp_path / "c.mp4", v)).astype(int) - v).max() <= 2


def test_writing_in_pieces_is_the_same_as_at_once(tmp_path):
    v = videos.translation(12, 32, 48, 1, 1)
    once = read_video(write_video(tmp_path / "once.mp4", v))
    with VideoWriter(tmp_path / "pieces.mp4") as out:
        out.write(v[:5])
        out.write(v[5])
        out.write(from_uint8(v[6:]))
        assert not (tmp_path / "pieces.mp4").exists()  # not under its final name before it is complete
    np.testing.assert_array_equal(read_video(tmp_path / "pieces.mp4"), once)
    np.testing.assert_array_equal(read_video(write_video(tmp_path / "iter.mp4", iter(v))), once)


def test_mp4_reading_streams(tmp_path):
    path = write_video(tmp_path / "v.mp4", smooth_grey(30, 32, 32))
    frames = iter_video(path)
    first = next(frames)
    assert first.shape == (32, 32, 3) and first.flags.writeable
    frames.close()  # leaves no process behind and raises nothing


def test_folders_and_arrays(tmp_path):
    v = videos.translation(12, 20, 30, 1, 0)
    folder = tmp_path / "frames"
    folder.mkdir()
    for i, frame in enumerate(v):
        cv2.imwrite(str(folder / f"f{i}.png"), frame[..., ::-1])  # f10 comes after f2
    np.testing.assert_array_equal(read_video(folder), v)
    np.save(tmp_path / "u8.npy", v)
    np.save(tmp_path / "float.npy", from_uint8(v).numpy())
    np.savez(tmp_path / "v.npz", video=v, other=np.zeros(3))
    for name in ("u8.npy", "float.npy", "v.npz"):
        np.testing.assert_array_equal(read_video(tmp_path / name), v)


def test_images_that_cannot_be_read_and_a_colon_in_a_name(tmp_path, monkeypatch):
    (tmp_path / "a.png").mkdir()
    with pytest.raises(UserError, match="no png or jpg"):
        list(iter_video(tmp_path))
    (tmp_path / "b.png").touch()
    for read in (lambda: list(iter_video(tmp_path)), lambda: read_image(tmp_path / "b.png")):
        with pytest.raises(UserError, match="empty or damaged"):
            read()
    monkeypatch.chdir(tmp_path)
    write_video("take:1.mp4", np.zeros((3, 16, 16, 3), np.uint8))
    assert probe("take:1.mp4")["frames"] == len(read_video("take:1.mp4")) == 3


def test_mediapy_finds_ffmpeg(tmp_path):
    import mediapy

    setup_mediapy()
    v = smooth_grey(4, 32, 32)
    (tmp_path / "v.mp4").write_bytes(mediapy.compress_video(v, fps=8))
    assert read_video(tmp_path / "v.mp4").shape == v.shape  # also a file that is not ours


# ------------------------------------------------------------------------------------------------- damaged input


@pytest.mark.parametrize("share", [0.01, 0.3, 0.7, 0.97])
def test_truncated_mp4(tmp_path, share):
    path = write_video(tmp_path / "v.mp4", videos.translation(30, 64, 64, 2, 1))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(UserError, match="v.mp4: (truncated|no frame)"):
        read_video(path)


def test_inputs_that_are_no_video(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_video(tmp_path / "absent.mp4")
    for name in ("empty.mp4", "empty.npy"):
        (tmp_path / name).touch()
        with pytest.raises(UserError, match="empty"):
            read_video(tmp_path / name)
    for name in ("text.mp4", "text.npy", "text.npz"):
        (tmp_path / name).write_text("not a video")
        with pytest.raises(UserError, match=name):
            read_video(tmp_path / name)
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(UserError, match="no png or jpg"):
        read_video(folder)
    cv2.imwrite(str(folder / "1.png"), np.zeros((8, 8, 3), np.uint8))
    cv2.imwrite(str(folder / "2.png"), np.zeros((8, 9, 3), np.uint8))
    with pytest.raises(UserError, match="2.png: got 9x8"):
        read_video(folder)
    (folder / "2.png").write_bytes(b"damaged")
    with pytest.raises(UserError, match="2.png"):
        read_video(folder)
    np.save(tmp_path / "range.npy", np.full((2, 3, 4, 4), 7.0))
    with pytest.raises(UserError, match="frame 0: expected values in"):
        read_video(tmp_path / "range.npy")
    np.save(tmp_path / "flat.npy", np.zeros(5))
    with pytest.raises(UserError, match=r"shape \(5,\)"):
        read_video(tmp_path / "flat.npy")


# ------------------------------------------------------------------------------------------------------- output


def test_unwritable_outputs(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder.mp4").mkdir()
    v = videos.static(2, 16, 16)
    for path in (tmp_path / "file" / "v.mp4", tmp_path / "file" / "deep" / "v.mp4", tmp_path / "folder.mp4"):
        with pytest.raises(UserError, match="cannot write"):
            VideoWriter(path)
    with pytest.raises(ValueError, match="mp4"):
        write_video(tmp_path / "v.gif", v)
    with pytest.raises(ValueError, match="fps"):
        write_video(tmp_path / "v.mp4", v, fps=0)


def test_an_error_leaves_nothing_and_keeps_an_old_file(tmp_path):
    path = tmp_path / "v.mp4"
    write_video(path, videos.static(2, 16, 16))
    old = path.read_bytes()
    for error in (RuntimeError, KeyboardInterrupt):
        with pytest.raises(error), VideoWriter(path) as out:
            out.write(videos.static(2, 16, 16))
            raise error
    with pytest.raises(ValueError, match="expected frames of 16x16 pixels, got 20x16"), VideoWriter(path) as out:
        out.write(videos.static(2, 16, 16))
        out.write(videos.static(2, 16, 20))
    with pytest.raises(UserError, match="no frame"), VideoWriter(path):
        pass
    assert path.read_bytes() == old and [p.name for p in tmp_path.iterdir()] == ["v.mp4"]


@pytest.mark.skipif(sys.platform == "win32", reason="file size limits are a POSIX feature")
def test_running_out_of_space_is_one_message(tmp_path):
    program = textwrap.dedent(f"""
        import resource, numpy as np
        from st2v_lib.errors import UserError
        from st2v_lib.video_io import VideoWriter
        resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
        try:
            with VideoWriter({str(tmp_path / "v.mp4")!r}) as out:
                for i in range(200):
                    out.write(np.random.default_rng(i).integers(0, 256, (64, 64, 3), dtype=np.uint8))
        except UserError as error:
            print("message:", error)
    """)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("message: cannot write") and "after" in done.stdout
    assert list(tmp_path.iterdir()) == []
