"""Networks as programs that run without this package, and what onnxruntime makes of them in int8.

Must never import: data, measure, compress.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
