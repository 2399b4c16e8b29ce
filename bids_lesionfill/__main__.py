"""`python -m bids_lesionfill` is `run.py`."""

from .app.cli import script

script()
