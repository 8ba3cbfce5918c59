"""WhoseText in a browser: hand and keys pick users, prompts bring texts, and a new one asks."""

from __future__ import annotations

import gallery
import pytest
from widget_page import Open

from vblora_lab.tables import readable

CARDS = ".vblora-whose-card"


@pytest.fixture(scope="module")
def shown():
    return gallery.whose_text()


@pytest.fixture
def whose(open_page, shown):
    def show(width=1180, dark=False, **traits) -> Open:
        opened = open_page(shown, width=width, dark=dark)
        opened.page.evaluate("traits => model.load(traits)", {"user": 0, "other": 1, **traits})
        opened.settle()
        return opened

    return show


def cards(opened) -> list[str]:
    return opened.page.locator(f"{CARDS} p").all_inner_texts()


def expected(shown, prompt, *names) -> list[str]:
    return [shown.texts[prompt][name]["text"] for name in names]


def names_of(shown) -> list[str]:
    return [user["name"] for user in shown.users]


def test_a_click_on_a_column_shows_that_user(whose, shown):
    opened, names = whose(), names_of(shown)
    prompt = opened.get("prompt")
    for user in (3, len(names) - 1):
        # The middle of the user's column: labels of the axis stand there.
        drawing = opened.page.locator(".vblora-whose-drawing").first
        box = drawing.get_by_text(names[user], exact=True).bounding_box()
        drawing.click(
            position={"x": box["x"] + box["width"] / 2 - drawing.bounding_box()["x"], "y": 90}
        )
        opened.settle()
        assert opened.get("user") == user
        assert cards(opened) == expected(shown, prompt, names[user], "__base__", names[1])
        said = opened.page.locator(".vblora-whose-words").inner_text()
        for method, sizes in shown.stored.items():
            assert f"{method}: {readable(sizes[user])}" in said.replace("\n", " ")


def test_a_row_of_the_map_shows_that_user_too(whose, shown):
    opened = whose()
    opened.page.locator('.vblora-whose-cell[data-row="2"]').first.click()
    opened.settle()
    assert opened.get("user") == 2
    count = len(shown.users)
    opened.page.locator(f'.vblora-whose-cell[data-row="{count}"]').first.click()  # the base model
    assert opened.get("user") == 2


def test_keys_walk_through_the_users_and_never_compare_one_with_itself(whose, shown):
    opened, last = whose(), len(shown.users) - 1
    slider = opened.page.get_by_role("slider", name="user")
    slider.focus()
    pairs = []
    for key in ("ArrowRight", "ArrowRight", "End", "ArrowRight", "ArrowLeft", "Home", "ArrowLeft"):
        opened.page.keyboard.press(key)
        opened.settle()
        pairs.append((opened.get("user"), opened.get("other")))
        assert slider.get_attribute("aria-valuetext") == names_of(shown)[pairs[-1][0]]
    assert [user for user, _ in pairs] == [1, 2, last, last, last - 1, 0, 0]
    assert all(user != other for user, other in pairs)


def test_prompts_and_the_other_user_are_chosen(whose, shown):
    opened, names = whose(), names_of(shown)
    prompt = list(shown.texts)[-1]
    opened.page.get_by_label("facts", exact=True).select_option(prompt)
    opened.page.get_by_label("another user").select_option(str(len(names) - 1))
    opened.settle()
    assert cards(opened) == expected(shown, prompt, names[0], "__base__", names[-1])
    cells = opened.page.locator(".vblora-whose-number").all_text_contents()
    rows = [shown.texts[prompt][name]["shares"] for name in [*names, "__base__"]]
    assert cells == [f"{share:.2f}" for row in rows for share in row]


def test_marks_of_both_styles_stand_out_and_nothing_else(whose, shown):
    opened, names = whose(), names_of(shown)
    for kind, user in (("mine", 0), ("other", 1)):
        marks = opened.page.locator(f".vblora-whose-mark-{kind}").all_inner_texts()
        assert set(marks) <= set(shown.users[user]["marks"])
    text = expected(shown, opened.get("prompt"), names[0])[0]
    there = [mark for mark in shown.users[0]["marks"] if mark in text]
    first = opened.page.locator(CARDS).first.locator(".vblora-whose-mark-mine").all_inner_texts()
    assert there and sorted(first) == sorted(there)


def test_a_new_prompt_goes_to_the_kernel_and_its_answer_is_shown(whose, shown):
    opened, names = whose(), names_of(shown)
    box = opened.page.get_by_label("or your own")
    box.fill("name[Blue Spice]")
    box.press("Enter")
    assert opened.page.evaluate("model.sent") == [{"write": "name[Blue Spice]"}]
    opened.page.evaluate("model.load({ state: { busy: true, error: '' } })")
    opened.settle()
    assert opened.page.get_by_role("button", name="Write").is_disabled()
    one = {
        name: {"text": f"by {name}", "shares": [0.5] * len(names)} for name in [*names, "__base__"]
    }
    answer = {"texts": {**shown.texts, "name[Blue Spice]": one}, "prompt": "name[Blue Spice]"}
    opened.page.evaluate("a => model.load(a)", {**answer, "state": {"busy": False, "error": ""}})
    opened.settle()
    assert cards(opened) == [f"by {names[0]}", "by __base__", f"by {names[1]}"]
    assert opened.page.get_by_label("facts", exact=True).input_value() == "name[Blue Spice]"
    opened.page.evaluate("model.load({ state: { busy: false, error: 'no slot <b>' } })")
    opened.settle()
    assert "no slot <b>" in opened.page.locator(".vblora-whose-problem").inner_text()
    opened.page.evaluate("model.load({ answers: false })")
    opened.settle()
    assert not box.is_visible()


def test_its_page_works_without_a_kernel(browser, shown, tmp_path):
    shown.to_html(tmp_path / "whose.html")
    page = browser.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto((tmp_path / "whose.html").as_uri())
    prompt = list(shown.texts)[1]
    page.get_by_label("facts", exact=True).select_option(prompt)
    page.get_by_role("slider", name="user").press("End")
    wanted = expected(shown, prompt, names_of(shown)[-1])[0]
    page.locator(f"{CARDS} p", has_text=wanted).first.wait_for()
    assert not page.get_by_label("or your own").is_visible()
    page.close()
    assert errors == []


@pytest.mark.parametrize(("width", "dark"), [(420, False), (760, True), (1180, False)])
def test_it_fits(whose, screenshots, width, dark):
    opened = whose(width=width, dark=dark)
    assert not opened.page.evaluate("document.documentElement.scrollWidth > innerWidth")
    opened.page.screenshot(path=screenshots / f"whose-text-{width}-{dark}.png", full_page=True)


def test_a_view_that_is_gone_listens_no_more(whose):
    page = whose().page
    page.evaluate("window.leave()")
    assert page.evaluate("Object.values(window.model.listeners).flat().length") == 0
