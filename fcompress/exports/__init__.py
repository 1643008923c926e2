"""A network for other programs, kept only if it computes the same; and what any file is.

Must never import: compress, measure.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
