"""Networks of the package transformers: what their folders say, read without running any of it.

Must never import: data.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
