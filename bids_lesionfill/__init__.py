"""Fill and synthesize multiple-sclerosis lesions in MR images with a diffusion model."""

from typing import Any

__all__ = ['fill_lesions', 'synthesize_lesions']


def __getattr__(name: str) -> Any:  # torch takes seconds to import; `--help` must not wait for it
    if name in __all__:
        from . import interface

        return getattr(interface, name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
