"""From a spec, or from what a user hands over, to disjoint splits, roles and batches.

No example ever stands in two splits.
Must never import: code that runs a network (`forward` and everything above it).
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
