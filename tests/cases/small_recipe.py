"""The text of a recipe that runs in seconds."""

RECIPE = """
title="t"
family="mlp"
data="gaussian:4,n=100"
widths=[0.25,0.5]
draw=["params"]
measure.analyze={examples=50}
[smoke]
seeds=1
train={epochs=1}
"""
