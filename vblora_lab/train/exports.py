"""What can be exported of a session: its adapter, the same update as LoRA, its trace, its code.

Each function writes all or nothing, in place of an earlier export, and returns the path.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vblora_lab.bases import IN_FOLDERS
from vblora_lab.convert.export import export_lora as lora_of
from vblora_lab.data import load_task
from vblora_lab.errors import DataError, SessionError
from vblora_lab.planning.code import as_code
from vblora_lab.runs.folder import RunFolder
from vblora_lab.runs.layout import ADAPTER, SETTINGS, TRACE

if TYPE_CHECKING:
    from vblora_lab.train.session import TrainingSession

LORA, CODE = "lora", "train.py"
NAMES = ("LearningRates", "TrainingSession", "VBLoRAConfig")  # what the code of a run imports


def export_adapter(session: TrainingSession, folder: str | Path) -> Path:
    """Write ``folder/adapter``, which PEFT loads. Raises `SessionError` while the session runs."""
    _check_weights_are_still(session)
    place = _own_folder(folder)
    with place.writing(ADAPTER) as aside:
        session.model.save_pretrained(str(aside))
    return place.path / ADAPTER


def export_lora(session: TrainingSession, folder: str | Path) -> Path:
    """Write ``folder/lora``, the same update for engines that serve LoRA. Raises as above."""
    _check_weights_are_still(session)
    return lora_of(session.model, _own_folder(folder).path / LORA)


def export_trace(session: TrainingSession, folder: str | Path) -> Path:
    """Write ``folder/run.trace``: the run so far. ``Runs(folder.parent)`` finds it."""
    place = _own_folder(folder)
    with place.writing(TRACE) as aside:
        session.trace.save(aside)
    return place.path / TRACE


def export_code(session: TrainingSession, folder: str | Path) -> Path:
    """Write ``folder/train.py``, see `code_of`."""
    place, code = _own_folder(folder), code_of(session)
    with place.writing(CODE) as aside:
        aside.write_text(code, encoding="utf-8")
    return place.path / CODE


def code_of(session: TrainingSession) -> str:
    """Python that trains the same adapter in another process.

    Raises `SessionError` where base or task were not loaded by a name, which code could repeat.
    """
    settings, model = session.settings, session.base.model
    label = session.base.label
    base = label if label in IN_FOLDERS else str(model.name_or_path)
    if not base:
        raise SessionError(
            f"code: this {type(model).__name__} was not loaded by a name, so code can't load it. "
            "Use load_base(name), or keep the adapter and the trace."
        )
    try:
        same_task = load_task(session.task.name) == session.task
    except DataError:
        same_task = False
    if not same_task:
        raise SessionError(
            f"code: load_task({session.task.name!r}) does not give this session's task, so code "
            "can't load it. Keep the adapter and the trace, or write the code with your own task."
        )
    rates = settings["learning_rates"]
    given = ", ".join(f"{name}={rate!r}" for name, rate in rates.items())
    lines = [
        as_code(session.config).replace("import VBLoRAConfig", f"import {', '.join(NAMES)}"),
        f"session = TrainingSession(\n    {base!r},\n    config,\n    {session.task.name!r},",
        f"    steps={settings['steps']},\n    batch_size={settings['batch_size']},",
        f"    learning_rates=LearningRates({given}),\n    seed={settings['seed']},\n)",
        'if __name__ == "__main__":\n    session.run()',
        '    session.model.save_pretrained("adapter")\n',
    ]
    if vars(session.learning_rates) != rates:
        lines.insert(1, f"# While it ran, the rates were changed to {session.learning_rates}.")
    return "\n".join(lines)


def _check_weights_are_still(session: TrainingSession) -> None:
    if session.status == "running":
        raise SessionError("the weights change with every step; pause or stop the run, then export")


def _own_folder(folder: str | Path) -> RunFolder:
    """The folder; raises `SessionError` if a session keeps its own files there."""
    if (Path(folder) / SETTINGS).exists():
        raise SessionError(
            f"{str(folder)!r} is the folder of a run, which keeps its own files; choose another"
        )
    return RunFolder(folder)
