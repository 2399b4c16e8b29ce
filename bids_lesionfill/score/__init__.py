"""Score predicted lesion masks against the truth."""
