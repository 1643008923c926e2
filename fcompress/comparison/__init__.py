"""Other ways to make networks thinner without retraining, on the same network and data as ours.

`torch_pruning.py` is the only file that imports torch-pruning; the benchmarks use it, too.

Must never import: measure, training.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
