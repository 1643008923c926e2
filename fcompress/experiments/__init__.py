"""The paper's experiments: a recipe, the trials that it names, what is measured, the report.

Must never import: cli.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
