"""Layers of torch that stay exact when channels or heads are taken out of them.

Must never import: anything else of fcompress. Whatever a compressed network is made of has to run
without the compressor.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
