"""The command line in a process of its own."""

import sys

_CODE = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    "from fcompress.cli import main; main()"
)


def command_line(*arguments: object) -> list[str]:
    """What runs `fcompress` with arguments; Ctrl-C reaches it whatever the shell told its jobs."""
    return [sys.executable, "-c", _CODE, *map(str, arguments)]
