"""Train a network of a registered family, and resume without loss.

Must never import: compress, measure, certify.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
