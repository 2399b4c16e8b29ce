"""Interface of a segmenter, and what all segmenters share: finding, checking and running a program."""

from __future__ import annotations

import re
import shlex
import shutil
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import running

PROBE_SECONDS = 300  # containers and torch load slowly from some disks
WORK = '{work}'  # in a command: the folder with the images, which a container must mount


class SegmenterUnavailable(ValueError):
    """A requested segmenter cannot be used here; the message is one sentence with the remedy."""


class SegmentationFailed(RuntimeError):
    """A segmenter failed; the message has the exit code and the end of the log.

    Attributes
    ----------
    result : running.Result
        With the whole log.
    """

    def __init__(self, message: str, result: running.Result) -> None:
        super().__init__(message)
        self.result = result


@dataclass(frozen=True)
class Settings:
    """Settings of a run that segmenters need."""

    command: tuple[str, ...] = ()  # words that start the program; empty: its usual name
    weights: Path | None = None  # file or folder of the weights
    device: str = 'cpu'  # or `cuda`
    threads: int = 1
    allow_download: bool = False
    timeout_s: float | None = None


@dataclass(frozen=True)
class Scans:
    """Images of a visit in a folder of their own, to which the program writes too."""

    folder: Path
    files: dict[str, Path]  # by contrast (`T1w`, `FLAIR`): gzipped NIfTI files in the folder


class Segmenter:
    """Base class of segmenters, with defaults that a subclass overrides."""

    title: str  # name in a paper
    cited: str  # authors and year, as in report/references.bib
    references: tuple[str, ...] = ()  # BibTeX entries of works that are not in references.bib
    program: str  # default command
    how_to_get: str  # one clause
    probe: tuple[str, ...] = ('--help',)  # arguments that check the program without any work
    prints_version = False  # whether the output of the probe contains the version
    needs: tuple[str, ...] = ('T1w',)  # required contrasts
    uses: tuple[str, ...] = ('T1w', 'FLAIR')  # contrasts that are passed if they exist
    needs_one_grid = False  # whether all images must be registered and share the grid of `reference`
    labels: tuple[int, ...] = ()  # lesion labels in the output; empty: all values above zero
    threshold: float | None = None  # default threshold of the lesion probability
    weights_are = ''  # description of `--segmenter-weights`; empty: not supported

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    # ------------------------------------------------------------------------------------------------ to be overridden

    def arguments(self, scans: Scans) -> list[str]:
        """Return the arguments of the program for a visit."""
        raise NotImplementedError

    def output(self, scans: Scans) -> Path:
        """Return the path of the labels or mask that the program writes."""
        raise NotImplementedError

    def reference(self, contrasts: Collection[str]) -> str:
        """Return the contrast whose grid the output has, of those that are passed."""
        return 'T1w'

    def file_name(self, contrast: str) -> str:
        """Return the file name of an image in the folder of the visit."""
        return f'{contrast}.nii.gz'

    def environment(self) -> dict[str, str]:
        """Return environment variables of the program."""
        return {}

    def check_weights(self) -> None:
        """Raise SegmenterUnavailable if `--segmenter-weights` does not exist or does not fit."""
        weights = self.settings.weights
        if weights is not None and not self.weights_are:
            raise SegmenterUnavailable(f'--segmenter-weights: {self.title} does not take any')
        if weights is not None and not weights.exists():
            raise SegmenterUnavailable(f'--segmenter-weights {weights} does not exist; expected {self.weights_are}')

    # ---------------------------------------------------------------------------------------------------------- common

    @property
    def command(self) -> tuple[str, ...]:
        """The words that start the program, before `{work}` is replaced."""
        return self.settings.command or (self.program,)

    def with_options(self, words: Sequence[str], *options: tuple[str, ...]) -> list[str]:
        """Return words followed by options (flag and values), except those that the command already has."""
        return [*words, *(word for option in options if option[0] not in self.command for word in option)]

    def check(self) -> None:
        """Start the program once, without any work.

        Raises
        ------
        SegmenterUnavailable
            If the program or its container is missing or does not start.
        """
        self.check_weights()
        first = self.command[0]
        if shutil.which(first) is None:
            raise SegmenterUnavailable(
                f'{first} is not on the PATH of this machine; {self.how_to_get}, or set --segmenter-command'
            )
        result = self.probe_program()
        if result.code != 0:
            raise SegmenterUnavailable(
                f'{shlex.join([*self.command, *self.probe])} {result.ending}: {result.tail}; '
                f'{self.how_to_get}, or correct --segmenter-command'
            )

    def probe_program(self) -> running.Result:
        """Run the program without any work."""
        with temporary_folder() as folder:
            return self.call(Path(folder).resolve(), self.probe, PROBE_SECONDS)

    def version(self) -> str:
        """Return the version of the program; empty if it does not print any."""
        return version_in(self.probe_program().log) if self.prints_version else ''

    def segment(self, scans: Scans) -> tuple[Path, running.Result]:
        """Segment the images of a visit.

        Returns
        -------
        output : path
            Labels or mask.
        result : running.Result

        Raises
        ------
        SegmentationFailed
            If the program fails, exceeds the timeout or writes no output.
        """
        result = self.call(scans.folder, self.arguments(scans), self.settings.timeout_s)
        output = self.output(scans)
        if result.code == 0 and output.is_file():
            return output, result
        ending = result.ending if result.code else f'did not write {output.relative_to(scans.folder)}'
        raise SegmentationFailed(f'{self.title} {ending}: {result.tail}', result)

    def call(self, folder: Path, arguments: Sequence[str], timeout_s: float | None) -> running.Result:
        """Run the program in a folder."""
        words = [word.replace(WORK, str(folder)) for word in self.command]
        environment = running.environment(self.settings.threads, self.settings.allow_download) | self.environment()
        return running.run([*words, *arguments], folder, environment, timeout_s)


def temporary_folder(parent: Path | None = None) -> tempfile.TemporaryDirectory:
    """Return a temporary folder; files that a container wrote as root may remain in it."""
    return tempfile.TemporaryDirectory(prefix='bids_lesionfill_', dir=parent, ignore_cleanup_errors=True)


def version_in(text: str) -> str:
    """Return the first version number in a log; empty if there is none."""
    found = re.search(r'\d+(\.\d+)+\S*', text)
    return found[0] if found else ''
