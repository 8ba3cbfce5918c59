from .bank_heatmap import BankHeatmap as BankHeatmap
from .config_explorer import ConfigExplorer as ConfigExplorer
from .live import LiveTraining as LiveTraining
from .loss_chart import LossChart as LossChart
from .many_users import ManyUsers as ManyUsers
from .studio import TrainingStudio as TrainingStudio
from .sub_vector import SubVector as SubVector
