"""Small videos whose metrics are known."""

import cv2
import numpy as np


def texture(h: int, w: int, seed: int = 0, blur: float = 2.0) -> np.ndarray:
    """A smooth random colour picture that uses grey levels 0..255, ``uint8 h w 3``."""
    noise = np.random.default_rng(seed).normal(size=(h, w, 3)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), blur)
    return cv2.normalize(smooth, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)


def translation(frames: int, h: int, w: int, dx: int, dy: int, seed: int = 0) -> np.ndarray:
    """The content moves by (dx, dy) whole pixels a frame; new content comes in from outside."""
    mx, my = abs(dx) * frames, abs(dy) * frames
    big = texture(h + 2 * my, w + 2 * mx, seed)
    return np.stack([big[my - dy * i : my - dy * i + h, mx - dx * i : mx - dx * i + w] for i in range(frames)])


def constant_flow(frames: int, h: int, w: int, dx: float, dy: float) -> np.ndarray:
    flow = np.zeros((frames - 1, 2, h, w), np.float32)
    flow[:, 0], flow[:, 1] = dx, dy
    return flow


def subpixel(frames: int, h: int, w: int, speed: float, seed: int = 0) -> np.ndarray:
    """A sum of horizontal waves that moves to the right by ``speed`` px a frame, exact at any speed."""
    rng = np.random.default_rng(seed)
    x, y = np.arange(w), np.arange(h)[:, None]
    waves = [(rng.uniform(0.15, 0.5), rng.uniform(-0.4, 0.4), rng.uniform(0, 6.28)) for _ in range(12)]
    out = [sum(np.cos(kx * (x - speed * i) + ky * y + p) for kx, ky, p in waves) for i in range(frames)]
    out = np.stack(out)
    grey = np.round(127.5 + 127.5 * out / np.abs(out).max()).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1)


def shots(stride: int, count: int, h: int = 48, w: int = 64) -> np.ndarray:
    """``count`` shots of ``stride`` frames, each a colour with a little texture of its own that moves slowly."""
    colours = [(220, 40, 40), (40, 60, 220), (60, 200, 60), (230, 210, 40)]
    videos = []
    for k in range(count):
        move = translation(stride, h, w, 1, 0, seed=k).astype(np.float32)
        videos.append(0.8 * np.array(colours[k % 4], np.float32) + 0.2 * move)
    return np.concatenate(videos).astype(np.uint8)


def static(frames: int, h: int = 48, w: int = 64, seed: int = 0) -> np.ndarray:
    return np.repeat(texture(h, w, seed)[None], frames, axis=0)


def noise(frames: int, h: int = 48, w: int = 64, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (frames, h, w, 3), dtype=np.uint8)


def zoom(frames: int, side: int, factor: float, seed: int = 0) -> np.ndarray:
    """A texture that grows by ``factor`` a frame about the centre of the picture, ``(side - 1) / 2``."""
    big = texture(4 * side, 4 * side, seed, blur=8.0)
    centre, out = (4 * side - 1) / 2, []
    for i in range(frames):
        step = 4 / factor**i
        shift = centre - step * (side - 1) / 2
        warp = np.array([[step, 0, shift], [0, step, shift]])
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        out.append(cv2.warpAffine(cv2.GaussianBlur(big, (0, 0), 2.0), warp, (side, side), flags=flags))
    return np.stack(out)


def zoom_flow(frames: int, side: int, factor: float) -> np.ndarray:
    """The true flow of ``zoom``: away from the centre by ``factor - 1`` of the distance."""
    away = (np.arange(side, dtype=np.float32) - (side - 1) / 2) * (factor - 1)
    flow = np.stack(np.broadcast_arrays(away[None, :], away[:, None]))
    return np.repeat(flow[None], frames - 1, axis=0).astype(np.float32)


def flicker(frames: int, amplitude: int, h: int = 48, w: int = 64) -> np.ndarray:
    """A still picture whose brightness alternates by +-amplitude; grey levels stay inside 0..255."""
    base = (texture(h, w).astype(np.float32) * 0.5 + 60).astype(np.uint8)
    sign = np.where(np.arange(frames) % 2, -1, 1)[:, None, None, None]
    return (base[None].astype(np.int16) + amplitude * sign).astype(np.uint8)


def fade(frames: int, end: float, h: int = 48, w: int = 64) -> np.ndarray:
    """A still picture that drifts slowly towards grey 127: what is left of it falls from 1 to ``end``."""
    left = np.linspace(1, end, frames)[:, None, None, None]
    return (127 + (static(frames, h, w).astype(np.float32) - 127) * left).round().astype(np.uint8)
