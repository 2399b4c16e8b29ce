"""Thickness engines, one module each."""
