"""Make the generated parts of the site: options, exit codes, columns, and pages from elsewhere in the repository."""

import posixpath
import re
from pathlib import Path

from bids_lesionfill.app import options_page
from bids_lesionfill.app import parser as app_parser
from bids_lesionfill.layout import derivatives, tables

ROOT = Path(__file__).parent.parent

# Page of the site: file of the repository. Links between them are rewritten.
IMPORTED = {
    'changes.md': 'CHANGES.md',
    'contributing.md': 'CONTRIBUTING.md',
    'benchmarks/index.md': 'benchmarks/README.md',
    **{f'benchmarks/{path.name}': f'benchmarks/{path.name}' for path in (ROOT / 'benchmarks').glob('[a-z]*.md')},
    'models/index.md': 'bids_lesionfill/models/README.md',
    'models/license.md': 'bids_lesionfill/models/LICENSE.md',
    **{
        f'models/{path.parent.name}.md': path.relative_to(ROOT).as_posix()
        for path in (ROOT / 'bids_lesionfill/models').glob('*/README.md')
    },
}
OF_THICKNESS = ('MORPH_COLUMNS', 'REGION_LESION_COLUMNS', 'PHENOTYPE_COLUMNS', 'ERROR_COLUMNS', 'REGION_ERROR_COLUMNS')
COLUMNS = {'LESION_COLUMNS': derivatives.LESION_COLUMNS} | {name: getattr(tables, name) for name in OF_THICKNESS}
PAGES = {file: page for page, file in IMPORTED.items()}
LINK = re.compile(r'(!?)\[([^\]]*)\]\((?!https?:|mailto:|#)([^)#\s]+)(#[^)]*)?\)')


def on_config(config):
    """Take the address of the repository from CITATION.cff, where it is set."""
    address = re.search(r'^repository-code: *(\S+)', (ROOT / 'CITATION.cff').read_text(), re.MULTILINE)
    if address:
        config.repo_url = address[1]
    return config


def on_files(files, config):
    """Add the pages that stand elsewhere in the repository."""
    from mkdocs.structure.files import File  # tests of the other functions need no mkdocs

    for page, file in IMPORTED.items():
        files.append(File.generated(config, page, content=(ROOT / file).read_text(encoding='utf-8')))
    return files


def on_page_markdown(markdown, page, config, **_):
    """Fill in the generated parts of a page, and lead its links to pages of the site."""
    source = IMPORTED.get(page.file.src_uri, f'docs/{page.file.src_uri}')
    return filled_in(with_links(markdown, source, page.file.src_uri, config.repo_url))


def filled_in(markdown):
    """Replace the marks of a page by what they stand for."""
    markdown = markdown.replace('<!-- options -->', options_page.options_as_markdown())
    markdown = markdown.replace('<!-- help -->', help_as_markdown())
    markdown = markdown.replace('<!-- exit codes -->', options_page.exit_codes_as_markdown())
    return re.sub(r'<!-- columns (\w+) -->', lambda mark: columns_as_markdown(COLUMNS[mark[1]]), markdown)


def with_links(markdown, source, src_uri, repo_url):
    """Return a page whose relative links lead to pages of the site, or else to the repository.

    Parameters
    ----------
    markdown : str
    source : str
        Path of the page's file in the repository.
    src_uri : str
        Path of the page in the site.
    repo_url : str or None
        Address of the repository; without one, links to files outside the site become plain text.
    """

    def rewritten(match):
        mark, text, target, anchor = match.groups(default='')
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        if path.startswith('docs/') or path in PAGES:
            uri = PAGES.get(path, path.removeprefix('docs/'))
            return f'{mark}[{text}]({posixpath.relpath(uri, posixpath.dirname(src_uri) or ".")}{anchor})'
        if not (ROOT / path).exists():
            return match[0]  # `mkdocs build --strict` complains
        return f'[{text}]({repo_url.rstrip("/")}/blob/main/{path})' if repo_url else text

    return LINK.sub(rewritten, markdown)


def help_as_markdown():
    """Return the text of `--help`, as an indented block."""
    lines = app_parser.build_parser().format_help().splitlines()
    return '\n'.join(f'    {line}'.rstrip() for line in lines)


def columns_as_markdown(columns):
    """Return a table of the columns of a TSV file, from the dictionary that is its JSON sidecar."""
    lines = ['| column | meaning | unit |', '|---|---|---|']
    for name, about in columns.items():
        meaning = about['Description'].replace('|', '\\|')
        lines.append(f'| `{name}` | {meaning} | {about.get("Units", "")} |')
    return '\n'.join(lines)
