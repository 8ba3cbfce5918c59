"""The repository's name: one place, every address made from it, one command to change it."""

import json
import subprocess
import tomllib
from importlib import metadata
from pathlib import Path

import badges
import nbformat
import pytest
import repository

ROOT = Path(repository.__file__).resolve().parents[1]

# The name is put in later: written out, it would be found among the files of this repository.
PYPROJECT = """\
[project.urls]
Documentation = "https://old-owner.{pages}/lab/"
Repository = "https://github.com/{old}"
Issues = "https://github.com/{old}/issues"
""".format(old="old-owner/lab", pages="github.io")
README = """\
[badge](https://mybinder.org/v2/gh/{old}/main?urlpath=lab): https://github.com/{old}.
git clone git@github.com:{old}.git; see https://github.com/others/peft and
https://github.com/{old}-2
""".format(old="old-owner/lab")


def a_notebook():
    cells = [
        nbformat.v4.new_markdown_cell("# Title"),
        nbformat.v4.new_markdown_cell("Text."),
        nbformat.v4.new_code_cell("1 + 1"),
    ]
    return nbformat.v4.new_notebook(cells=cells)


@pytest.fixture
def tree(tmp_path):
    """A repository of another name, with a notebook that has its badge."""
    (tmp_path / "pyproject.toml").write_text(PYPROJECT)
    (tmp_path / "README.md").write_text(README)
    (tmp_path / "weights.bin").write_bytes(bytes(range(256)))
    (tmp_path / "notebooks").mkdir()
    nbformat.write(a_notebook(), tmp_path / "notebooks" / "01-x.ipynb")
    badges.write(tmp_path / "notebooks", "old-owner/lab")
    for command in (["init", "-q"], ["add", "-A"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    return tmp_path


# --- this repository


def test_every_address_here_names_this_repository():
    assert repository.others() == []


def test_the_urls_in_pyproject_are_those_made_from_the_name():
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]
    made = repository.addresses(repository.name())
    assert urls == {key: made[key] for key in urls}


def test_every_notebook_begins_with_its_badge_and_install_cell():
    assert [path.name for path in badges.lacking()] == []


def test_the_first_badge_of_the_readme_opens_the_first_notebook_in_lab():
    text = (ROOT / "README.md").read_text("utf-8")
    assert repository.addresses(repository.name())["binder badge"] in text
    assert (ROOT / repository.FIRST_NOTEBOOK).is_file()


# --- the tools


def test_another_name_is_found(tree):
    assert repository.others(tree) == []
    readme = tree / "README.md"
    readme.write_text(readme.read_text().replace("gh/old-owner/lab", "gh/somebody/fork"))
    assert repository.others(tree) == ["README.md: somebody/fork"]
    readme.write_text("https://github.com/somebody/lab/issues")
    assert repository.others(tree) == ["README.md: somebody/lab"]
    readme.write_text("https://somebody.github.io/lab/ and https://somebody.github.io/else/")
    assert repository.others(tree) == ["README.md: the site of somebody"]


def test_one_command_changes_it_everywhere_and_nothing_else(tree):
    changed = repository.rename("New/vector-lab", tree)
    assert {str(path) for path in changed} == {
        "README.md",
        "pyproject.toml",
        str(Path("notebooks", "01-x.ipynb")),
    }
    assert repository.name(tree) == "New/vector-lab"
    site = repository.addresses("New/vector-lab")["Documentation"]
    assert site.startswith("https://new.") and site in (tree / "pyproject.toml").read_text()
    assert repository.others(tree) == []
    assert badges.lacking(tree / "notebooks", "New/vector-lab") == []
    readme = (tree / "README.md").read_text()
    assert readme.count("New/vector-lab") == 3
    assert "others/peft" in readme and "github.com/old-owner/lab-2" in readme
    repository.rename("old-owner/lab", tree)
    assert (tree / "README.md").read_text() == README
    assert (tree / "pyproject.toml").read_text() == PYPROJECT


@pytest.mark.parametrize("wrong", ["lab", "a/b/c", "a b/c", ""])
def test_a_wrong_name_is_refused_and_changes_nothing(tree, wrong):
    with pytest.raises(ValueError, match="OWNER/NAME"):
        repository.rename(wrong, tree)
    assert repository.name(tree) == "old-owner/lab"


def test_badges_are_written_once_and_notebooks_stay_valid(tree):
    path = tree / "notebooks" / "01-x.ipynb"
    assert badges.write(tree / "notebooks", "old-owner/lab") == []
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    kinds = [cell.get("id") for cell in notebook.cells]
    assert kinds[1] == badges.BADGE and kinds[3] == badges.INSTALL
    assert notebook.cells[0].source == "# Title" and notebook.cells[4].source == "1 + 1"
    notebook.cells[3].source = "%pip install something-else"
    nbformat.write(notebook, path)
    assert badges.lacking(tree / "notebooks", "old-owner/lab") == [path]


def test_the_install_cell_does_nothing_where_the_lab_is(run_install_cell):
    assert run_install_cell(missing=False) == []


def test_the_install_cell_keeps_torch_and_numpy(run_install_cell):
    (line,) = run_install_cell(missing=True)
    for name in ("torch", "numpy"):
        assert f"{name}=={metadata.version(name)}" in line
    assert repository.addresses(repository.name())["install"] in line
    assert "--upgrade" not in line


@pytest.fixture
def run_install_cell(monkeypatch):
    """Runs the cell in IPython with a %pip that only records; returns what it was told."""
    from IPython.core.interactiveshell import InteractiveShell

    def run(missing):
        told = []
        shell = InteractiveShell()
        shell.register_magic_function(told.append, magic_name="pip")
        if missing:
            monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        result = shell.run_cell(badges.install_source(repository.name()))
        result.raise_error()
        return told

    return run


def test_notebooks_are_written_as_jupyter_writes_them(tree):
    text = (tree / "notebooks" / "01-x.ipynb").read_text()
    assert text == json.dumps(json.loads(text), indent=1, ensure_ascii=False) + "\n"
