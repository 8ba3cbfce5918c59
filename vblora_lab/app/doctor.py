"""The doctor: what this machine and this front end can do, and what to do about the rest.

Each of `checks` looks at one thing and returns one line; none of them raises. The table is for
people, `Diagnosis.to_dict` for scripts, and `Diagnosis.can_run` is the verdict.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from vblora_lab.app.checks import (
    HubProbe,
    check_assets,
    check_cache,
    check_device,
    check_disk,
    check_front_end,
    check_hub,
    check_ipykernel,
    check_memory,
    check_minilm,
    check_packages,
    check_peft,
    check_python,
    check_smollm2,
    check_torch,
    check_widget_parts,
)
from vblora_lab.app.diagnosis import Check, Diagnosis


def doctor(*, timeout: float = 2.0) -> Diagnosis:
    """Look at this machine, its Python environment and the front end.

    timeout: seconds after which the model hub counts as out of reach.
    """
    probe = HubProbe(timeout)  # asks the hub while the rest is looked at
    checks: list[Callable[[], Check]] = [
        check_python,
        check_packages,
        check_torch,
        check_assets,
        check_peft,
        check_device,
        check_memory,
        check_disk,
        check_front_end,
        check_ipykernel,
        partial(check_widget_parts, "ipywidgets", "@jupyter-widgets/jupyterlab-manager"),
        partial(check_widget_parts, "anywidget", "anywidget"),
        partial(check_hub, probe),
        check_cache,
        check_smollm2,
        check_minilm,
    ]
    return Diagnosis(tuple(check() for check in checks))
