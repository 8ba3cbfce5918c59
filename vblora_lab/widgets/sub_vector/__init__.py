"""SubVector: one sub-vector to play with. `widget` is its Python, `render.js` its script's start."""

from vblora_lab.widgets.sub_vector.widget import SubVector

__all__ = ["SubVector"]
