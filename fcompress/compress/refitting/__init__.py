"""The weights that read what is left, solved again.

Must never import: ranking, methods, search, pipeline: it is told what stays.
"""
