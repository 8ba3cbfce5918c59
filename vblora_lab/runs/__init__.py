"""What a run says and leaves: events, traces, folders of runs, and replays of them.

Start with `events`, then `trace`. Names are in ``__init__.pyi`` and are imported when they are
first used. This room imports `inspection` (a `Selection` is plain arrays), and a recorded run is
read, shown and replayed without torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
