"""Types of option values: each turns a word of the command line into a value, or refuses it in a sentence."""

import argparse

LOCATIONS = ('periventricular', 'juxtacortical', 'deep', 'infratentorial')


def positive(text: str) -> int:
    """Return a whole number above zero."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f'{text} is not above zero')
    return number


def whole_number(text: str) -> int:
    """Return a whole number, zero included."""
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f'{text} is below zero')
    return number


def above_zero(text: str) -> float:
    """Return a finite number above zero."""
    number = float(text)
    if not 0 < number < float('inf'):
        raise argparse.ArgumentTypeError(f'{text} is not above zero')
    return number


def zero_or_more(text: str) -> float:
    """Return a finite number that is not negative."""
    return 0.0 if float(text) == 0 else above_zero(text)


def memory_mb(text: str) -> float:
    """Return an amount of memory in MB from a number of MB, or a number with K, M, G or T (`4G`, `4GB`)."""
    number = text.upper().removesuffix('B')
    factor = {'K': 1e-3, 'M': 1, 'G': 1e3, 'T': 1e6}.get(number[-1:], 1)
    return above_zero(number.rstrip('KMGT')) * factor


def intensity(text: str) -> float | str:
    """Return `auto`, or a quantile."""
    return text if text == 'auto' else between_0_and_1(text, 'quantile')


def halo_share(text: str) -> float | str:
    """Return `auto`, or a share of a lesion's contrast."""
    return text if text == 'auto' else between_0_and_1(text, 'share')


def probability(text: str) -> float:
    """Return a number above 0, up to 1."""
    number = between_0_and_1(text, 'probability')
    if number == 0:
        raise argparse.ArgumentTypeError(f'{text} is not above zero')
    return number


def between_0_and_1(text: str, quantity: str) -> float:
    """Return a number from 0 to 1; `quantity` names it in the sentence of refusal."""
    number = float(text)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f'{text} is no {quantity} from 0 to 1')
    return number


def locations(text: str) -> tuple[str, ...]:
    """Return names of lesion locations, given separated by commas."""
    names = tuple(dict.fromkeys(text.split(',')))
    unknown = sorted(set(names) - set(LOCATIONS))
    if unknown:
        raise argparse.ArgumentTypeError(f'{",".join(unknown)} is none of {",".join(LOCATIONS)}')
    return names


def subject_label(text: str) -> str:
    """Return a participant label without `sub-`."""
    return text.removeprefix('sub-')


def session_label(text: str) -> str:
    """Return a session label without `ses-`."""
    return text.removeprefix('ses-')


LIMITS = {  # in the help
    positive: '1 or more',
    whole_number: '0 or more',
    above_zero: 'above 0',
    zero_or_more: '0 or more',
    probability: 'above 0, up to 1',
    intensity: '0 to 1',
    halo_share: '0 to 1',
    memory_mb: 'or with a suffix K, M, G, T',
}
