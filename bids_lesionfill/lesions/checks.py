"""Quality checks of an image: on the numbers of its sidecar and its table of lesions.

What a check finds unusual need not be wrong, and what passes need not be right: it says where to look first. Limits
were set on the demo: good fills, and fills with masks that were shifted, flipped and eroded on purpose
(`benchmarks/verdicts.py`; the numbers are in the README of the benchmarks).

Contrasts are in standard deviations (SD) of white matter, so they do not depend on the scanner: the robust one over the
healthy white matter of the image, bias field included (6 and 7 % of its median in the demo).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ..modality import get
from .records import FillRecord, SynthesisRecord


def warnings_of(checks: Sequence[Check]) -> list[str]:
    """Return the sentences of failed checks, to be read before trusting the result."""
    return [check.sentence for check in checks if not check.passed]


# One lesion of the mask belongs to something else (an infarct, a cavity), or a whole tissue was labelled. The largest
# of 3115 lesions in the bundled library of 30 patients has 47 ml, and the highest load is 52 ml.
MAX_LESION_ML = 60
MAX_LOAD_ML = 100
# Raters put a few voxels into cortex or ventricles; more, and mask and image do not lie on each other.
MAX_SHARE_DROPPED = 0.1
MAX_SHARE_OUTSIDE_BRAIN = 0.05
# Lesions are darker (FLAIR: brighter) than the white matter around them, or the mask lies elsewhere. A voxel counts as
# faint if it is not so by this much. Good masks of the demo: 17 and 15 % of the volume; shifted by 3 or 6 mm, or
# flipped: 36 to 63 %. Lesions that are seen on FLAIR alone add to it, so the limit is not tighter.
FAINT_BELOW_SD = 0.5
MAX_SHARE_FAINT = 0.3
# Filled tissue is as bright as the white matter around it, up to the grey matter that it touches: up to 2.0 SD in good
# fills of the demo; from 3.0 on where much of a lesion was left out of the mask, or the mask lay on a ventricle.
MAX_FILL_OFF_SD = 3
# White matter that touches the filled mask and is darker (FLAIR: brighter) than that a few voxels away is lesion that
# the mask missed: the border that stays. Good fills of the demo: 0.1 on average, 0.8 at most; masks that were not
# grown: 0.5 and 1.0 to 1.4; eroded ones: 1.2 to 2.7 and 2.2 to 2.7.
MAX_BORDER_SD = 1.5
MAX_MEAN_BORDER_SD = 0.4
MIN_JUDGED_MM3 = 30  # means of fewer voxels are noise

MAX_NAMED = 6  # lesions in a sentence


class Check(NamedTuple):
    """One thing that was looked at."""

    name: str
    found: str  # the number, in words
    usual: str  # what it should be
    sentence: str = ''  # what a person should look at; empty if all is as usual

    @property
    def passed(self) -> bool:
        """True if all is as usual."""
        return not self.sentence


def check_filling(record: FillRecord, lesions: list[dict], modality: str | None) -> list[Check]:
    """Check a filled image; return a list of Check, without those that lack data.

    Parameters
    ----------
    record : FillRecord
        Of the filling, or read from its sidecar.
    lesions : list of dict
        See `fill.describe_lesions`.
    modality : str
        Its lesions have a usual sign; if not, that which was measured (`record.lesion_sign`) counts.
    """
    checks = [
        check_dropped(record),
        check_outside_brain(record),
        check_size(record, lesions, 'Volume that was filled'),
        check_contrast(lesions, record, modality, 'is the mask at its place?'),
        check_fill(record, lesions),
        check_border(record, lesions, modality),
    ]
    return [check for check in checks if check is not None]


def check_synthesis(record: SynthesisRecord, lesions: list[dict], modality: str | None) -> list[Check]:
    """Check an image with new lesions; see `check_filling`."""
    checks = [
        check_touching(record),
        check_size(record, lesions, 'Volume of new lesions'),
        check_contrast(lesions, record, modality, 'they will be hard to see.'),
    ]
    return [check for check in checks if check is not None]


def check_dropped(record: Any) -> Check | None:
    """Check the share of the mask that was not filled because it does not touch white matter."""
    given, dropped, n_lesions = record.lesion_voxels_given, record.lesion_voxels_dropped, record.lesions_dropped
    if not given or dropped is None:
        return None
    share = dropped / given
    sentence = (
        f'{percent(share)} of the mask ({count(n_lesions, "lesion")}) touches no white matter and was not '
        'filled: is the mask at its place, and was white matter found?'
    )
    found = percent(share)
    if dropped:
        found += f' ({count(n_lesions, "lesion")})'
    return Check('Mask away from white matter, not filled', found, *limit(share, MAX_SHARE_DROPPED, sentence))


def check_outside_brain(record: Any) -> Check | None:
    """Check the share of the mask that lies outside the brain."""
    given, outside = record.lesion_voxels_given, record.lesion_voxels_outside_brain
    if not given or outside is None:
        return None
    share = outside / given
    sentence = f'{percent(share)} of the mask lies outside the brain: are mask and image in the same space?'
    return Check('Mask outside the brain', percent(share), *limit(share, MAX_SHARE_OUTSIDE_BRAIN, sentence))


def check_size(record: Any, lesions: list[dict[str, Any]], name: str) -> Check | None:
    """Return how large the largest lesion and all lesions are, as they were filled or painted."""
    if not lesions:
        return None
    volumes_ml = [row['volume_mm3'] / 1000 for row in lesions]
    load_ml, largest_ml = sum(volumes_ml), max(volumes_ml)
    found, sentence = f'{load_ml:.3g} ml', ''
    if record.brain_volume_ml:
        found += f', {percent(load_ml / record.brain_volume_ml)} of the brain'
    if load_ml > MAX_LOAD_ML:
        sentence = f'The lesions have {load_ml:.0f} ml: more than most patients have. Is the mask one of lesions?'
    elif largest_ml > MAX_LESION_ML:
        label = lesions[volumes_ml.index(largest_ml)]['label']
        sentence = f'Lesion {label:.0f} has {largest_ml:.0f} ml: larger than lesions of multiple sclerosis mostly are.'
    return Check(name, found, f'up to {MAX_LOAD_ML} ml', sentence)


def check_contrast(lesions: list[dict[str, Any]], record: Any, modality: str | None, sentence_end: str) -> Check | None:
    """Check the share of lesion volume that is hardly distinct from white matter (misplaced mask)."""
    known = [row for row in lesions if is_known(row.get('faint_percent'))]
    if not known:
        return None
    volume = sum(row['volume_mm3'] for row in known)
    share = sum(row['volume_mm3'] * row['faint_percent'] for row in known) / volume / 100
    look = look_of(modality, record)
    sentence = f'{percent(share)} of the lesions are hardly {look} than the white matter around them: {sentence_end}'
    name = f'Lesions hardly {look} than white matter'
    return Check(name, f'{percent(share)} of their volume', *limit(share, MAX_SHARE_FAINT, sentence))


def check_fill(record: Any, lesions: list[dict[str, Any]]) -> Check | None:
    """Check that filled tissue is as bright as the surrounding white matter."""
    off = {row['label']: fill_off(row, record) for row in judged(lesions)}
    off = {label: value for label, value in off.items() if value is not None}
    if not off:
        return None
    unusual = sorted((label for label in off if off[label] > MAX_FILL_OFF_SD), key=lambda label: -off[label])
    sentence = f'{named(unusual)}: filled with another brightness than the white matter around has.' if unusual else ''
    found = f'{max(off.values()):.1f} SD at most'
    return Check('Filled tissue against white matter around', found, f'up to {MAX_FILL_OFF_SD} SD', sentence)


def check_border(record: Any, lesions: list[dict[str, Any]], modality: str | None) -> Check | None:
    """Check that no border of lesion remains around the filled voxels."""
    steps = {row['label']: border_step(row, record, modality) for row in judged(lesions)}
    steps = {label: step for label, step in steps.items() if step is not None}
    if not steps:
        return None
    volumes = {row['label']: row['volume_mm3'] for row in lesions}
    mean = sum(volumes[label] * step for label, step in steps.items()) / sum(volumes[label] for label in steps)
    unusual = sorted((label for label in steps if steps[label] > MAX_BORDER_SD), key=lambda label: -steps[label])
    look = look_of(modality, record)
    if mean > MAX_MEAN_BORDER_SD:
        sentence = f'White matter that touches the mask is {look} than farther away: a border stays.'
    else:
        sentence = f'{named(unusual)}: a {look} border stays around the mask.' if unusual else ''
    found = f'{mean:.1f} SD on average, {max(steps.values()):.1f} at most'
    usual = f'up to {MAX_MEAN_BORDER_SD} and {MAX_BORDER_SD} SD'
    return Check(f'{look.capitalize()} border around the mask', found, usual, sentence)


def check_touching(record: Any) -> Check | None:
    """Check that new lesions do not touch old ones."""
    touching = record.new_lesions_touching_old
    if touching is None:
        return None
    sentence = (
        f'{count(touching, "new lesion")} touch{"es" if touching == 1 else ""} an old one: in the mask of all lesions '
        'they are one.'
    )
    return Check('New lesions that touch old ones', str(touching), 'none', sentence if touching else '')


def suspicion(row: dict[str, Any], record: Any, modality: str | None) -> float:
    """Compute how unusual a filled lesion is: 1 at a limit, 0 if unknown or tiny."""
    if not judged([row]):
        return 0.0
    off, step = fill_off(row, record), border_step(row, record, modality)
    return max((off or 0) / MAX_FILL_OFF_SD, (step or 0) / MAX_BORDER_SD, 0.0)


def reason(row: dict[str, Any], record: Any, modality: str | None) -> str:
    """Return a sentence on what is unusual about one lesion; empty if nothing is."""
    if suspicion(row, record, modality) <= 1:
        return ''
    off, step = fill_off(row, record) or 0, border_step(row, record, modality) or 0
    words = [f'filled {off:.1f} SD off the white matter around it'] if off > MAX_FILL_OFF_SD else []
    words += [f'a {look_of(modality, record)} border of {step:.1f} SD stays'] if step > MAX_BORDER_SD else []
    return f'Unusual: {" and ".join(words)}.'


def fill_off(row: dict[str, Any], record: Any) -> float | None:
    """Compute the difference of filled to surrounding white matter, in SD; None if unknown."""
    return in_sd(row, record, 'mean_after', 'mean_surrounding', abs)


def border_step(row: dict[str, Any], record: Any, modality: str | None) -> float | None:
    """Compute how much more lesion-like touching white matter is than that beyond, in SD, or None."""
    lesion_sign = sign(modality, record) or 0
    return in_sd(row, record, 'mean_touching', 'mean_beyond', lambda difference: lesion_sign * difference)


def in_sd(row: dict[str, Any], record: Any, column: str, reference: str, of: Callable) -> float | None:
    """Compute a difference of two means of a lesion in SD of white matter; None if one is unknown."""
    sd = record.white_matter_deviation
    values: tuple[Any, Any] = row.get(column), row.get(reference)
    return of(values[0] - values[1]) / sd if sd and all(map(is_known, values)) else None


def sign(modality: str | None, record: Any = None) -> Any:
    """Return the usual sign of the contrast of lesions; where there is none, the one that was measured, or None."""
    return get(modality).lesion_sign or (record.lesion_sign if isinstance(record, FillRecord) else None)


def look_of(modality: str | None, record: Any = None) -> str:
    """Return how lesions look next to white matter."""
    return {1: 'brighter', -1: 'darker', None: 'different'}[sign(modality, record)]


def is_known(value: Any) -> bool:
    """Return True if a value is a finite number."""
    return value is not None and math.isfinite(value)


def judged(lesions: list[dict[str, Any]]) -> list[Any]:
    """Return the lesions that are large enough for their means to be judged."""
    return [row for row in lesions if row['volume_mm3'] >= MIN_JUDGED_MM3]


def limit(share: float, largest: float, sentence: str) -> tuple[str, str]:
    """Return the usual range of a share as text, and the sentence if the share exceeds it."""
    return f'up to {percent(largest)}', sentence if share > largest else ''


def percent(share: float) -> str:
    """Format a share as a percentage, with one significant digit below 1 %."""
    return f'{100 * share:.1g} %' if 0 < share < 0.01 else f'{100 * share:.0f} %'


def count(number: int, name: str) -> str:
    """Format a number with its noun, in the plural unless it is 1."""
    return f'{number} {name}{"" if number == 1 else "s"}'


def named(labels: Sequence[Any]) -> str:
    """Format lesions by number: the first few, and how many more there are."""
    shown = ', '.join(f'{label:.0f}' for label in labels[:MAX_NAMED])
    more = f' and {len(labels) - MAX_NAMED} more' if len(labels) > MAX_NAMED else ''
    return f'Lesion{"" if len(labels) == 1 else "s"} {shown}{more}'
