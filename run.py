#!/usr/bin/env python3
"""Entry point of the container: `run.py /data /out participant`."""

from bids_lesionfill.app.cli import script

if __name__ == '__main__':
    script()
