"""A live model as the heatmap reads it: its selection, the vectors of its bank, its updates."""

from __future__ import annotations

from torch import nn

from vblora_lab.bases import label_of
from vblora_lab.inspection.reading import read_selection
from vblora_lab.inspection.selection import Selection
from vblora_lab.inspection.updates import read_update
from vblora_lab.tuner.adapted import adapted_layers
from vblora_lab.widgets.bank_heatmap.state import Traits, as_bytes, of_update


class LiveModel:
    """A model with an adapter; everything is read as it is at the moment of the call.

    Args:
        model: a PeftModel, or any module that holds VB-LoRA layers.
        adapter_name: which adapter.
    """

    def __init__(self, model: nn.Module, adapter_name: str) -> None:
        self.model, self.adapter_name = model, adapter_name

    @property
    def label(self) -> str:
        """What the base model is called."""
        return label_of(getattr(self.model, "get_base_model", lambda: self.model)())

    def selection(self) -> Selection:
        """Raises `SelectionError` where the model has no such adapter."""
        return read_selection(self.model, self.adapter_name)

    def bank(self) -> bytes:
        """(num_vectors, vector_length) float32."""
        layer = next(iter(adapted_layers(self.model, self.adapter_name).values()))
        vectors = layer.vblora_vector_bank[self.adapter_name]
        return as_bytes(vectors.detach().float().cpu().numpy(), "<f4")

    def update(self, name: str, module: int) -> Traits:
        """The update of a module, by its name and its number."""
        return of_update(read_update(self.model, name, self.adapter_name), module)
