"""`python -m bids_lesionfill` is `run.py`."""

from .cli import script

script()
