"""The command line."""

from fcompress.cli.main import main

__all__ = ["main"]
