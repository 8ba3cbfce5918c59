"""Runs that end too early, stopped or killed, end as if nothing had happened."""

import json
import subprocess
import sys
import threading

import pytest
import torch
from safetensors.torch import load_file

from vblora_lab.train import LearningRates, Paused, Started, Stepped, Trace, TrainingSession
from vblora_lab.tuner.config import VBLoRAConfig

pytestmark = pytest.mark.slow

WEIGHTS = "adapter_model.safetensors"
RUN = {"steps": 8, "batch_size": 2, "eval_examples": 2, "sample_count": 1, "save_every": 3}


@pytest.fixture
def config():
    # With dropout, the random state counts too.
    return VBLoRAConfig(
        r=2, num_vectors=16, vector_length=128, target_modules=["q_proj"], vblora_dropout=0.2
    )


def assert_same(ours, theirs):
    ours, theirs = load_file(ours / "adapter" / WEIGHTS), load_file(theirs / "adapter" / WEIGHTS)
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name


def test_stop_and_resume_is_as_no_stop(base, task, config, tmp_path):
    whole = TrainingSession(base, config, task, out=tmp_path / "whole", **RUN).run()
    stopped = TrainingSession(base, config, task, out=tmp_path / "parts", **RUN)
    stopped.add_listener(lambda e: isinstance(e, Stepped) and e.step == 4 and stopped.stop())
    first = stopped.run()
    assert stopped.status == "stopped" and first.steps.tolist() == [1, 2, 3, 4]
    assert (tmp_path / "parts" / "checkpoint-4").is_dir(), "a stop leaves what to go on from"

    events = []
    resumed = TrainingSession(
        base, config, task, out=tmp_path / "parts", resume=True, listeners=[events.append], **RUN
    )
    trace = resumed.run()
    assert next(e for e in events if isinstance(e, Started)).step == 4
    steps = {e.step: e.loss for e in events if isinstance(e, Stepped)}
    assert list(steps) == [5, 6, 7, 8]
    assert trace.losses.tolist() == whole.losses.tolist(), "bit for bit"
    assert trace.samples_before == whole.samples_before
    stored = Trace.load(tmp_path / "parts" / "run.trace")
    assert stored.losses.tolist() == whole.losses.tolist() and stored.reason == "completed"
    assert [step for step, _ in stored.selections] == list(range(9))
    assert_same(tmp_path / "whole", tmp_path / "parts")


def test_what_was_changed_before_the_checkpoint_stays_changed(base, task, config, tmp_path):
    def change_at_3(session):
        rates = LearningRates(bank=5e-3, logits=5e-2)
        session.add_listener(
            lambda e: isinstance(e, Stepped) and e.step == 3 and session.set_learning_rates(rates)
        )

    whole = TrainingSession(base, config, task, out=tmp_path / "whole", **RUN)
    change_at_3(whole)
    whole.run()
    parts = TrainingSession(base, config, task, out=tmp_path / "parts", **RUN)
    change_at_3(parts)
    parts.add_listener(lambda e: isinstance(e, Stepped) and e.step == 5 and parts.stop())
    parts.run()
    resumed = TrainingSession(base, config, task, out=tmp_path / "parts", resume=True, **RUN)
    assert resumed.learning_rates == LearningRates(bank=5e-3, logits=5e-2)
    resumed.run()
    assert_same(tmp_path / "whole", tmp_path / "parts")


def test_rates_of_a_pause_that_a_stop_ends_are_those_of_the_resumed_run(
    base, task, config, tmp_path
):
    rates = LearningRates(bank=5e-3, logits=5e-2)
    session = TrainingSession(base, config, task, out=tmp_path, **RUN)
    paused = threading.Event()
    session.add_listener(lambda e: isinstance(e, Stepped) and e.step == 2 and session.pause())
    session.add_listener(lambda e: isinstance(e, Paused) and paused.set())
    session.start()
    assert paused.wait(60)
    session.set_learning_rates(rates)
    session.stop()
    assert session.wait(60).reason == "stopped"
    resumed = TrainingSession(base, config, task, out=tmp_path, resume=True, **RUN)
    stepped = [e for e in resumed.run().events if isinstance(e, Stepped)]
    shape = 6 / 7  # of the schedule at step 3: 0, 1, and then down to 0 in sevenths
    assert stepped[2].learning_rates == pytest.approx(
        {"bank": shape * rates.bank, "logits": shape * rates.logits}
    )


def test_a_finished_run_has_nothing_left_to_do(base, task, config, tmp_path):
    TrainingSession(base, config, task, out=tmp_path, **RUN).run()
    before = load_file(tmp_path / "adapter" / WEIGHTS)
    again = TrainingSession(base, config, task, out=tmp_path, resume=True, **RUN)
    assert again.run().steps.tolist() == list(range(1, 9)) and again.status == "completed"
    after = load_file(tmp_path / "adapter" / WEIGHTS)
    assert all(torch.equal(before[name], after[name]) for name in before)


KILLED_IN_A_LOOP = """
# Children are forked from one process that has loaded the base, and killed at random moments.
import json, os, random, signal, sys, time
from pathlib import Path
import torch
from vblora_lab import LearningRates, TrainingSession, VBLoRAConfig, load_base, load_task
from vblora_lab.train import Stepped

torch.set_num_threads(1)
out = Path(sys.argv[1])
base, task = load_base("mini-opt", device="cpu"), load_task("restaurants")
config = VBLoRAConfig(
    r=2, num_vectors=16, vector_length=128, target_modules=["q_proj"], vblora_dropout=0.2
)

def child(folder, change_at=0, die_at=0):
    pid = os.fork()
    if pid == 0:
        def listen(event):
            if isinstance(event, Stepped) and event.step == change_at:
                session.set_learning_rates(LearningRates(bank=5e-3, logits=5e-2))
            if isinstance(event, Stepped) and event.step == die_at:
                os.kill(os.getpid(), signal.SIGKILL)
        try:
            session = TrainingSession(
                base, config, task, steps=20, batch_size=2, eval_examples=2, sample_count=0,
                save_every=2, out=folder, resume=True, listeners=[listen],
            )
            session.run()
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
    return pid

begun = time.monotonic()
assert os.waitpid(child(out / "whole", change_at=5), 0)[1] == 0
whole = time.monotonic() - begun
def newest():
    found = [int(p.name.split("-")[1]) for p in (out / "killed").glob("checkpoint-*")]
    return max(found, default=0)

# Rates that are changed after a checkpoint, by a process that does not live to the next.
assert os.waitpid(child(out / "killed", change_at=5, die_at=6), 0)[1] == signal.SIGKILL
rng = random.Random(int(sys.argv[2]))
kills, reached = 1, [0, newest()]
for attempt in range(6):
    pid = child(out / "killed")
    # The first is killed before it makes a checkpoint, the others within a few steps after that.
    while attempt > 0 and newest() == reached[-1] and not os.waitid(
        os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT
    ):
        time.sleep(0.001)
    time.sleep(rng.uniform(0, whole / 10))
    if attempt < 5:
        os.kill(pid, signal.SIGKILL)  # a child that has ended is a zombie until it is waited for
    status = os.waitpid(pid, 0)[1]
    assert status in (0, signal.SIGKILL), status
    kills += status != 0
    reached.append(newest())
    if status == 0:
        break
print(json.dumps({"kills": kills, "status": status, "reached": reached}))
"""


@pytest.mark.long
@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="needs fork")
def test_kill_and_resume_in_a_loop(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", KILLED_IN_A_LOOP, str(tmp_path), "0"],
        capture_output=True,
        text=True,
        timeout=480,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["status"] == 0 and told["kills"] >= 2, told
    assert told["reached"][1] == 4, "the new rates came after the checkpoint"
    assert told["reached"] == sorted(told["reached"]), "a kill never costs a checkpoint"
    assert_same(tmp_path / "whole", tmp_path / "killed")
    whole, killed = (Trace.load(tmp_path / name / "run.trace") for name in ("whole", "killed"))
    assert killed.losses.tolist() == whole.losses.tolist()
    kept = {path.name for path in (tmp_path / "killed").iterdir()}
    assert len([name for name in kept if name.startswith("checkpoint-")]) <= 2
