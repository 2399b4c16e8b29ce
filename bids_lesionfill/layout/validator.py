"""The BIDS validator on what a run will read: descriptions of the dataset, and `anat` of the chosen participants."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

from .naming import lesion_kind

PROGRAM = 'bids-validator-deno'
SHOWN = 20

# Not an error here: names that the validator does not know (raters keep masks beside the T1w), and participants of the
# table that are left out of the view.
HARMLESS = ('NOT_INCLUDED', 'PARTICIPANT_ID_MISMATCH', 'EMPTY_DATASET_NAME')
PLAIN_WORDS = {
    'JSON_INVALID': 'is not valid JSON',
    'EMPTY_FILE': 'is empty',
    'NIFTI_HEADER_UNREADABLE': 'cannot be read as NIfTI image',
    'JSON_KEY_REQUIRED': 'lacks a key that BIDS requires',
    'SIDECAR_KEY_REQUIRED': 'lacks a key in its JSON that BIDS requires',
    'MISSING_DATASET_DESCRIPTION': 'is missing',
    'ENTITY_WITH_NO_LABEL': 'has a part in its name that is no key-value pair',
    'ENTITY_NOT_IN_RULE': 'has a part in its name that images of this kind do not have',
    'MISSING_REQUIRED_ENTITY': 'lacks a part in its name that images of this kind must have',
    'FILENAME_MISMATCH': 'has the parts of its name in the wrong order, or twice',
    'INVALID_LOCATION': 'is in the wrong folder for its name',
    'INVALID_ENTITY_LABEL': 'has a part in its name with characters that BIDS does not allow',
    'JSON_SCHEMA_VALIDATION_ERROR': 'has a value that BIDS does not allow',
}


def find_validator() -> str | None:
    """Find the validator, next to this Python or on the PATH; None if it is not installed."""
    return shutil.which(PROGRAM, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get('PATH', '')]))


def find_errors(bids_dir: Path, participant_labels: Collection[str] = (), validator: str | None = None) -> list[str]:
    """List the errors of a dataset for the participants to be read: one sentence per finding.

    Parameters
    ----------
    bids_dir : path
    participant_labels : sequence of str
        Without `sub-`; all if empty.
    validator : str, optional
        Path of the validator; found if not given.

    Raises
    ------
    RuntimeError
        If the validator itself fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        view = Path(folder, 'view')
        build_view(bids_dir, view, participant_labels)
        command = [str(validator or find_validator()), str(view), '--format', 'json', '--ignoreWarnings']
        result = subprocess.run(command, capture_output=True, encoding='utf-8', errors='replace')
    try:
        issues = json.loads(result.stdout)['issues']
    except (ValueError, KeyError):
        said = (result.stderr or result.stdout).strip().splitlines()
        raise RuntimeError(f'{PROGRAM} ended with {result.returncode}: {said[-1] if said else "no words"}') from None
    return [
        in_words(issue, issues.get('codeMessages', {}))
        for issue in issues['issues']
        if issue.get('severity') == 'error' and issue['code'] not in HARMLESS and not is_lesion_mask(issue)
    ]


def build_view(bids_dir: Path, view: Path, participant_labels: Collection[str] = ()) -> None:
    """Link a dataset's top-level files and `anat` of participants into a folder, without copying."""
    bids_dir = Path(bids_dir).resolve()
    view.mkdir()
    subjects = [f'sub-{label}' for label in participant_labels] or ['sub-*']
    patterns = [f'{subject}/{depth}anat' for subject in subjects for depth in ('', 'ses-*/')]
    anat = [folder for pattern in patterns for folder in bids_dir.glob(pattern)]
    files = [path for path in bids_dir.iterdir() if path.is_file()]
    files += [path for folder in anat for path in folder.iterdir() if path.is_file()]
    for path in files:
        link = view / path.relative_to(bids_dir)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path)


def is_lesion_mask(issue: dict[str, Any]) -> bool:
    """Return True if a finding is about the name of a lesion mask next to the image."""
    return lesion_kind(Path(issue.get('location') or '').name) is not None


def in_words(issue: dict[str, Any], messages: dict[str, str]) -> str:
    """Format a finding as one sentence: file, problem and, in brackets, the validator's code."""
    code, detail = issue['code'], ' '.join((issue.get('issueMessage') or '').split())
    words = PLAIN_WORDS.get(code) or ' '.join(messages.get(code, 'is not as BIDS wants it').split())
    if 'subCode' in issue:
        words += f' ({issue["subCode"]})'
    elif detail and len(detail) < 120:
        words += f' ({detail})'
    location = (issue.get('location') or 'dataset').lstrip('/')
    return f'{location} {words} [{code}]' if code in PLAIN_WORDS else f'{location}: {words} [{code}]'
