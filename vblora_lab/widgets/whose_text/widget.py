"""WhoseText: pick a user and a prompt, and see what that user's adapter writes, and in whose style.

Beside it stand the base model's text and another user's, and what all the adapters store as they
come. All texts for a prompt are written in one mixed batch, so that picking needs no kernel; only a
new prompt does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import anywidget
import traitlets
from matplotlib.figure import Figure

from vblora_lab.data.meaning import format_mr, parse_mr
from vblora_lab.data.styles import Style
from vblora_lab.errors import ConfigError, did_you_mean
from vblora_lab.plots.served import served_figure
from vblora_lab.widgets._page import write_page
from vblora_lab.widgets._picture import Pictured
from vblora_lab.widgets._source import source
from vblora_lab.widgets.readout import sentence

SCRIPT = source("canvas.js", "svg.js", "whose_text/bytes.js", "whose_text/whose_text.js")
STYLE = source("theme.css", "whose_text/whose_text.css")
BASE = "__base__"  # names the base model in a mixed batch, as PEFT does

Write = Callable[[Sequence[str], Sequence[str]], Sequence[str]]


class WhoseText(Pictured, anywidget.AnyWidget):
    """Users of one base model: what their adapters store, what each writes, and in whose style.

    Args:
        users: the style of each by the name of the adapter, at least two, in the order in which
            they came.
        stored: by method, the bytes stored after each user; see `serving.store_sizes`.
        prompts: meaning representations to choose from, such as "name[Blue Spice], food[Thai]".
        write: gets meaning representations and, for each, the name of an adapter or "__base__";
            returns a text for each. It is called once for all prompts, and again for each new one.

    Traits to set or to observe:
        user, other: numbers of the two users whose texts are shown beside the base model's.
        prompt: the meaning representation that they write about; `write` knows new ones.

    Raises:
        ConfigError: `stored` isn't of these users, or there are fewer than two or no prompts.
        DataError: a prompt can't be read.
    """

    _esm = SCRIPT
    _css = STYLE

    users: traitlets.List[Any] = traitlets.List(read_only=True).tag(sync=True)
    stored: traitlets.Dict[str, Any] = traitlets.Dict(read_only=True).tag(sync=True)
    texts: traitlets.Dict[str, Any] = traitlets.Dict(read_only=True).tag(sync=True)
    state: traitlets.Dict[str, Any] = traitlets.Dict({"busy": False, "error": ""}).tag(sync=True)
    answers = traitlets.Bool(True).tag(sync=True)  # whether there is a kernel to write
    user = traitlets.Int(0).tag(sync=True)
    other = traitlets.Int(1).tag(sync=True)
    prompt = traitlets.Unicode().tag(sync=True)

    def __init__(
        self,
        users: Mapping[str, Style],
        stored: Mapping[str, Sequence[int]],
        prompts: Sequence[str],
        write: Write,
        **kwargs: Any,
    ):
        self._styles, self._write = dict(users), write
        _check(self._styles, stored, prompts)
        prompts = [format_mr(parse_mr(prompt)) for prompt in prompts]
        texts = self._written(prompts)
        super().__init__(prompt=prompts[0], **kwargs)
        self.set_trait("users", [_as_json(name, style) for name, style in users.items()])
        self.set_trait("stored", {method: list(sizes) for method, sizes in stored.items()})
        self.set_trait("texts", texts)
        self.on_msg(self._on_message)

    @traitlets.validate("user", "other")
    def _check_user(self, proposal: Any) -> int:
        if not 0 <= proposal["value"] < len(self._styles):
            name, most = proposal["trait"].name, len(self._styles) - 1
            raise ConfigError(f"{name}={proposal['value']}: users have numbers from 0 to {most}.")
        return int(proposal["value"])

    @traitlets.validate("prompt")
    def _check_prompt(self, proposal: Any) -> str:
        prompt = str(proposal["value"])
        if self.texts and prompt not in self.texts:
            hint = did_you_mean(prompt, self.texts)
            raise ConfigError(f"prompt={prompt!r}: nothing is written of it; use write().{hint}")
        return prompt

    # --- writing

    def write(self, prompt: str) -> dict[str, str]:
        """Let every user and the base model write of these facts, and show that.

        Args:
            prompt: a meaning representation.

        Returns:
            The texts by user; the base model's is "__base__".

        Raises:
            DataError: the prompt can't be read. What is shown stays, as with any other error.
        """
        self.state = {"busy": True, "error": ""}
        try:
            mr = format_mr(parse_mr(prompt))
            if mr not in self.texts:
                self.set_trait("texts", self.texts | self._written([mr]))
            self.prompt = mr
        except BaseException as error:
            self.state = {"busy": False, "error": sentence(error)}
            raise
        self.state = {"busy": False, "error": ""}
        return {name: found["text"] for name, found in self.texts[mr].items()}

    def _on_message(self, _widget: Any, content: Any, _buffers: Any) -> None:
        """The reader's own prompt. What is wrong with it is shown, and nobody else is told."""
        if isinstance(content, dict) and isinstance(content.get("write"), str):
            try:
                self.write(content["write"])
            except Exception:  # it is in `state`, where the reader sees it
                return

    def _written(self, prompts: Sequence[str]) -> dict[str, Any]:
        """By prompt and name: a text, and how much it has of each user's style. One batch."""
        names = [*self._styles, BASE]
        mrs = [prompt for prompt in prompts for _ in names]
        texts = iter(self._write(mrs, names * len(prompts)))
        return {
            prompt: {name: self._measured(prompt, next(texts)) for name in names}
            for prompt in prompts
        }

    def _measured(self, prompt: str, text: str) -> dict[str, Any]:
        facts = parse_mr(prompt)
        return {"text": text, "shares": [s.share(text, facts) for s in self._styles.values()]}

    # --- what was found

    @property
    def shares(self) -> dict[str, list[float]]:
        """By who was served: how much its texts have of each user's style, over all prompts."""
        return {
            name: [fmean(column) for column in zip(*rows, strict=True)]
            for name in [*self._styles, BASE]
            for rows in [[written[name]["shares"] for written in self.texts.values()]]
        }

    def figure(self) -> Figure:
        """Bytes, and the shares of all prompts so far, as a figure that stays."""
        names = list(self._styles)
        shares = self.shares
        shares["base model"] = shares.pop(BASE)
        title = f"{len(names)} users of one base model: what they store, and whose text they get"
        return served_figure(names, self.stored, shares, title)

    def to_html(self, path: str | Path, title: str = "Whose text is this?") -> Path:
        """Write one HTML file that does all this without kernel or network, but for new prompts.

        In an iframe, it posts {vbloraHeight: pixels} to the page around it, and heeds
        {vbloraDark: boolean}.

        Args:
            path: of the file; its folder must exist.
            title: of the page.
        """
        return write_page(self, path, title, SCRIPT, STYLE, answers=False)

    def _picture(self) -> Figure:
        return self.figure()


def _check(
    users: Mapping[str, Style], stored: Mapping[str, Sequence[int]], prompts: Sequence[str]
) -> None:
    if len(users) < 2:
        raise ConfigError(f"users: {len(users)} is too few; there must be another to compare with.")
    if BASE in users:
        raise ConfigError(f"users: {BASE!r} is the name of the base model.")
    if not prompts:
        raise ConfigError("prompts: there must be one at least.")
    for method, sizes in stored.items():
        if len(sizes) != len(users):
            raise ConfigError(
                f"stored[{method!r}] has {len(sizes)} sizes, and there are {len(users)} users."
            )


def _as_json(name: str, style: Style) -> dict[str, Any]:
    fields = [f"{own}:" for own in style.names.values()]
    return {"name": name, "marks": [style.greeting, *fields, style.farewell]}
