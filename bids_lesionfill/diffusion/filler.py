"""Interface of a filler, and what it is sampled with."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Sampling:
    """Settings of the filling of a volume."""

    seeds: tuple[int, ...] = (0,)  # each gives one filling
    num_inference_steps: int | None = None  # the filler's own if not given
    device: str = 'cpu'
    batch_size: int = 8  # tiles at once
    progress: Callable[[int, int], Any] | None = None  # is called with (n_done, n_all)
    beside_grey: bool = False  # what is darker beside the mask is other tissue that goes on inside it, not lesion


@dataclass(frozen=True)
class Record:
    """The part of the sidecar of a filling that describes the filler."""

    model: str
    weights_sha256: str | None = None
    random_seed: int | None = None
    num_inference_steps: int | None = None
    more: Mapping[str, Any] = field(default_factory=dict)  # keys and values of JSON, spelled as in BIDS


class Filler(Protocol):
    """Interface of a filler; see `registry`.

    A class that is registered is called with the modality of the images that it is to fill (None: not known), and that
    must be cheap: weights are loaded in `fill`.
    """

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def modality(self) -> str | None:
        """Of the images that it fills."""

    @property
    def sha256(self) -> str:
        """Of its weights; '' if it has none."""

    @property
    def has_texture(self) -> bool:
        """True if a filling has the noise of tissue; otherwise it is smooth, and the app adds noise."""

    def fill(
        self, volume: 'np.ndarray', lesion_mask: 'np.ndarray', wm_mask: 'np.ndarray', sampling: Sampling
    ) -> 'np.ndarray':
        """Fill the lesions of a volume, once per seed.

        Parameters
        ----------
        volume : (X, Y, Z) float array
            Normalised (white matter +0.5, background -1), RAS, 1 mm.
        lesion_mask, wm_mask : (X, Y, Z) bool array
        sampling : Sampling

        Returns
        -------
        (n seeds, n) float array: values of the n voxels of the mask, in C order
        """
        ...

    def record(self, sampling: Sampling) -> Record:
        """Return what the sidecar tells of a filling."""
        ...

    def methods(self) -> tuple[str, tuple[str, ...]]:
        """Return how it fills, for a paper, and its references.

        The words complete "Lesions ... were filled ... by"; references are keys of `report/references.bib`, or whole
        BibTeX entries.
        """
        ...
