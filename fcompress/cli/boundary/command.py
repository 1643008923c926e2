"""The one class of all commands: what is checked before any of them begins."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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

    def __init__(self, *args: Any, groups: Mapping[str, str] | None = None, **kwargs: Any) -> None:
        """Make it.

        Args:
            *args: Of `click.Command`.
            groups: Heading in the help -> names of its options, without dashes. What is in no
                group stands under the last heading.
            **kwargs: As `args`.
        """
        super().__init__(*args, **kwargs)
        self.groups = dict(groups or {})
        if any(isinstance(parameter.type, OutputFile) for parameter in self.params):
            help_text = "Replace files that something else than this command wrote."
            self.params.append(click.Option([f"--{FORCE}"], is_flag=True, help=help_text))

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the arguments, and keep them as they were typed."""
        ctx.meta[TYPED] = tuple(args)
        return super().parse_args(ctx, args)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, in groups where the command has some."""
        if not self.groups:
            super().format_options(ctx, formatter)
            return
        place = {name: title for title, names in self.groups.items() for name in names.split()}
        rows: dict[str, list[tuple[str, str]]] = {title: [] for title in self.groups}
        last = [*self.groups][-1]
        for parameter in self.get_params(ctx):
            row = parameter.get_help_record(ctx)
            if row is not None:
                names = (option.lstrip("-") for option in parameter.opts)
                rows[next((place[name] for name in names if name in place), last)].append(row)
        for title, found in rows.items():
            with formatter.section(title):
                formatter.write_dl(found)

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
