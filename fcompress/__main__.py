"""The command `fcompress`, also as `python -m fcompress`.

From its first moment on Ctrl-C ends it with one line: what is imported here is what Python has
loaded already, and the handler stands before anything that takes time.
"""

import os

INTERRUPTED = 130  # 128 + SIGINT, as shells have it


def stop_at_once(*_: object) -> None:
    """End without a traceback; nothing is open yet, or all is written."""
    os.write(2, b"error: interrupted\n")
    os._exit(INTERRUPTED)


def run() -> None:
    """Run the command line."""
    from fcompress.cli import main

    main(prog_name="fcompress")


try:
    import signal

    # A shell that starts a command in the background may have it ignore interrupts.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, stop_at_once)
except KeyboardInterrupt:
    stop_at_once()

if __name__ == "__main__":
    run()
