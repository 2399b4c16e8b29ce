"""MindGlide (Goebl et al., 2025): one network for any contrast, on one image.

Source of arguments, labels and grid: `inference/mindglide/infer.py` and README.md of MS-PINPOINT/mindGlide, 1.2.

- `mindglide -i IMAGE -o FILE` writes tissue labels on the grid of the image. Label 18 is `Lesion`.
- Missing weights are downloaded from Hugging Face, unless `--model_path` is given.
- `--version` prints the version.
"""

from collections.abc import Collection
from pathlib import Path

from .segmenter import Scans, Segmenter, SegmenterUnavailable


class MindGlide(Segmenter):
    """Runs `mindglide`, on the FLAIR if there is one, else on the T1w."""

    title = 'MindGlide'
    cited = 'Goebl et al., 2025'
    program = 'mindglide'
    how_to_get = 'install MindGlide (https://github.com/MS-PINPOINT/mindGlide)'
    probe = ('--version',)
    prints_version = True
    labels = (18,)
    weights_are = "the checkpoint of MindGlide, a file that ends in '.pt'"

    def reference(self, contrasts: Collection[str]) -> str:
        """Return FLAIR if there is one, because it shows lesions best; else T1w."""
        return 'FLAIR' if 'FLAIR' in contrasts else 'T1w'

    def arguments(self, scans: Scans) -> list[str]:
        """Return the arguments of the program for a visit."""
        weights = self.settings.weights
        return self.with_options(
            ['-i', str(scans.files[self.reference(scans.files)]), '-o', str(self.output(scans))],
            ('--device', self.settings.device),
            *([('--model_path', str(weights))] if weights else []),
        )

    def output(self, scans: Scans) -> Path:
        """Return the path of the labels."""
        return scans.folder / 'labels.nii.gz'

    def check_weights(self) -> None:
        """Raise SegmenterUnavailable if the checkpoint is not a file."""
        super().check_weights()
        if self.settings.weights and not self.settings.weights.is_file():
            raise SegmenterUnavailable(f'--segmenter-weights {self.settings.weights}: expected {self.weights_are}')
