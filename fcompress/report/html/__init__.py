"""Results as pages: one HTML file each that needs nothing else, not even a network.

`page.py` puts a page together; `shrunk.py`, `analysed.py`, `grown.py`, `compared.py` and
`several.py` say what stands on it, in plain values; `templates/` has the words, the style and the
drawing in the browser.

Must never import: code that runs a network.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
