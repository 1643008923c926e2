"""Find the groups of units that go together, by tracing, and prove them by experiment.

Must never import: data, measure, compress, or how labels are read. See the README beside this.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
