"""Bytes on disk: atomic writing, torch's zip archives, safetensors, what may be taken in.

Nothing here knows a network, and no class of fcompress is ever written into a file.
Must never import: anything of fcompress but `errors`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
