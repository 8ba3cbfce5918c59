"""What the pictures in docs/images show: every widget, with the same content each time.

A run of LiveTraining as it stands in the first notebook was recorded once, and another with lower
rates to lay under it (`python tools/images.py --record`); here they are told again. The adapter of
that run is made of the mixtures that its trace ends with, and of its bank. What the six users of
notebook 07 store and write was recorded too.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import nbformat
import numpy as np
import torch
from nbclient import NotebookClient
from peft import PeftModel
from transformers import OPTConfig

from vblora_lab import PRESETS, LearningRates, Trace, TrainingSession, get_peft_model, load_base
from vblora_lab.data.styles import styles
from vblora_lab.train import SHORT_RUN_RATES, Replay, Stepped
from vblora_lab.tuner.adapted import adapted_layers
from vblora_lab.widgets import (
    BankHeatmap,
    ConfigExplorer,
    LiveTraining,
    ManyUsers,
    SubVector,
    TrainingStudio,
    WhoseText,
)

DATA = Path(__file__).parent / "data"
RUN, SLOWER, BANK = DATA / "run.trace", DATA / "slower.trace", DATA / "bank.npy"
SLOW_RATES = LearningRates(bank=SHORT_RUN_RATES.bank / 5, logits=SHORT_RUN_RATES.logits / 5)
USERS = DATA / "users.json"
NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "07-store-and-ship.ipynb"
NAMES = ("ada", "alan", "grace", "kurt", "mary", "emmy")  # as there
KEEP_USERS = """
told = {
    mr: {name: each["text"] for name, each in found.items()} for mr, found in whose.texts.items()
}
print(json.dumps({"stored": whose.stored, "texts": told}))
"""
SHOWN_STEP = 120  # of the run that the studio is in the middle of
SELECT_EVERY = 10


def config_explorer() -> ConfigExplorer:
    return ConfigExplorer(OPTConfig(), PRESETS["first-layers"].config())


def sub_vector() -> SubVector:
    return SubVector(phase="gradient")


def many_users() -> ManyUsers:
    return ManyUsers()


def whose_text() -> WhoseText:
    recorded = json.loads(USERS.read_text(encoding="utf-8"))
    texts = recorded["texts"]
    return WhoseText(
        dict(zip(NAMES, styles(len(NAMES), seed=0), strict=True)),
        recorded["stored"],
        list(texts),
        lambda mrs, names: [texts[mr][name] for mr, name in zip(mrs, names, strict=True)],
        user=4,
    )


def bank_heatmap() -> BankHeatmap:
    trace = Trace.load(RUN)
    adapted = SimpleNamespace(trace=trace, model=adapter_of(trace))
    heatmap = BankHeatmap(adapted, lambda: (float(trace.eval_losses[-1]), ""))  # type: ignore[arg-type]
    heatmap.bench = {}
    heatmap.pinned_row = 20
    return heatmap


def adapter_of(trace: Trace) -> PeftModel:
    """mini-OPT with the adapter that the trace ends with, up to what no mixture has."""
    selection = trace.selections[-1][1]
    model = get_peft_model(load_base("mini-opt", device="cpu").model, live_training().config)
    rows = selection.sub_vectors
    layers = adapted_layers(model)
    with torch.no_grad():
        for row, (vectors, weights) in enumerate(
            zip(selection.indices, selection.weights, strict=True)
        ):
            layer = layers[rows.modules[rows.module[row]]]
            logits = getattr(layer, f"vblora_logits_{rows.matrix[row]}")["default"]
            rank, tile = int(rows.rank[row]), int(rows.tile[row])
            place = logits[rank, tile] if rows.matrix[row] == "A" else logits[tile, rank]
            place.fill_(-30.0)
            place[torch.from_numpy(vectors).long()] = torch.from_numpy(np.log(weights))
        bank = next(iter(layers.values())).vblora_vector_bank["default"]
        bank.copy_(torch.from_numpy(np.load(BANK)).float())
    return model


def live_training() -> LiveTraining:
    return LiveTraining(driver="thread")


def completed_training() -> LiveTraining:
    panel = live_training()
    panel._reset(panel.controls.steps.value)
    Replay(Trace.load(RUN), listeners=[panel._listen]).run()
    return panel


def training_studio() -> TrainingStudio:
    """In the middle of the run, with the other one under its loss curve."""
    base = load_base("mini-opt", device="cpu")
    session = TrainingSession(
        base, live_training().config, steps=200, learning_rates=SHORT_RUN_RATES
    )
    studio = TrainingStudio(session, runs={"lower rates": Trace.load(SLOWER)}, driver="thread")
    studio.overlay.value = ("lower rates",)
    for event in Trace.load(RUN).events:
        studio._listen(event)
        if isinstance(event, Stepped) and event.step == SHOWN_STEP:
            break
    studio._show_what_was_heard()
    return studio


def record() -> None:
    """Train both runs and the users, and keep what the functions above need."""
    panel = LiveTraining(driver="foreground", select_every=SELECT_EVERY)
    panel.train().save(RUN)
    bank = next(iter(adapted_layers(panel.session.model).values())).vblora_vector_bank["default"]
    np.save(BANK, bank.detach().numpy().astype(np.float16))
    slower = TrainingSession(
        "mini-opt", panel.config, steps=200, learning_rates=SLOW_RATES, seed=1, eval_examples=0,
        sample_count=0, select_every=0,
    )  # fmt: skip
    slower.run().save(SLOWER)
    record_users()


def record_users() -> None:
    """Run notebook 07, and keep what its users store and write."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell(KEEP_USERS))
    NotebookClient(
        notebook, timeout=600, resources={"metadata": {"path": NOTEBOOK.parent}}
    ).execute()
    kept = "".join(output.text for output in notebook.cells[-1].outputs)
    USERS.write_text(
        json.dumps(json.loads(kept), indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )
