"""Drawings, tables and the page of a recipe's results."""
