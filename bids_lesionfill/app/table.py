"""Declaration of an option; the table of all options is in `options`."""

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from typing import Any

from . import values


def unchanged(value: Any) -> Any:
    """Return a value as it is."""
    return value


@dataclass(frozen=True)
class Spec:
    """The declaration of one option, from which parser, TOML, checks and documentation are derived.

    Attributes
    ----------
    flags : tuple of str
        As typed, with hyphens; the first long one is the name. A name without hyphens in front is positional.
    help : str
        Noun phrase of the value; unit, limits and default are added from the next attributes.
    unit : str
        Such as `voxels`. Limits of the value are those of `parse` (`values.LIMITS`).
    default : object
        As parsed. `default_text` stands for it in the help where it says more; empty: nothing is added.
    parse : callable
        From a word to a value.
    kind : str
        `value`, `list` (one word or more), `switch` (no value) or `count` (`-vv`).
    alone : tuple, optional
        Of a list: the values if the option stands alone.
    choices : tuple, or callable
        A callable is asked when the parser is built: registries may have grown by then.
    metavar : str, optional
    needs : dict of key -> value
        Other options without which this one is misplaced.
    level : str
        The only analysis level that reads it; empty: both.
    is_of_result : bool
        Whether it changes the images of an analysis and is part of their sidecars.
    take : callable
        From the parsed value to that of `Options`.
    """

    flags: tuple[str, ...]
    help: str
    unit: str = ''
    default: Any = None
    default_text: str | None = None
    parse: Callable = str
    kind: str = 'value'
    alone: tuple | None = None
    choices: tuple | Callable[[], Iterable[str]] = ()
    metavar: str | None = None
    needs: dict = field(default_factory=dict)
    level: str = ''
    is_of_result: bool = False
    take: Callable = unchanged

    @property
    def is_positional(self) -> bool:
        """True if it has no flag."""
        return not self.flags[0].startswith('-')

    @property
    def name(self) -> str:
        """The first long flag, as `--participant-label`; of a positional argument its name."""
        return next((flag for flag in self.flags if flag.startswith('--')), self.flags[0])

    @property
    def key(self) -> str:
        """Its name in TOML files and among parsed arguments."""
        return self.name.lstrip('-').replace('-', '_')

    @property
    def underscored(self) -> tuple[str, ...]:
        """The long flags with underscores, which are understood as well."""
        return tuple('--' + flag[2:].replace('-', '_') for flag in self.flags if '-' in flag[2:])

    @property
    def choice_names(self) -> tuple[str, ...]:
        """The values among which it is to choose; empty if it is free."""
        return tuple(self.choices() if callable(self.choices) else self.choices)

    @property
    def value_name(self) -> str:
        """The placeholder of the value in the help; empty if there is none."""
        if self.kind in ('switch', 'count') or self.is_positional:
            return ''
        return self.metavar or '{' + ','.join(self.choice_names) + '}'

    @property
    def text(self) -> str:
        """The help with unit, limits and default."""
        default = self.default_text
        if default is None and self.kind == 'value' and self.default is not None:
            default = str(self.default)
        details = [
            ', '.join(filter(None, (self.unit, values.LIMITS.get(self.parse)))),
            f'default: {default}' if default else '',
        ]
        details = '; '.join(filter(None, details))
        return f'{self.help} ({details})' if details else self.help

    def unmet(self, values: Any) -> tuple[str, str] | None:
        """Return the first option (key, value) that this one needs and that is set otherwise; None if all are met."""
        return next(((key, value) for key, value in self.needs.items() if getattr(values, key) != value), None)

    def is_given(self, arguments: Any) -> bool:
        """Return True if parsed arguments hold another value than the default."""
        return getattr(arguments, self.key) != self.default


def option(*flags: str, help: str, **about: Any) -> Any:
    """Return a dataclass field that declares an option; see `Spec`."""
    kind = about.get('kind', 'value')
    if kind == 'list':
        about = {'default': (), 'take': tuple} | about
    elif kind == 'switch':
        about = {'default': False} | about
    spec = Spec(flags, help, **about)
    if spec.is_positional and spec.default is None:
        return field(metadata={'spec': spec})
    return field(default=spec.take(spec.default), kw_only=True, metadata={'spec': spec})


def specs_of(group: type) -> dict[str, Spec]:
    """Return the options that a group (dataclass) declares, by the names of its fields."""
    return {entry.name: entry.metadata['spec'] for entry in fields(group) if 'spec' in entry.metadata}


def suggestion(name: str, known: list[str]) -> str:
    """Return `: did you mean X?` for a name close to a known one, or nothing."""
    begun = [candidate for candidate in known if len(name) > 4 and candidate.startswith(name)]
    close = begun or difflib.get_close_matches(name, known, n=1, cutoff=0.7)
    return f': did you mean {close[0]}?' if close else ''
