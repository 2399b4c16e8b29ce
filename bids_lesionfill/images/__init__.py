"""Images: NIfTI, grids, masks, tissues, registration, metrics."""
