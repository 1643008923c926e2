"""Commands about what is shipped: `export` writes it, `bench` measures it.

Each is imported by itself, since help needs neither torch nor the other one.
"""
