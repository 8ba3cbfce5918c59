"""The site, made of stored outputs and opened with no network, page by page."""

import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from offline import overflows

import vblora_lab as lab

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))
import play

pytestmark = pytest.mark.long
inventory = pytest.importorskip("sphinx.util.inventory", reason="pip install '.[site]'")
ROOT = Path(__file__).resolve().parents[2]
MAKE = "import make_site, pathlib, sys; make_site.make(pathlib.Path(sys.argv[1]), stored=True)"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder with the pages. Making it fails on a warning and on a link that leads nowhere."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-c", MAKE, str(folder)],
        cwd=ROOT / "tools", capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "html"


def test_the_reference_has_every_public_name(site):
    objects = inventory.InventoryFile.loads((site / "objects.inv").read_bytes(), uri="")
    found = {name for kind in objects.data.values() for name in kind}
    assert {f"vblora_lab.{name}" for name in lab.__all__} <= found
    assert {"vblora_lab.errors.TargetError", "vblora_lab.admixture.admixture"} <= found


def test_signatures_are_read_by_sphinx(site, browser):
    """It shows those that it can't parse with types as ~module.Name."""
    page = browser.new_page()
    found = []
    for path in sorted((site / "api").glob("*.html")):
        page.goto(path.as_uri())
        found += page.locator("dt.sig").all_inner_texts()
    page.close()
    assert len(found) > 100
    assert [text for text in found if "~" in text or "<" in text or "({" in text] == []


def test_every_page_opens_by_itself(site, browser):
    """No error in the console, nothing asked of a host, and all chapters in the navigation."""
    context = browser.new_context(offline=True)
    page = context.new_page()
    wrong = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
    page.on("request", lambda r: None if r.url.startswith(("file:", "data:", "blob:"))
            else wrong.append(r.url))  # fmt: skip
    chapters = [path.stem for path in sorted((ROOT / "notebooks").glob("*.ipynb"))]
    played = {site / each.file for each in play.PAGES}  # test_play_in_page.py opens these
    for path in sorted(set(site.rglob("*.html")) - played):
        if "_static" not in path.parts:
            page.goto(path.as_uri())
            assert wrong == [], path.name
            # A server is asked for one of its own by browsers that are told of none.
            assert page.locator("link[rel~=icon]").count() == 1, path.name
            if path.name not in ("genindex.html", "search.html", "py-modindex.html"):
                assert page.locator("article h1").count() == 1, path.name
            links = page.locator("nav.bd-links a").evaluate_all("all => all.map(a => a.href)")
            named = [Path(link).stem for link in links]
            assert [n for n in named if n in chapters] or path.stem in chapters, path.name
    page.goto((site / play.COURSE).as_uri())
    links = page.locator("nav.bd-links a").evaluate_all("all => all.map(a => a.pathname)")
    assert [Path(link).stem for link in links if "/notebooks/" in link] == [*chapters, "glossary"]
    page.get_by_role("link", name="Without Python").click()  # of README, which says where this is
    assert Path(urlsplit(page.url).path) == site / "index.html"
    page.goto((site / "notebooks" / "03-top-k-admixture.html").as_uri())
    box = page.locator("math[display=block]").first.bounding_box()
    assert box["width"] > 100 and box["height"] > 20  # drawn, not left out
    # From a disk, the search finds pages; their excerpts need a server, and say so in the console.
    page.goto((site / "search.html").as_uri() + "?q=admixture")
    page.locator("#search-results li a", has_text="The top-k admixture").first.wait_for()
    context.close()


def test_no_page_is_wider_than_a_phone(site, browser):
    page = browser.new_page(viewport={"width": 390, "height": 844})
    wider = []
    for path in sorted(site.rglob("*.html")):
        if "_static" not in path.parts:
            page.goto(path.as_uri())
            wider += [path.relative_to(site).as_posix()] if overflows(page) else []
    page.close()
    assert wider == []
