"""Fills the generated parts of the page of options, from the table of options."""

from bids_lesionfill.app import options_page

MARK = '<!-- options -->'


def on_page_markdown(markdown, **_):
    """Return the text of a page with its generated parts, as mkdocs asks for each page."""
    return markdown.replace(MARK, options_page.options_as_markdown() + '\n\n' + exit_codes())


def exit_codes():
    """Return the section of exit codes."""
    return '## Exit codes\n\n' + options_page.exit_codes_as_markdown()
