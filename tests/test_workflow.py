"""Participants as nodes of nipype; several processes on one output folder."""

import html
import logging
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from bids_examples import t1w_path, write_bids, write_description

from bids_lesionfill import text_files
from bids_lesionfill.app import cli, exit_codes, workflow
from bids_lesionfill.app import options as app_options
from bids_lesionfill.layout import derivatives, indexing, status
from bids_lesionfill.layout.errors import UsageError

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def tidy_logging():
    """nipype puts handlers on its loggers; tests after these want none of it."""
    yield
    logging.getLogger('nipype').handlers.clear()


@pytest.fixture
def bids_dir(tmp_path):
    img = nib.Nifti1Image(np.zeros((4, 4, 4), np.uint8), np.eye(4))
    return write_bids(tmp_path / 'data', {t1w_path(subject): img for subject in ('01', '02', '03')})


def run(bids_dir, tmp_path, out, *more):
    return cli.main([str(bids_dir), str(tmp_path / out), 'participant', '-w', str(tmp_path / 'work'), *more])


def tables(folder):
    return [folder.joinpath(name).read_bytes() for name in ('participants.tsv', 'descriptions.tsv', '.bidsignore')]


def test_nodes_of_nipype_do_what_one_process_does(bids_dir, tmp_path, caplog):
    caplog.set_level(logging.INFO, 'bids_lesionfill')
    assert run(bids_dir, tmp_path, 'one') == exit_codes.NOTHING_TO_DO  # no participant has a mask, and each says so
    assert run(bids_dir, tmp_path, 'many', '--nprocs', '2') == exit_codes.NOTHING_TO_DO
    assert tables(tmp_path / 'one') == tables(tmp_path / 'many')
    text = (tmp_path / 'one/logs/CITATION.md').read_text().partition('\n')[0]
    assert 'were filled' in text
    page = (tmp_path / 'one/sub-01.html').read_text()
    assert 'class="paper"' not in page  # nothing was filled, and the report does not say so
    assert html.escape(text) not in page
    told = re.findall(r'(sub-0\d) is done \((\d) of 3', caplog.text)
    assert [number for _, number in told] == ['1', '2', '3']
    assert {name for name, _ in told} == {'sub-01', 'sub-02', 'sub-03'}
    rows = text_files.read_tsv(tmp_path / 'many/participants.tsv')
    assert [row['status'] for row in rows] == ['no lesion mask'] * 3
    for subject in ('01', '02', '03'):
        assert (tmp_path / f'many/sub-{subject}.html').is_file()
        assert len(list((tmp_path / f'many/sub-{subject}/log').glob('*/config.toml'))) == 1


def test_processes_of_nodes_log_our_lines_and_not_those_of_nipype(bids_dir, tmp_path):
    command = [sys.executable, str(ROOT / 'run.py'), str(bids_dir), str(tmp_path / 'out'), 'participant']
    command += ['--nprocs', '2', '--skip-bids-validation']
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {'TMPDIR': str(tmp_path)})
    assert done.returncode == exit_codes.NOTHING_TO_DO
    assert done.stdout == ''
    lines = done.stderr.splitlines()
    assert [line for line in lines if not re.match(r'\d\d:\d\d:\d\d (INFO|WARNING|ERROR) ', line)] == []
    assert not [line for line in lines if '[Node]' in line or 'schema path' in line]
    for subject in ('01', '02', '03'):
        assert [line for line in lines if line.endswith(f'WARNING sub-{subject}_T1w: no lesion mask')]
        assert [line for line in lines if f'INFO sub-{subject} is done' in line]


@pytest.mark.parametrize(('side', 'gb'), [(4, 3.3), (256, 3.92), (512, 8.27)])
def test_a_large_image_asks_nipype_for_more_memory(tmp_path, side, gb):
    header = nib.Nifti1Header()
    header.set_data_shape((side, side, side))
    path = tmp_path / 'large_T1w.nii'
    with path.open('wb') as file:
        header.write_to(file)
    images = [SimpleNamespace(image_file=path, session=None)]
    flow = workflow.build({'01': images}, None, app_options.Options(tmp_path, tmp_path), 'run', tmp_path)
    assert flow.get_node('sub_01').mem_gb == pytest.approx(gb, abs=0.01)


def test_a_plugin_file_says_how_nodes_run(bids_dir, tmp_path):
    plugin = tmp_path / 'plugin.yml'
    plugin.write_text('plugin: Linear\nplugin_args: {}\n')
    assert run(bids_dir, tmp_path, 'out', '--use-plugin', str(plugin)) == exit_codes.NOTHING_TO_DO
    assert len(text_files.read_tsv(tmp_path / 'out/participants.tsv')) == 3


def test_relative_paths_are_those_of_who_started_the_run(bids_dir, tmp_path, monkeypatch):
    (tmp_path / 'plugin.yml').write_text('plugin: Linear\nplugin_args: {}\n')
    monkeypatch.chdir(tmp_path)
    arguments = ['data', 'out', 'participant', '-w', 'work', '--use-plugin', 'plugin.yml']
    assert cli.main(arguments) == exit_codes.NOTHING_TO_DO
    assert [row['status'] for row in text_files.read_tsv(tmp_path / 'out/participants.tsv')] == ['no lesion mask'] * 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ['data', 'out', 'plugin.yml', 'work']


@pytest.mark.parametrize('text', ['a: b', 'plugin', '{', ''])
def test_a_plugin_file_that_is_none_is_2(tmp_path, text):
    path = tmp_path / 'plugin.yml'
    path.write_text(text)
    with pytest.raises(UsageError, match='is no plugin file of nipype'):
        workflow.read_plugin(app_options.Options(tmp_path, tmp_path, plugin_file=path))


def test_a_plugin_file_of_multiproc_does_not_refuse_large_images(tmp_path):
    path = tmp_path / 'plugin.yml'
    path.write_text('plugin: MultiProc\nplugin_args: {memory_gb: 6}\n')
    assert workflow.read_plugin(app_options.Options(tmp_path, tmp_path, plugin_file=path)) == (
        'MultiProc', {'raise_insufficient': False, 'memory_gb': 6})  # fmt: skip


def test_resources_go_to_the_plugin(tmp_path):
    name, arguments = workflow.read_plugin(app_options.Options(tmp_path, tmp_path, nprocs=3, mem_gb=7.5))
    assert (name, arguments['n_procs'], arguments['memory_gb']) == ('MultiProc', 3, 7.5)


def test_clean_workdir_leaves_what_is_not_ours(bids_dir, tmp_path):
    for name in ('bids_lesionfill_wf/old/x', 'mine'):
        (tmp_path / 'work' / name).mkdir(parents=True)
    run(bids_dir, tmp_path, 'out', '--nprocs', '2', '--clean-workdir')
    assert not (tmp_path / 'work/bids_lesionfill_wf/old').exists()
    assert (tmp_path / 'work/mine').is_dir()


# Nodes that go wrong; they do nothing else, so that they need not import what is heavy.


def dying_node(subject, images, donor, options, run_id):
    import os
    import signal

    from bids_lesionfill.layout import status

    if subject == '02':
        os.kill(os.getpid(), signal.SIGKILL)
    status.write_status(options.output_dir, subject, run_id, {'status': 'filled'})
    return 'filled'


@pytest.mark.slow
def test_a_process_that_is_killed_takes_no_other_participant_with_it(bids_dir, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(workflow, 'run_node', dying_node)
    assert run(bids_dir, tmp_path, 'out', '--nprocs', '2') == exit_codes.SOME_FAILED
    rows = text_files.read_tsv(tmp_path / 'out/participants.tsv')
    assert [row['status'] for row in rows] == ['filled', 'failed', 'filled']
    assert rows[1]['message'] == workflow.LOST
    assert 'once more, alone' in caplog.text
    assert 'Traceback' not in caplog.text


def node_without_a_work_dir(subject, images, donor, options, run_id):
    import shutil

    from bids_lesionfill.layout import status

    shutil.rmtree(options.work_dir, ignore_errors=True)
    status.write_status(options.output_dir, subject, run_id, {'status': 'filled'})
    return 'filled'


@pytest.mark.slow
def test_a_work_folder_that_is_deleted_meanwhile_costs_nothing(bids_dir, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(workflow, 'run_node', node_without_a_work_dir)
    assert run(bids_dir, tmp_path, 'out', '--nprocs', '2') == exit_codes.OK
    rows = text_files.read_tsv(tmp_path / 'out/participants.tsv')
    assert [row['status'] for row in rows] == ['filled'] * 3
    assert 'Traceback' not in caplog.text


def test_nobody_else_can_read_what_nodes_leave_in_the_work_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(workflow.tempfile, 'tempdir', str(tmp_path))
    first, second = (workflow.make_base_dir(None, 'run') for _ in range(2))
    assert first != second
    for folder in (first, workflow.make_base_dir(tmp_path / 'work', 'run')):
        assert folder.stat().st_mode & 0o077 == 0


def has_slurm():
    return shutil.which('sinfo') and subprocess.run(['sinfo', '-h'], capture_output=True).stdout.strip()


@pytest.mark.skipif(not has_slurm(), reason='needs a running SLURM')
def test_slurm_runs_participants(bids_dir, tmp_path, monkeypatch):
    monkeypatch.setenv('PYTHONPATH', str(Path(__file__).parent.parent))
    monkeypatch.delenv('LOGNAME', raising=False)  # as in a container
    plugin = tmp_path / 'plugin.yml'
    plugin.write_text('plugin: SLURM\nplugin_args:\n  sbatch_args: --cpus-per-task=1 --time=0:10:00\n')
    assert run(bids_dir, tmp_path, 'one') == exit_codes.NOTHING_TO_DO
    assert run(bids_dir, tmp_path, 'slurm', '--use-plugin', str(plugin)) == exit_codes.NOTHING_TO_DO
    assert tables(tmp_path / 'one') == tables(tmp_path / 'slurm')


def write_statuses(output_dir, numbers):
    for number in numbers:
        status.write_status(output_dir, f'{number:02d}', 'run', {'status': 'filled'})


def test_no_participant_is_lost_when_many_processes_write_one_table(tmp_path):
    with multiprocessing.get_context('fork').Pool(8) as pool:
        pool.starmap(write_statuses, [(tmp_path, range(first, first + 5)) for first in range(0, 40, 5)])
    rows = text_files.read_tsv(tmp_path / 'participants.tsv')
    assert [row['participant_id'] for row in rows] == [f'sub-{number:02d}' for number in range(40)]
    assert not list(Path(tmp_path).rglob('*.tmp'))


def test_two_processes_that_describe_one_dataset_leave_it_whole(tmp_path):
    write_description(tmp_path / 'data')
    arguments = (tmp_path / 'out', tmp_path / 'data', {}, '1', {'md': 'x' * 10_000})
    with multiprocessing.get_context('fork').Pool(4) as pool:
        pool.starmap(derivatives.write_dataset_files, [arguments] * 20)
    labels = {row['index']: row['abbreviation'] for row in text_files.read_tsv(tmp_path / 'out/dseg.tsv')}
    assert labels == {1: 'GM', 2: 'WM', 3: 'CSF', 7: 'L'}
    assert (tmp_path / 'out/logs/CITATION.md').read_text() == 'x' * 10_000
    assert not list((tmp_path / 'out').rglob('*.tmp'))


def test_an_index_that_is_there_is_used(bids_dir, tmp_path):
    database = tmp_path / 'database'
    assert indexing.open_layout(bids_dir, [], database).get_subjects() == ['01', '02', '03']
    (bids_dir / t1w_path('04')).parent.mkdir(parents=True)
    (bids_dir / t1w_path('04')).write_text('new')
    assert indexing.open_layout(bids_dir, [], database).get_subjects() == ['01', '02', '03']
    assert indexing.open_layout(bids_dir, []).get_subjects() == ['01', '02', '03', '04']


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_end_ends_the_workers_too_and_leaves_nothing(dataset, model_dir, tmp_path, number):
    root, out, temporary = dataset(), tmp_path / 'out', tmp_path / 'tmp'
    temporary.mkdir()
    command = [sys.executable, str(ROOT / 'run.py'), str(root), str(out), 'participant', '--model', str(model_dir)]
    command += ['--skip-bids-validation', '--nprocs', '2']
    with open(tmp_path / 'log', 'wb') as log:
        parent = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | {'TMPDIR': str(temporary)})
    while parent.poll() is None and not list(out.glob('sub-*/log')):
        time.sleep(0.2)
    children = Path(f'/proc/{parent.pid}/task/{parent.pid}/children').read_text().split()
    assert children
    parent.send_signal(number)
    assert parent.wait(60) == 128 + number
    said = (tmp_path / 'log').read_text()
    assert f'ended by {number.name}; the same command resumes' in said
    assert 'Traceback' not in said
    end = time.monotonic() + 20
    while (alive := [pid for pid in children if Path('/proc', pid).exists()]) and time.monotonic() < end:
        time.sleep(0.2)
    assert not alive
    assert not list(temporary.glob(f'{workflow.FOLDER}*'))
    assert not list(out.rglob('*.tmp'))
