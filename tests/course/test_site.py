"""tools/make_site.py: where links go, what stands for a widget, and what the checks find."""

import sys
from pathlib import Path

import ipywidgets
import nbformat
import pytest

import vblora_lab as lab
from vblora_lab.data.styles import styles
from vblora_lab.runs.events import Stepped

pytest.importorskip("sphinx", reason="what makes the site is not installed: pip install '.[site]'")
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))
import make_site
import repository
import site_widgets

IN_REPOSITORY = f"https://github.com/{repository.name()}"

HEATMAP = """
from transformers import OPTConfig, OPTForCausalLM
import vblora_lab as lab
sizes = dict(hidden_size=32, word_embed_proj_dim=32, ffn_dim=32, vocab_size=16, num_hidden_layers=1)
model = OPTForCausalLM(OPTConfig(**sizes, num_attention_heads=2, max_position_embeddings=8))
config = lab.VBLoRAConfig(target_modules=["q_proj"], num_vectors=8, vector_length=8)
heatmap = lab.BankHeatmap(lab.get_peft_model(model, config))
heatmap
"""


# --- links


@pytest.mark.parametrize(
    "page, link, expected",
    [
        ("README.md", "[a](CHANGELOG.md)", "[a](CHANGELOG.md)"),
        ("README.md", "[a](#what)", "[a](#what)"),
        ("README.md", "[a](https://x.org/b)", "[a](https://x.org/b)"),
        ("README.md", f"[a]({make_site.SITE})", '<a href="index.html">a</a>'),
        ("docs/x.md", f"[a]({make_site.SITE}play/b.html)", '<a href="../play/b.html">a</a>'),
        ("notebooks/00-start-here.ipynb", "[a](glossary.md)", "[a](glossary.md)"),
        ("notebooks/00-start-here.ipynb", "[a](../README.md#b)", "[a](../overview.md#b)"),
        ("README.md", "[a](LICENSE)", f"[a]({IN_REPOSITORY}/blob/main/LICENSE)"),
        ("README.md", "[a](examples)", f"[a]({IN_REPOSITORY}/tree/main/examples)"),
        ("README.md", "[![Open](https://x.org/a.svg)](https://y.org)", "[Open](https://y.org)"),
        ("README.md", "```\n[a](nowhere.md)\n```", "```\n[a](nowhere.md)\n```"),
    ],
)
def test_a_link_leads_to_a_page_or_to_the_repository(page, link, expected, tmp_path):
    assert make_site.local(f"x\n{link} y", page, tmp_path) == f"x\n{expected} y"


def test_a_picture_comes_along(tmp_path):
    text = "![a](images/live-training-light.png)"
    assert make_site.local(text, "docs/x.md", tmp_path) == text
    picture = "docs/images/live-training-light.png"
    assert (tmp_path / picture).read_bytes() == (make_site.ROOT / picture).read_bytes()


@pytest.mark.parametrize("target", ["nowhere.md", "../other", "docs/images/none.png"])
def test_a_link_that_leads_nowhere_is_refused(target, tmp_path):
    with pytest.raises(ValueError, match=rf"README\.md: the link to {target} leads nowhere"):
        make_site.local(f"[a]({target})", "README.md", tmp_path)


def test_the_checks_find_what_is_wrong_with_a_page(tmp_path):
    (tmp_path / "b.html").write_text('<p id="here">')
    right = '<a href="b.html#here">x</a><a href="#top">x</a><a href="https://x.org">x</a>'
    (tmp_path / "a.html").write_text(right)
    assert list(make_site.problems(tmp_path)) == []
    wrong = {
        '<a href="c.html">x</a>': "a.html: c.html leads nowhere",
        '<a href="b.html#there">x</a>': "a.html: b.html#there names a part that isn't there",
        '<img src="b.png">': "a.html: b.png leads nowhere",
        '<script src="https://x.org/y.js"></script>': "a.html: <script> loads https://x.org/y.js",
        '<link rel="stylesheet" href="//x.org/y">': "a.html: <link> loads //x.org/y",
        f"<pre>{site_widgets.MARK}0</pre>": "a.html: a widget without a static form",
    }
    for html, problem in wrong.items():
        (tmp_path / "a.html").write_text(html)
        assert list(make_site.problems(tmp_path)) == [problem]


# --- widgets


@pytest.mark.slow
def test_a_heatmap_becomes_a_page_of_its_own_as_it_is_at_the_end(tmp_path):
    cells = [
        nbformat.v4.new_code_cell(HEATMAP),
        nbformat.v4.new_code_cell("heatmap.rows_by = 'entropy'"),
    ]
    path = tmp_path / "one.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    before = path.read_bytes()
    for folder in ("runs", "widgets"):
        (tmp_path / folder).mkdir()
    ran = make_site.run(path, tmp_path / "runs", tmp_path / "widgets")
    assert path.read_bytes() == before
    notebook = nbformat.read(ran, as_version=4)
    assert [cell.source for cell in notebook.cells] == [cell.source for cell in cells]
    (output,) = [o for o in notebook.cells[0].outputs if o.output_type == "execute_result"]
    assert list(output.data) == ["text/html"]
    assert 'src="../widgets/one-0.html"' in output.data["text/html"]
    page = (tmp_path / "widgets" / "one-0.html").read_text()
    assert '"rows_by": "entropy"' in page and "StoredModel" in page
    written = ran.stat().st_mtime_ns  # what was run isn't run again
    make_site.run(path, tmp_path / "runs", tmp_path / "widgets")
    assert ran.stat().st_mtime_ns == written


def whose_text():
    users = dict(zip(("ada", "alan"), styles(2, seed=0), strict=True))
    return lab.WhoseText(users, {"LoRA": [1, 2]}, ["name[X]"], lambda mrs, names: names)


@pytest.mark.parametrize("make", [lab.SubVector, lab.ManyUsers, whose_text])
def test_a_widget_that_can_be_a_page_becomes_it(tmp_path, make):
    widget = make()
    html, kind = site_widgets.Form(widget, tmp_path, "x-1").html(), type(widget).__name__
    assert f'<iframe src="../{tmp_path.name}/x-1.html" title="{kind}"' in html
    page = (tmp_path / "x-1.html").read_text(encoding="utf-8")
    assert f"<title>{kind} of x-1</title>" in page and "vbloraHeight" in page


def test_other_widgets_become_their_picture(tmp_path):
    chart = lab.LossChart()
    chart.append([1, 2], [3.0, 2.0])
    html = site_widgets.Form(chart, tmp_path, "x").html()
    picture = chart._repr_mimebundle_()[0]["image/png"]
    assert f'src="data:image/png;base64,{picture}"' in html and "<code>LossChart</code>" in html


def test_a_panel_becomes_the_replay_of_its_run(tmp_path):
    panel = ipywidgets.VBox()
    panel.trace = lab.Trace((Stepped(1, 1, 2.5, {}, 1.0, 1.0, 0.0, 1.0),))
    html = site_widgets.Form(panel, tmp_path, "x").html()
    assert f'<iframe src="../{tmp_path.name}/x.html" title="RecordedTraining"' in html
    page = (tmp_path / "x.html").read_text(encoding="utf-8")
    assert "VBox, played back" in page and "1 recorded step" in page


def test_a_widget_without_a_form_is_refused(tmp_path):
    with pytest.raises(TypeError, match="no static form of a IntSlider"):
        site_widgets.Form(ipywidgets.IntSlider(), tmp_path, "x").html()
    with pytest.raises(TypeError, match="no static form of a HBox before its run"):
        site_widgets.Form(ipywidgets.HBox(), tmp_path, "x").html()


# --- the reference


def test_a_public_name_without_a_room_is_found(monkeypatch):
    assert ".. autoclass:: VBLoRAConfig\n" in make_site.reference()["api/method.md"]
    monkeypatch.setattr(make_site, "homes", lambda: {"novelty": "attic"})
    with pytest.raises(ValueError, match=r"novelty lives in vblora_lab\.attic, which"):
        make_site.reference()
