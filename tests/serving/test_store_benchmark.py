"""benchmarks/serving_store.py: the docs show its record, and it runs, in small."""

import json
from pathlib import Path

import pytest

from tests.course.notebook import script

ROOT = Path(__file__).parents[2]


@pytest.fixture
def benchmark(monkeypatch, tmp_path):
    module = script(ROOT / "benchmarks" / "serving_store.py")
    monkeypatch.setattr(module, "FETCHES", 8)
    monkeypatch.setattr(module, "RESULTS", tmp_path / "record.json")
    return module


def test_the_docs_show_the_record(benchmark):
    record = json.loads((ROOT / "benchmarks" / "results" / "serving-store.json").read_text())
    assert (
        f"{benchmark.BEGIN}{benchmark.report(record)}{benchmark.END}" in benchmark.DOCS.read_text()
    )


def test_a_small_run_writes_record_and_table(benchmark, monkeypatch, tmp_path, capsys):
    docs = tmp_path / "docs.md"
    docs.write_text(f"before\n{benchmark.BEGIN}old\n{benchmark.END}after\n", encoding="utf-8")
    monkeypatch.setattr(benchmark, "DOCS", docs)
    work = tmp_path / "work"
    monkeypatch.setattr("sys.argv", ["x", "--work", str(work), "--adapters", "3", "--lora", "2"])
    benchmark.main()
    record = json.loads(capsys.readouterr().out)
    assert record == json.loads((tmp_path / "record.json").read_text())
    assert (
        docs.read_text()
        == f"before\n{benchmark.BEGIN}{benchmark.report(record)}{benchmark.END}after\n"
    )
    assert not work.exists()
    # Sizes by hand: 24 modules, two logits of 4 x 3 sub-vectors; an index takes a byte, a weight 4.
    choices = 24 * 2 * 4 * 3 * (2 * 1 + 4)
    rest = record["vblora"]["files"] - 3 * choices - 4 * 256 * 256  # headers, configs, the index
    assert 0 < rest < 250_000
    assert record["lora_float32"]["files"] > 3 * 4 * 24 * 2 * 4 * 768
