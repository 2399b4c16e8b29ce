"""What goes wrong around the app: killed at any moment, out of memory, two runs at once, links that mislead."""

import fcntl
import os
import random
import resource
import shutil
import signal
import time
from functools import partial
from pathlib import Path

import app_processes
import pytest
from bids_examples import mask_path, t1w_path, write_description

from bids_lesionfill import text_files
from bids_lesionfill.app import cli, exit_codes
from bids_lesionfill.layout import errors, files, naming, raw

KILLS = int(os.environ.get('KILLS', 4))  # more of them: benchmarks/README.md


def contents(folder):
    """Bytes of all files by relative path, but for logs, whose names and times are those of a run."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob('*'))
        if path.is_file() and 'log' not in path.relative_to(folder).parts[:-1]
    }


def leftovers(folder):
    return [path for path in folder.rglob('*') if path.name.endswith('.tmp')]


def die_at_write(number):
    """The process kills itself when it has written a half of its n-th file."""
    replace, count = os.replace, 0

    def dying_replace(source, target):
        nonlocal count
        count += 1
        if count == number:
            os.truncate(source, os.path.getsize(source) // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)

    os.replace = dying_replace


def count_writes(file):
    """The process notes how many files it has written."""
    replace, count = os.replace, 0

    def counting_replace(source, target):
        nonlocal count
        count += 1
        replace(source, target)
        with open(file, 'w') as text:
            text.write(str(count))

    os.replace = counting_replace


@pytest.fixture(scope='module')
def kill_moments():
    """As fractions of the whole run, spread over it: even ones of its time, odd ones of its writing."""
    rng = random.Random(20240607)
    return [((number + rng.random()) / KILLS, 'writing' if number % 2 else 'time') for number in range(KILLS)]


@pytest.mark.slow
def test_promise_4_a_killed_run_leaves_no_half_file_and_the_next_one_gives_the_same_bytes(
    dataset, model_dir, tmp_path, kill_moments
):
    out, log, counted = tmp_path / 'out', tmp_path / 'log.txt', tmp_path / 'count'
    arguments = [dataset(('01', '02', '03')), out, 'participant', '--model', model_dir]
    assert app_processes.run(arguments, log) == exit_codes.OK  # the first one also starts the server
    shutil.rmtree(out)
    started = time.monotonic()
    assert app_processes.run(arguments, log, partial(count_writes, counted)) == exit_codes.OK
    seconds, n_writes = time.monotonic() - started, int(counted.read_text())
    undisturbed = contents(out)
    n_killed = 0
    for fraction, of_what in kill_moments:
        shutil.rmtree(out)
        if of_what == 'writing':
            assert app_processes.run(arguments, log, partial(die_at_write, 1 + int(fraction * n_writes))) < 0
            assert leftovers(out)
        else:
            process = app_processes.start(arguments, log)
            process.join(fraction * seconds)
            process.kill()
            process.join()
            n_killed += process.exitcode < 0
        print(f'killed at {fraction:.0%} of the {of_what}: {len(contents(out))} of {len(undisturbed)} files')
        for name, content in contents(out).items():
            if name != 'participants.tsv' and not name.endswith('.tmp'):  # this grows, whole line by line
                assert content == undisturbed[name], name
        assert app_processes.run(arguments, log) == exit_codes.OK
        assert contents(out) == undisturbed
        assert not leftovers(out)
    assert n_killed >= KILLS // 4


@pytest.mark.slow
def test_two_runs_at_once_on_one_output_folder_end_well_and_give_the_bytes_of_one(dataset, model_dir, tmp_path):
    out = tmp_path / 'out'
    arguments = [dataset(), out, 'participant', '--model', model_dir]
    assert app_processes.run(arguments, tmp_path / 'log.txt') == exit_codes.OK
    alone = contents(out)
    shutil.rmtree(out)
    processes = [app_processes.start(arguments, tmp_path / f'{number}.txt') for number in range(3)]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [exit_codes.OK] * 3
    assert contents(out) == alone
    said = ''.join((tmp_path / f'{number}.txt').read_text() for number in range(3))
    assert said.count('lesion(s) filled in') == 2  # whoever comes second waits, and finds it done
    assert said.count('already done') == 4


# Out of memory


def limit_memory(megabytes):
    """The process can have so much more than it has."""
    used = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + megabytes * 2**20,) * 2)


@pytest.mark.slow
def test_out_of_memory_fails_one_participant_names_the_remedy_and_spares_the_others(
    dataset, model_dir, make_phantom, tmp_path
):
    large = make_phantom(shape=(260, 260, 220))
    images = {t1w_path('02'): large.t1w_img, mask_path('02'): large.lesion_mask_img}
    root, out, log = dataset(('01', '02', '03'), **images), tmp_path / 'out', tmp_path / 'log.txt'
    arguments = [root, out, 'participant', '--model', model_dir]
    assert app_processes.run(arguments, log, partial(limit_memory, 400)) == exit_codes.SOME_FAILED
    rows = {row['participant_id']: row for row in text_files.read_tsv(out / 'participants.tsv')}
    assert {name: row['status'] for name, row in rows.items()} == {
        'sub-01': 'filled', 'sub-02': 'failed', 'sub-03': 'filled'}  # fmt: skip
    assert rows['sub-02']['message'].startswith('out of memory: what helps is a smaller --batch-size')
    assert errors.LESS_MEMORY in log.read_text()
    assert 'Traceback' not in log.read_text()
    assert not leftovers(out)


def errors_of_memory():
    import torch

    yield MemoryError()
    yield MemoryError('Unable to allocate 3.2 GiB for an array with shape (900, 900, 900) and data type float32')
    yield RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: ...")
    yield torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 20.00 MiB')
    yield RuntimeError('Exception thrown in SimpleITK: Failed to allocate memory for image.')
    yield OSError(12, 'Cannot allocate memory')
    yield ImportError('libtorch_cpu.so: failed to map segment from shared object')


def test_every_way_to_say_that_memory_is_short_names_the_remedy():
    for error in errors_of_memory():
        sentence = errors.in_words(error)
        assert sentence.startswith('out of memory: what helps is a smaller --batch-size'), error
        assert '--mem ' in sentence
        assert errors.in_words(RuntimeError(sentence)) == sentence  # told once
    assert errors.in_words(ValueError('no\n such label')) == 'no such label'
    assert errors.in_words(ValueError()) == 'ValueError'


def test_out_of_memory_before_the_first_participant_is_one_sentence(dataset, model_dir, tmp_path, monkeypatch, caplog):
    from bids_lesionfill.app import participant

    def fail(*_):
        raise MemoryError

    monkeypatch.setattr(participant, 'load_models', fail)
    code = cli.main([str(dataset()), str(tmp_path / 'out'), 'participant', '--model', str(model_dir)])
    assert code == exit_codes.INTERNAL
    assert errors.LESS_MEMORY in caplog.text
    assert 'Traceback' not in caplog.text


# Locks and temporary files


@pytest.fixture
def folder(tmp_path):
    """An output folder with a temporary file that was left, and files that only look like one."""
    (tmp_path / 'out/sub-01').mkdir(parents=True)
    for name in ('sub-01/.x.json.12-0123abcd.tmp', '.mine.tmp', 'x.json.12-0123abcd.tmp'):
        (tmp_path / 'out' / name).write_text('{')
    (tmp_path / 'out/.link.12-0123abcd.tmp').symlink_to('nowhere')
    return tmp_path / 'out'


def test_what_a_killed_run_left_is_removed_at_once_and_nothing_else(folder):
    files.remove_leftovers(folder)
    assert sorted(path.name for path in folder.rglob('*')) == ['.mine.tmp', 'sub-01', 'x.json.12-0123abcd.tmp']


def test_what_a_run_beside_this_one_may_still_write_stays_until_it_is_old(folder):
    with files.lock(folder, shared=True):
        files.remove_leftovers(folder)
        assert (folder / 'sub-01/.x.json.12-0123abcd.tmp').is_file()
        files.remove_leftovers(folder, older_than_seconds=-1)
        assert not (folder / 'sub-01/.x.json.12-0123abcd.tmp').exists()


def test_names_of_temporary_files_are_known_and_never_the_same(tmp_path):
    names = {files.temporary_name(tmp_path / 'sub-01_T1w.nii.gz').name for _ in range(50)}
    assert len(names) == 50
    assert all(files.TEMPORARY.fullmatch(name) for name in names)


def is_free(folder, kind):
    """Whether another process could lock a folder; to the system, a file that is opened anew is one of another."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


def test_a_folder_is_held_by_one_or_shared_by_many(tmp_path):
    with files.lock(tmp_path / 'sub-01'):
        assert not is_free(tmp_path / 'sub-01', fcntl.LOCK_SH)
    assert is_free(tmp_path / 'sub-01', fcntl.LOCK_EX)
    with files.lock(tmp_path, shared=True), files.lock(tmp_path, shared=True):
        assert not is_free(tmp_path, fcntl.LOCK_EX)


def test_a_file_system_without_locks_is_worked_on_all_the_same(folder, monkeypatch):
    def refuse(*_):
        raise OSError(9, 'Bad file descriptor')  # as NFS says of folders

    monkeypatch.setattr(fcntl, 'flock', refuse)
    with files.lock(folder):
        files.write_bytes(folder / 'x.json', b'{}')
    files.remove_leftovers(folder)
    assert (folder / 'sub-01/.x.json.12-0123abcd.tmp').is_file()  # it may be of a run that goes on


# Usage errors come before anything is written


@pytest.mark.parametrize('more', [
    ['--device', 'cuda'],
    ['--device', 'cuda', '--nprocs', '2'],
    ['--use-plugin', 'NO_PLUGIN'],
    ['--participant-label', '09', '--nprocs', '2'],
])  # fmt: skip
def test_usage_errors_come_before_anything_is_written(dataset, model_dir, tmp_path, monkeypatch, more):
    import torch

    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    (tmp_path / 'no_plugin.yml').write_text('a: b')
    more = [str(tmp_path / 'no_plugin.yml') if word == 'NO_PLUGIN' else word for word in more]
    arguments = [str(dataset()), str(tmp_path / 'out'), 'participant', '--model', str(model_dir)]
    assert cli.main([*arguments, *more]) == exit_codes.USAGE
    assert not (tmp_path / 'out').exists()


def test_weights_that_are_missing_are_a_usage_error(dataset, model_dir, tmp_path):
    shutil.copytree(model_dir, tmp_path / 'model')
    (tmp_path / 'model/unet/diffusion_pytorch_model.safetensors').unlink()
    arguments = [str(dataset()), str(tmp_path / 'out'), 'participant', '--model', str(tmp_path / 'model')]
    assert cli.main(arguments) == exit_codes.USAGE
    assert not (tmp_path / 'out').exists()


# Links


def test_a_folder_of_the_output_that_leads_into_the_dataset_is_refused(dataset, model_dir, tmp_path):
    root, out = dataset(), tmp_path / 'out'
    out.mkdir()
    (out / 'sub-01').symlink_to(root / 'sub-01')
    before = contents(root)
    arguments = [str(root), str(out), 'participant', '--model', str(model_dir)]
    assert cli.main(arguments) == exit_codes.USAGE
    assert cli.main([*arguments, '--output-layout', 'raw']) == exit_codes.USAGE
    assert contents(root) == before
    (out / 'sub-01').unlink()
    (out / 'sub-01').symlink_to(tmp_path / 'elsewhere')  # a disk of one's own is one's own affair
    files.check_links(out, root)


def test_a_file_where_a_participants_folder_is_to_be_is_refused(dataset, model_dir, tmp_path, caplog):
    write_description(tmp_path / 'out', DatasetType='derivative', GeneratedBy=[{'Name': naming.APP_NAME}])
    (tmp_path / 'out' / 'sub-01').write_text('of the user')
    assert (
        cli.main([str(dataset()), str(tmp_path / 'out'), 'participant', '--model', str(model_dir)]) == exit_codes.USAGE
    )
    assert 'sub-01 is a file, expected a folder: remove it' in caplog.text
    assert (tmp_path / 'out' / 'sub-01').read_text() == 'of the user'


def test_a_file_that_is_a_link_is_replaced_and_not_written_through(tmp_path):
    (tmp_path / 'raw.json').write_text('raw')
    for write in (lambda path: files.write_bytes(path, b'new'), lambda path: raw.place(tmp_path / 'new', path)):
        (tmp_path / 'link.json').unlink(missing_ok=True)
        (tmp_path / 'link.json').symlink_to('raw.json')
        (tmp_path / 'new').write_text('new')
        write(tmp_path / 'link.json')
        assert (tmp_path / 'link.json').read_text() == 'new'
        assert (tmp_path / 'raw.json').read_text() == 'raw'
