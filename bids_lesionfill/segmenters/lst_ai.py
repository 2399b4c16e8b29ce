"""LST-AI (Wiltgen et al., 2024): an ensemble of three networks, on T1w and FLAIR.

Arguments, files and defaults are those of the script `lst` and of `utils.py` in CompImg/LST-AI (versions 1 and 2):
images must end in `.nii.gz`, are registered and skull-stripped by the program itself, and the mask is written into
`--output` on the grid of the FLAIR, as `space-flair_seg-lst.nii.gz` (1.0 and 1.1: `space-orig_seg-lst.nii.gz`).
Without `--segment_only` lesions are also sorted by place, which is not needed here. `--device` is a GPU's number or
`cpu`, `--threshold` 0.5. Weights are beside the program and are fetched if they are not; version 2 takes them from
the folder that `LST_AI_DATA_DIR` names.
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
        """Return the words after the command for a visit."""
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
        """Return the mask on the grid of the FLAIR, under the name that the version of the program gives it."""
        new, old = (scans.folder / 'output' / f'space-{space}_seg-lst.nii.gz' for space in ('flair', 'orig'))
        return old if old.is_file() else new

    def environment(self) -> dict[str, str]:
        """Return the variable that names the folder of weights."""
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
