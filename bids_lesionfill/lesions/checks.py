"""Quality checks of an image: on the numbers of its sidecar and its table of lesions.

What a check finds unusual need not be wrong, and what passes need not be right: it says where to look first. Limits
were set on the demo: good fills, and fills with masks that were shifted, flipped and eroded on purpose
(`benchmarks/verdicts.py`; the numbers are in the README of the benchmarks).

Contrasts are in standard deviations (SD) of white matter, so they do not depend on the scanner: the robust one over the
healthy white matter of the image, bias field included (6 and 7 % of its median in the demo).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ..modality import get
from .records import FillRecord, SynthesisRecord

if TYPE_CHECKING:
    pass


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
# Where lesions are bright nearly all are seen: up to 3 % faint in seven FLAIRs, from 21 % on if the mask was moved by
# 10 mm or flipped (benchmarks/report_checks.md).
MAX_SHARE_FAINT_BRIGHT = 0.12
# A mask at its place has a step at its border, and a larger one than the same mask anywhere near, even where lesions
# are faint on the image (`measures.place_of_mask`; benchmarks/report_checks.md).
MIN_STEP_SD, MIN_STEP_GAIN_SD = 0.3, 0.08
# Filled tissue is as bright as the white matter around it, up to the grey matter that it touches: up to 2.0 SD in good
# fills of the demo; from 3.0 on where much of a lesion was left out of the mask, or the mask lay on a ventricle.
MAX_FILL_OFF_SD = 3
# White matter that touches the filled mask and is darker (FLAIR: brighter) than that a few voxels away is lesion that
# the mask missed: the border that stays. Good fills of the demo: 0.1 on average, 0.8 at most; masks that were not
# grown: 0.5 and 1.0 to 1.4; eroded ones: 1.2 to 2.7 and 2.2 to 2.7.
MAX_BORDER_SD = 1.5
MAX_MEAN_BORDER_SD = 0.4
# What a reader complains of, see `measures`. Limits of an image, and of one lesion, which is smaller and less sure:
# real tissue in the shapes of lesions passes, fills by interpolation do not (benchmarks/report_checks.md).
# Grain of real tissue is 1, but varies; a mean without texture has 0.1 to 0.6.
GRAIN_LIMITS, LESION_GRAIN_LIMITS = (0.6, 1.6), (0.45, 2.0)
# Real white matter has 0.5 % above the 99.5th percentile. Where lesions are bright, so is dirty white matter around.
MAX_GLOW, MAX_LESION_GLOW = {-1: 0.04, 1: 0.08, None: 0.08}, 0.2
# Walls of ventricles at real tissue are as steep as elsewhere, or steeper; a mask that overlaps fluid smears them.
MIN_WALL, MIN_LESION_WALL = 0.8, 0.65
# What stays bright in the mask that was given: up to 1.4 % in FLAIRs without a rim that is seen, 8 % in one with it.
MAX_LEFT = 0.04
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
        check_place(lesions, record, modality),
        check_fill(record, lesions),
        check_border(record, lesions, modality),
        check_grain(record, lesions),
        check_glow(record, lesions, modality),
        check_wall(record, lesions),
        check_left(record),
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
    found += f', largest {largest_ml:.3g} ml'
    return Check(name, found, f'up to {MAX_LOAD_ML} ml; one lesion up to {MAX_LESION_ML} ml', sentence)


def check_contrast(
    lesions: list[dict[str, Any]],
    record: Any,
    modality: str | None,
    sentence_end: str,
    largest: float = MAX_SHARE_FAINT,
) -> Check | None:
    """Check the share of lesion volume that is hardly distinct from white matter (misplaced mask)."""
    known = [row for row in lesions if is_known(row.get('faint_percent'))]
    if not known:
        return None
    volume = sum(row['volume_mm3'] for row in known)
    share = sum(row['volume_mm3'] * row['faint_percent'] for row in known) / volume / 100
    look = look_of(modality, record)
    sentence = f'{percent(share)} of the lesions are hardly {look} than the white matter around them: {sentence_end}'
    name = f'Lesions hardly {look} than white matter'
    return Check(name, f'{percent(share)} of their volume', *limit(share, largest, sentence))


def check_place(lesions: list[dict[str, Any]], record: Any, modality: str | None) -> Check | None:
    """Check that the image steps at the border of the mask where it is, and not where it would be 6 mm away.

    Where lesions are bright all of them are seen, and few may be faint; on a T1w many are as bright as white matter.
    That share is all that is checked where a sidecar does not tell the steps (of versions before 0.3.0).
    """
    step, moved = record.mask_step, record.mask_step_moved
    end = 'is the mask at its place?'
    is_bright = sign(modality, record) == 1
    largest = MAX_SHARE_FAINT_BRIGHT if is_bright else MAX_SHARE_FAINT
    contrast = check_contrast(lesions, record, modality, end, largest)
    is_faint = is_bright and contrast is not None and not contrast.passed
    if is_faint or not (is_known(step) and is_known(moved)):
        return contrast
    look = look_of(modality, record)
    sentence = ''
    if step < MIN_STEP_SD or step - moved < MIN_STEP_GAIN_SD:
        sentence = (
            f'The image is {step:.1f} SD {look} in the mask than around it, and {moved:.1f} SD if the mask is moved by '
            f'6 mm: {end}'
        )
    name = f'Place of the mask: how much {look} it is than around it, and if it is moved by 6 mm'
    usual = f'{MIN_STEP_SD} SD or more, and {MIN_STEP_GAIN_SD} more than moved'
    return Check(name, f'{step:.2f} SD, moved {moved:.2f} SD', usual, sentence)


def check_fill(record: Any, lesions: list[dict[str, Any]]) -> Check | None:
    """Check that filled tissue is as bright as the surrounding white matter."""
    off = {row['label']: fill_off(row, record) for row in judged(lesions)}
    off = {label: value for label, value in off.items() if value is not None}
    if not off:
        return None
    unusual = sorted((label for label in off if off[label] > MAX_FILL_OFF_SD), key=lambda label: -off[label])
    sentence = f'{named(unusual)}: filled with another brightness than the white matter around has.' if unusual else ''
    found = f'{max(off.values()):.1f} SD at most'
    return Check('Intensity of the fill against white matter around', found, f'up to {MAX_FILL_OFF_SD} SD', sentence)


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
    return Check(f'Border around the mask, {look} than farther away', found, usual, sentence)


def check_grain(record: Any, lesions: list[dict[str, Any]]) -> Check | None:
    """Check that filled tissue is neither smoother nor noisier than white matter, as a whole and by lesion."""
    whole, (low, high) = record.fill_grain, GRAIN_LIMITS
    of_lesions = known(lesions, 'grain')
    if not is_known(whole):
        return None
    lowest, highest = LESION_GRAIN_LIMITS
    off = [label for label, value in of_lesions.items() if not lowest <= value <= highest]
    off.sort(key=of_lesions.__getitem__)
    sentence = ''
    if not low <= whole <= high:
        look = 'smoother, it shows as flat patches' if whole < low else 'noisier, it shows as rough patches'
        sentence = f'The filled tissue has {whole:.2g} times the grain of white matter: {look}.'
    elif off:
        sentence = f'{named(off)}: filled with another grain than white matter has.'
    found = f'{whole:.2f} times' + (f', lesions {span(of_lesions.values(), 2)}' if of_lesions else '')
    return Check(
        'Grain of the filled tissue against white matter',
        found,
        f'{low} to {high}; a lesion {lowest} to {highest}',
        sentence,
    )


def check_glow(record: Any, lesions: list[dict[str, Any]], modality: str | None) -> Check | None:
    """Check that filled tissue is not brighter than all white matter around."""
    whole, of_lesions = record.fill_glow, known(lesions, 'glow_percent')
    if not is_known(whole):
        return None
    of_lesions = {label: value / 100 for label, value in of_lesions.items()}
    highest = MAX_GLOW[sign(modality, record)]
    off = sorted((n for n in of_lesions if of_lesions[n] > MAX_LESION_GLOW), key=lambda n: -of_lesions[n])
    sentence = ''
    if whole > highest:
        sentence = f'{percent(whole)} of the filled tissue are brighter than the white matter around: it glows.'
    elif off:
        sentence = f'{named(off)}: the filling glows, brighter than the white matter around.'
    found = percent(whole) + (f', up to {percent(max(of_lesions.values()))} of one lesion' if of_lesions else '')
    usual = f'up to {percent(highest)}; of a lesion up to {percent(MAX_LESION_GLOW)}'
    return Check('Glow: filled tissue brighter than all white matter around', found, usual, sentence)


def check_wall(record: Any, lesions: list[dict[str, Any]]) -> Check | None:
    """Check that walls of ventricles at filled tissue are as steep as elsewhere."""
    whole, of_lesions = record.fill_wall, known(lesions, 'wall_steepness')
    if not is_known(whole):
        return None
    off = sorted((label for label in of_lesions if of_lesions[label] < MIN_LESION_WALL), key=of_lesions.__getitem__)
    sentence = ''
    if whole < MIN_WALL:
        sentence = f'Walls of ventricles at the filling are {whole:.2f} times as steep as elsewhere: they are smeared.'
    elif off:
        sentence = f'{named(off)}: the wall of a ventricle is smeared.'
    found = f'{whole:.2f} times' + (f', lesions {span(of_lesions.values(), 2)}' if of_lesions else '')
    usual = f'{MIN_WALL} or more; at a lesion {MIN_LESION_WALL} or more'
    return Check('Walls of ventricles at the filling: steepness against elsewhere', found, usual, sentence)


def check_left(record: Any) -> Check | None:
    """Check that no bright lesion is left in the mask that was given."""
    left = record.lesion_left
    if not is_known(left):
        return None
    sentence = f'{percent(left)} of the given mask are as bright as lesions after filling: a rim may stay at fluid.'
    return Check('Lesion left: given mask that is still bright', percent(left), *limit(left, MAX_LEFT, sentence))


def known(lesions: list[dict[str, Any]], column: str) -> dict[Any, Any]:
    """Return the values of a column that are known, by label."""
    return {row['label']: row[column] for row in lesions if is_known(row.get(column))}


def span(values: Iterable[float], digits: int) -> str:
    """Format the smallest and the largest of some values."""
    known_values = list(values)
    low, high = (f'{value:.{digits}f}' for value in (min(known_values), max(known_values)))
    return low if low == high else f'{low} to {high}'


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


def flaws(row: dict[str, Any], record: Any, modality: str | None) -> list[tuple[float, str]]:
    """Return what can be unusual about a filled lesion: list of (how unusual, words), 1 at a limit; none of a tiny one.

    Only what is measured of the lesion: a whole image may be unusual though none of its lesions is.
    """
    if not judged([row]):
        return []
    off, step = fill_off(row, record), border_step(row, record, modality)
    looks: list[Any] = [row.get(name) for name in ('grain', 'glow_percent', 'wall_steepness')]
    grain, glow, wall = looks
    found: list[tuple[float, str]] = []
    if off is not None:
        found.append((off / MAX_FILL_OFF_SD, f'filled {off:.1f} SD off the white matter around it'))
    if step is not None:
        found.append((step / MAX_BORDER_SD, f'a {look_of(modality, record)} border of {step:.1f} SD stays'))
    if is_known(grain):
        low, high = LESION_GRAIN_LIMITS
        ratio = max(low / max(grain, 0.01), grain / high)
        found.append((ratio, f'its grain is {grain:.2f} times that of white matter'))
    if is_known(glow):
        found.append((glow / 100 / MAX_LESION_GLOW, f'{glow:.0f} % glow, brighter than the white matter around'))
    if is_known(wall):
        found.append(
            (MIN_LESION_WALL / max(wall, 0.01), f'the wall of the ventricle is {wall:.2f} times as steep as elsewhere')
        )
    return found


def suspicion(row: dict[str, Any], record: Any, modality: str | None) -> float:
    """Compute how unusual a filled lesion is: 1 at a limit, 0 if unknown or tiny."""
    return max([0.0, *(ratio for ratio, _ in flaws(row, record, modality))])


def reason(row: dict[str, Any], record: Any, modality: str | None) -> str:
    """Return a sentence on what is unusual about one lesion; empty if nothing is."""
    words = [text for ratio, text in flaws(row, record, modality) if ratio > 1]
    return f'Unusual: {" and ".join(words)}.' if words else ''


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
