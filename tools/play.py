"""The pages of the site that are played with, without Python: the front page, and those in play/.

The front page is the one to share: a sentence, a sub-vector to drag, and a picture for those who
see the link elsewhere (`tools/social.py`). It is one small file, so that it is there at once. The
others show what `record_plans.py` and `record_run.py` recorded.
"""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import dataclass
from html import escape
from pathlib import Path
from urllib.parse import quote

import record_plans
import record_run
import repository

from vblora_lab import ConfigExplorer, ManyUsers, RecordedTraining, SubVector
from vblora_lab.course.measured import curve
from vblora_lab.widgets._page import own_state
from vblora_lab.widgets._page import page as page_of
from vblora_lab.widgets.config_explorer.page import page as explorer_page
from vblora_lab.widgets.sub_vector import widget as sub_vector

sys.path.insert(0, str(repository.ROOT / "benchmarks"))
import pareto_report

STYLE = repository.ROOT / "docs" / "play" / "play.css"
SITE_ICON = repository.ROOT / "docs" / "site" / "icon.svg"
SOCIAL = repository.ROOT / "docs" / "images" / "social.png"
SOCIAL_SIZE = (1200, 630)  # pixels, which those who show links show whole
BASE = pareto_report.README_BASE
TITLE = "VB-LoRA, hands on"
SENTENCE = (
    "VB-LoRA fine-tunes a language model with vectors mixed from one small bank that all its "
    "layers share: use it where adapters must be small, or there are many of them."
)
COURSE = "overview.html"
"""The page that Sphinx begins with: README, and the way to all chapters."""


@dataclass(frozen=True)
class Page:
    """A page to play with.

    Attributes:
        file: its place on the site.
        name: what it is called in the bar of all pages.
        invitation: what there is to do.
    """

    file: str
    name: str
    invitation: str


FRONT = Page("index.html", "One sub-vector", "Drag a bar, and see what follows from it.")
EXPLORER = Page(
    "play/explorer.html",
    "Plan a config",
    "Rank, bank and modules as sliders: what is trained and stored of four models, beside LoRA.",
)
TRAINING = Page(
    "play/training.html",
    "Watch it train",
    "A recorded run to play, pause and scrub: the loss, the map of the bank, the texts.",
)
USERS = Page(
    "play/users.html",
    "Many users",
    "Model, rank and users as sliders: from how many adapters on one bank for all pays.",
)
PAGES = (FRONT, EXPLORER, TRAINING, USERS)


def measured() -> str:
    """When to use it, in numbers that `benchmarks/pareto.py` measured."""
    return (
        "Measured on SmolLM2-135M, trained on restaurant descriptions, with numbers stored in 8 "
        f"bits: up to {size_until_level()}, VB-LoRA ends with a lower loss than LoRA. With more "
        "room, take LoRA."
    )


def size_until_level() -> str:
    """The size from which LoRA does as well, or better."""
    (_, end), *_ = pareto_report.ahead_of_lora(curve(BASE))
    return pareto_report.short(end)


def write(html: Path) -> None:
    """Write the pages into the folder of a site that Sphinx has made."""
    (html / "play").mkdir()
    write_front(html)
    recordings = json.loads(record_plans.PLANS.read_text(encoding="utf-8"))
    make, bank = record_plans.MODELS[next(iter(recordings))]
    figure = ConfigExplorer(make(), record_plans.config_of(bank)).figure()
    explorer = explorer_page(_title(EXPLORER), recordings, figure._repr_png_()[0])
    run = RecordedTraining(record_run.RUN, record_run.TITLE, record_run.ABOUT)
    run.to_html(html / TRAINING.file, _title(TRAINING))
    ManyUsers().to_html(html / USERS.file, _title(USERS))
    (html / EXPLORER.file).write_text(explorer, encoding="utf-8")
    for page in (EXPLORER, TRAINING, USERS):
        file = html / page.file
        file.write_text(framed(page, file.read_text(encoding="utf-8")), encoding="utf-8")


def write_front(html: Path) -> None:
    """Write the front page alone, and the picture that its links show."""
    shutil.copyfile(SOCIAL, html / SOCIAL.name)
    parts = {"script": sub_vector.SCRIPT, "style": sub_vector.STYLE}
    text = page_of(TITLE, own_state(SubVector()), {}, b"", **parts)
    (html / FRONT.file).write_text(framed(FRONT, text), encoding="utf-8")


def _title(page: Page) -> str:
    return f"{page.name} · {TITLE}"


# --- what stands around a widget


def framed(page: Page, text: str) -> str:
    """A widget's page, with what links to it show, the bar of all pages, and what it is about."""
    up = "../" * page.file.count("/")
    for mark, more in {
        "</head>": (_head(page), ""),
        "<body>\n": ("", f"{_bar(page, up)}{_intro(page)}"),
        "</body>": (_outro(page, up), ""),
    }.items():
        before, found, after = text.rpartition(mark) if mark == "</body>" else text.partition(mark)
        assert found, mark
        text = f"{before}{more[0]}{mark}{more[1]}{after}"
    return text


def _head(page: Page) -> str:
    """For browsers, and for those who show links: Open Graph and Twitter's cards."""
    site = repository.addresses(repository.name())["Documentation"]
    where = site + ("" if page == FRONT else page.file)
    title = TITLE if page == FRONT else _title(page)
    description = SENTENCE if page == FRONT else page.invitation
    width, height = SOCIAL_SIZE
    named = {"description": description, "color-scheme": "light dark",
             "twitter:card": "summary_large_image", "twitter:title": title,
             "twitter:description": description, "twitter:image": site + SOCIAL.name,
             "twitter:image:alt": social_alt()}  # fmt: skip
    graph = {"og:type": "website", "og:site_name": "vblora_lab", "og:url": where,
             "og:title": title, "og:description": description, "og:image": site + SOCIAL.name,
             "og:image:type": "image/png", "og:image:width": str(width),
             "og:image:height": str(height), "og:image:alt": social_alt()}  # fmt: skip
    lines = [f'<meta name="{name}" content="{escape(value)}">' for name, value in named.items()]
    lines += [f'<meta property="{name}" content="{escape(of)}">' for name, of in graph.items()]
    style = STYLE.read_text(encoding="utf-8")
    return "\n".join(
        [*lines, f'<link rel="canonical" href="{where}">', _icon(), f"<style>\n{style}</style>\n"]
    )


def _icon() -> str:
    """That of the other pages, without a request for it."""
    drawing = quote(SITE_ICON.read_text(encoding="utf-8").strip(), safe=" =:/")
    return f'<link rel="icon" href="data:image/svg+xml,{drawing}">'


def social_alt() -> str:
    """What the social picture shows, in words."""
    return f"{SENTENCE} A chart shows the loss against stored bytes. {measured()}"


def _bar(page: Page, up: str) -> str:
    here = {page: " aria-current=page"}
    links = "".join(
        f'<a href="{up}{other.file}"{here.get(other, "")}>{other.name}</a>' for other in PAGES
    )
    return (
        f'<nav class="play-bar"><a class="play-home" href="{up}index.html">vblora_lab</a>{links}'
        f'<a class="play-course" href="{up}{COURSE}">Course and code</a></nav>\n'
    )


def _intro(page: Page) -> str:
    if page == FRONT:
        return f'<h1 class="play-sentence">{SENTENCE}</h1>\n<p class="play-lead">{measured()}</p>\n'
    return f'<h1 class="play-title">{page.name}</h1>\n<p class="play-lead">{page.invitation}</p>\n'


def _outro(page: Page, up: str) -> str:
    cards = "".join(
        f'<a class="play-card" href="{up}{other.file}"><b>{other.name}</b>{other.invitation}</a>'
        for other in PAGES
        if other != page
    )
    chapters = len(list((repository.ROOT / "notebooks").glob("*.ipynb")))
    course = (
        f"{chapters} notebooks with live widgets, the library they teach, and how it was measured."
    )
    cards += f'<a class="play-card" href="{up}{COURSE}"><b>Course and code</b>{course}</a>'
    return f'<nav class="play-cards" aria-label="More">{cards}</nav>\n'
