"""Evaluation of fillers where the truth is known: `python -m bids_lesionfill.evaluate`."""
