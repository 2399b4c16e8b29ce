"""The BIDS App: command line, participants, visits, group; the only package with all effects."""
