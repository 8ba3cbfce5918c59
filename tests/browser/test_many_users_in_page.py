"""ManyUsers in a browser: sliders need no kernel, and what it says is right."""

from __future__ import annotations

import re

import pytest

from vblora_lab import ManyUsers
from vblora_lab.tables import readable


@pytest.fixture
def many(open_page):
    def show(width=1180, dark=False, **traits):
        return open_page(ManyUsers(**traits), width=width, dark=dark).page

    return show


def drawn(page):
    page.evaluate("new Promise(r => requestAnimationFrame(() => requestAnimationFrame(r)))")
    return page.locator(".vblora-users-words").inner_text()


def place(page, name, value):
    page.get_by_role("slider", name=name).fill(str(value))
    return drawn(page)


def bars(page):
    rows = page.locator(".vblora-users-bar").all()
    return {row.locator("span").inner_text(): row.locator("b").inner_text() for row in rows}


@pytest.mark.parametrize(("model", "rank", "users"), [(0, 3, 0), (3, 6, 40), (4, 0, 60)])
def test_bytes_are_those_that_python_has(many, model, rank, users):
    page = many()
    place(page, "base model", model)
    place(page, "rank", rank)
    place(page, "users", users)
    expected = ManyUsers(
        model=ManyUsers.models()[model], rank=2**rank, users=10 ** (users // 10)
    ).stored_bytes
    shown = bars(page)
    for method, size in expected.items():
        if rank == 0 and method == "LoRA of rank 1":
            continue  # that is LoRA then
        name = f"LoRA of rank {2**rank}" if method == "LoRA" else method
        assert shown[name] == readable(size), method


def test_it_says_from_how_many_users_the_bank_pays(many):
    """The number in the sentence: with it the bank takes the least, with one user fewer not."""
    page = many(model="mini-opt", users=1)
    said = drawn(page)
    count = int(re.search(r"pays from ([\d,]+) users? on", said)[1].replace(",", ""))
    ours = "VB-LoRA, one bank for all"
    for users, is_least in ((count - 1, False), (count, True)):
        stored = ManyUsers(model="mini-opt", users=users).stored_bytes
        others = [size for name, size in stored.items() if not name.startswith("VB")]
        assert (stored[ours] <= min(others)) == is_least
    assert "VeRA takes the least" in said
    assert page.locator(".vblora-users-cross").count() > 0
    assert "It takes the least for any number of users" in place(page, "base model", 4)


def test_a_click_on_the_lines_sets_the_users(many):
    page = many()
    before = page.evaluate("model.get('users')")
    page.locator(".vblora-users-grid svg").first.click(position={"x": 200, "y": 100})
    drawn(page)
    assert 1 < page.evaluate("model.get('users')") < before


@pytest.mark.parametrize(("width", "dark"), [(420, False), (760, True), (1180, False)])
def test_it_fits(many, screenshots, width, dark):
    page = many(width=width, dark=dark)
    drawn(page)
    assert not page.evaluate("document.documentElement.scrollWidth > innerWidth")
    page.screenshot(path=screenshots / f"many-users-{width}-{dark}.png", full_page=True)


def test_a_view_that_is_gone_listens_no_more(many):
    page = many()
    page.evaluate("window.leave()")
    assert page.evaluate("Object.values(window.model.listeners).flat().length") == 0
