"""Networks in files: those of fcompress, and the weights of others.

Must never import: certify, measure, compress, training.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
