"""SCuts: number of hard cuts in a video that should have none (paper §5), found by PySceneDetect's AdaptiveDetector.

Units: cuts per video; ``protocol["cuts"]`` has the frames that begin a new scene. The detector compares neighbouring
frames in HSV, and reports a frame whose change is ``adaptive_threshold`` times the mean change of the ``window_width``
frames on either side, and at least ``min_content_val``.

What it cannot see: a cut less than ``min_scene_len`` frames after the one before (or after the start) is dropped, and
with the default of 15 that hides every second jump of a method that jumps at each 8-frame chunk (7 of 14 are found;
with 1, all). A change counts only against its neighbours: where every frame jumps (noise, shuffled frames, cuts every 2
frames) hardly any is reported. The first and last two frames are never reported; soft morphing is no cut, a flash is.
"""

from __future__ import annotations

import numpy as np

from st2v_lib.metrics.base import MetricResult
from st2v_lib.video_io import as_frames

DEFAULTS = {"adaptive_threshold": 3.0, "min_scene_len": 15, "window_width": 2, "min_content_val": 15.0}


class CutFinder:
    """The detector, fed frame by frame; frames wider or higher than 256 px are scaled down as PySceneDetect does."""

    def __init__(self, **parameters):
        from scenedetect.detectors import AdaptiveDetector

        self.parameters = {**DEFAULTS, **parameters}
        self.detector = AdaptiveDetector(**self.parameters)
        self.cuts: list[int] = []
        self.count = 0

    def add(self, frame: np.ndarray) -> None:
        """Take the next frame, ``uint8 h w c`` RGB."""
        import cv2
        from scenedetect import FrameTimecode
        from scenedetect.scene_manager import compute_downscale_factor

        image = cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2BGR)
        factor = compute_downscale_factor(max(image.shape[:2]))
        if factor > 1:
            h, w = image.shape[:2]
            image = cv2.resize(
                image, (max(1, round(w / factor)), max(1, round(h / factor))), interpolation=cv2.INTER_LINEAR
            )
        found = self.detector.process_frame(FrameTimecode(self.count, fps=1.0), image)
        self.cuts += [cut.frame_num for cut in found]
        self.count += 1

    def result(self) -> MetricResult:
        """Number of scenes less one; 0 without a cut."""
        import scenedetect

        cuts = sorted(set(self.cuts))
        detector = f"PySceneDetect {scenedetect.__version__} AdaptiveDetector"
        protocol = {"detector": detector, **self.parameters, "frames": self.count, "cuts": cuts}
        return MetricResult("scuts", float(len(cuts)), protocol=protocol)


def scene_cuts(video, **parameters) -> MetricResult:
    """Count hard cuts; lower is better.

    Args:
        video: ``uint8 f h w c`` or float ``f c h w`` in [-1, 1]; any length from one frame.
        **parameters: of the detector: ``adaptive_threshold`` 3.0, ``min_scene_len`` 15 frames (1 finds all),
            ``window_width`` 2, ``min_content_val`` 15.0.

    Raises:
        ValueError: wrong layout or range.
        TypeError: unknown parameter.
    """
    finder = CutFinder(**parameters)
    for frame in as_frames(video):
        finder.add(frame)
    return finder.result()
