"""ConfigExplorer: try a config on a model, and see what it comes to. Start with `widget`."""

from vblora_lab.widgets.config_explorer.widget import ConfigExplorer

__all__ = ["ConfigExplorer"]
