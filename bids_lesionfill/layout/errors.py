"""Usage errors, and messages for errors of the system."""

import errno


class UsageError(ValueError):
    """Error of usage that stops the whole run; the message is one sentence."""


LESS_MEMORY = (
    'what helps is a smaller --batch-size, fewer processes at once (--nprocs, or --mem with what the machine has), '
    '--device cpu if it was the memory of the GPU, or more memory'
)
# As torch, ITK, CUDA and the system say it.
NO_MEMORY = ('out of memory', 'allocate memory', 'bad_alloc', 'alloc_failed', 'failed to map segment')


def in_words(error: BaseException) -> str:
    """Format an error as one line, with advice if memory was short."""
    words = ' '.join(f'{error}'.split()) or type(error).__name__
    return f'out of memory: {LESS_MEMORY} ({words})' if lacks_memory(error) and LESS_MEMORY not in words else words


def lacks_memory(error: BaseException) -> bool:
    """Return True if an error reports that the machine or its GPU was short of memory."""
    said = any(sign in f'{error}'.lower() for sign in NO_MEMORY)
    return said or isinstance(error, MemoryError) or getattr(error, 'errno', None) == errno.ENOMEM
