"""`python -m fcompress` is the command `fcompress`."""

from fcompress.cli import main

main(prog_name="fcompress")
