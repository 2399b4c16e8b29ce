"""Fills the page of options, from the parser itself."""

from bids_lesionfill.app import parser as app_parser

MARK = '<!-- options -->'


def on_page_markdown(markdown, **_):
    """What mkdocs calls for each page."""
    return markdown.replace(MARK, options_as_markdown())


def options_as_markdown():
    """All options, group by group, as tables."""
    parser = app_parser.build_parser()
    lines = []
    for group in parser._action_groups:
        actions = [action for action in group._group_actions if action.dest != 'help']
        if actions:
            lines += [f'## {group.title}', '', '| option | meaning |', '|---|---|']
            lines += [f'| {names_of(action)} | {help_of(action, parser)} |' for action in actions] + ['']
    codes = [line.split(maxsplit=1) for line in app_parser.EXIT_CODES.splitlines()[1:]]
    lines += ['## Exit codes', '', '| code | meaning |', '|---|---|']
    lines += [f'| {code} | {words} |' for code, words in codes]
    return '\n'.join(lines)


def names_of(action):
    """An argument as the reader types it, without the spellings with underscores."""
    names = [name for name in action.option_strings if '_' not in name] or [action.dest]
    value = action.metavar or ('{' + ','.join(map(str, action.choices)) + '}' if action.choices else '')
    return '<br>'.join(f'`{name}`' for name in names) + (f' `{value}`' if action.option_strings and value else '')


def help_of(action, parser):
    """The help of an option with its default filled in."""
    return (action.help or '').replace('%(default)s', str(action.default)).replace('%%', '%').replace('|', '\\|')
