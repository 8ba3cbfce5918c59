"""ConfigExplorer: every field of a config as a control, and beside it what `plan` makes of it.

The browser sends the fields of the form; the kernel answers with what is to be seen. All numbers
are `plan`'s, all sentences are those of errors and problems; the scripts beside this file lay them
out.
"""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import Any

import anywidget
import traitlets
from matplotlib.figure import Figure
from peft import PeftConfig
from torch import nn
from transformers import PretrainedConfig

from vblora_lab.bases import Base, load_skeleton, skeleton_of
from vblora_lab.errors import ConfigError
from vblora_lab.planning.code import as_code
from vblora_lab.planning.plan import Plan, plan
from vblora_lab.planning.worth import config_that_pays
from vblora_lab.plots.plan import plan_figure
from vblora_lab.tuner.config import VBLoRAConfig, as_vblora_config
from vblora_lab.tuner.modules import base_of, own_modules
from vblora_lab.widgets._picture import Pictured
from vblora_lab.widgets.config_explorer.page import STYLE, page, script
from vblora_lab.widgets.config_explorer.recording import Values, packed, record
from vblora_lab.widgets.config_explorer.view import catalogue_of, error_item, form_of, view_of

Explorable = nn.Module | Base | PretrainedConfig | str | Path


class ConfigExplorer(Pictured, anywidget.AnyWidget):
    """A form for a `VBLoRAConfig` that shows live what the config would do to a model.

    Args:
        model: a model, adapted or not, on any device; a `Base`; a transformers config, or a name
            or folder for `load_skeleton`: these two are built without weights. Never changed.
        config: where the form starts; PEFT's class is welcome too. If not given, the defaults, as
            far as they fit the model and are stored in fewer bytes than LoRA.

    Raises:
        TypeError: model is none of these.
        ConfigError: config is for another method, or has a value that can't be meant.
        BaseModelError: there is no such model, or transformers can't build it.

    `config` is the last config that can be meant, `plan` what it would do and `code` Python that
    makes it. Set `config` to change the form; changing the object in place isn't seen. While the
    form says something that can't be meant, the widget shows why and these three stay.
    """

    _esm = script("render")
    _css = STYLE

    config: traitlets.Instance[Any] = traitlets.Instance(PeftConfig)  # made a VBLoRAConfig
    plan = traitlets.Instance(Plan, read_only=True)
    code = traitlets.Unicode(read_only=True).tag(sync=True)
    # The form, as the browser sends it: JSON values by field.
    fields: traitlets.Dict[str, Any] = traitlets.Dict().tag(sync=True)
    # Once: the model's modules, the presets, help and bounds of the fields.
    catalogue: traitlets.Dict[str, Any] = traitlets.Dict(read_only=True).tag(sync=True)
    # At each change: what is to be seen.
    view: traitlets.Dict[str, Any] = traitlets.Dict(read_only=True).tag(sync=True)

    def __init__(self, model: Explorable, config: PeftConfig | None = None, **kwargs: Any):
        self._model = base_of(_as_model(model))
        self._form_speaks = False
        start = (
            config_that_pays(self._model, VBLoRAConfig())
            if config is None
            else as_vblora_config(config)
        )
        self._names = list(own_modules(self._model))
        first = plan(self._model, start)
        super().__init__(**kwargs)
        self.set_trait("catalogue", catalogue_of(self._model, start))
        self.set_trait("plan", first)
        self.config = start

    def figure(self) -> Figure:
        """The plan as a figure that stays: sizes on log axes, and the modules by layer."""
        return plan_figure(self.plan, self._names)

    def to_html(
        self, path: str | Path, title: str = "VB-LoRA config explorer", values: Values | None = None
    ) -> Path:
        """Write one HTML file that explores this model without kernel or network.

        It steps through values for which `plan` is asked now: some 1,500 configs, in ten seconds
        or more, if none are given. In an iframe, it posts {vbloraHeight: pixels} to the page around
        it, and heeds {vbloraDark: boolean}.

        Args:
            path: of the file; its folder must exist.
            title: of the page.
            values: by field, what to record instead: some of r, num_vectors, vector_length, topk,
                target_modules and save_only_topk_weights, those of `config` among them.

        Raises:
            ConfigError: values has another field, or is without a value of `config`.
        """
        recordings = {type(self._model).__name__: packed(record(self._model, self.config, values))}
        png = self.figure()._repr_png_()[0]  # type: ignore[attr-defined]
        path = Path(path)
        path.write_text(page(title, recordings, png), encoding="utf-8")
        return path

    def _picture(self) -> Figure:
        return self.figure()

    @traitlets.validate("config")
    def _check_config(self, proposal: Any) -> VBLoRAConfig:
        config = as_vblora_config(proposal["value"])
        config.validate()
        return config

    @traitlets.observe("config")
    def _config_was_set(self, change: Any) -> None:
        if not self._form_speaks:  # what the form says is there already
            with self.hold_sync():
                self.fields = form_of(change["new"])
                self._show(change["new"])

    @traitlets.observe("fields")
    def _form_was_changed(self, change: Any) -> None:
        if change["new"] == form_of(self.config) and not self.view.get("error"):
            return
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # cautions are shown
                config = dataclasses.replace(self.config, **change["new"])
        except ConfigError as error:
            self.set_trait("view", {**self.view, "error": error_item(error)})
            return
        with self.hold_sync():
            self._form_speaks = True
            try:
                self.config = config
            finally:
                self._form_speaks = False
            self._show(config)

    def _show(self, config: VBLoRAConfig) -> None:
        result = plan(self._model, config)
        self.set_trait("plan", result)
        self.set_trait("code", as_code(config))
        self.set_trait("view", view_of(result, config, self._names))


def _as_model(model: Explorable) -> nn.Module:
    if isinstance(model, (str, Path)):
        return load_skeleton(model)
    if isinstance(model, Base):
        return model.model
    if isinstance(model, PretrainedConfig):
        return skeleton_of(model)
    if isinstance(model, nn.Module):
        return model
    raise TypeError(
        f"model is of type {type(model).__name__}, but a ConfigExplorer takes a torch model, a "
        "Base, a transformers config, or the name of a base model."
    )
