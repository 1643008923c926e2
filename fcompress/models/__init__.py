"""Networks by name: families that come in widths, and the architectures of other packages.

What a network remembers of itself (how it was built, its data, its history) lives here too.
Must never import: data, forward, or anything above them.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
