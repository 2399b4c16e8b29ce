"""The page of options of the documentation, from the table of options."""

from . import exit_codes, options
from .table import Spec, specs_of


def options_as_markdown() -> str:
    """Return tables of all options, one per group."""
    lines = []
    for group in options.GROUPS:
        specs = [*specs_of(group).values(), *(options.STOPS if group is options.GROUPS[-1] else ())]
        lines += [f'## {group.title}', '', '| option | meaning |', '|---|---|']
        lines += [f'| {flags_of(spec)} | {meaning_of(spec)} |' for spec in specs] + ['']
    return '\n'.join(lines)


def exit_codes_as_markdown() -> str:
    """Return the table of exit codes."""
    codes = [f'| {code} | {words} |' for code, words in exit_codes.MEANINGS.items()]
    return '\n'.join(['| code | meaning |', '|---|---|', *codes])


def flags_of(spec: Spec) -> str:
    """Return the flags of an option with the name of its value; spellings with underscores are left out."""
    flags = '<br>'.join(f'`{flag}`' for flag in spec.flags)
    return f'{flags} `{spec.value_name}`' if spec.value_name else flags


def meaning_of(spec: Spec) -> str:
    """Return the help of an option, and where it is understood."""
    places = [f'`--{key} {value}`' for key, value in spec.needs.items()]
    places += [f'level `{spec.level}`'] if spec.level == 'group' else []
    only = f'; only with {" and ".join(places)}' if places else ''
    return f'{spec.text}{only}'.replace('|', '\\|')
