"""Prompt schedules: every frame has one prompt, or the mistake is named."""

from __future__ import annotations

import pytest

from st2v_lib.checks import prompt_ranges, prompt_schedule
from st2v_lib.config import preset
from st2v_lib.errors import InputError

from .micro import OTHER, PROMPT

CFG = preset("tiny")


def test_all_forms_say_the_same():
    starts = {40: OTHER, 0: PROMPT}
    ranges = {(0, 40): PROMPT, (40, 80): OTHER}
    mixed = {(0, 40): PROMPT, 40: OTHER}
    assert prompt_ranges(starts, CFG, 80) == prompt_ranges(ranges, CFG, 80) == prompt_ranges(mixed, CFG)
    at = prompt_schedule(ranges, CFG, 80)
    assert [at(0), at(39), at(40), at(79)] == [PROMPT, PROMPT, OTHER, OTHER]


@pytest.mark.parametrize(
    ("schedule", "says"),
    [
        ({8: PROMPT}, "nothing for frame 0; it starts at 8"),
        ({}, "nothing for frame 0"),
        ({(0, 40): PROMPT, (48, 80): OTHER}, "gap: frames 40 to 47"),
        ({(0, 40): PROMPT, 48: OTHER}, "gap: frames 40 to 47"),
        ({(0, 40): PROMPT, (32, 80): OTHER}, "overlaps: the frames from 32 on"),
        ({(0, 40): PROMPT, 0: OTHER}, "overlaps: the frames from 0 on"),
        ({(0, 40): PROMPT, (40, 72): OTHER}, "gap: frames from 72 on"),
        ({(0, 40): PROMPT, (40, 88): OTHER}, "goes to frame 87, the video ends at 79"),
        ({0: PROMPT, 80: OTHER}, "goes to frame 80, the video ends at 79"),
        ({(8, 8): PROMPT, 0: OTHER}, "9 or more, got 8"),
        ({-1: PROMPT}, "0 or more"),
        ({"0": PROMPT}, "whole number"),
        ({0: PROMPT, 40: " "}, "empty"),
    ],
)
def test_mistakes_are_named(schedule, says):
    with pytest.raises(InputError, match=says):
        prompt_ranges(schedule, CFG, 80)


def test_a_video_without_end_needs_a_last_prompt_without_end():
    with pytest.raises(InputError, match="let the last entry have no end"):
        prompt_ranges({(0, 40): PROMPT, (40, 80): OTHER}, CFG)


def test_the_pipeline_checks_it_at_once(pipe):
    for call in (pipe, pipe.stream):
        with pytest.raises(InputError, match="ends at 23"):
            call({0: PROMPT, 24: OTHER}, num_frames=24, progress=False)
    state = pipe.stream(PROMPT, 24, progress=False)
    list(state)
    pipe.stream({(0, 24): PROMPT, (24, 40): OTHER}, 16, state=state.state, progress=False)
    with pytest.raises(InputError, match="ends at 39"):
        pipe.stream({0: PROMPT, 40: OTHER}, 16, state=state.state, progress=False)
