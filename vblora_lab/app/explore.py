"""The explorer as a page: the config explorer and a heatmap, served by Voila, with no code shown.

A model's config.json is enough. Its weights are never loaded: what is shown is what a config would
do to the model, and what the sub-vectors of a new adapter choose before any training.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
import ipaddress
import os
from pathlib import Path
from typing import Any

from vblora_lab.errors import ConfigError, MissingExtraError

VARIABLE = "VBLORA_LAB_MODEL"  # what the page, in a kernel of its own, is to show
PAGE = Path(__file__).parents[1] / "assets" / "explore" / "explore.ipynb"
MOST_CELLS = 20_000_000  # of a heatmap: sub-vectors times bank vectors; logits of 80 MB


def explore(
    model: str = "mini-opt", *, ip: str = "127.0.0.1", port: int = 8866, browser: bool = True
) -> None:
    """Serve the page until interrupted.

    Args:
        model: a name or folder for `load_skeleton`.
        ip: where to listen; 127.0.0.1 is reached from this machine alone.
        port: where to listen.
        browser: whether to open a browser on it.

    The page opens only with the token in the address that is printed, and if `ip` is this machine
    alone, only under a name of this machine.

    Raises:
        ConfigError: there is no such port.
        MissingExtraError: Voila is not installed.
        BaseModelError: there is no such model, or transformers can't build it.
    """
    if not 0 < port < 2**16:
        raise ConfigError(f"port={port}: must be from 1 to 65535, such as 8866")
    if importlib.util.find_spec("voila") is None:
        raise MissingExtraError('the page needs Voila: pip install "vblora-lab[app]"')
    from vblora_lab.bases import load_skeleton

    load_skeleton(model)  # what is wrong with it is said here, not on the page
    os.environ[VARIABLE] = model  # kernels inherit it
    arguments = [str(PAGE), "--token", f"--port={port}", f"--Voila.ip={ip}"]
    server = _server(open_to_all=not _is_this_machine(ip))
    server.launch_instance(arguments if browser else [*arguments, "--no-browser"])


def _is_this_machine(ip: str) -> bool:
    try:
        return ipaddress.ip_address(ip).is_loopback
    except ValueError:
        return ip == "localhost"


def _server(open_to_all: bool) -> Any:
    """Voila, which by itself answers whatever host it is called by.

    A page of another site could have its own name point to this machine, and so reach a server
    that listens here alone. Jupyter's handlers refuse names that aren't this machine's, if asked.
    """
    Voila = importlib.import_module("voila.app").Voila

    class Explorer(Voila):  # type: ignore[misc, valid-type]
        name = "voila"  # its configuration files

        def init_settings(self) -> dict[str, Any]:
            return {**super().init_settings(), "allow_remote_access": open_to_all}

    return Explorer


def page(model: str | None = None) -> Any:
    """The page as one widget; model defaults to the one given to `explore`."""
    import ipywidgets

    from vblora_lab.bases import load_skeleton
    from vblora_lab.widgets import BankHeatmap, ConfigExplorer

    name = model or os.environ.get(VARIABLE, "mini-opt")
    skeleton = load_skeleton(name)
    explorer = ConfigExplorer(skeleton)
    heatmap = BankHeatmap()
    note = ipywidgets.HTML()

    def show(_: Any = None) -> None:
        note.value = _note(explorer.plan)
        can = explorer.plan.fits and _cells(explorer.plan) <= MOST_CELLS
        heatmap.selection = untrained_selection(skeleton, explorer.config) if can else None

    explorer.observe(show, "plan")
    show()
    title = ipywidgets.HTML("<h2>What the sub-vectors choose before any training</h2>")
    return ipywidgets.VBox([explorer, title, note, heatmap])


def untrained_selection(skeleton: Any, config: Any, seed: int = 0) -> Any:
    """The `Selection` of a new adapter, drawn as injection draws it; no weights are needed.

    skeleton: a model without weights, left as it is. seed: draws the logits.
    """
    import torch
    from torch import nn

    from vblora_lab.inspection.reading import read_selection
    from vblora_lab.tuner.adapted import adapted_layers
    from vblora_lab.tuner.peft import get_peft_model

    model = get_peft_model(copy.deepcopy(skeleton), config)
    generator = torch.Generator().manual_seed(seed)
    for layer in adapted_layers(model).values():
        for logits in (layer.vblora_logits_A, layer.vblora_logits_B):
            drawn = torch.empty(logits["default"].shape)
            drawn.normal_(std=config.init_logits_std, generator=generator)
            logits["default"] = nn.Parameter(drawn)
    return read_selection(model)


def _cells(plan: Any) -> int:
    return int(plan.sub_vectors * plan.num_vectors)


def _note(plan: Any) -> str:
    if not plan.fits:
        return "The config doesn't fit the model, so there is nothing to choose: see above."
    if _cells(plan) > MOST_CELLS:
        return (
            f"{plan.sub_vectors:,} sub-vectors by {plan.num_vectors:,} bank vectors are too many "
            "cells for a heatmap. Adapt fewer modules, or choose a smaller r."
        )
    return (
        "Every row is a sub-vector, every column a bank vector. The logits are random at first, so "
        "all columns are used alike; training gives some of them more to do."
    )
