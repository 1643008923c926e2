"""Pages from the command line: `--report`, `--keep-candidates` and `fcompress report`.

Like every file of a command it imports what needs torch only where that is run.
"""
