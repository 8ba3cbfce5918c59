"""ManyUsers: one base model, N users, an adapter for each: bytes by method, and where lines cross.

All sizes are planned beforehand, so that sliders need no kernel.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import anywidget
import traitlets
from matplotlib.figure import Figure

from vblora_lab.errors import ConfigError, did_you_mean
from vblora_lab.plots.users import users_figure
from vblora_lab.widgets._page import write_page
from vblora_lab.widgets._picture import Pictured
from vblora_lab.widgets._source import source
from vblora_lab.widgets.many_users.offers import RANKS, Offer, offers

SCRIPT = source("canvas.js", "svg.js", "many_users/many_users.js")
STYLE = source("theme.css", "many_users/many_users.css")


class ManyUsers(Pictured, anywidget.AnyWidget):
    """What the adapters of many users of one base model take to store, with sliders.

    Traits to set or to observe:
        model: which base model, out of `ManyUsers.models()`.
        rank: of LoRA and VB-LoRA: 1, 2, 4, 8, 16, 32 or 64.
        users: how many; each has an adapter of their own in all linear layers.

    Raises:
        ConfigError: there is no such model or rank.
    """

    _esm = SCRIPT
    _css = STYLE

    offers: traitlets.List[Any] = traitlets.List(read_only=True).tag(sync=True)
    model = traitlets.Unicode("OPT-13b").tag(sync=True)
    rank = traitlets.Int(8).tag(sync=True)
    users = traitlets.Int(1000, min=1, max=1_000_000).tag(sync=True)

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.set_trait("offers", [_as_json(offer) for offer in offers()])

    @staticmethod
    def models() -> tuple[str, ...]:
        """The names of the base models, from small to large."""
        return tuple(offer.model for offer in offers())

    @traitlets.validate("model")
    def _check_model(self, proposal: Any) -> str:
        name = proposal["value"]
        if name not in self.models():
            hint = did_you_mean(name, self.models())
            raise ConfigError(f"model={name!r}: must be one of {', '.join(self.models())}.{hint}")
        return str(name)

    @traitlets.validate("rank")
    def _check_rank(self, proposal: Any) -> int:
        if proposal["value"] not in RANKS:
            raise ConfigError(f"rank={proposal['value']}: must be one of {RANKS}.")
        return int(proposal["value"])

    @property
    def offer(self) -> Offer:
        """The base model and its costs, as shown now."""
        return next(offer for offer in offers() if offer.model == self.model)

    @property
    def stored_bytes(self) -> dict[str, int]:
        """By method: the bytes of all users together."""
        costs = self.offer.costs[self.rank]
        return {cost.method: cost.once + self.users * cost.each for cost in costs}

    def figure(self) -> Figure:
        """What is shown now, as a figure that stays."""
        return users_figure(self.offer.costs[self.rank], self.users, self._title())

    def _title(self) -> str:
        return f"{self.model}, rank {self.rank}: bytes to store for all users"

    def to_html(self, path: str | Path, title: str = "Adapters for many users") -> Path:
        """Write one HTML file that does all this without kernel or network.

        In an iframe, it posts {vbloraHeight: pixels} to the page around it, and heeds
        {vbloraDark: boolean}.

        Args:
            path: of the file; its folder must exist.
            title: of the page.
        """
        return write_page(self, path, title, SCRIPT, STYLE)

    def _picture(self) -> Figure:
        return self.figure()


def _as_json(offer: Offer) -> dict[str, Any]:
    fields = dataclasses.asdict(offer)
    costs = {str(r): fields["costs"][r] for r in offer.costs}
    return {**fields, "costs": {r: [dict(cost) for cost in each] for r, each in costs.items()}}
