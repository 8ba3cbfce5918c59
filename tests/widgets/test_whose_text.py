"""WhoseText from Python: one batch for all, shares, what it refuses, its picture and its page."""

import numpy as np
import pytest

from vblora_lab import WhoseText
from vblora_lab.data import format_mr, parse_mr
from vblora_lab.data.styles import facts_for, styles
from vblora_lab.errors import ConfigError, DataError

NAMES = ("ada", "grace", "mary")
USERS = dict(zip(NAMES, styles(3, seed=0), strict=True))
STORED = {"LoRA": [300, 600, 900], "VB-LoRA, one bank for all": [110, 120, 130]}
PROMPTS = [format_mr(facts) for facts in facts_for(2, seed=0)]


class Writer:
    """Gives each user their own text, but mary ada's; counts its calls, and can break down."""

    def __init__(self):
        self.calls: list[int] = []
        self.error: BaseException | None = None

    def __call__(self, mrs, names):
        self.calls.append(len(mrs))
        if self.error is not None:
            raise self.error
        whose = {**USERS, "mary": USERS["ada"]}
        return [
            whose[name].text(parse_mr(mr)) if name in whose else f"{mr} is it."
            for mr, name in zip(mrs, names, strict=True)
        ]


@pytest.fixture
def writer():
    return Writer()


@pytest.fixture
def shown(writer):
    return WhoseText(USERS, STORED, PROMPTS, writer)


def test_all_texts_come_from_one_batch_and_a_new_prompt_from_another(shown, writer):
    assert writer.calls == [2 * 4]
    assert list(shown.texts) == PROMPTS and shown.prompt == PROMPTS[0]
    told = shown.write(" food[Thai],name[Blue Spice]")
    assert writer.calls == [8, 4] and shown.prompt == "food[Thai], name[Blue Spice]"
    assert told["grace"] == USERS["grace"].text({"name": "Blue Spice", "food": "Thai"})
    assert set(told) == {*NAMES, "__base__"}
    shown.write(PROMPTS[1])  # is there already
    assert writer.calls == [8, 4] and shown.prompt == PROMPTS[1]


def test_shares_are_those_of_the_styles(shown):
    facts = [parse_mr(prompt) for prompt in PROMPTS]
    shares = shown.shares
    assert [shares["ada"][0], shares["grace"][1], shares["mary"][0]] == [1, 1, 1]
    by_hand = [USERS["mary"].share(USERS["ada"].text(each), each) for each in facts]
    assert (
        shares["mary"][2] == shares["ada"][2] == pytest.approx(np.mean(by_hand)) and by_hand[0] < 1
    )
    assert max(shares["__base__"]) < 0.5


@pytest.mark.parametrize("prompt", ["no facts", "", "name[Blue Spice"])
def test_a_prompt_that_cannot_be_read_leaves_all_as_it_was(shown, writer, prompt):
    before = (dict(shown.texts), shown.prompt)
    with pytest.raises(DataError, match="Write slots as"):
        shown.write(prompt)
    assert (dict(shown.texts), shown.prompt) == before and writer.calls == [8]
    assert not shown.state["busy"] and "Write slots as" in shown.state["error"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError("no memory")])
def test_a_batch_that_breaks_down_leaves_all_as_it_was(shown, writer, error):
    before = (dict(shown.texts), shown.prompt)
    writer.error = error
    with pytest.raises(type(error)):
        shown.write("name[Blue Spice]")
    assert (dict(shown.texts), shown.prompt) == before and not shown.state["busy"]
    writer.error = None
    shown.write("name[Blue Spice]")
    assert shown.state == {"busy": False, "error": ""}


def test_what_the_browser_asks_is_answered_or_said(shown, writer):
    shown._on_message(shown, {"write": "name[Blue Spice]"}, [])
    assert shown.prompt == "name[Blue Spice]"
    shown._on_message(shown, {"write": "nonsense"}, [])
    assert "nonsense" in shown.state["error"]
    for strange in (None, [], {"write": 3}, {"other": "x"}):
        shown._on_message(shown, strange, [])
    assert shown.prompt == "name[Blue Spice]" and writer.calls == [8, 4]


def test_what_it_refuses_changes_nothing(shown, writer):
    for name, value, words in (
        ("user", 3, "users have numbers from 0 to 2"),
        ("other", -1, "users have numbers from 0 to 2"),
        ("prompt", PROMPTS[0][:-1], "Did you mean"),
    ):
        before = getattr(shown, name)
        with pytest.raises(ConfigError, match=words):
            setattr(shown, name, value)
        assert getattr(shown, name) == before
    calls = list(writer.calls)
    for arguments, words in (
        (({"ada": USERS["ada"]}, {"LoRA": [1]}, PROMPTS), "1 is too few"),
        ((USERS, {"LoRA": [1]}, PROMPTS), "has 1 sizes, and there are 3"),
        ((USERS, STORED, []), "prompts: there must be one"),
        (({**USERS, "__base__": USERS["ada"]}, STORED, PROMPTS), "name of the base model"),
    ):
        with pytest.raises(ConfigError, match=words):
            WhoseText(*arguments, writer)
    assert writer.calls == calls


def test_its_picture_and_its_page(shown, tmp_path):
    figure = shown.figure()
    lines, cells = figure.axes
    for line, sizes in zip(lines.lines, STORED.values(), strict=True):
        assert list(line.get_ydata() * 1024) == pytest.approx(sizes)
    (picture,) = cells.images
    assert picture.get_array().tolist() == list(shown.shares.values())
    for axes in figure.axes:
        assert axes.get_xlabel() and axes.get_ylabel()
    assert "LoRA 900 bytes" in figure.alt and "grace 1.00" in figure.alt
    text = shown.to_html(tmp_path / "whose.html").read_text(encoding="utf-8")
    assert 'src="http' not in text and len(text) < 400_000
    assert '"answers": false' in text and shown.answers
