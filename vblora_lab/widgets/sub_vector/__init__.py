"""SubVector: one sub-vector to play with. Start with `widget`, and in the browser `render.js`."""

from vblora_lab.widgets.sub_vector.widget import SubVector

__all__ = ["SubVector"]
