"""Widgets for notebooks: a config explorer, a bank heatmap, a loss chart, and panels for training.

Names are in ``__init__.pyi`` and are imported when they are first used: a heatmap of a stored
selection needs no trainer. A widget may import every room below this one. Start with `readout`,
plain text and HTML, then `bank_heatmap/widget`; `_source` joins the JavaScript and CSS that lie
beside a widget.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
