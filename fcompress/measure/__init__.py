"""The paper's two measurements and the gain, with the hooks that they need.

Definitions: docs/protocol.md.
Must never import: certify, compress, checkpoints.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
