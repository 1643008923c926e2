"""Results as sentences, rows and pictures.

Must never import: code that runs a network.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
