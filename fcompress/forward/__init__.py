"""One forward pass: how a network is called, what it answers, its operators, what it costs.

Operators are recorded once and replayed step by step. Nothing here changes a weight.
Must never import: surgery, structure, or anything above them.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
