import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from bids_examples import write_description

from bids_lesionfill.app import cli, exit_codes, parser, participant, validation
from bids_lesionfill.app import options as app_options
from bids_lesionfill.diffusion import models
from bids_lesionfill.layout.errors import UsageError

ROOT = Path(__file__).parent.parent


@pytest.fixture
def bids_dir(tmp_path):
    write_description(tmp_path / 'data')
    for folder in ('sub-01/ses-1', 'sub-02', 'sub-07'):
        (tmp_path / 'data' / folder).mkdir(parents=True)
    return tmp_path / 'data'


@pytest.mark.parametrize('redirected', ['| true', '>&-'])
def test_output_that_nobody_reads_ends_without_a_traceback(redirected):
    command = f'{shlex.quote(sys.executable)} -m bids_lesionfill --list-models {redirected}'
    done = subprocess.run(['bash', '-o', 'pipefail', '-c', command], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, '')


def test_version_is_printed(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(['--version'])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f'bids_lesionfill {(ROOT / "version").read_text().strip()}\n'


@pytest.mark.parametrize('command', [['run.py'], ['-m', 'bids_lesionfill']], ids=['run.py', 'module'])
def test_entry_points_answer_without_heavy_imports(command):
    code = subprocess.run(
        [sys.executable, '-X', 'importtime', *command, '--help'], cwd=ROOT, capture_output=True, text=True
    )
    assert code.returncode == 0
    assert 'exit codes' in code.stdout
    imported = {line.rpartition('|')[2].strip() for line in code.stderr.splitlines()}
    assert not imported & {'torch', 'diffusers', 'numpy', 'bids', 'scipy', 'matplotlib', 'nibabel'}


@pytest.mark.parametrize(('typed', 'words'), [
    (['--fill-everything'], 'unknown argument --fill-everything (see'),
    (['--participant', '01'], 'unknown argument --participant: did you mean --participant-label?'),
    (['--participants-label=01'], 'unknown argument --participants-label: did you mean --participant-label?'),
    (['--sesion_id', 'a'], 'unknown argument --sesion_id: did you mean --session_id?'),
    (['--dilat', '1', '--xyzzy'], 'unknown argument --dilat: did you mean --dilate?; --xyzzy (see'),
    (['-x'], 'unknown argument -x (see'),
], ids=lambda value: value[0] if isinstance(value, list) else '')  # fmt: skip
@pytest.mark.parametrize('program', ['/usr/bin/bids_lesionfill', 'run.py'])
def test_unknown_argument_is_64_and_the_sentence_names_what_was_meant(
    bids_dir, tmp_path, capsys, monkeypatch, program, typed, words
):
    monkeypatch.setattr(sys, 'argv', [program])
    assert cli.main([str(bids_dir), str(tmp_path / 'out'), 'participant', *typed]) == exit_codes.UNKNOWN_ARGUMENT == 64
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f'{Path(program).name}: {words}')
    assert not (tmp_path / 'out').exists()


def test_unknown_argument_comes_before_other_errors(capsys):
    assert cli.main(['--participant', '01']) == exit_codes.UNKNOWN_ARGUMENT
    assert '--participant-label' in capsys.readouterr().err


def test_what_is_wrong_is_one_line_under_the_name_that_was_typed(capsys, monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['/opt/env/bin/bids_lesionfill'])
    with pytest.raises(SystemExit) as stop:
        cli.main(['data', 'out', 'participant', '--dilate', '-1'])
    assert stop.value.code == exit_codes.USAGE
    (line,) = capsys.readouterr().err.splitlines()
    assert line == 'bids_lesionfill: argument --dilate: -1 is below zero (see bids_lesionfill --help)'


@pytest.mark.parametrize(('path', 'name'), [
    ('/x/bids_lesionfill/__main__.py', 'python -m bids_lesionfill'), ('run.py', 'run.py'), ('', 'run.py'),
])  # fmt: skip
def test_name_of_the_program(path, name):
    assert parser.program_name(path) == name


@pytest.mark.parametrize(('bids', 'out', 'words'), [
    ('nowhere', 'out', 'not a folder'),
    ('.', 'out', 'dataset_description.json'),
    ('data', 'data', 'OUTPUT_DIR is BIDS_DIR'),
    ('data', 'file', 'not a folder'),
])  # fmt: skip
def test_wrong_paths_are_2_and_say_what_was_expected(bids_dir, tmp_path, caplog, bids, out, words):
    (tmp_path / 'file').write_text('')
    assert cli.main([str(tmp_path / bids), str(tmp_path / out), 'participant']) == exit_codes.USAGE
    assert words in caplog.text


def test_output_that_cannot_be_written_is_2_and_names_the_user(bids_dir, tmp_path, caplog, monkeypatch):
    asked = []
    monkeypatch.setattr(os, 'access', lambda path, mode: asked.append((path, mode)))
    assert cli.main([str(bids_dir), str(tmp_path / 'new' / 'out'), 'participant']) == exit_codes.USAGE
    assert asked == [(tmp_path, os.W_OK)]
    assert f'cannot be written to by user {os.getuid()}' in caplog.text


@pytest.mark.parametrize(('arguments', 'words'), [
    (['--model', 'no-such-model'], 'fill-T1w'),
    (['--derivatives', 'nowhere'], 'nowhere'),
    (['--bids-filter-file', 'nowhere.json'], 'nowhere.json'),
])  # fmt: skip
def test_wrong_options_are_2(bids_dir, tmp_path, caplog, arguments, words):
    assert cli.main([str(bids_dir), str(tmp_path / 'out'), 'participant', *arguments]) == exit_codes.USAGE
    assert words in caplog.text
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('arguments', [
    ['--dilate', '-1'], ['--rim-voxels', '-1'], ['--n-samples', '0'], ['--num-inference-steps', 'x'],
    ['--mask-threshold', '50'], ['--mask-threshold', '0'], ['--mask-threshold', 'nan'],
])  # fmt: skip
def test_numbers_out_of_range_are_2(bids_dir, tmp_path, arguments):
    with pytest.raises(SystemExit) as stop:
        cli.main([str(bids_dir), str(tmp_path / 'out'), 'participant', *arguments])
    assert stop.value.code == 2


def test_unknown_participant_is_2(bids_dir, tmp_path, caplog):
    assert (
        cli.main([str(bids_dir), str(tmp_path / 'out'), 'participant', '--participant-label', '99']) == exit_codes.USAGE
    )
    assert '99' in caplog.text


@pytest.mark.parametrize(('given', 'words'), [
    (['--participant-label', '1'], 'no sub-1 in'),
    (['--participant-label', 'sub-01', '8'], 'no sub-8 in'),
    (['--mode', 'synth', '--mask-from', '99'], '--mask-from: no sub-99'),
    (['--session-label', 'x'], '--session-label: no ses-x in'),
    (['--session-label', 'ses-b', '--participant-label', '01'], '--session-label: no ses-b in sub-01, which has ses-1'),
])  # fmt: skip
def test_labels_that_do_not_exist_are_2_before_any_index(bids_dir, tmp_path, caplog, monkeypatch, given, words):
    monkeypatch.setattr(cli, 'work', lambda options: pytest.fail('the index is at work'))
    (bids_dir / 'sub-02/ses-b').mkdir(parents=True)
    assert cli.main([str(bids_dir), str(tmp_path / 'out'), 'participant', *given]) == exit_codes.USAGE
    assert words in caplog.text


def test_labels_that_exist_are_taken(bids_dir, tmp_path):
    options = parse(bids_dir, tmp_path, '--participant-label', '01', 'sub-02', '--session-label', '1')
    assert (options.participant_labels, options.session_labels) == (('01', '02'), ('1',))


def test_cuda_is_looked_for_before_the_validator_and_the_index(bids_dir, tmp_path, caplog, monkeypatch):
    for name in ('work', 'validation.is_valid'):
        monkeypatch.setattr(f'bids_lesionfill.app.cli.{name}', lambda options: pytest.fail('too late'))

    def lacking(device):
        raise ValueError('no usable GPU')

    monkeypatch.setattr(models, 'choose_device', lacking)
    for torch_version, words in (('2.9+cu128', 'no usable GPU'), ('2.9+cpu', 'torch is installed without CUDA')):
        monkeypatch.setattr(validation.importlib.metadata, 'version', lambda name, version=torch_version: version)
        assert cli.main([str(bids_dir), str(tmp_path / 'out'), 'participant', '--device', 'cuda']) == exit_codes.USAGE
        assert words in caplog.text


@pytest.mark.parametrize('given', [['--participant-label', '99'], ['--dilat', '1'], ['--model', 'nowhere']])
def test_usage_errors_import_nothing_heavy(bids_dir, tmp_path, given):
    command = [sys.executable, '-X', 'importtime', 'run.py', str(bids_dir), str(tmp_path / 'out'), 'participant']
    done = subprocess.run([*command, *given], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode in (exit_codes.USAGE, exit_codes.UNKNOWN_ARGUMENT)
    imported = {line.rpartition('|')[2].strip() for line in done.stderr.splitlines()}
    assert not imported & {'torch', 'diffusers', 'numpy', 'bids', 'scipy', 'matplotlib', 'nibabel'}


@pytest.mark.parametrize(('level', 'given', 'words'), [
    ('participant', ['--juxta-min-voxels', '3'], '--juxta-min-voxels: only with the level group'),
    ('group', ['--lesion-labels', '1', '--thickness'], '--lesion-labels, --thickness: only with the level participant'),
])  # fmt: skip
def test_options_of_the_other_level_are_2(bids_dir, tmp_path, caplog, level, given, words):
    assert cli.main([str(bids_dir), str(tmp_path / 'out'), level, *given]) == exit_codes.USAGE
    assert words in caplog.text


def test_a_configuration_file_serves_both_levels(bids_dir, tmp_path, caplog):
    (tmp_path / 'c.toml').write_text('thickness = ["pbt"]\njuxta_min_voxels = 3\n')
    more = ['--config-file', str(tmp_path / 'c.toml')]
    assert cli.main([str(bids_dir), str(tmp_path / 'out'), 'group', *more]) == exit_codes.NOTHING_TO_DO


def test_group_level_says_that_there_is_nothing_to_do(bids_dir, tmp_path, caplog):
    assert cli.main([str(bids_dir), str(tmp_path / 'out'), 'group']) == exit_codes.NOTHING_TO_DO
    assert 'no table of thickness' in caplog.text


def test_an_engine_that_is_missing_stops_the_run_before_any_work_and_says_how_to_get_it(
    bids_dir, tmp_path, caplog, monkeypatch
):
    monkeypatch.setenv('PATH', str(tmp_path))
    arguments = [str(bids_dir), str(tmp_path / 'out'), 'participant', '--thickness', 'pbt', 'dldirect', 'freesurfer']
    assert cli.main(arguments) == exit_codes.ENGINE_UNAVAILABLE == 69
    (message,) = [record.getMessage() for record in caplog.records if record.levelname == 'ERROR']
    assert 'dldirect: no dl+direct on the PATH' in message
    assert 'freesurfer' in message
    assert '--derivatives original=PATH filled=PATH' in message
    assert 'pbt:' not in message
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(('given', 'engines'), [
    ([], ()), (['--thickness'], ('pbt',)), (['--thickness', 'ants', 'pbt'], ('ants', 'pbt')),
])  # fmt: skip
def test_thickness_alone_is_measured_by_pbt(bids_dir, tmp_path, given, engines):
    arguments = [str(bids_dir), str(tmp_path / 'o'), 'participant', *given]
    assert validation.options_of(parser.build_parser().parse_args(arguments), arguments).thickness == engines


def test_list_engines_says_of_each_whether_it_is_usable(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv('PATH', str(tmp_path))
    with pytest.raises(SystemExit) as stop:
        cli.main(['--list-engines'])
    assert stop.value.code == 0
    rows = {line.split('\t')[0]: line.split('\t')[1:] for line in capsys.readouterr().out.splitlines()}
    assert list(rows) == ['pbt', 'ants', 'antspynet', 'dldirect', 'freesurfer', 'fastsurfer']
    assert rows['pbt'][0] == 'usable'
    assert 'antspyx' in rows['pbt'][1]
    assert rows['freesurfer'][0] == 'not usable'
    assert 'licence' in rows['freesurfer'][1]


def test_thickness_of_flair_alone_is_refused(bids_dir, tmp_path, caplog):
    arguments = [str(bids_dir), str(tmp_path / 'out'), 'participant', '--modality', 'FLAIR', '--thickness', 'pbt']
    assert cli.main(arguments) == exit_codes.USAGE
    assert 'T1w' in caplog.text


def test_labels_lose_their_prefix_and_underscores_are_accepted(bids_dir, tmp_path):
    arguments = [
        str(bids_dir),
        str(tmp_path / 'out'),
        'participant',
        '--participant_label',
        'sub-01',
        '02',
        '--session_id',
        'ses-1',
    ]
    options = validation.options_of(parser.build_parser().parse_args(arguments), arguments)
    assert options.participant_labels == ('01', '02')
    assert options.session_labels == ('1',)


def test_derivatives_get_names(bids_dir, tmp_path):
    for name in ('a', 'b'):
        write_description(tmp_path / name)
    arguments = [
        str(bids_dir),
        str(tmp_path / 'o'),
        'participant',
        '-d',
        str(tmp_path / 'a'),
        f'rater={tmp_path / "b"}',
    ]
    options = validation.options_of(parser.build_parser().parse_args(arguments), arguments)
    assert options.derivatives == {'a': tmp_path / 'a', 'rater': tmp_path / 'b'}


def write_freesurfer(folder):
    for name in ('stats/lh.aparc.stats', 'stats/rh.aparc.stats', 'mri/aseg.mgz'):
        (folder / 'sub-01' / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / 'sub-01' / name).write_text('')


def test_folders_that_are_read_for_thickness_are_not_used_for_filling(bids_dir, tmp_path):
    for name in ('fs_raw', 'fs_filled'):
        write_freesurfer(tmp_path / name)
    arguments = [str(bids_dir), str(tmp_path / 'o'), 'participant', '-d', f'original={tmp_path / "fs_raw"}',
                 f'filled={tmp_path / "fs_filled"}']  # fmt: skip
    reading = [*arguments, '--thickness', 'freesurfer']
    options = validation.options_of(parser.build_parser().parse_args(reading), reading)
    assert options.derivatives is None
    assert set(options.thickness_results) == {'original', 'filled'}
    options = validation.options_of(parser.build_parser().parse_args(arguments), arguments)  # a source of tissue labels
    assert set(options.derivatives) == {'original', 'filled'}
    others = [*arguments, '--thickness', 'dldirect']  # which does not read them
    assert set(validation.options_of(parser.build_parser().parse_args(others), others).derivatives) == {
        'original',
        'filled',
    }
    labels = [*reading, '-d', *reading[4:6], f'labels={tmp_path / "fs_raw"}']
    assert set(validation.options_of(parser.build_parser().parse_args(labels), labels).derivatives) == {'labels'}


def test_folders_that_are_read_for_thickness_are_not_found_again_among_the_derivatives(bids_dir, tmp_path):
    folders = {name: bids_dir / 'derivatives' / f'fs_{name}' for name in ('original', 'filled')}
    for folder in folders.values():
        write_freesurfer(folder)
    options = app_options.Options(bids_dir, tmp_path / 'o', thickness=('freesurfer',), thickness_results=folders)
    assert participant.derivatives_of(options) == {}


@pytest.mark.parametrize(('place', 'is_refused'), [('data/code/index', True), ('data/derivatives/x/index', False)])
def test_an_index_is_not_written_into_the_dataset(bids_dir, tmp_path, place, is_refused):
    arguments = [str(bids_dir), str(bids_dir / 'derivatives/x'), 'participant', '--bids-database-dir',
                 str(tmp_path / place)]  # fmt: skip
    parsed = parser.build_parser().parse_args(arguments)
    if is_refused:
        with pytest.raises(UsageError, match='is in BIDS_DIR'):
            validation.options_of(parsed, arguments)
    else:
        assert validation.options_of(parsed, arguments).bids_database_dir == tmp_path / place


def test_folders_that_hold_no_masks_are_searched_beside_those_of_the_dataset(bids_dir, tmp_path):
    write_description(bids_dir / 'derivatives/lesions')
    write_freesurfer(tmp_path / 'fs')
    write_description(tmp_path / 'masks')
    for named, searched in (
        ({}, {'lesions'}),
        ({'fs': tmp_path / 'fs'}, {'lesions', 'fs'}),
        ({'masks': tmp_path / 'masks', 'fs': tmp_path / 'fs'}, {'masks', 'fs'}),
    ):
        options = app_options.Options(bids_dir, tmp_path / 'o', derivatives=named or None)
        assert set(participant.derivatives_of(options)) == searched


def test_derivative_named_twice_is_refused(bids_dir, tmp_path, caplog):
    write_description(tmp_path / 'a')
    arguments = ['-d', str(tmp_path / 'a'), str(tmp_path / 'a')]
    assert cli.main([str(bids_dir), str(tmp_path / 'o'), 'participant', *arguments]) == exit_codes.USAGE
    assert 'twice' in caplog.text


@pytest.mark.parametrize(('content', 'words'), [
    ('[1]', r'holds \[1\], expected an object'),
    ('{"t1w": null}', 't1w is None, expected entities in braces'),
    ('{"flair": ["a"]}', r"flair is \['a'\], expected entities in braces"),
    ('{"t1w": {"subject": "02"}}', 't1w has subject, which is not for filters; use --participant-label'),
    ('{"lesion_mask": {"scope": "x"}}', 'lesion_mask has scope, which is not for filters; use --derivatives'),
    ('{"t1w": {"sub": "02"}}', 't1w has sub, which is not for filters; use --participant-label'),
    ('{"t1w": {"sesion": "1"}}', r'filters.json: t1w has sesion, which is no entity of BIDS: did you mean session\?'),
    ('{"lesion_mask": {"lable": "lesion"}}', r'lesion_mask has lable, .*: did you mean label\?'),
    ('{"flair": {"Acq": "x"}}', r'flair has Acq, .*: did you mean acquisition\?'),
    ('{"t1w": {"xyzzy": 1}}', 't1w has xyzzy, which is no entity of BIDS, expected one of subject, session'),
    ('{"t1w": {"acq": "a", "acquisition": "b"}}', 't1w has acquisition twice'),
])  # fmt: skip
def test_filter_file_that_is_none_or_goes_too_far_is_refused(tmp_path, content, words):
    path = tmp_path / 'filters.json'
    path.write_text(content)
    with pytest.raises(UsageError, match=words):
        validation.read_filters(path)


def test_filter_file_knows_null_and_any(tmp_path):
    from bids.layout import Query

    path = tmp_path / 'f.json'
    path.write_text(
        '{"t1w": {"acquisition": null, "run": "*", "session": "1"}, "flair": {"run": 2}, "bold": {"task": "rest"}}'
    )
    assert validation.read_filters(path) == {
        't1w': {'acquisition': Query.NONE, 'run': Query.ANY, 'session': '1'},
        'flair': {'run': 2},
    }


def test_filter_file_takes_the_names_that_file_names_have(tmp_path):
    path = tmp_path / 'f.json'
    path.write_text('{"t1w": {"acq": "mprage", "ses": "1", "rec": "norm"}, "lesion_mask": {"seg": "x", "dir": "AP"}}')
    assert validation.read_filters(path) == {
        't1w': {'acquisition': 'mprage', 'session': '1', 'reconstruction': 'norm'},
        'lesion_mask': {'segmentation': 'x', 'direction': 'AP'},
    }


def test_models_are_listed(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(['--list-models'])
    assert stop.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert 'fill-T1w\tfill T1w\tcompact\t1 step(s)\tCC BY-NC 4.0' in lines
    assert 'fill-FLAIR\tfill FLAIR\tcompact\t1 step(s)\tCC BY-NC 4.0' in lines


def parse(bids_dir, tmp_path, *more):
    arguments = [str(bids_dir), str(tmp_path / 'out'), 'participant', *more]
    return validation.options_of(parser.build_parser().parse_args(arguments), arguments)


@pytest.fixture
def write_model(tmp_path):
    """Factory: a folder that says by its plan what it was made for."""

    def write(task, modality):
        folder = tmp_path / f'{task}-{modality}-model'
        (folder / 'unet').mkdir(parents=True)
        (folder / models.WEIGHTS).touch()
        (folder / 'plan.json').write_text(json.dumps({'name': 'mine', 'task': task, 'modality': modality}))
        return str(folder)

    return write


def test_model_and_modality_have_defaults(bids_dir, tmp_path):
    options = parse(bids_dir, tmp_path)
    assert options.modalities == ('T1w',)
    assert [options.model_of(modality) for modality in ('T1w', 'FLAIR')] == ['fill-T1w', 'fill-FLAIR']


def test_modality_and_its_model_are_taken(bids_dir, tmp_path, write_model):
    model = write_model('fill', 'FLAIR')
    options = parse(bids_dir, tmp_path, '--modality', 'FLAIR', 'FLAIR', '--model', model, '--rims', 'grown',
                    '--rim-voxels', '0')  # fmt: skip
    assert options.modalities == ('FLAIR',)
    assert options.of_result('FLAIR')['model'] == options.model_of('FLAIR') == model
    assert options.of_result('FLAIR')['rim_voxels'] == 0


@pytest.mark.parametrize(('made_for', 'modality'), [
    (('fill', 'T1w'), 'FLAIR'), (('synth', 'FLAIR'), 'FLAIR'), (('fill', 'FLAIR'), 'T1w'),
])  # fmt: skip
def test_model_that_was_made_for_something_else_is_2(bids_dir, tmp_path, caplog, write_model, made_for, modality):
    arguments = ['--modality', modality, '--model', write_model(*made_for)]
    assert cli.main([str(bids_dir), str(tmp_path / 'out'), 'participant', *arguments]) == exit_codes.USAGE
    assert f'was made for {" ".join(made_for)}, expected one for fill {modality}' in caplog.text
    assert len(caplog.records) == 1
    assert not (tmp_path / 'out').exists()


def test_one_model_for_two_modalities_is_2(bids_dir, tmp_path, caplog, write_model):
    arguments = ['--modality', 'T1w', 'FLAIR', '--model', write_model('fill', 'FLAIR')]
    assert cli.main([str(bids_dir), str(tmp_path / 'out'), 'participant', *arguments]) == exit_codes.USAGE
    assert 'is for one modality, not for T1w and FLAIR; give --modality' in caplog.text
    assert not (tmp_path / 'out').exists()


def test_modality_that_is_not_filled_is_2(bids_dir, tmp_path):
    with pytest.raises(SystemExit) as stop:
        cli.main([str(bids_dir), str(tmp_path / 'out'), 'participant', '--modality', 'T9w'])
    assert stop.value.code == 2


# Synthesis


@pytest.fixture
def synth_models(monkeypatch, write_model):
    """Both modalities have a model of synthesis."""
    folders = {modality: write_model('synth', modality) for modality in ('FLAIR', 'T1w')}
    monkeypatch.setattr(app_options.Options, 'model_of', lambda self, modality: folders[modality])


def test_synthesis_has_defaults(bids_dir, tmp_path, synth_models):
    options = parse(bids_dir, tmp_path, '--mode', 'synth')
    assert options.modalities == ('FLAIR', 'T1w')
    assert options.variants == ['synth']
    assert (options.n_lesions, options.lesion_load_ml, options.lesion_intensity) == (None, None, 'auto')
    assert set(options.lesion_locations) == {'periventricular', 'juxtacortical', 'deep', 'infratentorial'}
    assert not options.second_visit


def test_bundled_models_of_synthesis_are_named_by_modality():
    options = app_options.Options(Path('in'), Path('out'), mode='synth')
    assert [options.model_of(modality) for modality in ('T1w', 'FLAIR')] == ['synth-T1w', 'synth-FLAIR']


def test_options_of_synthesis_are_taken(bids_dir, tmp_path, synth_models):
    options = parse(
        *(bids_dir, tmp_path, '--mode', 'synth', '--new-lesions', '4', '--lesion-load-ml', '1.5', '--n-variants', '3'),
        *('--lesion-location', 'deep,juxtacortical,deep', '--lesion-intensity', '0.25', '--lesion-halo', '0'),
    )
    assert (options.n_lesions, options.second_visit, options.lesion_load_ml) == (4, True, 1.5)
    assert options.variants == ['synth1', 'synth2', 'synth3']
    assert options.lesion_locations == ('deep', 'juxtacortical')
    assert (options.lesion_intensity, options.lesion_halo) == (0.25, 0)
    given = parse(bids_dir, tmp_path, '--mode', 'synth', '--mask-from', 'sub-07')
    assert given.mask_from == '07'


@pytest.mark.parametrize('changed', [
    ['--n-lesions', '2'], ['--new-lesions', '3'], ['--lesion-load-ml', '2'], ['--lesion-location', 'deep'],
    ['--lesion-intensity', '0.5'], ['--mask-from', '01'], ['--random-seed', '1'], ['--num-inference-steps', '3'],
], ids=lambda arguments: arguments[0])  # fmt: skip
def test_every_option_that_changes_the_new_lesions_is_one_of_the_result(bids_dir, tmp_path, synth_models, changed):
    start = ['--mode', 'synth'] + ([] if changed[0] in ('--mask-from', '--n-lesions') else ['--n-lesions', '3'])
    start = start[:2] if changed[0] == '--new-lesions' else start
    before = parse(bids_dir, tmp_path, *start).of_result('FLAIR')
    assert parse(bids_dir, tmp_path, *start, *changed).of_result('FLAIR') != before


def test_a_second_visit_is_not_the_same_result_as_so_many_lesions(bids_dir, tmp_path, synth_models):
    drawn, second = (
        parse(bids_dir, tmp_path, '--mode', 'synth', option, '3').of_result('T1w')
        for option in ('--n-lesions', '--new-lesions')
    )
    assert drawn != second


@pytest.mark.parametrize('more', [(), ('--rims', 'grown'), ('--rim-voxels', '0')])
def test_dilation_zero_needs_no_other_option_and_grows_nothing(bids_dir, tmp_path, more):
    options = parse(bids_dir, tmp_path, '--dilate', '0', *more)
    assert (options.rims, options.rim_voxels, options.growth.rim_voxels) == ('grown', 0, 0)
    assert options.of_result('T1w') != parse(bids_dir, tmp_path).of_result('T1w')
    assert options.of_result('T1w')['dilate'] == 0


@pytest.mark.parametrize(('arguments', 'words'), [
    (['--n-lesions', '3'], '--n-lesions: only with --mode synth'),
    (['--mask', 'm.nii.gz', '--n-variants', '2'], '--mask, --n-variants: only with --mode synth'),
    (['--mode', 'synth', '--n-samples', '2'], '--n-samples: only with --mode fill'),
    (['--mode', 'synth', '--thickness', '--rims', 'grown'], '--rims, --thickness: only with --mode fill'),
    (['--dilate', '2', '--rim-voxels', '0'], '--dilate, --rim-voxels: only with --rims grown'),
    (['--dilate', '0', '--rim-voxels', '3'], '--dilate 0 fills the given mask and nothing else: --rim-voxels contra'),
    (['--mode', 'synth', '--lesion-labels', '1', '--dilate', '0'], 'only with --mode fill'),
    (['--mode', 'synth', '--mask', 'm.nii.gz', '--n-lesions', '3'], '--mask, --n-lesions contradict each other'),
    (['--mode', 'synth', '--mask-from', '01', '--lesion-load-ml', '3'], '--mask-from, --lesion-load-ml contradict'),
    (['--mode', 'synth', '--mask-from', '01', '--mask', 'm.nii.gz'], '--mask, --mask-from contradict each other'),
    (['--mode', 'synth', '--mask-from', '01', '--new-lesions', '3'], '--mask-from, --new-lesions contradict'),
    (['--mode', 'synth', '--new-lesions', '3', '--n-lesions', '3'], 'both say how many: give one'),
    (['--mode', 'synth', '--mask', 'nowhere.nii.gz'], '--mask nowhere.nii.gz is not a file'),
])  # fmt: skip
def test_options_that_contradict_each_other_are_2(bids_dir, tmp_path, caplog, synth_models, arguments, words):
    assert cli.main([str(bids_dir), str(tmp_path / 'out'), 'participant', *arguments]) == exit_codes.USAGE
    assert words in caplog.text
    assert len(caplog.records) == 1
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(('arguments', 'words'), [
    (['--lesion-halo', '-1'], '-1 is no share from 0 to 1'),
    (['--lesion-intensity', '1.2'], '1.2 is no quantile from 0 to 1'),
    (['--lesion-intensity', 'bright'], 'invalid intensity value'),
    (['--lesion-location', 'deep,cortical'], 'cortical is none of periventricular,juxtacortical'),
    (['--lesion-load-ml', '0'], '0 is not above zero'),
    (['--lesion-load-ml', 'nan'], 'nan is not above zero'),
    (['--n-lesions', '0'], '0 is not above zero'),
    (['--n-variants', '0'], '0 is not above zero'),
    (['--new-lesions', '-1'], '-1 is not above zero'),
])  # fmt: skip
def test_values_that_no_lesion_can_have_are_2(bids_dir, tmp_path, capsys, arguments, words):
    with pytest.raises(SystemExit) as stop:
        cli.main([str(bids_dir), str(tmp_path / 'out'), 'participant', '--mode', 'synth', *arguments])
    assert stop.value.code == 2
    assert words in capsys.readouterr().err


def test_internal_error_is_70(bids_dir, tmp_path, monkeypatch):
    from bids_lesionfill.app import participant

    monkeypatch.setattr(participant, 'run', lambda options: 1 / 0)
    assert cli.main([str(bids_dir), str(tmp_path / 'out'), 'participant']) == exit_codes.INTERNAL


def test_interrupt_is_130(bids_dir, tmp_path, monkeypatch):
    from bids_lesionfill.app import participant

    def interrupt(options):
        raise KeyboardInterrupt

    monkeypatch.setattr(participant, 'run', interrupt)
    assert cli.main([str(bids_dir), str(tmp_path / 'out'), 'participant']) == exit_codes.INTERRUPTED
