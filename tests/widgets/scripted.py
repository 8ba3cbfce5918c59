"""A small model's real selections, and a session that plays a script instead of training."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import numpy as np
import torch
from transformers import OPTConfig, OPTForCausalLM

from vblora_lab.inspection.reading import read_selection
from vblora_lab.inspection.selection import Selection
from vblora_lab.runs.events import (
    Evaluated,
    Finished,
    Paused,
    Resumed,
    Sample,
    Sampled,
    Selected,
    Started,
    Stepped,
)
from vblora_lab.tuner.config import VBLoRAConfig
from vblora_lab.tuner.peft import get_peft_model


def small_opt(layers=2):
    torch.manual_seed(0)
    return OPTForCausalLM(
        OPTConfig(
            vocab_size=64, hidden_size=32, ffn_dim=64, num_hidden_layers=layers,
            num_attention_heads=2, max_position_embeddings=32, word_embed_proj_dim=32,
        )
    )  # fmt: skip


def selection_of(layers=2, **config) -> Selection:
    config = {
        "r": 2, "num_vectors": 16, "vector_length": 16, "topk": 2,
        "target_modules": ["q_proj", "fc1"], **config,
    }  # fmt: skip
    return read_selection(get_peft_model(small_opt(layers), VBLoRAConfig(**config)))


def reweighted(selection: Selection, seed: int) -> Selection:
    """The same sub-vectors with other choices, as after some steps."""
    rng = np.random.default_rng(seed)
    rows, k = selection.indices.shape
    indices = np.argsort(rng.random((rows, selection.num_vectors)), axis=1)[:, :k]
    first = rng.uniform(0.5, 1, size=(rows, 1))
    rest = np.tile((1 - first) / (k - 1), (1, k - 1))
    return Selection(
        sub_vectors=selection.sub_vectors,
        num_vectors=selection.num_vectors,
        indices=indices.astype(np.int32),
        weights=np.concatenate([first, rest], axis=1).astype(np.float32),
    )


def sample(text: str, *errors: str) -> Sample:
    return Sample("name[Blue Spice], food[<Thai>]", "Blue Spice serves Thai food.", text, errors)


class ScriptedSession:
    """Speaks as `TrainingSession` does: a loss of 4 / step, a selection at every step.

    `hold` makes it wait before step 3 until `stop` is called; `fail` ends it there with an error;
    `pauses` pauses it there until `resume` is called. `asked` lists what it was steered to do.
    """

    hold = fail = pauses = False
    made: list[ScriptedSession]

    def __init__(
        self, base, config, task, *, steps, batch_size, learning_rates, seed, listeners, **options
    ):
        self.given = SimpleNamespace(
            base=base, config=config, task=task, steps=steps, batch_size=batch_size,
            learning_rates=learning_rates, seed=seed, options=options,
        )  # fmt: skip
        self.listeners = list(listeners)
        self.status = "ready"
        self.trace = SimpleNamespace(steps=[])
        self.held = threading.Event()
        self._stop = threading.Event()
        self._go = threading.Event()
        self.asked = []
        self.learning_rates = learning_rates
        self.thread = None
        type(self).made.append(self)

    def _tell(self, event):
        for listener in self.listeners:
            listener(event)

    def _run(self):
        self.status, self.thread = "running", threading.current_thread()
        steps, error, reason, done = self.given.steps, None, "completed", 0
        start = selection_of()
        self._tell(Started(steps, start.sub_vectors, 16, 2, 4321, 1500, 64_000))
        self._tell(Sampled(0, (sample("The <b>pub</b>.", "missing food[<Thai>]"),)))
        self._tell(Evaluated(0, 4.25))
        for step in range(1, steps + 1):
            if step == 3 and (self.hold or self.fail):
                self.held.set()
                self._stop.wait(10 if self.hold else 0)
                if self.fail:
                    error, reason = RuntimeError("the loss is <nan>"), "failed"
                else:
                    reason = "stopped"
                break
            if step == 3 and self.pauses:
                self._tell(Paused(done))
                self.held.set()
                self._go.wait(10)
                self._tell(Resumed(done))
            done = step
            self._tell(Stepped(step, steps, 4 / step, {"bank": 1e-3}, 1234.5, 6.5, 75.0, step / 10))
            self._tell(Selected(step, reweighted(start, step)))
        self._tell(Evaluated(done, 1.5))
        self._tell(Sampled(done, (sample("Blue Spice serves Thai food."),)))
        self.trace.steps = list(range(1, done + 1))
        self.status, self.error = reason, error
        self._tell(Finished(reason, done, done / 10, error))

    def run(self):
        self._run()
        return self._end()

    def _end(self):
        if self.error:
            raise self.error
        return self.trace

    def start(self):
        self._worker = threading.Thread(target=self._run, daemon=True)
        self.status = "running"
        self._worker.start()

    def stop(self):
        self._stop.set()

    def pause(self):
        self.asked.append("pause")

    def step(self):
        self.asked.append("step")

    def resume(self):
        self.asked.append("resume")
        self._go.set()

    def set_learning_rates(self, rates):
        self.learning_rates = rates
        self.asked.append((rates.bank, rates.logits))

    def wait(self, timeout=None):
        self._worker.join(timeout)
        return self._end()
