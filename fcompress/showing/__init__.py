"""What people are shown: where long work is, and results in short.

Must never import: anything of fcompress but `errors` and `arguments`, nor torch.
"""
