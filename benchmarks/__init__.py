"""Benchmarks: what the methods reach beside their rivals, and what they cost."""
