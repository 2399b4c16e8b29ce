"""References of the methods text: those of `references.bib`, and entries that fillers and engines bring."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

WHERE = ('journal', 'booktitle', 'school', 'howpublished')


class Reference(NamedTuple):
    """A work, and how the paragraph cites it."""

    kind: str  # of BibTeX
    fields: dict

    @property
    def cited(self) -> str:
        """Authors and year as the text has them: `Uhr, 2024`, `Salimans and Ho, 2022`, `Das et al., 2009`."""
        first, *others = (author.split(',')[0] for author in self.fields['author'].split(' and '))
        if others:
            first += f' and {others[0]}' if len(others) == 1 and others[0] != 'others' else ' et al.'
        return f'{first}, {self.fields["year"]}'

    @property
    def where(self) -> str:
        """Journal, conference, school or site."""
        return next((self.fields[name] for name in WHERE if name in self.fields), '')


def read_bibtex(text: str) -> dict[str, Reference]:
    """Return the entries of a BibTeX text, by key; one field a line, in braces."""
    entries = re.findall(r'^@(\w+)\{([^,\s]+),\n(.*?)\n\}', text, flags=re.MULTILINE | re.DOTALL)
    return {
        key: Reference(kind, dict(re.findall(r'^\s*(\w+)\s*=\s*\{(.*)\},?$', body, flags=re.MULTILINE)))
        for kind, key, body in entries
    }


REFERENCES = read_bibtex((Path(__file__).parent / 'references.bib').read_text(encoding='utf-8'))


def citation(text: str, brought: Iterable[str] = ()) -> dict[str, str]:
    """Return the contents of `logs/CITATION.md` and `.bib`: a paragraph of methods and the works that it cites.

    Parameters
    ----------
    text : str
        The paragraph.
    brought : iterable of str
        BibTeX entries of fillers and engines that are not the app's own; they are listed whether cited or not.
    """
    cited = {key: reference for key, reference in REFERENCES.items() if reference.cited in text}
    cited |= {key: reference for entry in brought for key, reference in read_bibtex(entry).items()}
    lines = [f'- {r.fields["author"]} ({r.fields["year"]}). {r.fields["title"]}. {r.where}.' for r in cited.values()]
    entries = [
        f'@{r.kind}{{{key},\n' + ',\n'.join(f'  {name} = {{{value}}}' for name, value in r.fields.items()) + '\n}'
        for key, r in cited.items()
    ]
    return {'md': f'{text}\n\n' + '\n'.join(lines) + '\n', 'bib': '\n\n'.join(entries) + '\n'}
