"""Side by side, and as pages: `compare`, `report`, `--report`, `--keep-candidates`.

Like every file of a command it imports what needs torch only where that is run.
"""
