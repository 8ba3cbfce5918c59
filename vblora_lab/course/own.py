"""Training with layers that a reader wrote, in the library's session and panel.

The reader's code makes the layers and the bank, and computes all that they say. The library keeps
the books: its own layers hold the very same parameters, so that its optimizer finds them, its map
shows what they choose, and its files hold them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from peft import PeftModel
from torch import nn

from vblora_lab.bases.sharing import share_weights
from vblora_lab.errors import SessionError
from vblora_lab.train.session import TrainingSession
from vblora_lab.tuner.adapted import adapted_layers
from vblora_lab.widgets.live import LiveTraining

Inject = Callable[..., nn.Parameter]
"""Called as inject(model, endings, h, b, r, k); as `worked.inject`, the one of chapter 11."""


class OwnSession(TrainingSession):
    """A session whose adapted layers are those that a reader's `inject` puts in.

    Args:
        inject: replaces linear layers, in place, by layers with `base`, `bank`, `logits_A` and
            `logits_B`, and returns the bank.
        *arguments, **options: of `TrainingSession`.

    Attributes:
        own: the base model with the reader's layers in it.

    Raises SessionError if `inject` leaves a layer out that the config adapts.
    """

    own: nn.Module

    def __init__(self, inject: Inject, *arguments: Any, **options: Any) -> None:
        self._inject = inject
        super().__init__(*arguments, **options)

    def _make_model(self) -> PeftModel:
        model = super()._make_model()
        tuner: Any = model.base_model
        layers = adapted_layers(model)
        config = self.config
        self.own = share_weights(self.base.model)
        endings = list(dict.fromkeys(name.rpartition(".")[2] for name in layers))
        sizes = config.num_vectors, config.vector_length, config.r, config.topk
        bank = self._inject(self.own, endings, *sizes)
        self.own.to(self.base.model.device)
        tuner.vblora_vector_bank["default"] = bank
        for name, layer in layers.items():
            mine: Any = self.own.get_submodule(name)
            if not hasattr(mine, "logits_A"):
                raise SessionError(f"inject left {name} as it was; the config adapts it.")
            layer.vblora_logits_A["default"] = mine.logits_A
            layer.vblora_logits_B["default"] = mine.logits_B
            layer.__dict__["forward"] = mine.forward  # what it computes is the reader's
        return model


class OwnTraining(LiveTraining):
    """The panel of `LiveTraining`, with the layers that a reader's `inject` puts in.

    Args:
        inject: see `OwnSession`.
        *arguments, **options: of `LiveTraining`.
    """

    _title = "Your VB-LoRA, live"

    def __init__(self, inject: Inject, *arguments: Any, **options: Any) -> None:
        self._inject = inject
        super().__init__(*arguments, **options)

    def _new_session(self) -> OwnSession:
        return OwnSession(self._inject, self._base, self.config, self._task, **self._settings())
