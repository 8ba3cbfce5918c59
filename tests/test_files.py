"""Written whole, or the old state: after success, failures and interrupts at every step."""

import os
import shutil

import pytest

from vblora_lab import files


def tree(folder):
    return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()}


def test_a_file_gets_its_place_at_the_end_of_the_block(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with files.whole_file(path) as new:
        new.write_text("new")
        assert path.read_text() == "old"
    assert tree(tmp_path) == {"a.txt": "new"}


def test_a_folder_replaces_one_that_is_there(tmp_path):
    for text in ("first", "second"):
        with files.whole_folder(tmp_path / "above" / "folder") as new:
            (new / f"{text}.txt").write_text(text)
        assert tree(tmp_path) == {f"above/folder/{text}.txt": text}


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
@pytest.mark.parametrize("step", ["block", "force_to_disk", "rename"])
@pytest.mark.parametrize("kind", [files.whole_file, files.whole_folder])
def test_whatever_is_raised_leaves_what_was_there(tmp_path, monkeypatch, error, step, kind):
    path = tmp_path / "kept"
    if kind is files.whole_file:
        path.write_text("old")
    else:
        path.mkdir()
        (path / "inner").write_text("old")
    before = tree(tmp_path)

    def fail(*_, **__):
        raise error

    if step == "force_to_disk":
        monkeypatch.setattr(files, "force_to_disk", fail)
    elif step == "rename":
        monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(type(error)), kind(path) as new:
        (new / "inner" if new.is_dir() else new).write_text("new")
        if step == "block":
            raise error
    monkeypatch.undo()
    assert tree(tmp_path) == before
    assert os.listdir(tmp_path) == ["kept"]


def test_all_of_a_folder_and_its_name_are_forced_to_the_disk(tmp_path, monkeypatch):
    forced = []
    monkeypatch.setattr(
        os, "fsync", lambda handle: forced.append(os.readlink(f"/proc/self/fd/{handle}"))
    )
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("needs /proc to tell which file a handle is")
    with files.whole_folder(tmp_path / "folder") as new:
        (new / "inner").write_text("text")
    names = [os.path.basename(path) for path in forced]
    assert names[0] == "inner" and names[1].endswith(".new") and forced[2] == str(tmp_path)


def test_an_old_folder_that_can_t_be_removed_doesn_t_undo_the_new_one(tmp_path, monkeypatch):
    (tmp_path / "folder").mkdir()
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)
    with files.whole_folder(tmp_path / "folder") as new:
        (new / "inner").write_text("new")
    assert (tmp_path / "folder" / "inner").read_text() == "new"


def test_a_file_takes_no_folder_s_place(tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "inner").write_text("old")
    refused = pytest.raises(IsADirectoryError, match="kept is a folder")
    with refused, files.whole_file(tmp_path / "kept") as new:
        new.write_text("new")
    assert tree(tmp_path) == {"kept/inner": "old"}


def test_a_folder_takes_no_link_s_place(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "inner").write_text("old")
    (tmp_path / "here").symlink_to(tmp_path / "there")
    refused = pytest.raises(FileExistsError, match="here is a link")
    with refused, files.whole_folder(tmp_path / "here") as new:
        (new / "inner").write_text("new")
    assert tree(tmp_path) == {"there/inner": "old"} and (tmp_path / "here").is_symlink()


def test_links_in_a_folder_may_lead_nowhere(tmp_path):
    with files.whole_folder(tmp_path / "folder") as new:
        (new / "link").symlink_to("nowhere")
    assert os.readlink(tmp_path / "folder" / "link") == "nowhere"
