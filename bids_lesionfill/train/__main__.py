"""`python -m bids_lesionfill.train`."""

from .cli import main

if __name__ == '__main__':
    main()
