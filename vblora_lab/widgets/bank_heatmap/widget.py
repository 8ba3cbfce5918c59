"""BankHeatmap: which bank vectors each sub-vector mixes, live in the browser.

The kernel sends numbers, and the scripts beside this file draw them in the browser: hovering,
lighting, scrubbing and zooming need no kernel. A trace travels whole, as a stack of frames; a
single selection is a stack of one. Coordinates go once, and an update sends what changed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

from matplotlib.figure import Figure

from vblora_lab.errors import SelectionError, SessionError
from vblora_lab.inspection.selection import ColumnsBy, RowsBy, Selection
from vblora_lab.plots.style import FAINT, literal
from vblora_lab.widgets._picture import Pictured
from vblora_lab.widgets.bank_heatmap.choice import HeatmapChoice
from vblora_lab.widgets.bank_heatmap.page import SCRIPT, STYLE, Answers, page
from vblora_lab.widgets.bank_heatmap.pictures import FigureKind, draw
from vblora_lab.widgets.bank_heatmap.state import (
    Traits,
    is_fixed,
    of_columns_by,
    of_frames,
    of_rows,
    of_rows_by,
    of_start,
    same_rows,
    thinned,
)

if TYPE_CHECKING:
    from torch import nn

    from vblora_lab.inspection.counterfactual import Counterfactual
    from vblora_lab.train import Outcome, Trace, TrainingSession
    from vblora_lab.widgets.bank_heatmap.bench import Bench, Evaluate
    from vblora_lab.widgets.bank_heatmap.live_model import LiveModel


MOST_BYTES = 24_000_000
"""Of a trace, as many recorded steps go to the browser as fit into this."""


class BankHeatmap(Pictured, HeatmapChoice):
    """A map of modules or sub-vectors (rows) by bank vectors (columns), and what goes with it.

    Changes are marked against the start: the first step of a trace, or else the first selection
    of its adapter that was shown.

    Args:
        shown: a `Selection`, a `Trace` (with a slider over its steps), a live model (a PeftModel;
            with the vectors of its bank and the update of each module) or a `TrainingSession` (its
            trace and its model). None is an empty frame, until `update` is called.
        evaluate: opens the bench, on which mixtures of the live model are changed: a function
            without arguments that returns an `Outcome` (or a loss and a text), or a
            `TrainingSession`, or a `Base` and a `Task` to make a `Probe` of. A session that is
            `shown` brings its own.
        adapter_name: of a live model.
        height: of the map in CSS pixels.
        compact: the map alone, without the linked views below it.

    Traits to set or to observe:
        selected: numbers of the sub-vectors that are lit, ascending.
        pinned_row: the sub-vector that a click pinned, -1 for none.
        lit_vector: the bank vector that was chosen, -1 for none; `selected` is all that mix it.
        frame: which of `steps` is shown.
        view: "modules", where each row is a module and colour is what exceeds chance (see
            `inspection.chance`); "weights", where each row is a sub-vector; or "footprint", the
            first step of a trace against the last.
        opened: in the view "modules", the number of the module whose sub-vectors are shown instead,
            -1 for none.
        rows_by, columns_by: the orders, see `Selection.row_order` and `column_order`. Of a trace
            they are those of its last step.

    Raises:
        TypeError: `shown` or `evaluate` is of another kind.
        SelectionError: a trace without selections, or a model without such an adapter.
    """

    _esm = SCRIPT
    _css = STYLE

    def __init__(
        self,
        shown: Selection | Trace | nn.Module | TrainingSession | None = None,
        evaluate: Evaluate | None = None,
        *,
        adapter_name: str = "default",
        height: int = 460,
        compact: bool = False,
        **kwargs: Any,
    ):
        self._frames: list[Selection] = []
        self._start: Selection | None = None
        self._live: LiveModel | None = None
        self._adapter_name = adapter_name
        self._session: TrainingSession | None = None
        self._bench: Bench | None = None
        super().__init__(height=height, compact=compact, **kwargs)
        self.observe(self.follow_choice, ["pinned_row", "lit_vector", "frame"])
        self.observe(self.take_selected, "selected")
        self.observe(lambda _: self._send_order(), ["rows_by", "columns_by"])
        self.observe(lambda _: self._send_delta(), "module_shown")
        self.on_msg(self._on_message)
        if shown is not None:
            self._show(shown)
        if evaluate is not None or self._session is not None:
            self._open_bench(evaluate if evaluate is not None else self._session)

    # --- what is shown

    @property
    def selection(self) -> Selection | None:
        """What is shown now: that of the frame, of a trace. Set it to show something else."""
        return self._frames[min(self.frame, len(self._frames) - 1)] if self._frames else None

    @selection.setter
    def selection(self, selection: Selection | None) -> None:
        if selection is None:
            self._clear()
        else:
            self.update(selection)

    @property
    def is_live(self) -> bool:
        """Whether a live model is shown."""
        return self._live is not None

    @property
    def what_if(self) -> Counterfactual | None:
        """The changes on the bench; None without one."""
        return None if self._bench is None else self._bench.what_if

    def _show(self, shown: Selection | Trace | nn.Module | TrainingSession) -> None:
        torch = sys.modules.get("torch")  # with a model, torch is loaded already
        self.base = ""
        if isinstance(shown, Selection):
            self.update(shown)
        elif hasattr(shown, "selections"):
            self._show_frames(cast("Trace", shown).selections)
            self.base = getattr(shown, "base", "")
        elif torch is not None and isinstance(shown, torch.nn.Module):
            self._read_live(shown)
            self.refresh()
        elif hasattr(shown, "trace") and hasattr(shown, "model"):
            self._session = shown
            self._read_live(shown.model)
            if len(shown.trace.selections) > 1:
                self._show_frames(shown.trace.selections)
                self._send_model()
            else:
                self.refresh()
        else:
            raise TypeError(_not_a_selection(shown))

    def _read_live(self, model: nn.Module) -> None:
        from vblora_lab.widgets.bank_heatmap.live_model import LiveModel  # which needs torch

        self._live = LiveModel(model, self._adapter_name)
        self.base = self._live.label

    def update(self, selection: Selection) -> None:
        """Show `selection`, in one message to the browser.

        Raises:
            TypeError: If it is no `Selection`.
        """
        if not isinstance(selection, Selection):
            raise TypeError(_not_a_selection(selection))
        self._put([selection], steps=[], recorded=0)

    def refresh(self) -> None:
        """Read the live model again, and show what it chooses now.

        Raises:
            SelectionError: there is no live model.
        """
        if self._live is None:
            raise SelectionError("there is no live model to read: BankHeatmap(model) shows one.")
        self.update(self._live.selection())
        self._send_model()

    def _show_frames(self, selections: Sequence[tuple[int, Selection]]) -> None:
        if not selections:
            raise SelectionError(
                "this trace has no selections; record some with TrainingSession(select_every=1)."
            )
        chosen = thinned([selection for _, selection in selections], MOST_BYTES)
        frames = [selections[i][1] for i in chosen]
        self._put(
            frames, steps=[int(selections[i][0]) for i in chosen], recorded=len(selections)
        )  # fmt: skip

    def _put(self, frames: list[Selection], steps: list[int], recorded: int) -> None:
        shown, last = self._frames[-1] if self._frames else None, frames[-1]
        with self.hold_sync():
            is_new = shown is None or not same_rows(shown, last)
            if is_new:
                self._send_rows(last)
            if is_new or self._start is None or len(frames) > 1:
                self._start = frames[0]
                self.set_traits(of_start(self._start))
            self._frames = frames
            self.steps, self.recorded = steps, recorded
            self.set_traits(of_frames(frames, self._start))
            self.frame = len(frames) - 1
            if not (is_new or is_fixed(self.rows_by, self.columns_by)):
                self._send_order()
            self.follow_choice()

    def _send_rows(self, selection: Selection) -> None:
        self.pinned_row = self.lit_vector = self.opened = -1
        self.selected = []
        self.set_traits(of_rows(selection))
        self._send_order(selection)

    def _send_order(self, selection: Selection | None = None) -> None:
        last = selection or (self._frames[-1] if self._frames else None)
        if last is not None:
            with self.hold_sync():
                self.set_traits(of_rows_by(last, self.rows_by))
                self.set_traits(of_columns_by(last, self.columns_by))

    def _clear(self) -> None:
        self.clear_traits()
        self._frames, self._start = [], None

    # --- of a live model

    def _send_model(self) -> None:
        """The vectors of the bank, and the update of the module that is shown."""
        if self._live is None:
            return
        with self.hold_sync():
            self.bank = self._live.bank()
            if self.module_shown < 0:
                self.module_shown = 0  # which sends its update
            else:
                self._send_delta()

    def _send_delta(self) -> None:
        if self._live is not None and 0 <= self.module_shown < len(self.modules):
            with self.hold_sync():
                self.set_traits(self._delta_of(self.module_shown))

    def _delta_of(self, module: int) -> Traits:
        assert self._live is not None
        return self._live.update(self._frames[-1].sub_vectors.modules[module], module)

    # --- the bench

    def _open_bench(self, evaluate: Any) -> None:
        if self._live is None:
            raise TypeError(
                "evaluate needs a live model: BankHeatmap(model, evaluate) or BankHeatmap(session)."
            )
        from vblora_lab.widgets.bank_heatmap.bench import Bench  # torch, only where it is used

        self._bench = Bench(
            self._live.model,
            self._adapter_name,
            evaluate,
            session=self._session,
            changed=self._after_change,
            show=lambda state: self.set_trait("bench", state),
        )

    def try_change(self, kind: str, **arguments: Any) -> tuple[Outcome, Outcome]:
        """Change the model as the bench does, and measure.

        Args:
            kind: "swap", "reweight", "force" or "switch_off", a method of `Counterfactual`, or
                "undo" or "restore", which take changes back.
            **arguments: of that method.

        Returns:
            What `evaluate` says of the model without any change, and with all that are in force.

        Raises:
            CounterfactualError: the change can't be made. Nothing is changed.
            SessionError: there is no bench, or its session is training.
        """
        if self._bench is None:
            raise SessionError("there is no bench: give BankHeatmap a live model and evaluate=.")
        return self._bench.try_change(kind, **arguments)

    def close(self) -> None:
        """Take back every change on the bench, and close the widget."""
        if self._bench is not None:
            self._bench.what_if.restore()
        super().close()

    def _after_change(self) -> None:
        """Show the model as it is now; of a trace, the last frame becomes that."""
        chosen = self.pinned_row, self.lit_vector
        if self.steps and self._live is not None:
            now = self._live.selection()
            self._put([*self._frames[:-1], now], list(self.steps), self.recorded)
            self._send_model()
        else:
            self.refresh()
        self.pinned_row, self.lit_vector = chosen

    def _on_message(self, _widget: Any, content: Any, _buffers: Any) -> None:
        """What a person asked for on the bench: {"bench": kind, ...arguments}."""
        if isinstance(content, dict) and "bench" in content:
            arguments = {name: value for name, value in content.items() if name != "bench"}
            try:
                self.try_change(content["bench"], **arguments)
            except Exception as error:  # a button can't raise to anyone
                if self._bench is not None:
                    self._bench.show(error=str(error))

    # --- what stays

    def figure(self, kind: FigureKind = "modules") -> Figure:
        """A matplotlib figure for a paper.

        Args:
            kind: "modules", "heatmap", "usage", "entropy" or "sharing" of what is shown now;
                "footprint" (the first step against the last) or "churn" of a trace.

        Raises:
            SelectionError: nothing is shown, or the kind needs a trace and there is none.
        """
        if self.selection is None:
            raise SelectionError("nothing is shown yet, so there is nothing to draw.")
        steps = list(zip(self.steps, self._frames, strict=False))
        start = None if self.selection is self._start else self._start
        figure = draw(kind, self.selection, steps, start)
        figure.axes[0].set_title(literal(self.base), loc="right", color=FAINT, fontsize=9)
        return figure

    def to_html(self, path: str | Path, title: str = "VB-LoRA bank heatmap") -> Path:
        """Write one HTML file that shows all this without kernel or network, as playable as here.

        Only the bench isn't in it. For readers without JavaScript it holds a picture. In an iframe,
        it posts {vbloraHeight: pixels} to the page around it, and heeds {vbloraDark: boolean}.

        Args:
            path: of the file; its folder must exist.
            title: of the page.

        Raises:
            SelectionError: nothing is shown.
        """
        if self.selection is None:
            raise SelectionError("nothing is shown yet, so there is nothing to write.")
        path = Path(path)
        path.write_text(
            page(
                title,
                state=self._state_of_page(),
                answers=self._answers_of_page(),
                png=self.figure()._repr_png_()[0],  # type: ignore[attr-defined]
            ),
            encoding="utf-8",
        )
        return path

    def _state_of_page(self) -> dict[str, Any]:
        """The traits as the page begins; the bench isn't in it."""
        state = {name: getattr(self, name) for name in self.own_traits()} | {"bench": {}}
        if self.pinned_row >= 0 or self.lit_vector >= 0:
            state["selected"] = []  # what they select, the page finds by itself
        return state

    def _answers_of_page(self) -> Answers:
        """What the kernel would say to each choice of a person: trait -> value -> other traits."""
        last = self._frames[-1]
        answers: Answers = {
            "rows_by": {by: of_rows_by(last, by) for by in get_args(RowsBy)},
            "columns_by": {by: of_columns_by(last, by) for by in get_args(ColumnsBy)},
        }
        if self._live is not None:
            answers["module_shown"] = {
                str(module): self._delta_of(module) for module in range(len(self.modules))
            }
        return answers

    def _picture(self) -> Figure | None:
        return None if self.selection is None else self.figure()


def _not_a_selection(value: object) -> str:
    return (
        f"a {type(value).__name__} isn't what a BankHeatmap shows: give it a Selection (read one "
        "with vblora_lab.read_selection(model)), a Trace, a PeftModel or a TrainingSession."
    )
