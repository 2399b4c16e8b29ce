"""Score a lesion segmentation against a ground truth: `python -m bids_lesionfill.score --help`."""
