from dataclasses import dataclass
from typing import ClassVar

import pytest
from bids_examples import write_description

from bids_lesionfill.app import cli, config, exit_codes, log, options_page, parser, table, validation, values
from bids_lesionfill.app import options as app_options
from bids_lesionfill.diffusion import registry
from bids_lesionfill.layout.errors import UsageError


@pytest.fixture
def places(tmp_path):
    write_description(tmp_path / 'data')
    for folder in ('sub-01/ses-a', 'sub-02/ses-b', 'sub-03'):
        (tmp_path / 'data' / folder).mkdir(parents=True)
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
        'participant_label = ["sub-01", "02"]\ndilate = 2\nrims = "grown"\n'
        'mask-threshold = 0.3\nreports_only = true\nn_cpus = 3\n',
    )
    assert options.participant_labels == ('01', '02')
    assert (options.dilate, options.mask_threshold, options.reports_only, options.nprocs) == (2, 0.3, True, 3)


def test_the_command_line_comes_first(places):
    options = options_with(places, 'participant_label = ["01"]\nn_samples = 2\n', '--participant-label', '03')
    assert (options.participant_labels, options.n_samples) == (('03',), 2)


def other_value(spec):
    """Return words that give an option another value than its default."""
    if spec.kind in ('switch', 'count'):
        return [spec.name]
    if spec.choice_names:
        return [spec.name, str(next(choice for choice in spec.choice_names if choice != spec.default))]
    words = {parse: '0.25' for parse in values.LIMITS} | dict.fromkeys((values.positive, values.whole_number, int), '3')
    words |= {values.locations: 'deep,infratentorial', values.memory_mb: '4G'}
    return [spec.name, *[words.get(spec.parse, 'sub-ä "x" \\')] * (2 if spec.kind == 'list' else 1)]


@pytest.mark.parametrize('key', config.kept_specs())
def test_every_option_goes_into_a_file_and_comes_back(places, tmp_path, key):
    spec = config.kept_specs()[key]
    arguments, unknown = cli.parse([*places[:3], *other_value(spec)])
    assert not unknown
    assert getattr(arguments, key) != spec.default
    (tmp_path / 'all.toml').write_text(config.as_toml(arguments, '1.2'), encoding='utf-8')
    again, _ = cli.parse(places[:3], tmp_path / 'all.toml')
    assert {name: same(value) for name, value in vars(again).items()} == {
        name: same(value) for name, value in vars(arguments).items()
    }


def same(value):
    return list(value) if isinstance(value, tuple) else value


@dataclass(frozen=True)
class Toy:
    """A group of one option, as if it was in the table."""

    title: ClassVar[str] = 'Toys'
    toy: int = table.option('--toy-size', parse=values.positive, default=4, unit='mm', metavar='N', help='size')


def test_a_new_option_is_one_field(places, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(app_options, 'GROUPS', (*app_options.GROUPS, Toy))
    assert cli.parse(places)[0].toy_size == 4
    arguments, _ = cli.parse([*places, '--toy_size', '7'])
    text = config.as_toml(arguments, '1.2')
    assert config.read_toml(text)['toy_size'] == 7
    (tmp_path / 'toy.toml').write_text(text)
    assert cli.parse(places, tmp_path / 'toy.toml')[0].toy_size == 7
    assert '| `--toy-size` `N` | size (mm, 1 or more; default: 4) |' in options_page.options_as_markdown()
    assert 'size (mm, 1 or more; default: 4)' in parser.build_parser().format_help()
    assert 'did you mean --toy-size?' in parser.unknown_words(['--toy-sise'])
    with pytest.raises(SystemExit):
        cli.parse([*places, '--toy-size', '0'])
    assert 'argument --toy-size: 0 is not above zero' in capsys.readouterr().err


@pytest.mark.parametrize('name', app_options.all_specs())
def test_every_option_has_a_help_and_is_a_field_of_the_options(name):
    spec = app_options.all_specs()[name]
    assert len(spec.help) > 5
    assert not spec.help.endswith('.')
    assert spec.help[0].islower() or spec.help.startswith(('BIDS', 'JSON', 'TOML', 'YAML'))
    assert hasattr(app_options.Options('in', 'out'), name)
    assert spec.is_positional or spec.kind in ('switch', 'count') or spec.value_name != '{}'
    needs = {other.key: other for other in app_options.all_specs().values()}
    assert all(value in needs[key].choice_names for key, value in spec.needs.items())


def test_what_is_written_is_read_as_the_same(places, tmp_path, monkeypatch):
    monkeypatch.setattr(registry, 'check', lambda *_: None)
    given = [*places, '--mode', 'synth', '--lesion-location', 'deep,juxtacortical', '--lesion-intensity', '0.5',
             '--mem', '4G', '--session-label', 'a', 'b', '-vv', '--stop-on-first-crash']  # fmt: skip
    arguments, _ = cli.parse(given)
    first = validation.options_of(arguments, [])
    text = config.as_toml(arguments, '1.2')
    assert text == first.config.replace(app_options.version(), '1.2')
    (tmp_path / 'again.toml').write_text(text)
    again, _ = cli.parse(places, tmp_path / 'again.toml')
    assert validation.options_of(again, []) == first
    assert again.verbose == 2
    assert config.read_toml(text)['run']['version'] == '1.2'
    assert config.read_toml(text)['lesion_location'] == ['deep', 'juxtacortical']


@pytest.mark.parametrize(('content', 'words'), [
    ('dilat = 2', r"'dilat' is no option: did you mean dilate\?"), ('xyzzy = 2', 'no option; keys are long names'),
    ('config_file = "x"', "'config_file' is no option"), ('dilate = = 2', 'cannot be read as TOML'),
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


def test_boilerplate_only_writes_the_text_and_nothing_else(places, tmp_path, caplog):
    caplog.set_level('INFO', 'bids_lesionfill')
    assert cli.main([*places, '--boilerplate-only']) == exit_codes.OK
    written = sorted(path.name for path in (tmp_path / 'out').rglob('*') if path.is_file())
    assert written == ['CITATION.bib', 'CITATION.md']
    assert f'written: {tmp_path / "out/logs/CITATION.md"}' in caplog.text
    assert 'Lesions of T1w images were filled' in (tmp_path / 'out/logs/CITATION.md').read_text()


@pytest.mark.parametrize(('flags', 'level'), [((), 20), (('-q',), 30), (('-v',), 10)])
def test_quiet_and_verbose_set_the_level(places, monkeypatch, flags, level):
    asked = []
    monkeypatch.setattr(log.logging, 'basicConfig', lambda **options: asked.append(options['level']))
    monkeypatch.setattr(cli, 'start', lambda *_: exit_codes.OK)
    assert cli.main([*places, *flags]) == exit_codes.OK
    assert asked == [level]
