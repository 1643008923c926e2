from .checkpoint import load as load
from .checkpoint import read as read
from .checkpoint import save as save
from .rebuild import Checkpoint as Checkpoint
from .weights import load_weights as load_weights
from .weights import read_weights as read_weights
