"""What a report shows beyond the numbers of a result, kept small while it is at hand.

Must never import: methods, search, pipeline, result: it is told what it is about.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
