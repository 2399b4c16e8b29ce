"""Interface of a segmenter, and what all of them share: how a program is found, tried, called and read."""

from __future__ import annotations

import re
import shlex
import shutil
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import running

TRIAL_SECONDS = 300  # an image of a container, or torch, may have to be read from a slow disk first
WORK = '{work}'  # in a command: the folder of the images of one call, to be seen by a container


class SegmenterUnavailable(ValueError):
    """A segmenter that was asked for cannot be used here; the message is one sentence that says what to do."""


class SegmentationFailed(RuntimeError):
    """A program ended without a mask; the message says how, with the end of what it said.

    Attributes
    ----------
    answer : running.Answer
        All that it said.
    """

    def __init__(self, message: str, answer: running.Answer) -> None:
        super().__init__(message)
        self.answer = answer


@dataclass(frozen=True)
class Settings:
    """Settings of a run that segmenters need."""

    command: tuple[str, ...] = ()  # the words that start the program; its usual name if empty
    weights: Path | None = None  # file or folder of its weights, where it takes one
    device: str = 'cpu'  # or `cuda`
    threads: int = 1
    allow_download: bool = False
    timeout_s: float | None = None


@dataclass(frozen=True)
class Scans:
    """Images of a visit in a folder of their own, in which the program also writes."""

    folder: Path
    files: dict[str, Path]  # by contrast (`T1w`, `FLAIR`): gzipped NIfTI files in the folder


class Segmenter:
    """Base of all segmenters. What is said here of one holds unless its class says otherwise."""

    title: str  # as papers name it
    cited: str  # authors and year, as in report/references.bib
    references: tuple[str, ...] = ()  # whole BibTeX entries of works that are not in references.bib
    program: str  # which is called if no command is configured
    how_to_get: str  # one sentence
    trial: tuple[str, ...] = ('--help',)  # arguments with which the program does no work
    tells_version = False  # what it says then has its version
    needs: tuple[str, ...] = ('T1w',)  # contrasts without which it cannot work
    uses: tuple[str, ...] = ('T1w', 'FLAIR')  # contrasts that it is given if they are there
    on_one_grid = False  # it wants all images registered and on the grid of the one of `reference`
    labels: tuple[int, ...] = ()  # values that are lesions in what it writes; all above zero if empty
    threshold: float | None = None  # of the probability of lesion, that the program uses
    weights_are = ''  # what `--segmenter-weights` is; empty: the program takes none

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    # ------------------------------------------------------------------------------------- what a program differs in

    def arguments(self, scans: Scans) -> list[str]:
        """Return the words after the command for a visit."""
        raise NotImplementedError

    def output(self, scans: Scans) -> Path:
        """Return the file in which the program writes its labels or mask."""
        raise NotImplementedError

    def reference(self, contrasts: Collection[str]) -> str:
        """Return the contrast of the image on whose grid the output is, of those that it is given."""
        return 'T1w'

    def file_name(self, contrast: str) -> str:
        """Return the name of the file of an image in the folder of the call."""
        return f'{contrast}.nii.gz'

    def environment(self) -> dict[str, str]:
        """Return variables that the program needs."""
        return {}

    def check_weights(self) -> None:
        """Raise SegmenterUnavailable if the weights that were given are not there, or are none of this program."""
        weights = self.settings.weights
        if weights is not None and not self.weights_are:
            raise SegmenterUnavailable(f'--segmenter-weights: {self.title} takes none')
        if weights is not None and not weights.exists():
            raise SegmenterUnavailable(f'--segmenter-weights {weights} is not there; expected {self.weights_are}')

    # ------------------------------------------------------------------------------------------ what all have in common

    @property
    def command(self) -> tuple[str, ...]:
        """The words that start the program, with `{work}` as it was given."""
        return self.settings.command or (self.program,)

    def with_options(self, words: Sequence[str], *options: tuple[str, ...]) -> list[str]:
        """Return words with options (flag and values) after them, but for those that the command has already."""
        return [*words, *(word for option in options if option[0] not in self.command for word in option)]

    def check(self) -> None:
        """Call the program once without work.

        Raises
        ------
        SegmenterUnavailable
            If the program, or the container around it, is not there or does not start.
        """
        self.check_weights()
        first = self.command[0]
        if shutil.which(first) is None:
            raise SegmenterUnavailable(
                f'{first} is not on the PATH of this machine; {self.how_to_get}, or say how it is called with '
                '--segmenter-command'
            )
        answer = self.try_out()
        if answer.code != 0:
            raise SegmenterUnavailable(
                f'{shlex.join([*self.command, *self.trial])} {answer.ending}: {answer.tail or "it said nothing"}; '
                f'{self.how_to_get}, or correct --segmenter-command'
            )

    def try_out(self) -> running.Answer:
        """Return what the program says if it is called without work."""
        with tempfile.TemporaryDirectory(prefix='bids_lesionfill_') as folder:
            return self.call(Path(folder).resolve(), self.trial, TRIAL_SECONDS)

    def version(self) -> str:
        """Return the version that the program tells; empty if it tells none."""
        return version_in(self.try_out().text) if self.tells_version else ''

    def segment(self, scans: Scans) -> tuple[Path, running.Answer]:
        """Segment the images of a visit: (file of labels, what the program said).

        Raises
        ------
        SegmentationFailed
            If the program fails, takes too long, or writes no output.
        """
        answer = self.call(scans.folder, self.arguments(scans), self.settings.timeout_s)
        output = self.output(scans)
        if answer.code == 0 and output.is_file():
            return output, answer
        ending = answer.ending if answer.code else f'ended without {output.relative_to(scans.folder)}'
        raise SegmentationFailed(f'{self.title} {ending}: {answer.tail or "it said nothing"}', answer)

    def call(self, folder: Path, arguments: Sequence[str], timeout_s: float | None) -> running.Answer:
        """Call the program with arguments, in a folder."""
        words = [word.replace(WORK, str(folder)) for word in self.command]
        environment = running.environment(self.settings.threads, self.settings.allow_download) | self.environment()
        return running.run([*words, *arguments], folder, environment, timeout_s)


def version_in(text: str) -> str:
    """Return the version number in what a program printed; empty if there is none."""
    found = re.search(r'\d+(\.\d+)+\S*', text)
    return found[0] if found else ''
