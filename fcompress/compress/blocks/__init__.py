"""Whole blocks as further choices beside units: what is left of one, and what its loss costs.

Must never import: methods, search, pipeline: it is told what network it is about.
"""
