"""The one class of all commands: what is checked before any of them begins."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from fcompress.cli.boundary import ignored, paths
from fcompress.cli.boundary.files import OutputFile

FORCE = "force"
TYPED = "fcompress.typed"  # in the context: the arguments as they were typed


class Command(click.Command):
    """A command whose files, numbers and options are checked before it runs.

    One that writes files has `--force`.
    """

    # Where the command writes though nothing was said: parameters -> parameter and path.
    default_output: Callable[[dict[str, Any]], tuple[str, Path]] | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if any(isinstance(parameter.type, OutputFile) for parameter in self.params):
            help_text = "Replace files that something else than this command wrote."
            self.params.append(click.Option([f"--{FORCE}"], is_flag=True, help=help_text))

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the arguments, and keep them as they were typed."""
        ctx.meta[TYPED] = tuple(args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Check, then run."""
        force = bool(ctx.params.pop(FORCE, False))
        ignored.check(ctx, _name(ctx))
        if self.default_output is not None:
            name, path = self.default_output(ctx.params)
            ctx.params[name] = path
        paths.check(ctx, _name(ctx), force)
        return super().invoke(ctx)


def _name(ctx: click.Context) -> str:
    """As "recipe run"."""
    return " ".join(ctx.command_path.split()[1:])
