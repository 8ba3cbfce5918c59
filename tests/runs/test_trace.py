"""Traces: what is written is what comes back, whatever happens to the run or to its file."""

import json
import os
import signal
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest

from vblora_lab.errors import DataError
from vblora_lab.inspection.selection import Selection, SubVectors
from vblora_lab.train import (
    DamagedTrace,
    Evaluated,
    Finished,
    Sample,
    Sampled,
    Selected,
    Started,
    Stepped,
    Trace,
    TraceRecorder,
    TraceWriter,
    TrainingSession,
)

ROWS = 576  # OPT-125m, q and v, r=4, vectors of 256


def sub_vectors(rows=ROWS):
    number = np.arange(rows, dtype=np.int32)
    return SubVectors(
        modules=("layers.0.q_proj", "layers.0.v_proj"), module=number % 2, layer=0 * number,
        matrix=np.where(number % 4 < 2, "A", "B"), rank=number % 3, tile=number % 5,
    )  # fmt: skip


def selected(step, where, num_vectors=256, k=2):
    rng = np.random.default_rng(step)
    indices = np.argsort(rng.random((len(where), num_vectors)), axis=1)[:, :k].astype(np.int32)
    weights = rng.dirichlet(np.ones(k), len(where)).astype(np.float32)
    return Selected(step, Selection(where, num_vectors, indices, weights))


def stepped(step, loss=1.5):
    rates = {"bank": 1e-3, "logits": 1e-2}
    return Stepped(step, 100, loss / step, rates, 1234.5, 2.5, 10.0, 0.4 * step)


def told(steps, where=None):
    """What a run of that many steps says, in the order in which a session says it."""
    where = where or sub_vectors()
    samples = (Sample("name[Café]", "Café.", "Kafé.", ("missing name[Café]",)),)
    yield Started(100, where, 256, 2, 1000, 2000, 3000)
    yield Evaluated(0, 3.5)
    yield Sampled(0, samples)
    yield selected(0, where)
    for step in range(1, steps + 1):
        yield selected(step, where)
        yield stepped(step)
    yield Evaluated(steps, 0.5)
    yield Sampled(steps, samples)
    yield Finished("completed", steps, 12.5)


def write(path, events, **options):
    writer = TraceWriter(path, **options)
    for event in events:
        writer(event)
    return writer


def same(one, other):
    """Whether two events say the same, up to the precision of float16 in the weights."""
    if type(one) is not type(other) or not isinstance(one, Selected | Started):
        return one == other
    if isinstance(one, Started):
        facts = [{**vars(event), "sub_vectors": None} for event in (one, other)]
        return facts[0] == facts[1] and same_coordinates(one.sub_vectors, other.sub_vectors)
    a, b = one.selection, other.selection
    return (
        one.step == other.step
        and a.num_vectors == b.num_vectors
        and b.indices.dtype == np.int32
        and b.weights.dtype == np.float32
        and np.array_equal(a.indices, b.indices)
        and np.allclose(a.weights, b.weights, atol=1e-3)
        and all(
            np.array_equal(v, getattr(b.sub_vectors, n)) for n, v in vars(a.sub_vectors).items()
        )
    )


def same_coordinates(one, other):
    return all(np.array_equal(v, getattr(other, name)) for name, v in vars(one).items())


def assert_same(events, others):
    assert len(events) == len(others)
    assert all(map(same, events, others))


# --- what is written comes back


@pytest.mark.parametrize("road", ["writer", "save"])
def test_every_event_comes_back_in_order(tmp_path, road):
    path, events = tmp_path / "new" / "run.trace", list(told(4))
    if road == "writer":
        write(path, events)
    else:
        path.parent.mkdir()
        assert Trace(tuple(events)).save(path) == path
    back = Trace.load(path)
    assert_same(events, back.events)
    assert back.steps.tolist() == [1, 2, 3, 4] and back.losses.dtype == np.float32
    assert back.eval_losses.tolist() == [3.5, 0.5]
    assert (back.trained_parameters, back.stored_bytes, back.lora_stored_bytes) == (
        1000,
        2000,
        3000,
    )
    assert back.reason == "completed" and back.seconds == 12.5
    assert back.samples_before == back.samples_after != ()


def test_the_trace_of_a_session_is_its_file(base, task, config, tmp_path):
    session = TrainingSession(
        base, config, task, steps=3, batch_size=2, eval_examples=2, sample_count=1,
        listeners=[TraceWriter(tmp_path / "run.trace")],
    )  # fmt: skip
    trace = session.run()
    back = Trace.load(tmp_path / "run.trace")
    assert_same(trace.events, back.events)
    assert np.array_equal(back.losses, trace.losses) and back.steps.tolist() == [1, 2, 3]
    assert [step for step, _ in back.selections] == [0, 1, 2, 3]
    assert_same(Trace.load(trace.save(tmp_path / "saved.trace")).events, back.events)
    assert (tmp_path / "saved.trace").read_bytes() == (tmp_path / "run.trace").read_bytes()


def test_events_replayed_into_a_recorder_are_the_run(tmp_path):
    recorder = TraceRecorder()
    for event in told(2):
        recorder(event)
    assert recorder.trace.events == Trace(recorder.trace.events).events
    assert TraceRecorder(recorder.trace.events).trace.losses.tolist() == [1.5, 0.75]


def test_an_empty_trace_has_no_numbers(tmp_path):
    back = Trace.load(Trace().save(tmp_path / "empty.trace"))
    assert back.events == () and len(back.steps) == len(back.losses) == 0
    assert back.samples_before == back.samples_after == ()
    assert (back.reason, back.seconds, back.stored_bytes) == ("", 0.0, 0)


def test_losses_that_are_no_numbers_and_errors_are_kept(tmp_path):
    events = [stepped(1, float("nan")), stepped(2, float("inf"))]
    events.append(Finished("failed", 2, 1.0, ValueError("the loss is nan")))
    write(tmp_path / "run.trace", events)
    back = Trace.load(tmp_path / "run.trace")
    assert np.isnan(back.losses[0]) and np.isinf(back.losses[1])
    assert back.reason == "failed" and str(back.events[-1].error) == "ValueError: the loss is nan"
    again = Trace.load(back.save(tmp_path / "again.trace"))
    assert str(again.events[-1].error) == "ValueError: the loss is nan"


@pytest.mark.parametrize(("num_vectors", "bytes_each"), [(256, 1), (257, 2), (70_000, 4)])
def test_indices_take_the_smallest_type_that_holds_them(tmp_path, num_vectors, bytes_each):
    where = sub_vectors(8)
    last = num_vectors - 1
    choice = Selection(
        where, num_vectors, np.full((8, 2), last, np.int32), np.full((8, 2), 0.5, np.float32)
    )
    sizes = []
    for count in (1, 2):
        write(tmp_path / "run.trace", [Selected(step, choice) for step in range(count)])
        sizes.append((tmp_path / "run.trace").stat().st_size)
    assert sizes[1] - sizes[0] == 8 * 2 * (bytes_each + 2) + 16 + 9
    (_, back), _ = Trace.load(tmp_path / "run.trace").selections
    assert (back.indices == last).all()


def test_a_step_of_opt_125m_takes_less_than_4600_bytes(tmp_path):
    sizes = []
    for steps in (10, 30):
        write(tmp_path / "run.trace", told(steps))
        sizes.append((tmp_path / "run.trace").stat().st_size)
    assert (sizes[1] - sizes[0]) / 20 < 4600


def test_the_layout_is_as_it_is_described(tmp_path):
    """A reader that knows only the description in `trace_records` finds the same numbers."""
    events = list(told(2))
    write(tmp_path / "run.trace", events)
    data = (tmp_path / "run.trace").read_bytes()
    assert struct.unpack_from("<8sH", data) == (b"VBLTRACE", 1)
    at, losses, chosen = 10, [], []
    while at < len(data):
        kind, length, checksum = struct.unpack_from("<cII", data, at)
        payload = data[at + 9 : at + 9 + length]
        assert zlib.crc32(data[at : at + 5] + payload) == checksum
        if kind == b"J" and json.loads(payload)["event"] == "Stepped":
            losses.append(json.loads(payload)["loss"])
        if kind == b"S":
            _, _, rows, k = struct.unpack_from("<4I", payload)
            chosen.append(np.frombuffer(payload, "u1", rows * k, 16).reshape(rows, k))
        at += 9 + length
    assert losses == [1.5, 0.75]
    expected = [event.selection.indices for event in events if isinstance(event, Selected)]
    assert np.array_equal(chosen, expected)


def test_a_trace_is_read_without_torch(tmp_path):
    write(tmp_path / "run.trace", told(3))
    script = f"""
import sys
for name in ("torch", "transformers", "peft", "matplotlib", "pandas"):
    sys.modules[name] = None  # importing it would raise
from vblora_lab import Trace
trace = Trace.load({str(tmp_path / "run.trace")!r})
print(trace.losses.tolist(), trace.selections[-1][1].churn(trace.selections[0][1]) > 0)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "[1.5, 0.75, 0.5] True", done.stderr


# --- damage


def boundaries(data):
    """Where records end."""
    at = 10
    while at < len(data):
        yield at
        at += 9 + struct.unpack_from("<cI", data, at)[1]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Bytes of a run of three steps with eight sub-vectors, and its events."""
    path = tmp_path_factory.mktemp("small") / "run.trace"
    events = list(told(3, sub_vectors(8)))
    write(path, events)
    return path.read_bytes(), events


@pytest.mark.slow
def test_a_trace_cut_anywhere_opens_up_to_its_last_whole_step(small, tmp_path):
    data, events = small
    ends = set(boundaries(data))
    path = tmp_path / "cut.trace"
    for end in range(len(data)):
        path.write_bytes(data[:end])
        if end in ends:  # as a run leaves it that was killed between two events: nothing is wrong
            assert_same(Trace.load(path).events, events[: len(Trace.load(path).events)])
            continue
        with pytest.warns(DamagedTrace, match="ends within|damaged"):
            back = Trace.load(path)
        assert_same(back.events, events[: len(back.events)])
        steps = back.steps.tolist()
        assert steps == [1, 2, 3][: len(steps)]
        assert all(step <= max(steps, default=0) for step, _ in back.selections)


@pytest.mark.slow
def test_no_changed_byte_goes_unnoticed(small, tmp_path):
    data, events = small
    rng = np.random.default_rng(0)
    path = tmp_path / "changed.trace"
    for at in range(10, len(data)):
        changed = bytearray(data)
        changed[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(changed)
        with pytest.warns(DamagedTrace):
            back = Trace.load(path)
        assert len(back.events) < len(events)
        assert_same(back.events, events[: len(back.events)])


def test_the_warning_says_where_and_how_far(small, tmp_path):
    data, _ = small
    third = list(boundaries(data))[-4]
    (tmp_path / "run.trace").write_bytes(data[: third - 3])
    with pytest.warns(DamagedTrace, match=r"run\.trace ends within.*read up to step 2"):
        Trace.load(tmp_path / "run.trace")


def test_other_files_and_versions_are_refused(small, tmp_path):
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    for name, message in {
        "other.npz": "not a trace",
        "missing.trace": "can be read: .*No such file",
    }.items():
        with pytest.raises(DataError, match=message):
            Trace.load(tmp_path / name)
    newer = tmp_path / "newer.trace"
    newer.write_bytes(b"VBLTRACE\x02\x00" + small[0][10:])
    with pytest.raises(DataError, match="version 2; this vblora_lab reads version 1"):
        Trace.load(newer)


# --- runs that go on, and disks that don't


def test_a_resumed_run_goes_on_from_its_step(tmp_path):
    path, events = tmp_path / "run.trace", list(told(6))
    write(path, told(4))  # stopped after 4 steps; the checkpoint is that of step 2
    writer = TraceWriter(path, resume_from=2)
    for event in events:
        if not isinstance(event, Stepped | Selected) or event.step > 2:
            writer(event)
    back = Trace.load(path)
    assert back.steps.tolist() == [1, 2, 3, 4, 5, 6]
    assert [step for step, _ in back.selections] == [0, 1, 2, 3, 4, 5, 6]
    assert back.eval_steps.tolist() == [0, 6]  # that of step 4 was cut off, of 0 not repeated
    once = [event for event in back.events if not isinstance(event, Started)]
    assert_same(once, [event for event in events if not isinstance(event, Started)])


def test_a_run_resumes_where_it_stopped(tmp_path):
    path = tmp_path / "run.trace"
    write(path, told(4))
    write(path, [selected(5, sub_vectors()), stepped(5)], resume_from=4)
    back = Trace.load(path)
    assert back.steps.tolist() == [1, 2, 3, 4, 5] and back.reason == ""
    assert back.eval_steps.tolist() == [0, 4]


def test_a_torn_end_is_cut_off_when_a_run_resumes(small, tmp_path):
    path = tmp_path / "run.trace"
    path.write_bytes(small[0][:-20])
    with pytest.warns(DamagedTrace, match="goes on from there"):
        write(path, [selected(4, sub_vectors(8)), stepped(4)], resume_from=3)
    assert Trace.load(path).steps.tolist() == [1, 2, 3, 4]  # without a warning
    path.write_bytes(small[0][: list(boundaries(small[0]))[-4] - 5])
    with pytest.warns(DamagedTrace, match="goes on from there"):
        write(path, [stepped(4)], resume_from=3)
    assert Trace.load(path).steps.tolist() == [1, 2, 4]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_killed_process_leaves_every_step_it_told(tmp_path):
    child = os.fork()
    if child == 0:
        writer = TraceWriter(tmp_path / "run.trace")
        for event in told(3):
            writer(event)
            if isinstance(event, Stepped) and event.step == 2:
                os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert Trace.load(tmp_path / "run.trace").steps.tolist() == [1, 2]


def test_a_new_run_replaces_a_trace_but_no_other_file(tmp_path):
    path = tmp_path / "run.trace"
    write(path, told(4))
    before = path.read_bytes()
    writer = TraceWriter(path)
    assert path.read_bytes() == before  # until there is something to write
    writer(stepped(1))
    assert Trace.load(path).steps.tolist() == [1]
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match=r"notes\.txt is not a trace"):
        TraceWriter(tmp_path / "notes.txt")
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_an_unwritable_place_is_told_once_and_training_goes_on(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="trace can't be written to .*file") as caught:
        writer = write(tmp_path / "file" / "run.trace", told(3))
    assert len(caught) == 1 and isinstance(writer.error, OSError)


def test_what_found_no_room_is_written_when_there_is_room_again(tmp_path):
    (tmp_path / "full").write_text("")
    path, events, problems = tmp_path / "full" / "run.trace", list(told(3)), []
    writer = TraceWriter(path, tell=problems.append)
    for event in events[:5]:
        writer(event)
    (tmp_path / "full").unlink()
    for event in events[5:]:
        writer(event)
    assert_same(Trace.load(path).events, events)
    assert len(problems) == 1 and writer.error is None


def test_a_full_disk_leaves_the_steps_that_found_room(tmp_path):
    """With a limit on the size of files, which fails in the same place as a full disk."""
    resource = pytest.importorskip("resource")  # not on Windows
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    problems = []
    try:
        writer = write(tmp_path / "run.trace", told(30), tell=problems.append)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert len(problems) == 1 and isinstance(writer.error, OSError)
    steps = Trace.load(tmp_path / "run.trace").steps  # without a warning: no torn record
    assert 2 <= len(steps) < 30
