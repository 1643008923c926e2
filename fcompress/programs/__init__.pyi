from .files import Runner as Runner
from .files import trace as trace
from .quantizing import Quantized as Quantized
