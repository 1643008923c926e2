"""Where what users bring enters the command line: files, numbers, options, signals, streams.

A command is of `Command`, its files have one of the types of `paths`, its numbers one of
`numbers`; then nothing of this has to be thought of in the command itself.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
