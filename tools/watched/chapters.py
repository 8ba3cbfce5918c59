"""What a newcomer does in each chapter beside running its cells, in the order of the cells.

`MEANWHILE` names a cell, and what is done when it has run; `AFTERWARDS` is done when all have.
Each act is the name of a method of `Newcomer` and its arguments, the cell first.
"""

from __future__ import annotations

Act = tuple[str, ...]

# Of the heatmap: these two end what is shown, and are pressed by name.
MAP = ("press_all", "", "^Undo|^Try|All modules|All rows|Play|Pause")
OPEN_A_MODULE: list[Act] = [
    ("keys", "", ".vblora-stage canvas", "ArrowDown", "ArrowRight", "Enter"),
    ("press", "", "All modules"),
]


def at(cell: str, *acts: Act) -> list[Act]:
    """The acts in a cell."""
    return [(name, cell, *more) for name, _, *more in acts]


# A sub-vector's vectors swapped and weighed, one vector switched off, and all of it undone.
ON_THE_BENCH: list[Act] = [
    ("keys", "", ".vblora-stage canvas", "ArrowDown", "ArrowRight", "Enter"),
    *(("press", "", "Try", "", which) for which in "012"),
    ("press", "", "Undo"),
    ("press", "", "Undo", "", "1"),  # all: what is left of the chapter needs the model as it was
    ("gone", "", "measuring…"),
]
WHOSE: list[Act] = [
    ("keys", "", ".vblora-whose [role=slider]", "ArrowLeft", "ArrowRight"),
    ("keys", "", ".vblora-whose select", "ArrowDown"),
]
# Also when all is done, and the files are gone.
OWN_FACTS: list[Act] = [
    ("enter", "", "or your own", "name[Blue Spice], food[Thai], area[riverside]"),
    ("press", "", "Write"),
    ("gone", "", "writing…"),
]


# It begins in the phase that the first button is for.
ONE_STEP: list[Act] = [
    ("drag", "", "[role=slider]", "0", "-30"),
    ("press_all", "", "Run|1 Forward"),
    ("press", "", "2 Gradients"),
    ("press", "", "1 Forward"),
    ("press", "", "Run"),
]
STEERED: list[Act] = [
    ("first_sign", "", "Train"),
    ("step", "", "3"),
    ("press", "", "Pause", "paused"),
    ("press", "", "Step"),
    ("press", "", "Resume", "training"),
    ("step", "", "6"),
]
# A length that fits nothing and one that does, a box and a list.
CONFIGURE: list[Act] = [
    ("enter", "", "vector_length", "100"),
    ("enter", "", "vector_length", "64"),
    ("tick", "", "save_only_topk_weights"),
    ("choose", "", "task_type", "CAUSAL_LM"),
]
AS_GIVEN = ("press", "", "As given")
SECOND_PANEL = """
another = lab.LiveTraining(base, steps=20, sample_count=0, eval_examples=0)
another
"""

MEANWHILE: dict[str, dict[str, list[Act]]] = {
    "00": {
        "many-users": at("many-users", ("press_all", "")),
        "map": at("map", *OPEN_A_MODULE, MAP),
    },
    "01": {
        "one": at("one", *ONE_STEP),
        "panel": [
            *at("panel", *STEERED),
            ("reload",),
            ("says", "panel", "training"),
            *at("panel", ("press", "", "Stop", "stopped")),
        ],
    },
    "02": {"play": at("play", *ONE_STEP)},
    "03": {"sub-vector": at("sub-vector", *ONE_STEP)},
    "04": {"explorer": at("explorer", *CONFIGURE, ("press_all", ""), AS_GIVEN)},
    "06": {
        "heatmap": at("heatmap", ("press", "", "Play"), *OPEN_A_MODULE, MAP),
        "bench": at("bench", *OPEN_A_MODULE, MAP, *ON_THE_BENCH),
    },
    "07": {"whose": at("whose", *WHOSE)},
    "11": {"build-17": [*at("build-17", *STEERED, ("press", "", "Stop", "stopped"))]},
    "13": {
        "c18": at("c18", ("first_sign", "", "Train"), ("step", "", "3")),
        # What it learned goes to a folder; a panel says where.
        "c20": at("c18", ("press_all", "", "Train|Pause|Resume|Step|Stop|Start")),
    },
}
AFTERWARDS: dict[str, list[Act]] = {
    "01": [
        # Two panels: one trains, the other says so, and is free when the first is.
        ("write", "another", SECOND_PANEL, "panel"),
        ("run", "another"),
        ("press", "panel", "Train", "training"),
        ("press", "another", "Train"),
        ("says", "another", "another session is training"),
        ("press", "panel", "Stop", "stopped"),
        ("press", "another", "Train", "training"),
        ("step", "another", "2"),
        # A cell that trains while a panel does.
        ("press", "another", "Stop", "stopped"),
        ("press", "panel", "Train", "training"),
        ("run", "from-code"),
        ("says", "panel", "completed"),
    ],
    "07": at("whose", *OWN_FACTS),
}
# Their last cells remove what others need (a folder, an adapter): run again from the first on.
FROM_THE_TOP = {"05", "07", "08", "10", "12", "13"}
# Cells that refuse to run a second time, and what they must say then.
ONLY_ONCE = {("00", "train"): "a session trains once"}
