"""Exercise checker of ``00_start_here``: a sentence that the sprite world understands."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

from st2v_lib.notebook.checks import call, checker, passed


@checker
def check_prompt_writer(fn: Callable) -> None:
    """``fn(colour, shape, motion, ground_colour, ground)``: a prompt that says all five in the world's words."""
    from st2v_lib.world.captions import DENSE_ONLY, SPECIAL, parse_prompt, vocabulary
    from st2v_lib.world.scene import BACKGROUNDS, COLOURS, MOTIONS, SHAPES

    rng, known = random.Random(0), set(vocabulary()) - set(SPECIAL) - set(DENSE_ONLY)
    for motion in (*MOTIONS, *MOTIONS):
        colour, ground_colour = rng.sample(COLOURS, 2)
        shape, ground = rng.choice(SHAPES), rng.choice(BACKGROUNDS)
        asked = (colour, shape, motion, ground_colour, ground)
        text = call(fn, *asked)
        assert isinstance(text, str), f"expected a sentence, got {type(text).__name__}"
        strange = sorted(set(re.findall(r"[a-z]+", text.lower())) - known)
        assert not strange, f"{text!r}: the world has no word for {', '.join(strange)}; see the list above"
        truth = parse_prompt(text)
        said = (*(truth.sprites or ((None, None),))[0], truth.motion, truth.background_colour, truth.background)
        names = ("colour", "shape", "motion", "background colour", "background")
        for name, want, got in zip(names, asked, said):
            hint = "a motion is a verb: bounces, orbits, zigzags, crosses and returns, hides behind a pillar"
            hint = hint if name == "motion" else "colour before shape; 'green stripes', but 'plain green'"
            assert want == got, f"{text!r}: the {name} reads as {got!r}, asked was {want!r}. Hint: {hint}"
        assert len(truth.sprites) == 1, f"{text!r} has {len(truth.sprites)} sprites, asked was one"
    passed("prompt_writer")
