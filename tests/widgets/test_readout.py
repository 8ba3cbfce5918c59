"""The panel's words: complete, escaped, and in units people read."""

import pytest
from scripted import sample

from vblora_lab.errors import ConfigError
from vblora_lab.runs.events import Sample
from vblora_lab.widgets import readout


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (125, "2 min 05 s"),
     (3599.7, "1 h 00 min"), (3720, "1 h 02 min")],
)  # fmt: skip
def test_duration(seconds, text):
    assert readout.duration(seconds) == text


def test_samples_mark_errors_in_words_and_escape_what_models_write():
    before = [sample("<script>pub</script>", "missing food[<Thai>]")]
    html = readout.samples(before, [sample("Blue Spice serves Thai food.")], 30)
    assert "<script>" not in html
    assert "&lt;script&gt;pub" in html
    assert "✕ missing food[&lt;Thai&gt;]" in html
    assert "✓ every slot is right" in html
    assert "name[Blue Spice]<br>food[&lt;Thai&gt;]" in html
    assert "After 30 steps" in html


def test_an_instruction_is_shown_whole_and_nothing_is_said_of_slots():
    asked, wanted = "File this: the lamp, 9 EUR [paid]], please.", "expense | amount: 9 EUR"
    before = [Sample(asked, wanted, "Sure! A lamp.", ())]
    html = readout.samples(before, [Sample(asked, wanted, wanted, ())], 30)
    assert asked in html and "every slot" not in html
    assert html.count("✓ word for word") == 1
    assert "✓" not in readout.samples(before, before, 30)


def test_samples_before_the_second_set():
    html = readout.samples([sample("")], [], None)
    assert "(nothing)" in html
    assert "After training" in html
    assert readout.samples([], [], None) == ""


def test_every_status_has_a_word_and_a_sign():
    shown = [readout.header("a", "b", "t", s) for s in ("ready", "running", "completed", "stopped")]
    assert len(set(shown)) == 4
    assert "■ stopped" in shown[-1]


def test_message_is_an_alert_and_escaped():
    ours, foreign = readout.message(ConfigError("a < b")), readout.message(KeyError("a"))
    assert 'role="alert"' in ours
    assert "</b> a &lt; b</div>" in ours
    assert "</b> KeyError: &#x27;a&#x27;</div>" in foreign
