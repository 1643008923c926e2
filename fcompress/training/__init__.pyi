from .config import TrainConfig as TrainConfig
from .config import default_config as default_config
from .loop import EpochRecord as EpochRecord
from .loop import TrainResult as TrainResult
from .loop import train as train
