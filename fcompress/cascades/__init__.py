"""Pairs of networks: a small one answers where it is sure, a large one answers the rest.

Must never import: data, and all that comes after. What runs a pair
knows nothing of how it was chosen.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
