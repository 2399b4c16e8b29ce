"""Cortical thickness: engines, tables, reproducibility."""
