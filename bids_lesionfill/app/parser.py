"""Parser of the command line, made from the table of options."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from ..diffusion import registry as fillers
from ..thickness import registry
from . import exit_codes, options
from .table import Spec, specs_of, suggestion


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one sentence, without the usage of all options before it."""

    def error(self, message: str) -> NoReturn:
        """Print what is wrong, and exit."""
        self.exit(exit_codes.USAGE, f'{self.prog}: {message} (see {self.prog} --help)\n')


def build_parser(prog: str = 'run.py') -> Parser:
    """Return the parser of the command line; `prog` is the name under which the program was called."""
    parser = Parser(
        prog=prog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog='\n'.join(['exit codes:', *(f'  {code:<4} {words}' for code, words in exit_codes.MEANINGS.items())]),
        allow_abbrev=False,
        description='Fill lesions of multiple sclerosis in MR images with healthy tissue, or synthesize new ones.',
    )
    for group in options.GROUPS:
        section = parser.add_argument_group(group.title, getattr(group, 'description', None))
        for spec in specs_of(group).values():
            add_option(section, spec)
    prints = {'--list-models': print_models, '--list-engines': print_engines, '--version': print_version}
    for spec in options.STOPS:
        add_flags(section, spec, {'action': PrintAndStop, 'const': prints[spec.name]})
    return parser


def add_option(section: argparse._ActionsContainer, spec: Spec) -> None:
    """Add an option of the table to a parser, or to a group of one."""
    about: dict[str, Any] = {'type': spec.parse, 'choices': spec.choice_names or None}
    if spec.is_positional:
        section.add_argument(spec.name, help=spec.text.replace('%', '%%'), **about)
        return
    about |= {'metavar': spec.metavar}
    if spec.kind in ('switch', 'count'):
        about = {'action': {'switch': 'store_true', 'count': 'count'}[spec.kind]}
    elif spec.alone:
        about |= {'nargs': '*', 'action': StoreOrAlone, 'const': spec.alone}
    elif spec.kind == 'list':
        about |= {'nargs': '+'}
    add_flags(section, spec, {'dest': spec.key, 'default': spec.default, **about})


def add_flags(section: argparse._ActionsContainer, spec: Spec, about: dict[str, Any]) -> None:
    """Add the flags of an option; those with underscores are not in the help."""
    section.add_argument(*spec.flags, help=spec.text.replace('%', '%%'), **about)
    if spec.underscored:
        section.add_argument(*spec.underscored, help=argparse.SUPPRESS, **about)


class StoreOrAlone(argparse.Action):
    """Store a list of values; an option that stands alone means those in `const`."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Store the values."""
        setattr(namespace, self.dest, values or list(self.const))


class PrintAndStop(argparse.Action):
    """Print what the function in `const` returns, and exit."""

    def __init__(
        self, option_strings: list[str], dest: str, const: Callable[[], list[str]], help: str | None = None
    ) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, const=const, help=help, default=argparse.SUPPRESS)

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Print the lines."""
        print('\n'.join(self.const()))
        parser.exit()


def print_models() -> list[str]:
    """Return a line for each bundled model and other filler; see `diffusion.registry.table`."""
    return ['\t'.join(row) for row in fillers.table()]


def print_engines() -> list[str]:
    """Return a line for each thickness engine: whether it is usable here, or what it lacks."""
    checks = {name: registry.make_engine(name).check() for name in registry.ENGINES}
    return [
        '\t'.join(
            [name, 'usable', check.version]
            if check.ok
            else [name, 'not usable', f'{check.reason}; {check.how_to_get}']
        )
        for name, check in checks.items()
    ]  # fmt: skip


def print_version() -> list[str]:
    """Return the line of `--version`."""
    return [f'bids_lesionfill {options.version()}']


def program_name(path: str) -> str:
    """Return the name under which a program was called, from its path."""
    name = Path(path).name
    return 'python -m bids_lesionfill' if name == '__main__.py' else name or 'run.py'


def called_as() -> str:
    """Return the name under which this program was called."""
    return program_name(sys.argv[0])


def all_flags() -> set[str]:
    """Return all spellings of all flags."""
    specs = [spec for spec in (*options.all_specs().values(), *options.STOPS) if not spec.is_positional]
    return {spelling for spec in specs for spelling in (*spec.flags, *spec.underscored)} | {'-h', '--help'}


def unknown_flags(words: list[str], known: set[str]) -> list[str]:
    """Return the long flags on a command line that do not exist."""
    words = words[: words.index('--')] if '--' in words else words
    typed = dict.fromkeys(word.partition('=')[0] for word in words if word.startswith('--'))
    return [flag for flag in typed if flag not in known]


def unknown_words(words: list[str], known: set[str] | None = None) -> str:
    """Return a sentence on flags that do not exist, each with the one that was perhaps meant; empty without any.

    Those that exist are `known`, or all of the app.
    """
    known = all_flags() if known is None else known
    found = [f'{flag}{suggestion(flag, sorted(known))}' for flag in unknown_flags(words, known)]
    return f'unknown argument {"; ".join(found)}' if found else ''
