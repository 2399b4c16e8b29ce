"""Other programs that segment lesions, for visits without a lesion mask."""
