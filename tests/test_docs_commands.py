"""The commands of the documentation: each is run on phantoms, or listed with the reason why not."""

import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from bids_examples import flair_path, mask_path, write_description
from pages import ROOT, TEXTS, arguments_of
from rulers import Ruler

from bids_lesionfill.app import cli, exit_codes, single_file
from bids_lesionfill.lesions import synthesis
from bids_lesionfill.thickness import registry

# Regular expressions of what is not run, and the reason.
NOT_RUN = {
    r'\b(docker|podman) ': 'needs Docker; container/test runs the image, and test_docs parses the arguments of the app',
    r'\b(apptainer|singularity) ': 'needs Apptainer; test_docs parses the arguments of the app',
    r'\bsbatch |^export IMAGE': 'needs SLURM; test_container runs slurm_array.sh with a fake container',
    r'--use-plugin': 'needs SLURM; test_workflow runs a plugin',
    r'^make |^export TORCH_INDEX': 'CI runs make',
    r'\bpip install|-m venv|pre-commit|^git clone|mkdocs serve': 'needs a package registry, or runs for ever',
    r'^(xdg-open|fmriprep|run_fastsurfer\.sh|recon-all) ': 'a program of others',
    r'--segmenter ': 'needs a program of others; test_segmenters runs fakes of each',
    r'--thickness freesurfer': 'needs results of FreeSurfer; test_app reads such',
    r'\b[A-Z]{3,}(_DIR)?\b.*-m bids_lesionfill|-m bids_lesionfill\.\w+ .*\b[A-Z]{3,}': 'with placeholders',
    r'bids_lesionfill\.(train|readerstudy)|--model OUT': 'test_train and test_readerstudy run them on phantoms',
}
# What does not fit into a phantom, and what is run instead.
SMALLER = {
    '--n-lesions 10 --lesion-load-ml 3': '--n-lesions 2',
    '--n-lesions 10 --lesion-location deep,juxtacortical': '--n-lesions 2 --lesion-location deep',
    '--lesion-load-ml 5 --n-variants 100': '--n-lesions 1 --n-variants 2',
    '--new-lesions 3': '--new-lesions 1',
    '--participant-label 1000 1001': '--participant-label 01 02',
}
# What a reader of a page has done before.
BEFORE = {
    'README.md': 'rm -r /data/derivatives/lesions',  # the page makes its own
    'docs/masks.md': 'cp -r raters rater1 /data/derivatives',
    'docs/study.md': 'bids_lesionfill /data /out participant',
}
SEGMENTED = np.array([0, 24, 3, 2])  # labels of FreeSurfer for background, CSF, grey and white matter


def commands_of(name):
    """Return the commands of a page: lines, or whole blocks if they are a script that does not call the app."""
    blocks = re.findall(r'^```(?:bash|sh|shell)\n(.*?)^```', (ROOT / name).read_text(), re.M | re.S)
    commands = []
    for block in blocks:
        is_script = re.search(r'^(for|while|if) ', block, re.M)
        commands += [block] if is_script else block.replace('\\\n', ' ').splitlines()
    return [command for command in commands if command.strip() and not command.startswith('#')]


def reason_not_to_run(command):
    return next((reason for pattern, reason in NOT_RUN.items() if re.search(pattern, command)), None)


COMMANDS = {name: commands_of(name) for name in TEXTS}
RUN = {name: [line for line in lines if not reason_not_to_run(line)] for name, lines in COMMANDS.items()}


def test_no_block_of_commands_is_overlooked():
    for name in TEXTS:
        fences = re.findall(r'^```(\w*)$', (ROOT / name).read_text(), re.M)
        assert set(fences) <= {'', 'bash', 'python', 'json', 'yaml', 'toml'}, name


@pytest.mark.parametrize('pattern', NOT_RUN)
def test_every_exception_is_needed(pattern):
    assert any(re.search(pattern, line) for lines in COMMANDS.values() for line in lines)


@pytest.mark.parametrize('longer', SMALLER)
def test_every_replacement_is_needed(longer):
    assert any(longer in ' '.join(line.split()) for lines in RUN.values() for line in lines)


def test_most_calls_of_the_app_are_run():
    calls = [line for lines in COMMANDS.values() for line in lines if re.match(r'\S*bids_lesionfill ', line)]
    assert sum(reason_not_to_run(line) is None for line in calls) > 0.8 * len(calls) > 30


@pytest.fixture
def world(dataset, make_phantom, tmp_path, monkeypatch):
    """A folder in place of /, with all that the pages name: the dataset /data, masks of tools and raters; the cwd."""
    phantom = make_phantom()
    flairs = {flair_path(s): phantom.thick_slices(phantom.flair) for s in ('01', '02', '19')}
    elsewhere = phantom.img(phantom.lesion_mask[::-1, ::-1])  # where participant 01 has no lesion
    dataset(subjects=('01', '02', '19'), **(flairs | {mask_path('19'): elsewhere}))
    for subject in ('sub-01', 'sub-02'):
        for tool in ('lst', 'samseg'):
            (tmp_path / 'path/to' / tool / subject).mkdir(parents=True)
        nib.save(phantom.lesion_mask_img, tmp_path / 'path/to/lst' / subject / 'space-t1w_seg-lst.nii.gz')
        labels = np.where(phantom.lesion_mask, 99, SEGMENTED[phantom.tissue_seg]).astype(np.int32)
        nib.save(nib.MGHImage(labels, phantom.affine), tmp_path / 'path/to/samseg' / subject / 'seg.mgz')
        (tmp_path / 'path/to/samseg' / subject / 'samseg.stats').write_text('# Measure Lesions, 100.0, mm^3\n')
        (tmp_path / 'predictions').mkdir(exist_ok=True)
        nib.save(phantom.lesion_mask_img, tmp_path / 'predictions' / f'{subject}.nii.gz')
    masks = tmp_path / 'path/to/masks'
    for folder in (masks, tmp_path / 'segmented-first', tmp_path / 'segmented-second'):
        write_description(folder, DatasetType='derivative')
        (folder / 'sub-01/anat').mkdir(parents=True)
        nib.save(phantom.lesion_mask_img, folder / 'sub-01/anat/sub-01_label-lesion_mask.nii.gz')
    nib.save(elsewhere, tmp_path / 'my_lesions.nii.gz')
    for name in ('my_mask', 'mask'):
        nib.save(phantom.lesion_mask_img, tmp_path / f'{name}.nii.gz')
    for name in ('T1w', 'my_T1w'):
        nib.save(phantom.t1w_img, tmp_path / f'{name}.nii.gz')
    for name in ('FLAIR', 'my_FLAIR'):
        nib.save(phantom.img(phantom.flair), tmp_path / f'{name}.nii.gz')
    (tmp_path / 'filters.json').write_text('{"lesion_mask": {"desc": "rater1"}}')
    for folder in ('examples', 'demo'):
        (tmp_path / folder).symlink_to(ROOT / folder)
    monkeypatch.chdir(tmp_path)
    raters = {
        mask_path('01', derivative='raters', extra='space-FLAIR_'): phantom.thick_slices(phantom.lesion_mask),
        mask_path('01', derivative='rater1', extra='desc-rater1_'): phantom.lesion_mask_img,
    }
    for path, img in raters.items():  # in no dataset until BEFORE copies them
        path = tmp_path / Path(path).relative_to('derivatives')
        path.parent.mkdir(parents=True)
        write_description(path.parents[2], DatasetType='derivative')
        nib.save(img, path)
    return tmp_path


@pytest.fixture
def quick(monkeypatch, find_tiny_places, no_deformation):
    """No registration to atlases, and a ruler in place of the engine pbt."""
    monkeypatch.setattr(synthesis, 'find_places', find_tiny_places)
    monkeypatch.setitem(registry.ENGINES, 'pbt', type('Pbt', (Ruler,), {'name': 'pbt'}))


def in_phantoms(command, world):
    """Return a command for the world of the test: its folders in place of those below /, fewer lesions."""
    command = command if '\n' in command else ' '.join(command.split())
    command = re.sub(r'(?<![\w/}$])/(?=[a-z])', f'{world}/', command)
    for longer, shorter in SMALLER.items():
        command = command.replace(longer, shorter)
    return command


def run_app(arguments, page):
    """Run the app in one diffusion step, on one participant if the command names none; return its output folder."""
    if '--participant-label' not in arguments:
        arguments = [*arguments, '--participant-label', '07' if arguments[0] == 'demo' else '01']
    arguments += ['--num-inference-steps', '1'] if 'participant' in arguments else []
    assert cli.main(arguments) == exit_codes.OK, (page, arguments)
    return Path(arguments[1])


def has_result(out, arguments):
    if '--boilerplate-only' in arguments:
        return (out / 'logs/CITATION.md').is_file()
    if 'group' in arguments:
        return (out / 'index.html').is_file()
    desc = 'desc-synth*' if 'synth' in arguments else 'desc-filled'
    layout = 'derivatives/bids_lesionfill/' if 'raw' in arguments else ''
    return bool(list(out.glob(f'{layout}sub-*/anat/*_{desc}_*.nii.gz')))


@pytest.mark.slow
@pytest.mark.parametrize('page', [name for name, lines in RUN.items() if lines])
def test_commands_of_a_page_run(page, world, quick, monkeypatch, capsys):
    for line in [*filter(None, [BEFORE.get(page)]), *RUN[page]]:
        command = in_phantoms(line, world)
        words = shlex.split(command, comments=True)
        arguments = arguments_of(words, 'bids_lesionfill')
        if arguments is not None and arguments[0].startswith('-'):
            with pytest.raises(SystemExit, match='0'):
                cli.main(arguments)
        elif arguments is not None:
            if page == 'docs/masks.md':
                shutil.rmtree(world / 'out', ignore_errors=True)  # another way to the same masks
            out = run_app(arguments, page)
            assert has_result(out, arguments), line
        elif arguments_of(words, 'bids_lesionfill-file') is not None:
            (world / 'out.nii.gz').unlink(missing_ok=True)
            assert single_file.main([*words[1:], '--device', 'cpu']) == exit_codes.OK
        elif words[0] == 'python':
            monkeypatch.setattr(sys, 'argv', words[words[1] == '-m' :][1:])
            run_python(words)
        else:
            subprocess.run(['bash', '-euo', 'pipefail', '-c', command], check=True)


def run_python(words):
    """Run `python -m MODULE ...` or `python FILE ...` in this process."""
    codes = []
    try:
        if words[1] == '-m':
            runpy.run_module(words[2], run_name='__main__')
        else:
            runpy.run_path(words[1], run_name='__main__')
    except SystemExit as end:
        codes.append(end.code)
    assert not any(codes)
