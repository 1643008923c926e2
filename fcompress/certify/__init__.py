"""What can be proven about changed labels: bounds, agreement, duplicates, the fixed sequence.

The certificate must not know how a network was made.
Must never import: surgery, structure, compress, or anything above them.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
