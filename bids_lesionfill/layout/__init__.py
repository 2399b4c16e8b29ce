"""Files of a BIDS dataset and of the derivatives: find, name, read, write."""
