"""Options as TOML: `--config-file` in, `sub-XX/log/<run>/config.toml` out. Keys are the long names of the options."""

import argparse
import json
import shlex
from pathlib import Path
from typing import Any

from .. import text_files
from ..layout.errors import UsageError
from ..layout.naming import APP_NAME
from . import options
from .table import Spec, suggestion

RECORD = 'run'  # table of what is written for the record and not read: positional arguments, version
NOT_KEPT = ('config_file',)


def kept_specs() -> dict[str, Spec]:
    """Return the options that a TOML file may hold, by their keys."""
    specs = options.all_specs().values()
    return {spec.key: spec for spec in specs if not spec.is_positional and spec.key not in NOT_KEPT}


def defaults_from(path: str | Path, parser: argparse.ArgumentParser) -> dict[str, Any]:
    """Return the values of a TOML file for the options of a parser, checked as on the command line, by their keys.

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
    kept = kept_specs()
    by_name = {flag.lstrip('-').replace('-', '_'): spec for spec in kept.values() for flag in spec.flags}
    words, keys = [], set()
    for name, value in content.items():
        spec = by_name.get(name.replace('-', '_'))
        if spec is None:
            meant = suggestion(name.replace('-', '_'), list(by_name)) or '; keys are long names, as participant_label'
            raise UsageError(f'--config-file {path}: {name!r} is no option{meant}')
        words += words_of(spec, value)
        keys.add(spec.key)
    given, unknown = parser.parse_known_args(['.', '.', 'participant', *words])
    if unknown:
        raise UsageError(f'--config-file {path}: {" ".join(unknown)} is not understood')
    return {key: getattr(given, key) for key in keys}


def words_of(spec: Spec, value: Any) -> list[str]:
    """Return an option and its value as words of a command line."""
    if value == []:
        return []
    if spec.kind in ('switch', 'count'):
        return [spec.name] * int(value)
    values = value if isinstance(value, list) else [value]
    if spec.kind == 'value':  # a list in one word, as `--lesion-location deep,juxtacortical`
        return [f'{spec.name}={",".join(map(str, values))}']
    return [spec.name, *map(str, values)]


def command_of(chosen: options.Options, subject: str, modality: str) -> str:
    """Return the command that makes the result of an image: with its options, where they are not the default.

    Which files it was made from depends on others, too, and is in the sources of the result.
    """
    words = [APP_NAME, 'BIDS_DIR', 'OUTPUT_DIR', 'participant', '--participant-label', subject, '--modality', modality]
    words += ['--mode', chosen.mode] if chosen.mode != options.Main.mode else []
    for name, spec in options.all_specs().items():
        value = getattr(chosen, name)
        is_meant = spec.is_of_result or spec.needs.get('mode') == 'synth'  # those enter the result by what is drawn
        is_derived = name == 'n_lesions' and chosen.second_visit  # by --new-lesions
        if is_meant and not is_derived and not spec.unmet(chosen) and value not in (None, spec.take(spec.default)):
            value = value.name if isinstance(value, Path) else value
            words += words_of(spec, list(value) if isinstance(value, tuple) else value)
    return shlex.join(words)


def as_toml(arguments: argparse.Namespace, version: str) -> str:
    """Return all options of a run as TOML, also the defaults; what is unset is left out."""
    values = {key: getattr(arguments, key) for key in kept_specs()}
    lines = [f'{key} = {toml_value(value)}' for key, value in values.items() if value not in (None, [], ())]
    record = {
        'version': version,
        'bids_dir': arguments.bids_dir,
        'output_dir': arguments.output_dir,
        'analysis_level': arguments.analysis_level,
    }
    lines += ['', f'[{RECORD}]'] + [f'{name} = {toml_value(value)}' for name, value in record.items()]
    return '\n'.join(lines) + '\n'


def toml_value(value: Any) -> str:
    """Return a value as TOML writes it."""
    if isinstance(value, bool):
        return 'true' if value else 'false'
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, (list, tuple)):
        return f'[{", ".join(toml_value(item) for item in value)}]'
    return json.dumps(str(value), ensure_ascii=False)


def read_toml(text: str) -> dict[str, Any]:
    """Return TOML as dict; Python 3.10 has no reader of its own."""
    try:
        import tomllib
    except ModuleNotFoundError:
        import tomli as tomllib  # type: ignore[no-redef]
    return tomllib.loads(text)
