"""The command `fcompress`: finds its subcommands by name and says errors in one line."""

import importlib
import sys
from typing import Any

import click

from fcompress.cli.boundary import faults, terminal
from fcompress.errors import FcompressError

# Name -> module, object in it, summary. The summaries stand here so that `fcompress --help` need
# not import the commands, which import torch.
COMMANDS: dict[str, tuple[str, str, str]] = {
    "train": ("fcompress.cli.train", "train_command", "Train a network and keep it in a file."),
    "analyze": (
        "fcompress.cli.analyze",
        "analyze_command",
        "Measure what is frivolous in a network.",
    ),
    "gain": (
        "fcompress.cli.gain",
        "gain_command",
        "Measure how frivolous units grow with the width.",
    ),
    "shrink": (
        "fcompress.cli.shrink",
        "shrink_command",
        "Find the thinnest network that gives the same labels.",
    ),
    "verify": (
        "fcompress.cli.verify",
        "verify_command",
        "Compare the answers of two networks.",
    ),
    "export": (
        "fcompress.cli.shipped.export",
        "export_command",
        "Write a network as files that run without fcompress.",
    ),
    "bench": (
        "fcompress.cli.shipped.bench",
        "bench_command",
        "Measure time, memory and bytes of files.",
    ),
    "compare": (
        "fcompress.cli.reports.comparing",
        "compare_command",
        "Compare methods on one network: ours and torch-pruning's.",
    ),
    "report": (
        "fcompress.cli.reports.command",
        "report_command",
        "Put results of shrink side by side on one page.",
    ),
    "show": ("fcompress.cli.show", "show_command", "Describe a file."),
    "recipe": (
        "fcompress.cli.recipe",
        "recipe_command",
        "Run the experiments of the paper, one command each.",
    ),
    "models": ("fcompress.cli.catalog", "models_command", "List the network families."),
    "data": ("fcompress.cli.catalog", "data_command", "List the datasets, or describe one."),
}


class Commands(click.Group):
    """A group whose commands are imported when they are used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order in which they are used."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command; None if there is none of that name."""
        if cmd_name not in COMMANDS:
            return None
        module, name, _ = COMMANDS[cmd_name]
        command: click.Command = getattr(importlib.import_module(module), name)
        return _with_kept_lines(command)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that was typed.

        Raises:
            click.UsageError: There is none of that name; it says which may have been meant.
        """
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            import difflib

            close = difflib.get_close_matches(args[0].lower(), COMMANDS, 1)
            if not close or "mean" in error.message:
                raise
            line = f"{error.message} Did you mean '{close[0]}'?"
            raise click.UsageError(line, ctx) from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, _, summary) in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; what goes wrong becomes one line on stderr and an exit code.

        This is the only place that catches: commands let everything through.
        """
        try:
            with terminal.signals():
                return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except BrokenPipeError:
            terminal.lose_stdout()  # whoever read our output has seen enough
            ctx.exit(1)
        except (Exception, KeyboardInterrupt, terminal.Terminated) as error:
            ctx.exit(faults.show(error, ctx.params.get("debug", False)))

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run the command line of a process, from open streams to all that was printed."""
        try:
            terminal.open_streams()
            result = super().main(*args, **kwargs)
        except SystemExit as end:
            failed = terminal.flush()
            if failed:
                click.echo(f"error: {failed}", err=True)
            if failed is not None and not end.code:
                sys.exit(1)
            raise
        except (FcompressError, OSError) as error:  # of the streams, also in help
            code = faults.show(error, False)
            terminal.lose_stdout()
            sys.exit(code)
        return result


def _with_kept_lines(command: click.Command) -> click.Command:
    r"""Give click the backspace that keeps the lines of an example apart.

    Docstrings with a backslash are raw, so that click would find the two characters \b instead.
    """
    if command.help:
        command.help = command.help.replace(r"\b", "\b")
    return command


@click.command("fcompress", cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="fcompress")
@click.option("--debug", is_flag=True, help="Show where an error comes from, too.")
def main(debug: bool) -> None:
    r"""Make trained networks thinner without retraining, and certify that the labels stay.

    \b
    Example:
      fcompress train mlp --data digits --width 4 --out model.pt
    """


_with_kept_lines(main)
