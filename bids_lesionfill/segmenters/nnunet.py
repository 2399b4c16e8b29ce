"""A model trained with nnU-Net 2 (Isensee et al., 2021), on T1w, FLAIR or both.

Source of arguments and file names: `predict_entry_point_modelfolder` in `nnunetv2/inference/predict_from_raw_data.py`,
and `documentation/dataset_format.md`, of MIC-DKFZ/nnUNet.

- `nnUNetv2_predict_from_modelfolder -i FOLDER -o FOLDER -m MODEL -f FOLD ... -device cpu|cuda`
- Images are `CASE_0000.nii.gz`, `CASE_0001.nii.gz`, ... in the order of the channels. They share a grid, which the
  prediction `CASE.nii.gz` has too.
- MODEL has `dataset.json` (`channel_names`, `labels`, `file_ending`) and `fold_0` to `fold_4`, or `fold_all`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from .. import text_files
from .segmenter import Scans, Segmenter, SegmenterUnavailable

CASE = 'visit'
LESIONS = re.compile('lesion|wmh|hyperintens', re.IGNORECASE)
OTHER_T1W = re.compile('gd|gad|ce|post|contrast|rho|map', re.IGNORECASE)


def contrast_of(channel: str) -> str | None:
    """Return the contrast of a channel by its name: `T1w`, `FLAIR`, or None for any other."""
    if 'flair' in channel.lower():
        return 'FLAIR'
    return 'T1w' if channel.lower().startswith(('t1', 'mprage')) and not OTHER_T1W.search(channel) else None


class NNUNet(Segmenter):
    """Runs `nnUNetv2_predict_from_modelfolder` with the model of `--segmenter-weights`."""

    title = 'a model of nnU-Net'
    cited = 'Isensee et al., 2021'
    program = 'nnUNetv2_predict_from_modelfolder'
    how_to_get = 'install nnU-Net 2 (pip install nnunetv2)'
    needs_one_grid = True
    weights_are = 'the folder of a trained model, with dataset.json and fold_0 or fold_all'

    @functools.cached_property
    def dataset(self) -> dict[str, Any]:
        """The `dataset.json` of the model."""
        weights = self.settings.weights
        if weights is None:
            raise SegmenterUnavailable(f'nnU-Net needs --segmenter-weights: {self.weights_are}')
        try:
            return text_files.read_json(weights / 'dataset.json')
        except (OSError, text_files.UnreadableError) as error:
            raise SegmenterUnavailable(
                f'--segmenter-weights {weights}: dataset.json cannot be read ({error}); expected {self.weights_are}'
            ) from None

    @functools.cached_property
    def channels(self) -> list[str]:
        """The contrasts of the channels of the model, in order."""
        names = self.dataset.get('channel_names') or {}
        channels = [f'{names[key]}' for key in sorted(names, key=int)]
        contrasts = [contrast_of(channel) for channel in channels]
        if not contrasts or None in contrasts or len(set(contrasts)) < len(contrasts):
            raise SegmenterUnavailable(
                f'--segmenter-weights {self.settings.weights}: the model takes {", ".join(channels) or "nothing"}, '
                'expected T1w, FLAIR or both; run the model separately and pass the masks with --derivatives'
            )
        return [contrast for contrast in contrasts if contrast]

    @property
    def folds(self) -> list[str]:
        """The folds of the model."""
        folders = sorted((self.settings.weights or Path()).glob('fold_*'))
        folds = [folder.name.removeprefix('fold_') for folder in folders if folder.is_dir()]
        return [fold for fold in folds if fold != 'all'] or folds

    @property
    def needs(self) -> tuple[str, ...]:  # type: ignore[override]
        """The contrasts of the model."""
        return tuple(self.channels)

    @property
    def uses(self) -> tuple[str, ...]:  # type: ignore[override]
        """The contrasts of the model."""
        return tuple(self.channels)

    @property
    def labels(self) -> tuple[int, ...]:  # type: ignore[override]
        """The labels named after lesions; empty if the model has only one label."""
        labels = {name: value for name, value in (self.dataset.get('labels') or {}).items() if value != 0}
        labels.pop('ignore', None)
        if len(labels) == 1:
            return ()
        found = [value for name, value in labels.items() if LESIONS.search(name)]
        if not found or not all(isinstance(value, int) for value in found):
            raise SegmenterUnavailable(
                f'--segmenter-weights {self.settings.weights}: the labels of the model are {", ".join(labels)}, '
                'expected one that is named after lesions'
            )
        return tuple(found)

    def check_weights(self) -> None:
        """Raise SegmenterUnavailable if the model is incomplete or needs other images."""
        super().check_weights()
        _ = self.channels, self.labels
        ending = self.dataset.get('file_ending', '.nii.gz')
        if ending != '.nii.gz':
            raise SegmenterUnavailable(
                f'--segmenter-weights {self.settings.weights}: the model takes files that end in {ending}, expected '
                '.nii.gz'
            )
        if not self.folds:
            raise SegmenterUnavailable(f'--segmenter-weights {self.settings.weights}: expected {self.weights_are}')

    def reference(self, contrasts: Collection[str]) -> str:
        """Return the contrast of the first channel."""
        return self.channels[0]

    def file_name(self, contrast: str) -> str:
        """Return the file name of a channel, in a folder that holds nothing else."""
        return f'input/{CASE}_{self.channels.index(contrast):04d}.nii.gz'

    def arguments(self, scans: Scans) -> list[str]:
        """Return the arguments of the program for a visit."""
        return self.with_options(
            ['-i', str(scans.folder / 'input'), '-o', str(scans.folder / 'output'), '-m', str(self.settings.weights)],
            ('-f', *self.folds),
            ('-device', self.settings.device),
            ('-npp', '1'),  # a single visit: more processes only need memory
            ('-nps', '1'),
        )

    def output(self, scans: Scans) -> Path:
        """Return the path of the prediction."""
        return scans.folder / 'output' / f'{CASE}.nii.gz'
