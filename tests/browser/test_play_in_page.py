"""The pages of the site to play with: light, whole, for every width, and what links show."""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from offline import is_dark, open_file, overflows
from PIL import Image

from vblora_lab import ManyUsers, Trace
from vblora_lab.tables import readable

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))
import play
import record_run
import repository
import social

# Bytes of a page, which is one file: 80 kB are there in half a second at 1.6 Mbit/s.
MOST = {play.FRONT: 80_000, play.USERS: 350_000, play.EXPLORER: 700_000, play.TRAINING: 800_000}


@pytest.fixture(scope="module")
def html(tmp_path_factory):
    """The folder of a site with these pages alone."""
    folder = tmp_path_factory.mktemp("html")
    play.write(folder)
    return folder


@pytest.fixture
def opened(browser, html):
    pages = []

    def open_it(which, **options):
        pages.append(open_file(browser, html / which.file, **options))
        return pages[-1]

    yield open_it
    for page in pages:
        page.context.close()
        assert page.wrong == []


@pytest.mark.parametrize("which", play.PAGES, ids=lambda page: page.file)
def test_a_page_is_one_light_file(html, which):
    """No script, style or picture comes beside it: `opened` finds what is asked for elsewhere."""
    assert 10_000 < (html / which.file).stat().st_size <= MOST[which]


@pytest.mark.parametrize("which", play.PAGES, ids=lambda page: page.file)
def test_a_page_says_how_many_notebooks_there_are(html, which):
    last = max(int(path.name[:2]) for path in (repository.ROOT / "notebooks").glob("*.ipynb"))
    assert f"</b>{last + 1} notebooks " in (html / which.file).read_text(encoding="utf-8")


@pytest.mark.parametrize(("width", "dark"), [(400, True), (1024, False), (1400, True)])
@pytest.mark.parametrize("which", play.PAGES, ids=lambda page: page.file)
def test_a_page_fits_light_and_dark(opened, screenshots, which, width, dark):
    page = opened(which, width=width, dark=dark)
    assert page.locator("h1").count() == 1
    assert not overflows(page)
    assert is_dark(page.locator("h1")) == is_dark(page.locator(".play-card").first) == dark
    assert page.locator(".play-bar [aria-current=page]").inner_text() == which.name
    name = which.file.replace("/", "-").removesuffix(".html")
    page.screenshot(path=screenshots / f"{name}-{width}-{dark}.png", full_page=True)


def test_on_the_front_page_a_bar_is_dragged_and_the_rest_follows(opened):
    page = opened(play.FRONT)
    assert page.locator("h1").inner_text() == play.SENTENCE
    words = page.locator(".vblora-sub-words")
    before = words.inner_text()
    bar = page.get_by_role("slider", name="logit of bank vector 5").bounding_box()
    page.mouse.move(bar["x"] + bar["width"] / 2, bar["y"] + 60)
    page.mouse.down()
    page.mouse.move(bar["x"] + bar["width"] / 2, bar["y"] + 20, steps=4)
    page.mouse.up()
    page.wait_for_function(
        "before => document.querySelector('.vblora-sub-words').innerText !== before", arg=before
    )


def test_all_pages_lead_to_each_other(opened, html):
    (html / play.COURSE).write_text("<!doctype html><title>x</title>", encoding="utf-8")
    for which in play.PAGES:
        page = opened(which)
        for links in (".play-bar a", ".play-cards a"):
            targets = page.locator(links).evaluate_all("all => all.map(a => a.href)")
            files = {Path(target.removeprefix("file://")) for target in targets}
            others = {html / other.file for other in play.PAGES if other != which}
            assert others | {html / play.COURSE} <= files
            assert all(file.is_file() for file in files)


# ---- what those see who see the link elsewhere ---------------------------------------------------


class Head(HTMLParser):
    """The contents of meta elements, by name or property."""

    def __init__(self, text: str):
        super().__init__()
        self.metas: dict[str, str] = {}
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        of = dict(attrs)
        if tag == "meta" and "content" in of:
            self.metas[of.get("name") or of["property"]] = of["content"]


@pytest.mark.parametrize("which", play.PAGES, ids=lambda page: page.file)
def test_a_link_shows_a_title_a_sentence_and_a_picture(html, which):
    metas = Head((html / which.file).read_text(encoding="utf-8")).metas
    site = repository.addresses(repository.name())["Documentation"]
    assert metas["og:url"] == (site if which == play.FRONT else site + which.file)
    assert metas["og:image"] == metas["twitter:image"] == f"{site}social.png"
    assert metas["twitter:card"] == "summary_large_image"
    assert len(metas["og:title"]) <= 60 and 20 < len(metas["og:description"]) <= 200
    picture = Image.open(html / "social.png")
    assert (
        picture.size == (1200, 630) == (int(metas["og:image:width"]), int(metas["og:image:height"]))
    )
    assert (html / "social.png").stat().st_size < 60_000
    # Drawn of other numbers than those of today? python tools/social.py
    assert picture.text[social.WORDS] == metas["og:image:alt"] == metas["twitter:image:alt"]


def test_the_size_it_names_is_that_of_the_readme():
    readme = (play.repository.ROOT / "README.md").read_text(encoding="utf-8")
    assert f" to {play.size_until_level()}. Two runs" in readme
    assert play.size_until_level() in play.measured()


# ---- what is recorded ----------------------------------------------------------------------------


def test_the_recorded_run_is_small_and_learns():
    assert record_run.RUN.stat().st_size < 150_000
    run = Trace.load(record_run.RUN)
    assert run.reason == "completed" and run.eval_losses[-1] < 0.5 * run.eval_losses[0]
    assert len(run.selections) > 10 and run.samples_after
    config = record_run.CONFIG
    assert (run.started.num_vectors, run.started.topk) == (config.num_vectors, config.topk)


def test_many_users_on_the_site_are_those_of_the_widget(opened):
    page = opened(play.USERS)
    stored = ManyUsers().stored_bytes["VB-LoRA, one bank for all"]
    assert readable(stored) in page.locator(".vblora-users-ours").inner_text()
