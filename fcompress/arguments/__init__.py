"""What callers may pass, on the command line, in files and in Python: ranges, and old names.

Must never import: anything of fcompress but `errors`, nor torch.
"""
