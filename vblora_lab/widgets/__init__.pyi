from .bank_heatmap import BankHeatmap as BankHeatmap
from .config_explorer import ConfigExplorer as ConfigExplorer
from .front_chart import FrontChart as FrontChart
from .live import LiveTraining as LiveTraining
from .live_tuning import LiveTuning as LiveTuning
from .loss_chart import LossChart as LossChart
from .studio import TrainingStudio as TrainingStudio
