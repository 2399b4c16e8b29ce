"""Tables of an evaluation: scores of lesion fillers as the page shows them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from numbers import Real
from typing import Any, NamedTuple

COLOURS = {'model': '#1f6fd6', 'baseline': '#d0730f', 'control': '#7d8590'}  # apart in every colour blindness
FAMILY_WORDS = {'model': 'learned model', 'baseline': 'classical filler', 'control': 'control, nothing filled'}
DASH = '–'

KINDS = {
    'clean': 'shapes of real lesions in healthy white matter; the mask is exact',
    'rim': 'painted lesions with soft edges; the mask that the method is given is too tight or ragged',
    'confluent': 'masks of patients and large lesions, registered into healthy brains; painted up to ventricles and '
    'cortex, into which the mask laps as masks of raters do; filled by the app, and in the mask that it used',
    'confluent-tight': 'the same, with a mask that is too tight or ragged',
    'patient': "all lesions of a patient, painted into a healthy brain; the mask is the painted lesions' half maximum",
}


class Metric(NamedTuple):
    """A column of the table of scores."""

    key: str
    title: str
    hint: str
    decimals: int
    goal: str  # 'low', 'high' or 'one': which value is the best


METRICS = (
    Metric('mse', 'MSE', 'M1, low is good', 5, 'low'),
    Metric('psnr', 'PSNR', 'M1, dB, high is good', 1, 'high'),
    Metric('ssim', 'SSIM', 'M1, high is good', 3, 'high'),
    Metric('m2_mse', 'M2 MSE', 'low is good', 5, 'low'),
    Metric('m2_psnr', 'M2 PSNR', 'dB, high is good', 1, 'high'),
    Metric('m2_ssim', 'M2 SSIM', 'high is good', 3, 'high'),
    Metric('border', 'Border', 'ratio, 1 is good', 2, 'one'),
    Metric('texture', 'Texture', 'ratio, 1 is good', 2, 'one'),
    Metric('seconds', 'Seconds', 'per case', 1, 'low'),
)
METRIC = {metric.key: metric for metric in METRICS}


def describe_kind(
    kind: str, summary: Sequence[dict[str, Any]], comparisons: Sequence[dict[str, Any]], info: dict[str, Any]
) -> dict[str, Any]:
    """Return all content of the page about one kind of case, as a dict."""
    rows = [row for row in summary if row['kind'] == kind]
    dilations = sorted({row['dilation'] for row in rows}, key=str)
    chosen = (info.get('dilation') or {}).get(kind)
    dilation = chosen if chosen in dilations else dilations[0]
    overall = {other: ranked([r for r in rows if (r['dilation'], r['group']) == (other, 'all')]) for other in dilations}
    main = overall.pop(dilation)
    here = [row for row in rows if row['dilation'] == dilation]
    paired = pairs(row for row in comparisons if (row['kind'], row['dilation']) == (kind, dilation))
    methods = in_order([row['method'] for row in main + here])
    groups = in_order([row['group'] for row in here if row['group'] != 'all'])
    by_volume = [group for group in groups if group.startswith('volume')]
    by_place = [group for group in groups if group not in by_volume]
    return {
        'name': kind,
        'words': (info.get('kinds') or {}).get(kind, KINDS.get(kind, '')),
        'mask': mask_words(dilation),
        'cases': counts(main),
        'headline': headline(main, paired),
        'plotted': [row for row in main if is_number(row['mse']) and row['mse'] > 0],
        'table': score_table(main),
        'others': [(mask_words(other), score_table(table)) for other, table in overall.items() if table],
        'groups': [
            (title, group_table(here, columns, methods))
            for title, columns in (('volume', by_volume), ('place', by_place))
            if columns
        ],
        'matrix': matrix(methods, paired),
    }


def mask_words(dilation: int | str | None) -> str:
    """Describe the mask that the methods were given, such as its dilation."""
    if not dilation:
        return 'mask not dilated'
    if dilation == 'app':
        return 'mask as the app used it'
    everywhere, _, rim = str(dilation).partition('+')
    if rim:
        return f'mask dilated by {everywhere}, rim by {rim} more'
    return f'mask dilated by {everywhere} voxel{"s" if everywhere != "1" else ""}'


def headline(rows: list[dict[str, Any]], paired: Any) -> dict[str, str]:
    """Compare the best model with the best classical filler: text, and 'good', 'bad' or 'neutral'."""
    metric = next((m for m in (METRIC['mse'], METRIC['border']) if any(is_number(row[m.key]) for row in rows)), None)
    if metric is None:
        return {'text': 'there is nothing to compare.', 'verdict': 'neutral'}
    best: dict[str, Any] = {
        family: best_row([row for row in rows if row['family'] == family], metric) for family in COLOURS
    }
    words = [
        f'best {name} {best[family]["method"]}, {metric.title}{" ratio" if metric.goal == "one" else ""} '
        f'{with_interval(best[family], metric)}'
        if best[family]
        else f'no {name} was scored'
        for family, name in (('model', 'model'), ('baseline', 'classical filler'))
    ]
    text, verdict = '; '.join(words) + '.', 'neutral'
    if metric.key != 'mse':
        return {'text': f'no error was measured. Nearest to 1: {text}', 'verdict': verdict}
    if best['model'] and best['baseline']:
        pair = paired.get((best['model']['method'], best['baseline']['method']))
        if pair is None:
            return {'text': f'{text} They were not compared case by case.', 'verdict': verdict}
        verdict = {'low': 'good', 'high': 'bad', 'none': 'neutral'}[side(pair)]
        meaning = {
            'low': 'the interval excludes zero, the model is better.',
            'high': 'the interval excludes zero, the classical filler is better.',
            'none': 'the interval does not exclude zero, neither is shown to be better.',
        }[side(pair)]
        difference, low, high = (number(pair[key], metric.decimals) for key in ('difference', 'low', 'high'))
        text += f' Difference case by case {difference} ({low} to {high}, {pair["n"]} cases): {meaning}'
    return {'text': text, 'verdict': verdict}


def score_table(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """Return methods by metrics, without metrics that have no value, and mark the best filler of each."""
    metrics = [metric for metric in METRICS if any(is_number(row.get(metric.key)) for row in rows)]
    best = {metric: best_row([row for row in rows if row['family'] != 'control'], metric) for metric in metrics}
    return {
        'metrics': metrics,
        'rows': [row | {'cells': [cell(row, metric, best[metric]) for metric in metrics]} for row in rows],
    }


def group_table(rows: list[dict[str, Any]], groups: Sequence[str], methods: Sequence[str]) -> dict[str, list[Any]]:
    """Return the table of methods by groups of cases, MSE only."""
    metric = METRIC['mse']
    columns = []
    for group in groups:
        members = {row['method']: row for row in rows if row['group'] == group}
        best = best_row([row for row in members.values() if row['family'] != 'control'], metric)
        title = group.removeprefix('volume').strip()
        columns.append((title, counts(list(members.values())), [cell(members.get(m), metric, best) for m in methods]))
    families = {row['method']: row['family'] for row in rows}
    return {
        'columns': [(title, cases) for title, cases, _ in columns],
        'rows': [
            {'method': method, 'family': families[method], 'cells': [cells[n] for _, _, cells in columns]}
            for n, method in enumerate(methods)
        ],
    }


def cell(row: dict[str, Any] | None, metric: Metric, best: dict[str, Any] | None) -> dict[str, Any]:
    """Return one score: its text, interval, sort value, and a flag if no filler is better."""
    row = row or {'family': 'control'}
    value: Any = row.get(metric.key)
    low, high = (row.get(f'{metric.key}_{end}') for end in ('low', 'high'))
    known = is_number(value)
    return {
        'text': number(value, metric.decimals),
        'interval': f'{number(low, metric.decimals)}–{number(high, metric.decimals)}' if is_number(low, high) else '',
        'value': float(value) if known else '',
        'best': known and best is not None and row['family'] != 'control' and value == best[metric.key],
    }


def matrix(methods: Sequence[str], paired: dict[tuple[str, str], dict[str, Any]]) -> dict[str, list[Any]] | None:
    """Return MSE differences, row method minus column method; None if there is no pair."""
    methods = [method for method in methods if any((method, other) in paired for other in methods)]
    rows = [(method, [difference_cell(paired.get((method, other))) for other in methods]) for method in methods]
    return {'methods': methods, 'rows': rows} if rows else None


def difference_cell(pair: Any) -> dict[str, str] | None:
    """Return one paired difference as text with its colour class; None if nothing was compared."""
    if pair is None:
        return None
    difference, low, high = (number(pair[key], METRIC['mse'].decimals) for key in ('difference', 'low', 'high'))
    sign = '+' if is_number(pair['difference']) and pair['difference'] > 0 else ''
    return {'text': sign + difference, 'side': side(pair), 'interval': f'{low} to {high}, {pair["n"]} cases'}


def pairs(comparisons: Iterable[dict[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
    """Return paired MSE differences by (method, other), in both directions."""
    found = {}
    for row in comparisons:
        if row['metric'] == 'mse':
            back = {'difference': -row['difference'], 'low': -row['high'], 'high': -row['low'], 'n': row['n']}
            found[row['method'], row['other']] = row
            found.setdefault((row['other'], row['method']), back)
    return found


def side(pair: dict[str, Any]) -> str:
    """Return the side of zero of an interval: 'low', 'high', or 'none' (contains it, or unknown)."""
    if not is_number(pair['low'], pair['high']):
        return 'none'
    return 'low' if pair['high'] < 0 else 'high' if pair['low'] > 0 else 'none'


def ranked(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Sort rows by MSE, the best first and unknown ones last."""
    return sorted(rows, key=lambda row: row['mse'] if is_number(row['mse']) else math.inf)


def best_row(rows: list[dict[str, Any]], metric: Metric) -> dict[str, Any] | None:
    """Return the row with the best value of a metric; None if no row has a value."""
    badness = {'low': float, 'high': lambda value: -value, 'one': lambda value: abs(value - 1)}[metric.goal]
    known = [row for row in rows if is_number(row.get(metric.key))]
    return min(known, key=lambda row: badness(row[metric.key]), default=None)


def with_interval(row: dict[str, Any], metric: Metric) -> str:
    """Format a score as `0.00121 (0.00101 to 0.00143)`, or the value alone."""
    value, low, high = (row.get(key) for key in (metric.key, f'{metric.key}_low', f'{metric.key}_high'))
    interval = f' ({number(low, metric.decimals)} to {number(high, metric.decimals)})' if is_number(low, high) else ''
    return number(value, metric.decimals) + interval


def counts(rows: list[dict[str, Any]]) -> str:
    """Return the number of cases, as a range if the methods differ."""
    numbers = sorted({row['n'] for row in rows})
    return ' to '.join(str(n) for n in dict.fromkeys((numbers[0], numbers[-1]))) if numbers else '0'


def number(value: Any, decimals: int) -> str:
    """Format a number with fixed decimals and a true minus sign, never `-0.0`; a dash if unknown."""
    return f'{round(float(value), decimals) + 0.0:.{decimals}f}'.replace('-', '−') if is_number(value) else DASH


def is_number(*values: Any) -> bool:
    """Return True if all values are finite ints or floats, of Python or numpy."""
    return all(isinstance(value, Real) and math.isfinite(value) for value in values)


def in_order(names: Iterable[str], known: Iterable[str] = ()) -> list[str]:
    """Return unique names: known ones in their order, then the others as they appear."""
    names = list(dict.fromkeys(names))
    return [name for name in known if name in names] + [name for name in names if name not in known]
