#!/usr/bin/env python3
"""Entry point of the container: `run.py /data /out participant`."""

import sys

from bids_lesionfill.cli import main

if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
