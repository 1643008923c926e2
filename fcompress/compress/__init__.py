"""Choose units, refit the weights that read them, search for the amount, report the result.

Must never import: measure, checkpoints, formats, training: it writes no file. See the README beside
this.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
