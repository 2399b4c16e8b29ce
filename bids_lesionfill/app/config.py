"""Options as TOML: `--config-file` in, `sub-XX/log/<run>/config.toml` out. Keys are the long names of the options."""

import json

from .. import text_files
from ..layout.errors import UsageError

RECORD = 'run'  # table of what is written for the record and not read: positional arguments, version
NOT_KEPT = ('help', 'version', 'config_file', 'list_models', 'list_engines')


def defaults_from(path, parser):
    """Values of a TOML file for the options of a parser, checked as on the command line: dict of dest -> value.

    Raises
    ------
    UsageError
        If the file cannot be read, or a key is no option.
    SystemExit
        If a value is refused (by argparse, with a sentence, code 2).
    """
    try:
        content = read_toml(text_files.read_text(path))
    except (OSError, ValueError) as error:
        raise UsageError(f'--config-file {path} cannot be read as TOML: {error}') from None
    content.pop(RECORD, None)
    by_name = {action.dest: action for action in parser._actions if action.option_strings}
    by_name |= {name.lstrip('-').replace('-', '_'): action for name, action in parser._option_string_actions.items()}
    words, dests = [], set()
    for name, value in content.items():
        action = by_name.get(name.replace('-', '_'))
        if action is None or action.dest in NOT_KEPT:
            raise UsageError(f'--config-file {path}: {name!r} is no option; keys are long names, as participant_label')
        words += words_of(action, value)
        dests.add(action.dest)
    given, unknown = parser.parse_known_args(['.', '.', 'participant', *words])
    if unknown:
        raise UsageError(f'--config-file {path}: {" ".join(unknown)} is not understood')
    return {dest: getattr(given, dest) for dest in dests}


def words_of(action, value):
    """An option and its value as words of a command line."""
    if value == []:
        return []
    option = max(action.option_strings, key=len)
    if action.nargs == 0:  # a flag, or one that counts
        return [option] * int(value)
    values = value if isinstance(value, list) else [value]
    if action.nargs is None and len(values) > 1:  # a list in one word
        values = [','.join(str(item) for item in values)]
    return [option, *(str(item) for item in values)]


def as_toml(arguments, parser, version):
    """All options of a run as TOML, also the defaults; what is unset is left out."""
    lines = []
    for action in parser._actions:
        value = getattr(arguments, action.dest, None)
        if not action.option_strings or action.dest in NOT_KEPT or value is None or value == []:
            continue
        lines.append(f'{action.dest} = {toml_value(value)}')
    record = {
        'version': version,
        'bids_dir': arguments.bids_dir,
        'output_dir': arguments.output_dir,
        'analysis_level': arguments.analysis_level,
    }
    lines += ['', f'[{RECORD}]'] + [f'{name} = {toml_value(value)}' for name, value in record.items()]
    return '\n'.join(lines) + '\n'


def toml_value(value):
    """A value as TOML writes it."""
    if isinstance(value, bool):
        return 'true' if value else 'false'
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, (list, tuple)):
        return f'[{", ".join(toml_value(item) for item in value)}]'
    return json.dumps(str(value))


def read_toml(text):
    """TOML as dict; Python 3.10 has no reader of its own."""
    try:
        import tomllib
    except ModuleNotFoundError:
        import tomli as tomllib
    return tomllib.loads(text)
