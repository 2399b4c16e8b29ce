"""`python -m bids_lesionfill.evaluate`."""

from .cli import main

if __name__ == '__main__':
    main()
