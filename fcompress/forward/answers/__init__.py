"""What of a network's outputs counts, when two answers are the same, and how far apart they are.

Must never import: surgery, structure, or anything above them.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
