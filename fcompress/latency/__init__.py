"""What networks and files cost when they run: time, memory, bytes, side by side.

Must never import: compress, measure, training.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
