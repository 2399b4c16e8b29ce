"""Fill and synthesize multiple-sclerosis lesions in MR images with a diffusion model."""

from typing import Any

__all__ = ['fill_lesions', 'synthesize_lesions']


def __getattr__(name: str) -> Any:  # torch takes seconds to import; `--help` must not wait for it
    if name == 'fill_lesions':
        from .lesions.fill import fill_lesions

        return fill_lesions
    if name == 'synthesize_lesions':
        from .lesions.synthesis import synthesize_lesions

        return synthesize_lesions
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
