from .comparing import compare as compare
from .result import Compared as Compared
from .result import CompareResult as CompareResult
