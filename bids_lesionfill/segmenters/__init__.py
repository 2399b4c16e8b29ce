"""Programs of others that segment lesions, for visits without a lesion mask."""
