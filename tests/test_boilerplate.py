"""Facts about the paragraph for a paper and its references."""

from pathlib import Path

from bids_lesionfill import boilerplate, cli, participant


def test_methods_text_says_what_each_model_starts_from():
    options = cli.Options(Path('in'), Path('out'), modalities=('T1w', 'FLAIR'), version='1.2')
    text = boilerplate.methods_text(options, participant.plans_of(options))
    assert 'fill-T1w, starting from biharmonic interpolation; ' in text
    assert 'fill-FLAIR, starting from the mean of the white matter around)' in text
    assert 'bids_lesionfill 1.2' in text
