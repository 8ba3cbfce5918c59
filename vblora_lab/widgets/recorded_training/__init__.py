"""RecordedTraining: a run to play back. Start with `widget`, and in the browser `render.js`."""

from vblora_lab.widgets.recorded_training.widget import RecordedTraining

__all__ = ["RecordedTraining"]
