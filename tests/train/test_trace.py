"""Traces: what is saved is what comes back."""

import numpy as np
import pytest

from vblora_lab.errors import DataError
from vblora_lab.train import Trace, TrainingSession


def test_a_trace_comes_back_from_its_file(base, task, config, tmp_path):
    trace = TrainingSession(
        base, config, task, steps=3, batch_size=2, eval_examples=2, sample_count=1
    ).run()
    back = Trace.load(trace.save(tmp_path / "run.npz"))
    for name in ("steps", "losses", "eval_steps", "eval_losses"):
        assert np.array_equal(getattr(back, name), getattr(trace, name))
    for name in ("samples_before", "samples_after", "seconds", "reason", "stored_bytes"):
        assert getattr(back, name) == getattr(trace, name)
    assert [step for step, _ in back.selections] == [0, 1, 2, 3]
    for (_, saved), (_, loaded) in zip(trace.selections, back.selections, strict=True):
        assert np.array_equal(saved.indices, loaded.indices)
        assert np.abs(saved.weights - loaded.weights).max() < 1e-3  # stored as float16
        assert loaded.sub_vectors.modules == saved.sub_vectors.modules
        assert np.array_equal(loaded.sub_vectors.matrix, saved.sub_vectors.matrix)


def test_a_run_without_selections_is_saved_too(base, task, config, tmp_path):
    trace = TrainingSession(
        base, config, task, steps=1, batch_size=2, eval_examples=0, sample_count=0, select_every=0
    ).run()
    back = Trace.load(trace.save(tmp_path / "bare.npz"))
    assert back.selections == () and back.losses.tolist() == trace.losses.tolist()


def test_other_files_are_refused(tmp_path):
    (tmp_path / "text.npz").write_text("not an archive")
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    for name in ("text.npz", "other.npz", "missing.npz"):
        with pytest.raises(DataError, match=rf"{name} is not a trace"):
            Trace.load(tmp_path / name)
