"""MindGlide (Goebl et al., 2025): one network for any single contrast.

Arguments, labels and grid are those of `inference/mindglide/infer.py` and the README in MS-PINPOINT/mindGlide (1.2):
`mindglide -i IMAGE -o FILE` writes tissue labels on the grid of the image, of which 18 is `Lesion`. The checkpoint is
fetched from Hugging Face unless `--model_path` names it (or it was fetched before); `--version` tells the version.
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
    trial = ('--version',)
    tells_version = True
    labels = (18,)
    weights_are = "the checkpoint of MindGlide, a file that ends in '.pt'"

    def reference(self, contrasts: Collection[str]) -> str:
        """Return the contrast on which lesions are seen best, of those that there are."""
        return 'FLAIR' if 'FLAIR' in contrasts else 'T1w'

    def arguments(self, scans: Scans) -> list[str]:
        """Return the words after the command for a visit."""
        weights = self.settings.weights
        return self.with_options(
            ['-i', str(scans.files[self.reference(scans.files)]), '-o', str(self.output(scans))],
            ('--device', self.settings.device),
            *([('--model_path', str(weights))] if weights else []),
        )

    def output(self, scans: Scans) -> Path:
        """Return the file of labels."""
        return scans.folder / 'labels.nii.gz'

    def check_weights(self) -> None:
        """Raise SegmenterUnavailable if the checkpoint is none."""
        super().check_weights()
        if self.settings.weights and not self.settings.weights.is_file():
            raise SegmenterUnavailable(f'--segmenter-weights {self.settings.weights}: expected {self.weights_are}')
