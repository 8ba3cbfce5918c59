"""What a run says and leaves: events, traces, folders of runs, and replays of them.

Start with `events`, then `trace`, then `runs`. This room imports `errors`, `files`, `tables` and
`inspection.selection` (a `Selection` is plain arrays): a run is kept, read, shown and replayed
without torch. Names are in ``__init__.pyi`` and are imported when they are first used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
