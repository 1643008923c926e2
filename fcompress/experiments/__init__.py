"""Experiments: recipes for sweeps over widths, run as independent trials, drawn and compared."""
