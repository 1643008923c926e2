"""Make trained networks thinner without retraining, and certify that the labels stay.

    import fcompress

    result = fcompress.shrink(model, loader, tol=0.05)
    print(result.agreement.lower_bound, result.macs)

Everything public is listed in `__all__`; the command line is a thin layer over it. Names are
imported when they are first used, so that `fcompress --help` need not wait for torch.
"""

from importlib.metadata import version

import lazy_loader

__getattr__, _, __all__ = lazy_loader.attach_stub(__name__, __file__)
__version__ = version("fcompress")
__all__ += ["__version__"]


def __dir__() -> list[str]:
    """All public names, also those that nobody has used yet."""
    return __all__
