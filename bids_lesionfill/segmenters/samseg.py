"""SAMSEG with lesions (Cerri et al., 2021), of FreeSurfer 7.2 and later, on T1w and, if there is one, FLAIR.

Source of arguments, file names and defaults: `samseg/cli/run_samseg.py` and `samseg/Samseg.py` of freesurfer/samseg,
and https://surfer.nmr.mgh.harvard.edu/fswiki/Samseg.

- Input images must be registered and share a grid.
- `--lesion` adds label 99 to `seg.mgz`, which has the grid of the first image. `--threshold` is 0.3.
- `--lesion-mask-pattern` has a number per image: 0 for T1w, 1 for FLAIR, in which lesions are brighter than cortex.
- `--pallidum-separate` is recommended with FLAIR.
- All files that it needs are part of FreeSurfer.
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
    needs_one_grid = True
    labels = (99,)
    threshold = 0.3

    def arguments(self, scans: Scans) -> list[str]:
        """Return the arguments of the program for a visit."""
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
        """Return the version of the FreeSurfer in this environment, if the command is the default one."""
        stamp = Path(os.environ.get('FREESURFER_HOME', '/nowhere'), 'build-stamp.txt')
        return text_files.read_text(stamp).strip() if not self.settings.command and stamp.is_file() else ''

    def output(self, scans: Scans) -> Path:
        """Return the path of the labels."""
        return scans.folder / 'output' / 'seg.mgz'
