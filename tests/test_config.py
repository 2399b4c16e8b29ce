import pytest
from bids_examples import write_description

from bids_lesionfill.app import cli, config, exit_codes, parser, validation
from bids_lesionfill.app import options as app_options
from bids_lesionfill.diffusion import registry
from bids_lesionfill.layout.errors import UsageError


@pytest.fixture
def places(tmp_path):
    write_description(tmp_path / 'data')
    return [str(tmp_path / 'data'), str(tmp_path / 'out'), 'participant', '-w', str(tmp_path / 'work')]


def options_with(places, content, *more):
    path = places[1] + '.toml'
    with open(path, 'w') as file:
        file.write(content)
    arguments, unknown = cli.parse([*places, '--config-file', path, *more], path)
    assert not unknown
    return validation.options_of(arguments, [])


def test_options_of_a_file_are_those_of_the_command_line(places):
    options = options_with(
        places,
        'participant_label = ["sub-01", "02"]\ndilate = 2\nmask-threshold = 0.3\nreports_only = true\nn_cpus = 3\n',
    )
    assert options.participant_labels == ('01', '02')
    assert (options.dilate, options.mask_threshold, options.reports_only, options.nprocs) == (2, 0.3, True, 3)


def test_the_command_line_comes_first(places):
    options = options_with(places, 'participant_label = ["01"]\ndilate = 2\n', '--participant-label', '03')
    assert (options.participant_labels, options.dilate) == (('03',), 2)


def test_what_is_written_is_read_as_the_same(places, tmp_path, monkeypatch):
    monkeypatch.setattr(registry, 'check', lambda *_: None)
    given = [*places, '--mode', 'synth', '--lesion-location', 'deep,juxtacortical', '--lesion-intensity', '0.5',
             '--mem', '4G', '--session-label', 'a', 'b', '-vv', '--stop-on-first-crash']  # fmt: skip
    arguments, _ = cli.parse(given)
    first = validation.options_of(arguments, [])
    text = config.as_toml(arguments, parser.build_parser(), '1.2')
    assert text == first.config.replace(app_options.version(), '1.2')
    (tmp_path / 'again.toml').write_text(text)
    again, _ = cli.parse(places, tmp_path / 'again.toml')
    assert validation.options_of(again, []) == first
    assert again.verbose == 2
    assert config.read_toml(text)['run']['version'] == '1.2'
    assert config.read_toml(text)['lesion_location'] == ['deep', 'juxtacortical']


@pytest.mark.parametrize(('content', 'words'), [
    ('dilat = 2', "'dilat' is no option"), ('dilate = = 2', 'cannot be read as TOML'),
    ('version = 1', "'version' is no"),
])  # fmt: skip
def test_what_is_no_option_is_named(places, content, words):
    with pytest.raises(UsageError, match=words):
        options_with(places, content)


def test_a_wrong_config_file_is_2(places, tmp_path, caplog):
    (tmp_path / 'c.toml').write_text('fill_everything = true\n')
    assert cli.main([*places, '--config-file', str(tmp_path / 'c.toml')]) == exit_codes.USAGE
    assert "'fill_everything' is no option" in caplog.text
    assert cli.main([*places, '--config-file', str(tmp_path / 'nowhere.toml')]) == exit_codes.USAGE


def test_an_empty_list_is_as_if_it_was_not_there(places):
    assert options_with(places, 'thickness = []\nparticipant_label = []\n').thickness == ()


def test_a_value_out_of_range_is_2(places):
    with pytest.raises(SystemExit) as stop:
        options_with(places, 'dilate = -1\n')
    assert stop.value.code == 2


@pytest.mark.parametrize(('text', 'gb'), [('4000', 4), ('4G', 4), ('4gb', 4), ('512M', 0.512), ('0.5T', 500)])
def test_memory_has_suffixes(places, text, gb):
    arguments, _ = cli.parse([*places, '--mem', text])
    assert validation.options_of(arguments, []).mem_gb == pytest.approx(gb)


@pytest.mark.parametrize('text', ['0', '-3', '4X', 'G'])
def test_memory_that_is_none_is_2(places, text):
    with pytest.raises(SystemExit) as stop:
        cli.parse([*places, f'--mem={text}'])
    assert stop.value.code == 2


def test_a_work_folder_in_the_dataset_is_2(places, caplog):
    assert cli.main([*places, '--work-dir', places[0] + '/work']) == exit_codes.USAGE
    assert 'is in BIDS_DIR' in caplog.text


def test_a_plugin_file_that_is_not_there_is_2(places, caplog):
    assert cli.main([*places, '--use-plugin', 'nowhere.yml']) == exit_codes.USAGE
    assert '--use-plugin nowhere.yml is not a file' in caplog.text


def test_boilerplate_only_writes_the_text_and_nothing_else(places, tmp_path):
    assert cli.main([*places, '--boilerplate-only']) == exit_codes.OK
    written = sorted(path.name for path in (tmp_path / 'out').rglob('*') if path.is_file())
    assert written == ['CITATION.bib', 'CITATION.md']
    assert 'Lesions of T1w images were filled' in (tmp_path / 'out/logs/CITATION.md').read_text()


@pytest.mark.parametrize(('flags', 'level'), [((), 20), (('-q',), 30), (('-v',), 10)])
def test_quiet_and_verbose_set_the_level(places, monkeypatch, flags, level):
    asked = []
    monkeypatch.setattr(cli.logging, 'basicConfig', lambda **options: asked.append(options['level']))
    monkeypatch.setattr(cli, 'start', lambda *_: exit_codes.OK)
    assert cli.main([*places, *flags]) == exit_codes.OK
    assert asked == [level]
