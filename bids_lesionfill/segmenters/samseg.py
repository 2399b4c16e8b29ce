"""SAMSEG with lesions (Cerri et al., 2021), of FreeSurfer 7.2 and later: a model of the image, on T1w and FLAIR.

Arguments, files and defaults are those of `samseg/cli/run_samseg.py` and `samseg/Samseg.py` in freesurfer/samseg, and
of https://surfer.nmr.mgh.harvard.edu/fswiki/Samseg: inputs must be registered and on one grid; `--lesion` adds the
label 99 to `seg.mgz`, which is on the grid of the first input; `--lesion-mask-pattern` has a number for each input, 0
for T1w and 1 for FLAIR, in which lesions are brighter than the cortex; `--pallidum-separate` is for runs with a FLAIR;
`--threshold` is 0.3. All it needs is part of FreeSurfer; lesions need its TensorFlow or PyTorch.
"""

import os
from pathlib import Path

from .. import text_files
from .segmenter import Scans, Segmenter


class SAMSEG(Segmenter):
    """Runs `run_samseg --lesion`."""

    title = 'SAMSEG'
    cited = 'Cerri et al., 2021'
    program = 'run_samseg'
    how_to_get = 'install FreeSurfer 7.2 or later (https://surfer.nmr.mgh.harvard.edu) and source its set-up'
    on_one_grid = True
    labels = (99,)
    threshold = 0.3

    def arguments(self, scans: Scans) -> list[str]:
        """Return the words after the command for a visit."""
        contrasts = [contrast for contrast in self.uses if contrast in scans.files]
        words = [word for contrast in contrasts for word in ('--input', str(scans.files[contrast]))]
        options = [
            ('--output', str(scans.folder / 'output')),
            ('--lesion',),
            ('--lesion-mask-pattern', *('1' if contrast == 'FLAIR' else '0' for contrast in contrasts)),
            ('--threads', str(self.settings.threads)),
        ]
        return self.with_options(words, *options, *([('--pallidum-separate',)] if 'FLAIR' in contrasts else []))

    def version(self) -> str:
        """Return the version of FreeSurfer, if the program is that of the FreeSurfer that is set up here."""
        stamp = Path(os.environ.get('FREESURFER_HOME', '/nowhere'), 'build-stamp.txt')
        return text_files.read_text(stamp).strip() if not self.settings.command and stamp.is_file() else ''

    def output(self, scans: Scans) -> Path:
        """Return the file of labels."""
        return scans.folder / 'output' / 'seg.mgz'
