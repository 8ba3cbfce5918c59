"""Matplotlib figures that stay: of a run, of the bank, of a plan, of a search.

Every function is pure: numbers in, a `matplotlib.figure.Figure` out. Nothing here touches pyplot,
so nothing is shown, no global state changes, and any thread may draw. Start with `style`, then
`bank`. This room imports `planning`, `inspection`, `runs` and, for what a search came to, `train`;
its names are in ``__init__.pyi``.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
