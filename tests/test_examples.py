"""The scripts of examples/ run, and print what they promise."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DEMO = ROOT / 'demo'
T1W = DEMO / 'sub-07/anat/sub-07_T1w.nii.gz'
MASK = DEMO / 'derivatives/lesions/sub-07/anat/sub-07_label-lesion_mask.nii.gz'


def printed(name, *arguments):
    """Run a script; return what it prints."""
    command = [sys.executable, ROOT / 'examples' / name, *map(str, arguments)]
    environment = os.environ | {'PYTHONPATH': str(ROOT)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout


def test_every_example_has_a_test():
    text = Path(__file__).read_text() + (ROOT / 'tests/test_score.py').read_text()
    for path in (ROOT / 'examples').glob('*.py'):
        assert f"'{path.name}'" in text, path


@pytest.mark.slow
def test_lesions_are_filled_from_python(tmp_path):
    text = printed('fill_from_python.py', T1W, MASK, tmp_path / 'filled.nii.gz')
    words = text.replace(',', '').split()
    before, after = (float(words[words.index(name) - 1]) for name in ('before', 'after'))
    assert before < after  # lesions are dark on a T1w
    assert (tmp_path / 'filled.nii.gz').is_file()


@pytest.mark.slow
def test_a_toy_segmenter_learns_lesions_that_are_synthesized(tmp_path):
    text = printed('train_toy_segmenter.py', DEMO, tmp_path / 'out', '07')
    first, *_, last = (float(loss) for loss in re.findall(r'loss ([\d.]+)', text))
    assert last < first / 3
    assert 0 <= int(text.split('second variant: ')[1].split('%')[0]) <= 100


@pytest.mark.slow
def test_tables_of_a_study_are_read(dataset, tmp_path):
    command = [sys.executable, '-m', 'bids_lesionfill', dataset(), tmp_path / 'out', 'participant']
    environment = os.environ | {'PYTHONPATH': str(ROOT)}
    subprocess.run([*command, '--skip-bids-validation'], env=environment, check=True, cwd=ROOT)
    text = printed('read_tables.py', tmp_path / 'out')
    assert 'filled_volume_ml' in text
    assert text.count('sub-01_desc-lesions_qc.tsv') >= 1
    assert text.count('sub-02_desc-lesions_qc.tsv') >= 1
    assert text.rstrip().splitlines()[-4].split()[:2] == ['file', 'label']
