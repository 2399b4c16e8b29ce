"""LST-AI (Wiltgen et al., 2024): an ensemble of three networks, on T1w and FLAIR.

Source of arguments, file names and defaults: `lst` and `utils.py` of CompImg/LST-AI, versions 1 and 2.

- Images must end in `.nii.gz`. The program registers and skull-strips them itself.
- The mask in `--output` has the grid of the FLAIR: `space-flair_seg-lst.nii.gz`, or `space-orig_seg-lst.nii.gz` in 1.0
  and 1.1.
- `--segment_only` skips the classification of lesions by location, which is not needed here.
- `--device` is the number of a GPU, or `cpu`. `--threshold` is 0.5. The program does not print a version.
- Missing weights are downloaded. Version 2 reads them from the folder in `LST_AI_DATA_DIR`.
"""

from collections.abc import Collection
from pathlib import Path

from .segmenter import Scans, Segmenter, SegmenterUnavailable

PARTS = ('atlas', 'model')  # folders of the weights


class LSTAI(Segmenter):
    """Runs `lst`."""

    title = 'LST-AI'
    cited = 'Wiltgen et al., 2024'
    program = 'lst'
    how_to_get = 'install LST-AI (https://github.com/CompImg/LST-AI)'
    needs = ('T1w', 'FLAIR')
    threshold = 0.5
    weights_are = 'the folder with `atlas` and `model` of LST-AI 2'

    def reference(self, contrasts: Collection[str]) -> str:
        """Return FLAIR."""
        return 'FLAIR'

    def arguments(self, scans: Scans) -> list[str]:
        """Return the arguments of the program for a visit."""
        device = '0' if self.settings.device == 'cuda' else 'cpu'
        return self.with_options(
            ['--t1', str(scans.files['T1w']), '--flair', str(scans.files['FLAIR'])],
            ('--output', str(scans.folder / 'output')),
            ('--temp', str(scans.folder / 'temp')),
            ('--segment_only',),
            ('--device', device),
            ('--threads', str(self.settings.threads)),
        )

    def output(self, scans: Scans) -> Path:
        """Return the path of the mask, whose name depends on the version of the program."""
        new, old = (scans.folder / 'output' / f'space-{space}_seg-lst.nii.gz' for space in ('flair', 'orig'))
        return old if old.is_file() else new

    def environment(self) -> dict[str, str]:
        """Return the variable of the folder of weights."""
        return {'LST_AI_DATA_DIR': str(self.settings.weights)} if self.settings.weights else {}

    def check_weights(self) -> None:
        """Raise SegmenterUnavailable if the folder of weights lacks a part."""
        super().check_weights()
        weights = self.settings.weights
        lacking = [name for name in PARTS if weights and not (weights / name).is_dir()]
        if lacking:
            raise SegmenterUnavailable(
                f'--segmenter-weights {weights} has no folder {" and ".join(lacking)}; expected {self.weights_are}'
            )
