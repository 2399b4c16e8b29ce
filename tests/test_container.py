"""What the container is made of: locks, licences, the image's recipe. `make container-test` builds and runs it."""

import importlib.util
import json
import re
import subprocess
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LOCKS = ['requirements.lock', 'torch-cpu.lock', 'torch-cuda.lock']


def load(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / 'container' / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def licenses():
    return load('licenses')


@pytest.fixture
def host_pip():
    return load('host_pip')


def canonical(name):
    return re.sub(r'[-_.]+', '-', name).lower()


# Locks


@pytest.mark.parametrize('lock', LOCKS)
def test_locks_hold_versions_and_hashes_and_no_addresses(lock):
    lines = (ROOT / 'container' / lock).read_text().splitlines()
    assert len(lines) > 2
    assert all(re.fullmatch(r'[\w.-]+={2,3}[\w.+]+ --hash=sha256:[0-9a-f]{64}', line) for line in lines[1:])


def test_locks_pin_the_versions_that_were_tested(licenses):
    """A difference says: run `make lock`, or pin a new dependency in constraints.txt first."""
    constraints = licenses.locked((ROOT / 'constraints.txt').read_text())
    tested = {canonical(name): version for name, version in constraints.items()}
    for lock in ('requirements.lock', 'torch-cpu.lock'):
        locked = licenses.locked((ROOT / 'container' / lock).read_text())
        locked.pop('setuptools', None)
        assert locked == {name: tested.get(name) for name in locked}


def test_locks_hold_every_dependency(licenses):
    locked = {name for lock in LOCKS for name in licenses.locked((ROOT / 'container' / lock).read_text())}
    text = (ROOT / 'pyproject.toml').read_text()
    groups = [re.search(r'^dependencies = \[(.*?)\]', text, re.MULTILINE | re.DOTALL)[1]]
    groups += re.findall(r'^(?:thickness|cluster|train|evaluate) = \[(.*?)\]', text, re.MULTILINE)
    assert len(groups) == 5
    # Without those of old Pythons.
    names = {canonical(name) for group in groups for name in re.findall(r'"([\w.-]+)[^";]*"', group)}
    assert names
    assert names <= locked


def test_cpu_lock_takes_no_cuda(licenses):
    cpu, cuda = ((ROOT / 'container' / f'torch-{build}.lock').read_text() for build in ('cpu', 'cuda'))
    assert 'torch===' in cpu
    assert '+cpu' in cpu
    assert 'nvidia' not in cpu
    assert '+cpu' not in cuda
    assert 'nvidia' in cuda
    assert licenses.locked(cpu)['torch'] == licenses.locked(cuda)['torch']


# Licences


def test_table_of_licences_is_what_the_packages_say(licenses):
    packages = {}
    for lock in licenses.LOCKS:
        packages |= licenses.locked((ROOT / 'container' / lock).read_text())
    installed = {name: metadata.version(name).partition('+')[0] for name in packages}
    installed['setuptools'] = packages['setuptools']  # what a virtual environment came with
    if installed != packages:
        pytest.skip('other versions are installed than are locked')
    assert (ROOT / 'THIRD_PARTY.md').read_text() == licenses.third_party(packages)


@pytest.mark.parametrize('about', [{'License': 'GPL-3.0'}, {'License': 'CC BY-NC 4.0'}, {'License': ''}])
def test_licence_that_does_not_fit_is_an_error(licenses, monkeypatch, about):
    class About(dict):
        def get_all(self, name):
            return None

    monkeypatch.setattr(licenses.metadata, 'metadata', lambda name: About(about))
    with pytest.raises(ValueError, match='strange'):
        licenses.third_party({'strange': '1.0'})


# pip of the host


def test_places_on_this_disk_are_mounted_and_others_are_not(host_pip):
    lines = [
        "global.extra-index-url='file:///srv/index/simple https://index.example/simple'",
        "global.find-links='/from/file'",
        ":env:.find-links='/srv/wheels'",
        "global.timeout='9'",
    ]
    found = host_pip.settings('\n'.join(lines))
    assert found['find-links'] == '/srv/wheels'
    assert host_pip.mounts(found) == ['/srv/index:/srv/index:ro', '/srv/wheels:/srv/wheels:ro']


# Recipes


def test_dockerfile_is_pinned_not_root_and_names_no_index():
    text = (ROOT / 'Dockerfile').read_text()
    assert re.search(r'^ARG BASE=\S+@sha256:[0-9a-f]{64}$', text, re.MULTILINE)
    assert re.findall(r'^FROM (\S+)', text, re.MULTILINE) == ['${BASE}'] * 2
    assert re.search(r'^USER [1-9]\d*:[1-9]\d*$', text, re.MULTILINE)
    assert json.loads(re.search(r'^ENTRYPOINT (.*)$', text, re.MULTILINE)[1]) == ['/opt/bids_lesionfill/run.py']
    assert 'http' not in text.replace('HTTP', '')


def test_image_gets_what_the_dockerfile_copies_and_nothing_else():
    copied = set()
    for line in re.findall(r'^COPY (?!--from)(.*)$', (ROOT / 'Dockerfile').read_text(), re.MULTILINE):
        copied |= {re.sub(r'\S+\.lock', 'container/*.lock', source) for source in line.split()[:-1]}
    ignored = (ROOT / '.dockerignore').read_text().splitlines()
    assert ignored[1] == '*'
    assert {line[1:] for line in ignored if line.startswith('!')} == copied


def test_singularity_runs_what_docker_runs():
    text = (ROOT / 'Singularity').read_text()
    assert 'exec /opt/bids_lesionfill/run.py "$@"' in text.partition('%runscript')[2]
    assert re.search(r'^Bootstrap: docker-archive$', text, re.MULTILINE)


def test_every_run_of_the_container_test_has_its_list_of_files():
    runs = re.findall(r'^run (\w+) \d+ ', (ROOT / 'container' / 'test').read_text(), re.MULTILINE)
    assert {'demo', 'sessions', 'synth', 'thickness', 'group'} <= set(runs)
    assert {path.stem for path in (ROOT / 'container' / 'expected').glob('*.txt')} == set(runs)


def test_two_sessions_are_the_two_patients_of_the_demo(tmp_path):
    subprocess.run([ROOT / 'container' / 'two_sessions', tmp_path], check=True)
    anat = 'sub-01/ses-2/anat/sub-01_ses-2'
    for source, copy in (
        ('sub-26/anat/sub-26_T1w.nii.gz', f'{anat}_T1w.nii.gz'),
        (
            'derivatives/lesions/sub-26/anat/sub-26_label-lesion_mask.nii.gz',
            f'derivatives/lesions/{anat}_label-lesion_mask.nii.gz',
        ),
    ):
        assert (tmp_path / copy).read_bytes() == (ROOT / 'demo' / source).read_bytes()
    assert len(list(tmp_path.rglob('*.nii.gz'))) == 4


def test_slurm_task_runs_its_own_participant(tmp_path):
    (tmp_path / 'bids').mkdir()
    (tmp_path / 'bids' / 'participants.tsv').write_text('participant_id\tage\nsub-07\t40\nsub-26\t50\n')
    (tmp_path / 'bin').mkdir()
    apptainer = tmp_path / 'bin' / 'apptainer'
    apptainer.write_text('#!/bin/sh\necho "$@"\n')
    apptainer.chmod(0o755)
    said = subprocess.run(
        [ROOT / 'docs' / 'slurm_array.sh', '--dilate', '0'],
        env={
            'PATH': f'{tmp_path / "bin"}:/usr/bin:/bin',
            'IMAGE': 'app.sif',
            'BIDS_DIR': str(tmp_path / 'bids'),
            'OUTPUT_DIR': str(tmp_path / 'out'),
            'SLURM_ARRAY_TASK_ID': '2',
            'SLURM_CPUS_PER_TASK': '2',
            'TMPDIR': '/scratch',
        },
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert said == (
        f'run --cleanenv --containall --bind {tmp_path}/bids:/data:ro,{tmp_path}/out:/out,/scratch:/tmp app.sif '
        '/data /out participant --participant-label sub-26 --omp-nthreads 2 --dilate 0\n'
    )


# Descriptor for Boutiques, bundle for Nipoppy, configuration for BABS


def test_the_descriptor_is_that_of_the_options():
    descriptor = load('boutiques').descriptor()
    assert json.loads((ROOT / 'container' / 'boutiques.json').read_text()) == descriptor, 'run container/boutiques.py'
    keys = re.findall(r'\[[A-Z_0-9]+\]', descriptor['command-line'])
    assert keys[:3] == ['[BIDS_DIR]', '[OUTPUT_DIR]', '[ANALYSIS_LEVEL]']
    assert sorted(keys) == sorted(entry['value-key'] for entry in descriptor['inputs'])
    assert f'"{descriptor["command-line"].split()[0]}"' in (ROOT / 'Dockerfile').read_text()


def test_flags_of_the_descriptor_are_those_of_the_parser():
    from bids_lesionfill.app import parser

    flags = [entry.get('command-line-flag') for entry in load('boutiques').descriptor()['inputs']]
    assert {flag for flag in flags if flag} <= parser.all_flags()
    assert flags.count(None) == 3


def test_the_bundle_of_nipoppy_is_whole_and_fits_the_descriptor():
    folder, bundle = ROOT / 'container/nipoppy', load('boutiques').nipoppy_bundle()
    written = {path.name: json.loads(path.read_text()) for path in folder.iterdir()}
    assert written == bundle, 'run container/boutiques.py'
    inputs = {entry['id']: entry for entry in bundle['descriptor.json']['inputs']}
    invocation = bundle['invocation.json']
    assert set(invocation) <= set(inputs)
    assert {key for key, entry in inputs.items() if not entry['optional']} <= set(invocation)
    assert all(isinstance(value, list) == bool(inputs[key].get('list')) for key, value in invocation.items())
    assert '[[' not in json.dumps(bundle['descriptor.json'])  # Nipoppy refuses its variables there
    (step,) = bundle['config.json']['STEPS']
    assert {name for key, name in step.items() if key.endswith('_FILE')} == set(bundle) - {'config.json'}


def test_babs_calls_the_app_with_options_that_it_has():
    import yaml

    from bids_lesionfill.app import parser

    content = yaml.safe_load((ROOT / 'docs/babs.yaml').read_text())
    arguments = content['bids_app_args']
    flags = {arguments.pop('$SUBJECT_SELECTION_FLAG'), *arguments}
    assert flags - {'-v'} <= parser.all_flags()
    lesions = content['input_datasets']['lesions']['path_in_babs']
    assert arguments['--derivatives'] == f'"lesions=${{PWD}}/{lesions}"'
    version = (ROOT / 'version').read_text().split('.dev')[0].strip()
    assert content['zip_foldernames'] == {'bids_lesionfill': version.replace('.', '-')}


def test_hooks_before_a_commit_run_the_pinned_versions(licenses):
    pinned = licenses.locked((ROOT / 'constraints.txt').read_text())
    text = (ROOT / '.pre-commit-config.yaml').read_text()
    hooks = dict(re.findall(r'additional_dependencies: \[([\w-]+)==([\w.]+)\]', text))
    assert hooks
    assert hooks == {name: pinned[name] for name in hooks}


def test_lint_runs_what_the_extra_test_installs():
    text = (ROOT / 'Makefile').read_text()
    lint, test = (re.search(rf'^{name}: (.*?)\n\n', text, re.MULTILINE | re.DOTALL)[1] for name in ('lint', 'test'))
    extra = re.search(r'^test = \[(.*)\]', (ROOT / 'pyproject.toml').read_text(), re.MULTILINE)[1]
    assert all(tool in lint and f'"{tool}' in extra for tool in ('ruff', 'mypy', 'codespell'))
    assert test.startswith('lint\n')
