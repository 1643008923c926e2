from .attention import MultiheadAttention as MultiheadAttention
from .attention import WindowAttention as WindowAttention
from .local_response_norm import FixedLocalResponseNorm as FixedLocalResponseNorm
from .local_response_norm import LocalResponseNorm as LocalResponseNorm
from .skipped import Remainder as Remainder
from .skipped import Skipped as Skipped
