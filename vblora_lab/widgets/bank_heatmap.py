"""BankHeatmap: which bank vectors each sub-vector mixes, live in the browser.

The kernel sends numbers, the browser draws them (`bank_heatmap.js`): hovering, lighting, scrubbing
and zooming need no kernel. A trace travels whole, as a stack of frames; a single selection is a
stack of one. Coordinates go once, and an update sends what changed.
"""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Callable, Sequence
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import anywidget
import numpy as np
import traitlets
from matplotlib.figure import Figure

from vblora_lab import plots
from vblora_lab.errors import SelectionError, SessionError
from vblora_lab.inspection.reading import read_selection
from vblora_lab.inspection.rows import row_groups
from vblora_lab.inspection.selection import ColumnsBy, RowsBy, Selection, SubVectors
from vblora_lab.widgets._picture import Pictured
from vblora_lab.widgets._source import source

if TYPE_CHECKING:
    from torch import nn

    from vblora_lab.bases import Base
    from vblora_lab.data import Task
    from vblora_lab.inspection.counterfactual import Counterfactual
    from vblora_lab.train import Outcome, Trace, TrainingSession

    Evaluate = Callable[[], Outcome | tuple[float, str]] | TrainingSession | tuple[Base, Task]

MOST_BYTES = 24_000_000
"""Of a trace, as many recorded steps go to the browser as fit into this."""

FigureKind = Literal["heatmap", "footprint", "usage", "entropy", "sharing", "churn"]
CHANGES = ("swap", "reweight", "force", "switch_off", "undo", "restore")


class BankHeatmap(Pictured, anywidget.AnyWidget):
    """A heatmap of sub-vectors (rows) by bank vectors (columns), and what goes with it.

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
        view: "weights", or "footprint", the first step of a trace against the last.
        rows_by, columns_by: the orders, see `Selection.row_order` and `column_order`. Of a trace
            they are those of its last step.

    Raises:
        TypeError: `shown` or `evaluate` is of another kind.
        SelectionError: a trace without selections, or a model without such an adapter.
    """

    _esm = source("canvas.js", "bank_heatmap.js")
    _css = source("theme.css", "bank_heatmap.css")

    # Sent when the adapter changes.
    modules = traitlets.List(traitlets.Unicode()).tag(sync=True)  # "layer 0 · self_attn.q_proj"
    layers = traitlets.List(traitlets.Unicode()).tag(sync=True)  # SubVectors.blocks
    # (N, 5) int32: module, A 0 or B 1, rank, tile, layer
    coordinates = traitlets.Bytes().tag(sync=True)
    num_vectors = traitlets.Int(0).tag(sync=True)
    base = traitlets.Unicode().tag(sync=True)  # `Base.label` of what is adapted; "": not known
    # Sent at each update: one frame, or one for each step.
    steps = traitlets.List(traitlets.Int()).tag(sync=True)  # empty: no trace
    recorded = traitlets.Int(0).tag(sync=True)  # how many steps the trace has
    indices = traitlets.Bytes().tag(sync=True)  # (frames, N, k) uint16, uint32 for a larger bank
    weights = traitlets.Bytes().tag(sync=True)  # (frames, N, k) float32
    usage = traitlets.Bytes().tag(sync=True)  # (frames, num_vectors) float32
    entropy = traitlets.Bytes().tag(sync=True)  # (frames, N) float32
    layer_entropy = traitlets.Bytes().tag(sync=True)  # (frames, layers) float32
    sharing = traitlets.Bytes().tag(sync=True)  # (frames, layers, layers) float32
    churn = traitlets.Bytes().tag(sync=True)  # (frames, 2) float32: since the last, the first one
    # Orders, and the labels beside the rows: level, first row, number of rows, text.
    row_order = traitlets.Bytes().tag(sync=True)  # (N,) int32
    column_order = traitlets.Bytes().tag(sync=True)  # (num_vectors,) int32
    groups: traitlets.List[Any] = traitlets.List().tag(sync=True)
    # Of a live model.
    bank = traitlets.Bytes().tag(sync=True)  # (num_vectors, vector_length) float32
    delta: traitlets.Dict[str, Any] = traitlets.Dict().tag(sync=True)  # of module_shown: Update
    delta_blocks = traitlets.Bytes().tag(sync=True)
    bench: traitlets.Dict[str, Any] = traitlets.Dict().tag(sync=True)  # {}: there is none
    # What a person chooses.
    selected = traitlets.List(traitlets.Int(min=0)).tag(sync=True)
    pinned_row = traitlets.Int(-1, min=-1).tag(sync=True)
    lit_vector = traitlets.Int(-1, min=-1).tag(sync=True)
    module_shown = traitlets.Int(-1, min=-1).tag(sync=True)
    frame = traitlets.Int(0, min=0).tag(sync=True)
    view = traitlets.Enum(("weights", "footprint"), "weights").tag(sync=True)
    rows_by = traitlets.Enum(get_args(RowsBy), "layer").tag(sync=True)
    columns_by = traitlets.Enum(get_args(ColumnsBy), "number").tag(sync=True)
    height = traitlets.Int(460, min=200).tag(sync=True)
    compact = traitlets.Bool(False).tag(sync=True)

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
        self._model: nn.Module | None = None
        self._adapter_name = adapter_name
        self._session: TrainingSession | None = None
        self._evaluate: Callable[[], Outcome] | None = None
        self._what_if: Counterfactual | None = None
        self._choosing = False
        super().__init__(height=height, compact=compact, **kwargs)
        self.observe(self._choose, ["pinned_row", "lit_vector", "frame"])
        self.observe(self._take_selected, "selected")
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
    def what_if(self) -> Counterfactual | None:
        """The changes on the bench; None without one."""
        return self._what_if

    def _show(self, shown: Selection | Trace | nn.Module | TrainingSession) -> None:
        torch = sys.modules.get("torch")  # who has a model has torch
        self.base = ""
        if isinstance(shown, Selection):
            self.update(shown)
        elif hasattr(shown, "selections"):
            self._show_frames(cast("Trace", shown).selections)
            self.base = getattr(shown, "base", "")
        elif torch is not None and isinstance(shown, torch.nn.Module):
            self._model = shown
            self.refresh()
            self.base = _label_of(shown)
        elif hasattr(shown, "trace") and hasattr(shown, "model"):
            self._session, self._model = shown, shown.model
            self.base = _label_of(shown.model)
            if len(shown.trace.selections) > 1:
                self._show_frames(shown.trace.selections)
                self._send_model()
            else:
                self.refresh()
        else:
            raise TypeError(_not_a_selection(shown))

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
        if self._model is None:
            raise SelectionError("there is no live model to read: BankHeatmap(model) shows one.")
        self.update(read_selection(self._model, self._adapter_name))
        self._send_model()

    def _show_frames(self, selections: Sequence[tuple[int, Selection]]) -> None:
        if not selections:
            raise SelectionError(
                "this trace has no selections; record some with TrainingSession(select_every=1)."
            )
        first = selections[0][1]
        each = first.weights.nbytes * 2 + 4 * (first.num_vectors + len(first.indices))
        most = max(2, MOST_BYTES // each)
        chosen = sorted({*np.linspace(0, len(selections) - 1, most).round().astype(int).tolist()})
        frames = [selections[i][1] for i in chosen]
        self._put(
            frames, steps=[int(selections[i][0]) for i in chosen], recorded=len(selections)
        )  # fmt: skip

    def _put(self, frames: list[Selection], steps: list[int], recorded: int) -> None:
        shown, last = self._frames[-1] if self._frames else None, frames[-1]
        with self.hold_sync():
            is_new = shown is None or not _same_rows(shown, last)
            if is_new:
                self._send_rows(last)
            small = last.num_vectors <= np.iinfo(np.uint16).max + 1
            churn = [
                (now.churn(before), now.churn(frames[0]))
                for before, now in pairwise([frames[0], *frames])
            ]
            self._frames = frames
            self.steps, self.recorded = steps, recorded
            self.indices = _stack([s.indices for s in frames], "<u2" if small else "<u4")
            self.weights = _stack([s.weights for s in frames], "<f4")
            self.usage = _stack([s.usage() for s in frames], "<f4")
            self.entropy = _stack([s.entropy() for s in frames], "<f4")
            self.layer_entropy = _stack([s.entropy_by_layer() for s in frames], "<f4")
            self.sharing = _stack([s.sharing() for s in frames], "<f4")
            self.churn = _bytes(np.array(churn), "<f4")
            self.frame = len(frames) - 1
            if not (is_new or _follows_the_model(self.rows_by, self.columns_by)):
                self._send_order()
            self._choose()

    def _send_rows(self, selection: Selection) -> None:
        rows = selection.sub_vectors
        self.pinned_row = self.lit_vector = -1
        self.selected = []
        self.num_vectors = selection.num_vectors
        self.modules = _module_labels(rows)
        self.layers = list(rows.blocks[0])
        columns = (rows.module, rows.matrix == "B", rows.rank, rows.tile, rows.blocks[1])
        self.coordinates = _bytes(np.stack(columns, axis=1), "<i4")
        self._send_order(selection)

    def _send_order(self, selection: Selection | None = None) -> None:
        last = selection or (self._frames[-1] if self._frames else None)
        if last is not None:
            with self.hold_sync():
                self.row_order = _bytes(last.row_order(self.rows_by), "<i4")
                self.column_order = _bytes(last.column_order(self.columns_by), "<i4")
                self.groups = [list(group) for group in row_groups(last.sub_vectors, self.rows_by)]

    def _clear(self) -> None:
        with self.hold_sync():
            self.pinned_row = self.lit_vector = self.module_shown = -1
            self.modules, self.groups, self.layers, self.steps = [], [], [], []
            self.selected = []
            for name in self._own_traits():
                if isinstance(getattr(self, name), bytes):
                    setattr(self, name, b"")
            self.num_vectors = self.recorded = self.frame = 0
            self._frames = []

    def _own_traits(self) -> list[str]:
        """The synchronised traits of this class alone, which its JavaScript reads."""
        own = BankHeatmap.class_own_traits(sync=True)  # an instance has a class of its own
        return [name for name in own if not name.startswith("_")]

    # --- what is chosen

    def _choose(self, _change: Any = None) -> None:
        """Let `selected` follow what is pinned or lit."""
        selection = self.selection
        if selection is None or self._choosing:
            return
        self._choosing = True
        try:
            if self.lit_vector >= 0:
                self.selected = selection.sharers(self.lit_vector).tolist()
            elif self.pinned_row >= 0:
                self.selected = [self.pinned_row]
            elif _change is not None and _change.name != "frame":  # unpinned
                self.selected = []
            if self._model is not None and 0 <= self.pinned_row < len(selection.sub_vectors):
                self.module_shown = int(selection.sub_vectors.module[self.pinned_row])
        finally:
            self._choosing = False

    def _take_selected(self, _change: Any) -> None:
        """`selected` was set by hand: nothing else is lit then."""
        if not self._choosing:
            self._choosing = True
            try:
                self.lit_vector = -1
                self.pinned_row = self.selected[0] if len(self.selected) == 1 else -1
            finally:
                self._choosing = False

    @traitlets.validate("selected")
    def _within(self, proposal: Any) -> list[int]:
        selection = self.selection
        rows = sorted({int(row) for row in proposal.value})
        if rows and selection is not None and rows[-1] >= len(selection.indices):
            last = len(selection.indices) - 1
            raise traitlets.TraitError(
                f"selected: {rows[-1]} is no sub-vector; the last is {last}."
            )
        return rows

    # --- of a live model

    def _send_model(self) -> None:
        """The vectors of the bank, and the update of the module that is shown."""
        from vblora_lab.tuner.adapted import adapted_layers

        layer = next(
            iter(adapted_layers(cast("nn.Module", self._model), self._adapter_name).values())
        )
        with self.hold_sync():
            vectors = layer.vblora_vector_bank[self._adapter_name]
            self.bank = _bytes(vectors.detach().float().cpu().numpy(), "<f4")
            if self.module_shown < 0:
                self.module_shown = 0  # which sends its update
            else:
                self._send_delta()

    def _send_delta(self) -> None:
        if self._model is None or not 0 <= self.module_shown < len(self.modules):
            return
        facts, blocks = self._delta_of(self.module_shown)
        with self.hold_sync():
            self.delta_blocks, self.delta = blocks, facts

    def _delta_of(self, module: int) -> tuple[dict[str, Any], bytes]:
        from vblora_lab.inspection.updates import read_update

        name = self._frames[-1].sub_vectors.modules[module]
        update = read_update(self._model, name, self._adapter_name)  # type: ignore[arg-type]
        facts = {
            "module": module,
            "shape": list(update.shape),
            "grid": list(update.blocks.shape),
            "singular_values": [float(value) for value in update.singular_values],
            "norm": update.norm,
            "base_norm": update.base_norm,
        }
        return facts, _bytes(update.blocks, "<f4")

    # --- the bench

    def _open_bench(self, evaluate: Any) -> None:
        if self._model is None:
            raise TypeError(
                "evaluate needs a live model: BankHeatmap(model, evaluate) or BankHeatmap(session)."
            )
        from vblora_lab.inspection.counterfactual import Counterfactual

        self._evaluate = _as_function(self._model, evaluate)
        self._what_if = Counterfactual(self._model, self._adapter_name)
        self._tell_bench()

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
        what_if, evaluate = self._what_if, self._evaluate
        if what_if is None or evaluate is None:
            raise SessionError("there is no bench: give BankHeatmap a live model and evaluate=.")
        if getattr(self._session, "status", "") == "running":
            raise SessionError("the session is training; wait for its end before you change it.")
        if kind not in CHANGES:
            raise ValueError(f"kind={kind!r}: must be one of {', '.join(CHANGES)}.")
        self._tell_bench(busy=True)
        try:
            if not what_if.changes:
                self._without = evaluate()  # anew: the model may have been trained since
            getattr(what_if, kind)(**arguments)
            after = evaluate() if what_if.changes else self._without
        except Exception as error:
            self._tell_bench(error=str(error))
            raise
        self._after_change()
        self._tell_bench(outcomes=(self._without, after))
        return self._without, after

    def close(self) -> None:
        """Take back every change on the bench, and close the widget."""
        if self._what_if is not None:
            self._what_if.restore()
        super().close()

    def _after_change(self) -> None:
        """Show the model as it is now; of a trace, the last frame becomes that."""
        chosen = self.pinned_row, self.lit_vector
        if self.steps:
            now = read_selection(self._model, self._adapter_name)  # type: ignore[arg-type]
            self._put([*self._frames[:-1], now], list(self.steps), self.recorded)
            self._send_model()
        else:
            self.refresh()
        self.pinned_row, self.lit_vector = chosen

    def _tell_bench(
        self,
        *,
        busy: bool = False,
        error: str = "",
        outcomes: tuple[Outcome, Outcome] | None = None,
    ) -> None:
        told = dict(self.bench)
        told |= {"busy": busy, "error": error, "changes": list(self._what_if.changes)}  # type: ignore[union-attr]
        if outcomes is not None:
            told |= {
                name: {
                    "loss": outcome.loss, "prompt": outcome.prompt,
                    "text": outcome.text, "mistakes": list(outcome.mistakes),
                }
                for name, outcome in zip(("before", "after"), outcomes, strict=True)
            }  # fmt: skip
        self.bench = told

    def _on_message(self, _widget: Any, content: Any, _buffers: Any) -> None:
        """What a person asked for on the bench: {"bench": kind, ...arguments}."""
        if isinstance(content, dict) and "bench" in content:
            arguments = {name: value for name, value in content.items() if name != "bench"}
            try:
                self.try_change(content["bench"], **arguments)
            except Exception as error:  # a button has nobody to raise to
                if self._what_if is not None:
                    self._tell_bench(error=str(error))

    # --- what stays

    def figure(self, kind: FigureKind = "heatmap") -> Figure:
        """A matplotlib figure for a paper.

        Args:
            kind: "heatmap", "usage", "entropy" or "sharing" of what is shown now; "footprint" (the
                first step against the last) or "churn" of a trace.

        Raises:
            SelectionError: nothing is shown, or the kind needs a trace and there is none.
        """
        if kind not in get_args(FigureKind):
            raise ValueError(f"kind={kind!r}: must be one of {', '.join(get_args(FigureKind))}.")
        figure = self._draw(kind)
        figure.axes[0].set_title(
            plots.literal(self.base), loc="right", color=plots.FAINT, fontsize=9
        )
        return figure

    def _draw(self, kind: FigureKind) -> Figure:
        selection = self.selection
        if selection is None:
            raise SelectionError("nothing is shown yet, so there is nothing to draw.")
        if kind in ("footprint", "churn"):
            if len(self._frames) < 2:
                raise SelectionError(f"kind={kind!r} needs a trace: BankHeatmap(trace).")
            if kind == "footprint":
                return plots.footprint(self._frames[0], self._frames[-1])
            return plots.churn_curve(list(zip(self.steps, self._frames, strict=True)))
        draw = {
            "heatmap": plots.selection_heatmap,
            "usage": plots.usage_histogram,
            "entropy": plots.entropy_by_layer,
            "sharing": plots.layer_sharing,
        }
        return draw[kind](selection)

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
        last = self._frames[-1]
        answers: dict[str, dict[str, dict[str, Any]]] = {  # trait -> value -> what the kernel says
            "rows_by": {
                by: {
                    "row_order": _bytes(last.row_order(by), "<i4"),
                    "groups": [list(group) for group in row_groups(last.sub_vectors, by)],
                }
                for by in get_args(RowsBy)
            },
            "columns_by": {
                by: {"column_order": _bytes(last.column_order(by), "<i4")}
                for by in get_args(ColumnsBy)
            },
        }
        if self._model is not None:
            deltas = [self._delta_of(module) for module in range(len(self.modules))]
            answers["module_shown"] = {
                str(i): {"delta_blocks": blocks, "delta": facts}
                for i, (facts, blocks) in enumerate(deltas)
            }
        state = {name: getattr(self, name) for name in self._own_traits()} | {"bench": {}}
        if self.pinned_row >= 0 or self.lit_vector >= 0:
            state["selected"] = []  # what they select, the page finds by itself
        png, _ = self.figure()._repr_png_()  # type: ignore[attr-defined]
        page = _PAGE.format(
            title=escape(title),
            css=self._css,
            picture=base64.b64encode(png).decode(),
            state=_json(state),
            answers=_json(answers),
            source=source("canvas.js", "bank_heatmap.js", "stored_model.js"),
        )
        path = Path(path)
        path.write_text(page, encoding="utf-8")
        return path

    def _picture(self) -> Figure | None:
        return None if self.selection is None else self.figure()


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ max-width: 1280px; margin: 24px auto; padding: 0 20px; }}
[data-jp-theme-light="false"] {{
  --jp-ui-font-color0: #f0f3f6; --jp-ui-font-color2: #a7b0ba; --jp-border-color2: #3b434c;
  --jp-layout-color0: #15191e; --jp-layout-color1: #1d2228; color-scheme: dark;
  background: #15191e;
}}
{css}</style></head>
<body>
<div id="widget"></div>
<noscript><img alt="{title}" style="max-width: 100%"
  src="data:image/png;base64,{picture}"></noscript>
<script type="module">
const STATE = {state};
const ANSWERS = {answers};
{source}
const dark = matchMedia("(prefers-color-scheme: dark)");
const follow = (isDark) => {{ document.body.dataset.jpThemeLight = String(!isDark); }};
dark.addEventListener("change", () => follow(dark.matches));
follow(dark.matches);
render({{ model: new StoredModel(STATE, ANSWERS), el: document.getElementById("widget") }});
// A page that this one is embedded in is told its height, and may say whether it is dark.
if (parent !== window) {{
  addEventListener("message", ({{ data }}) => {{
    if (typeof data?.vbloraDark === "boolean") follow(data.vbloraDark);
  }});
  const tell = () => parent.postMessage({{ vbloraHeight: document.body.offsetHeight + 48 }}, "*");
  new ResizeObserver(tell).observe(document.body);
}}
</script>
</body></html>
"""


def _json(value: Any) -> str:
    """JSON for a script element, bytes in base64. A "<" could end the element, so there is none."""

    def as_text(value: Any) -> dict[str, str]:
        return {"base64": base64.b64encode(value).decode()}

    return json.dumps(value, default=as_text).replace("<", "\\u003c")


def _not_a_selection(value: object) -> str:
    return (
        f"a {type(value).__name__} isn't what a BankHeatmap shows: give it a Selection (read one "
        "with vblora_lab.read_selection(model)), a Trace, a PeftModel or a TrainingSession."
    )


def _as_function(model: nn.Module, evaluate: Any) -> Callable[[], Outcome]:
    from vblora_lab.train import Outcome, Probe, TrainingSession

    if isinstance(evaluate, TrainingSession):
        return Probe.of(evaluate)
    if isinstance(evaluate, tuple) and len(evaluate) == 2:
        base, task = evaluate
        return Probe(cast(Any, model), base.tokenizer, task)
    if not callable(evaluate):
        raise TypeError(
            f"evaluate is a {type(evaluate).__name__}: must be a function without arguments, a "
            "TrainingSession, or a Base and a Task."
        )

    def call() -> Outcome:
        result = evaluate()
        if isinstance(result, Outcome):
            return result
        loss, text = result
        return Outcome(float(loss), text=str(text))

    return call


def _follows_the_model(rows_by: str, columns_by: str) -> bool:
    """Whether the orders are the same whatever is chosen."""
    return rows_by in ("layer", "module", "matrix") and columns_by == "number"


def _bytes(array: np.ndarray, dtype: str) -> bytes:
    return np.ascontiguousarray(array, dtype=dtype).tobytes()


def _stack(arrays: Sequence[np.ndarray], dtype: str) -> bytes:
    return b"".join(_bytes(array, dtype) for array in arrays)


def _same_rows(a: Selection, b: Selection) -> bool:
    """Whether both speak of the same sub-vectors and bank, so that coordinates need not travel."""
    rows, others = a.sub_vectors, b.sub_vectors
    if a.num_vectors != b.num_vectors:
        return False
    if rows is others:
        return True
    arrays = ("module", "matrix", "rank", "tile")
    return rows.modules == others.modules and all(
        np.array_equal(getattr(rows, name), getattr(others, name)) for name in arrays
    )


def _label_of(model: nn.Module) -> str:
    from vblora_lab.bases import label_of

    base = getattr(model, "get_base_model", lambda: model)()
    return label_of(base)


def _module_labels(rows: SubVectors) -> list[str]:
    """For each module, how `SubVectors.label` names it: a label less its matrix, rank and tile."""
    modules, first_rows = np.unique(rows.module, return_index=True)
    labels = list(rows.modules)
    for module, row in zip(modules, first_rows, strict=True):
        labels[module] = rows.label(int(row)).rsplit(" · ", 3)[0]
    return labels
