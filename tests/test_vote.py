"""The blind vote without a kernel: ballots are values, sides are drawn, clicks are saved, the test is exact."""

from __future__ import annotations

import io
import json
from itertools import product
from math import comb

import numpy as np
import pytest
from PIL import Image

from st2v_lib.errors import InputError, UserError
from st2v_lib.notebook import ballot as b
from st2v_lib.notebook.vote import Pair, VotePanel

ARMS = ("memory", "none")


def video(level: int) -> np.ndarray:
    return np.full((3, 16, 16, 3), level, np.uint8)


def pairs(n: int = 3) -> list[Pair]:
    return [Pair(f"prompt {i}", video(250), video(10)) for i in range(n)]


def vote(ballot: b.Ballot, prefer) -> b.Ballot:
    """Answers everything by ``prefer(first arm is on the right)``."""
    while not ballot.is_done:
        ballot = b.cast(ballot, prefer(ballot.swapped[ballot.place[0]]))
    return ballot


def for_first(swapped: bool) -> str:
    return "right" if swapped else "left"


def test_sides_and_order_come_from_the_seed_and_are_balanced():
    prompts = [str(i) for i in range(8)]
    ballots = [b.new_ballot(ARMS, prompts, seed) for seed in range(40)]
    assert ballots[3] == b.new_ballot(ARMS, prompts, 3)
    assert len({x.order for x in ballots}) > 30 and len({x.swapped for x in ballots}) > 20
    assert all(sum(x.swapped) == 4 and sorted(x.order) == list(range(8)) for x in ballots)
    odd = {sum(b.new_ballot(ARMS, prompts[:3], seed).swapped) for seed in range(20)}
    assert odd == {1, 2}


def test_a_ballot_asks_every_question_of_every_pair_and_never_changes():
    empty = b.new_ballot(ARMS, ["p", "q"], 0)
    asked, ballot = [], empty
    while not ballot.is_done:
        asked.append(ballot.place)
        ballot = b.cast(ballot, "same")
    assert asked == list(product(range(2), b.QUESTIONS)) and empty.votes == ()
    assert b.undo(ballot).place == (1, "overall") and b.undo(empty) == empty
    with pytest.raises(UserError, match="answered"):
        b.cast(ballot, "left")
    with pytest.raises(InputError, match="left, same, right"):
        b.cast(empty, "first")
    with pytest.raises(InputError, match="different arms"):
        b.new_ballot(("a", "a"), ["p"], 0)


def test_votes_are_counted_for_the_arm_and_not_for_the_side():
    prompts = [str(i) for i in range(6)]
    for seed in range(5):
        empty = b.new_ballot(ARMS, prompts, seed)
        assert b.tally([vote(empty, for_first)], "motion") == b.Tally(6, 0, 0)
        assert b.tally([vote(empty, lambda swapped: "left")], "text") == b.Tally(3, 3, 0)
        assert b.tally([vote(empty, lambda swapped: "same")], "overall") == b.Tally(0, 0, 6)
    half = b.cast(b.cast(empty, "left"), "left")
    assert b.tally([half], "overall") == b.Tally(0, 0, 0), "a pair that is not finished counts where it was answered"
    assert sum(vars(b.tally([half], "text")).values()) == 1


def test_many_voters_on_a_pair_are_one_pair():
    prompts = ["p", "q"]
    fans = [vote(b.new_ballot(ARMS, prompts, seed), for_first) for seed in range(4)]
    foe = vote(b.new_ballot(ARMS, prompts, 9), lambda swapped: "left" if swapped else "right")
    assert b.tally([*fans, foe], "motion") == b.Tally(2, 0, 0)
    assert b.tally([fans[0], foe], "motion") == b.Tally(0, 0, 2)
    with pytest.raises(InputError, match="count them apart"):
        b.tally([foe, b.new_ballot(ARMS, ["other"], 0)], "motion")


def test_the_sign_test_is_the_exact_binomial():
    for wins, losses in product(range(8), repeat=2):
        n = wins + losses
        counted = sum(abs(2 * k - n) >= abs(wins - losses) for bits in range(2**n) for k in [bits.bit_count()])
        assert b.sign_test(wins, losses) == pytest.approx(counted / 2**n)
    assert b.sign_test(5, 0) == 0.0625 and b.sign_test(6, 0) == 0.03125
    assert b.sign_test(40, 20) == pytest.approx(2 * sum(comb(60, k) for k in range(21)) / 2**60)
    with pytest.raises(InputError):
        b.sign_test(-1, 2)


def test_the_report_says_what_is_shown():
    empty = b.new_ballot(ARMS, [str(i) for i in range(6)], 0)
    text = b.report([vote(empty, for_first)])
    assert text.count("memory is better") == 3 and "100 % [61, 100]" in text and "0.0312" in text
    assert b.report([vote(empty, lambda swapped: "left")]).count("no difference shown") == 3
    assert b.report([]) == "no votes yet" and "–" in b.report([empty])


def test_votes_are_files(tmp_path):
    ballot = b.cast(b.new_ballot(ARMS, ["p", "q"], 4), "right")
    b.save(ballot, tmp_path / "votes" / "mine.json")
    assert b.read_ballots([tmp_path / "votes" / "mine.json", tmp_path / "none.json"]) == [ballot]
    for wrong in ("{}", "[1]", "no json", json.dumps({**json.loads(json.dumps(vars(ballot))), "votes": ["up"]})):
        (tmp_path / "wrong.json").write_text(wrong)
        with pytest.raises(UserError, match=r"wrong\.json holds no votes"):
            b.read_ballots([tmp_path / "wrong.json"])


def test_the_panel_is_blind_saves_each_click_and_goes_on(tmp_path):
    path = tmp_path / "votes.json"
    panel = VotePanel(pairs(), ARMS, seed=1, path=path)
    first_picture = panel.picture.value
    assert first_picture[:3] == b"GIF" and panel.back.disabled and not path.exists()
    while not panel.ballot.is_done:
        assert not any(arm in panel.text.value for arm in ARMS), "names are not told before the end"
        assert b.QUESTIONS[panel.ballot.place[1]] in panel.text.value
        panel.buttons[for_first(panel.ballot.swapped[panel.ballot.place[0]])].click()
        assert b.read_ballots([path]) == [panel.ballot]
        if len(panel.ballot.votes) == 4:
            panel.back.click()
            assert len(panel.ballot.votes) == 3 and b.read_ballots([path]) == [panel.ballot]
            panel = VotePanel(pairs(), ARMS, seed=1, path=path)
            panel.buttons["same"].click()
    assert "memory wins" in panel.text.value and all(button.disabled for button in panel.buttons.values())
    assert b.tally([panel.ballot], "motion").wins == 2
    with pytest.raises(UserError, match="another seed"):
        VotePanel(pairs(), ARMS, seed=2, path=path)


def test_the_first_arm_is_where_the_ballot_says(tmp_path):
    import io

    from PIL import Image

    panel = VotePanel(pairs(4), ARMS, seed=0, path=tmp_path / "votes.json")
    for swapped in panel.ballot.swapped:
        frame = np.asarray(Image.open(io.BytesIO(panel.picture.value)).convert("L"))[-8]
        left, right = frame[8], frame[-8]
        assert (left < right) == swapped
        for _ in b.QUESTIONS:
            panel.buttons["same"].click()


def test_an_answer_that_cannot_be_saved_is_not_taken(tmp_path):
    (tmp_path / "file").write_text("")
    panel = VotePanel(pairs(), ARMS, seed=1, path=tmp_path / "file" / "votes.json")
    panel.buttons["left"].click()
    assert panel.ballot.votes == () and "cannot be saved" in panel.text.value


def test_a_still_stands_where_there_is_no_kernel(tmp_path):
    """Three moments of the first pair, left beside right; at the end the result in their place."""
    panel = VotePanel(pairs(1), ARMS, 0, tmp_path / "votes.json")
    bundle = panel._repr_mimebundle_()
    assert {"application/vnd.jupyter.widget-view+json", "text/plain", "image/png"} == set(bundle)
    assert b"memory" not in bundle["image/png"] and "memory" not in bundle["text/plain"]
    picture = Image.open(io.BytesIO(bundle["image/png"])).convert("L")
    assert picture.width >= 3 * panel._frames.shape[2] and picture.height > panel._frames.shape[1] + 40
    while not panel.ballot.is_done:
        panel.buttons["left"].click()
    again = VotePanel(pairs(1), ARMS, 0, tmp_path / "votes.json")
    assert "sign test" in again.text.value and again._repr_mimebundle_()["image/png"]
