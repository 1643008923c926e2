"""Distil a compressed network: a label-free training towards the original's answers.

Must never import: methods, ranking, refitting, search, pipeline: it takes two networks and inputs.
"""
