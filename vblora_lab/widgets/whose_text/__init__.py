"""WhoseText: users of one base model, what they store, and whose style a text has. See `widget`."""

from vblora_lab.widgets.whose_text.widget import WhoseText

__all__ = ["WhoseText"]
