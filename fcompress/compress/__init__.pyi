from .methods import METHODS as METHODS
from .pipeline import shrink as shrink
from .result import ShrinkResult as ShrinkResult
