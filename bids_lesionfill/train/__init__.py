"""Training of the models: `python -m bids_lesionfill.train`."""
