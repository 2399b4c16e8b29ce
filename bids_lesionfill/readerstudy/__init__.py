"""Reader study: `python -m bids_lesionfill.readerstudy`."""
