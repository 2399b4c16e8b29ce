"""`python -m bids_lesionfill.readerstudy`."""

from .cli import main

if __name__ == '__main__':
    main()
