"""Make trained networks thinner without retraining, and certify that the labels stay.

    import fcompress

    result = fcompress.shrink(model, loader, tol=0.05)
    print(result.agreement.lower_bound, result.macs)

Everything public is listed in `__all__`; the command line is a thin layer over it. Names are
imported when they are first used, so that `fcompress --help` need not wait for torch. Not even
what finds them is imported before that: the command must be able to take an interrupt at once.
"""

_found: dict[str, object] = {}


def _names() -> list[str]:
    """All public names."""
    return sorted([*_lazy()[2], "__version__"])


def _lazy() -> tuple:  # type: ignore[type-arg]
    import lazy_loader

    if "lazy" not in _found:
        _found["lazy"] = lazy_loader.attach_stub(__name__, __file__)
    return _found["lazy"]  # type: ignore[return-value]


def __getattr__(name: str) -> object:
    """A public name, or a package, when it is first used."""
    if name == "__version__":
        from importlib.metadata import version

        return version("fcompress")
    if name == "__all__":
        return _names()
    return _lazy()[0](name)


def __dir__() -> list[str]:
    """All public names, also those that nobody has used yet."""
    return _names()
