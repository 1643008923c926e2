"""Which units go first, and what each choice costs in nats.

Must never import: methods, search, pipeline: it is told what to rank.
"""
