"""`python -m bids_lesionfill.score TRUTH PREDICTION OUT`: score lesion masks of a segmenter against true ones."""

import argparse
import logging
import math
import shlex
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from .. import text_files
from ..layout import errors
from . import cases, outputs

logger = logging.getLogger('bids_lesionfill')


OK, SOME_FAILED, USAGE = 0, 1, 2
SCORED = 'scored'


def build_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        prog='python -m bids_lesionfill.score',
        description='Score predicted lesion masks against true ones: detection of lesions by volume, contrast, place '
        'and visibility, false lesions, Dice, volume. Writes tables, JSON and one page with the missed lesions.',
        epilog='exit codes: 0 all scans were scored; 1 some were not (see OUT/scans.tsv), or OUT cannot be written; '
        '2 usage',
    )
    parser.add_argument('truth', type=Path, help='BIDS derivative with true masks, or the output of --mode synth')
    parser.add_argument(
        'prediction',
        type=Path,
        help='BIDS derivative with predicted masks, or a folder of LST-AI, SAMSEG, nnU-Net or MindGlide',
    )
    parser.add_argument('out', type=Path, help='folder to write to: new, empty, or of an earlier run')
    parser.add_argument(
        '--lesions',
        choices=['new', 'all'],
        default='new',
        help="of the output of --mode synth: the new lesions are the truth and the patient's own are ignored, or all "
        'are the truth (default: %(default)s)',
    )
    parser.add_argument('--truth-desc', metavar='NAME', help='desc- of the true masks; of variants: synth2')
    parser.add_argument('--prediction-desc', metavar='NAME', help='desc- of the predicted masks')
    parser.add_argument('--space', metavar='NAME', help='space- of the masks (default: that of the participant)')
    parser.add_argument(
        '--images',
        type=Path,
        metavar='BIDS_DIR',
        help='T1w and FLAIR for contrast and pictures (default: the raw dataset of the truth; of --mode synth always '
        'the synthetic images)',
    )
    parser.add_argument(
        '--mask-threshold', type=share, default=0.5, metavar='P', help='of probabilities (default: 0.5)'
    )
    parser.add_argument(
        '--min-volume-mm3', type=not_negative, default=3.0, metavar='MM3', help='smallest lesion (default: 3)'
    )
    parser.add_argument('--min-iou', type=share, default=0.1, metavar='IOU', help='of a detected lesion (default: 0.1)')
    parser.add_argument(
        '--volume-edges-ml',
        type=edges,
        default=(0.01, 0.1, 1.0),
        metavar='ML,ML,...',
        help='between classes of volume (default: 0.01,0.1,1)',
    )
    parser.add_argument('--pictures', type=count, default=12, metavar='N', help='up to N missed lesions (default: 12)')
    visits = parser.add_argument_group('Changes between visits', 'new, grown, shrunk and resolved lesions')
    visits.add_argument(
        '--pairs',
        action='store_true',
        help='score changes between consecutive sessions, whose images share one scanner space (are registered)',
    )
    visits.add_argument(
        '--baseline-prediction',
        type=Path,
        metavar='DIR',
        help='predicted masks of the first visit; TRUTH and PREDICTION are of the second',
    )
    visits.add_argument(
        '--baseline-truth',
        type=Path,
        metavar='DIR',
        help="true masks of the first visit (default: the patient's own lesions of --mode synth)",
    )
    visits.add_argument(
        '--min-change',
        type=not_negative,
        default=0.25,
        metavar='SHARE',
        help='of volume, of a lesion that has grown or shrunk (default: 0.25)',
    )
    return parser


def share(text: str) -> float:
    """Read a number above 0 and up to 1."""
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f'{text} is not above 0 and up to 1')
    return value


def not_negative(text: str) -> float:
    """Read a finite number from 0 on."""
    value = float(text)
    if not (math.isfinite(value) and value >= 0):
        raise argparse.ArgumentTypeError(f'{text} is not a number from 0 on')
    return value


def count(text: str) -> int:
    """Read a whole number from 0 on."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f'{text} is below 0')
    return value


def edges(text: str) -> tuple[float, ...]:
    """Read rising numbers above 0, separated by commas."""
    values = tuple(float(part) for part in text.split(','))
    if any(not 0 < value < math.inf for value in values) or list(values) != sorted(set(values)):
        raise argparse.ArgumentTypeError(f'{text} are not rising numbers above 0')
    return values


def main(argv: list[str]) -> int:
    """Score a prediction; return 0, 1 (some scans were not scored) or 2 (usage)."""
    options = build_parser().parse_args(argv)
    logging.basicConfig(format='%(levelname)s %(message)s', stream=sys.stderr, level=logging.INFO)
    try:
        check(options)
        found = find(options)
        return score(options, found, shlex.join(['python', '-m', 'bids_lesionfill.score', *argv]))
    except errors.UsageError as error:
        logger.error('%s', error)
        return USAGE
    except OSError as error:  # a full or read-only disk, a folder that cannot be read
        logger.error('%s', errors.in_words(error))
        return SOME_FAILED


def check(options: argparse.Namespace) -> None:
    """Raise UsageError if the folders do not fit."""
    given = [options.truth, options.prediction, options.images, options.baseline_truth, options.baseline_prediction]
    given = [folder for folder in given if folder is not None]
    for folder in given:
        if not folder.is_dir():
            raise errors.UsageError(f'{folder} is not a folder')
    if options.baseline_truth and not options.baseline_prediction:
        raise errors.UsageError('--baseline-truth needs --baseline-prediction: changes are scored of both')
    outputs.check_output_dir(options.out, [options.truth, options.prediction, *given[2:]])


def find(options: argparse.Namespace) -> tuple[list[cases.Case], list[tuple[cases.Case, cases.Case]]]:
    """Find the scans, and of each pair of visits the baseline: (list of Case, list of (baseline Case, Case))."""
    choice = cases.Choice(options.truth_desc, options.prediction_desc, options.lesions, options.space)
    found = cases.find_cases(options.truth, options.prediction, choice, options.images)
    if all(case.problem for case in found):
        problems = '; '.join(sorted({case.problem for case in found}))
        raise errors.UsageError(f'no scan of {options.truth} can be scored with {options.prediction}: {problems}')
    pairs = cases.pair_sessions(found) if options.pairs else []
    if options.baseline_prediction:
        choice = replace(choice, lesions='new')  # the others are the truth of baseline
        first = cases.find_cases(options.baseline_truth or options.truth, options.baseline_prediction, choice)
        second = cases.find_cases(options.truth, options.prediction, choice)
        if not options.baseline_truth and not any(case.all_lesions_file for case in second):
            raise errors.UsageError(f'{options.truth} does not tell new lesions from old ones: give --baseline-truth')
        by_scan = {case.scan: case for case in first}
        pairs += [(by_scan[case.scan], case) for case in second if case.scan in by_scan]
    pairs = [pair for pair in pairs if not any(case.problem for case in pair)]
    if (options.pairs or options.baseline_prediction) and not pairs:
        raise errors.UsageError('no participant has true and predicted masks of two visits: no changes to score')
    return found, pairs


def score(options: argparse.Namespace, found: Any, command: str) -> int:
    """Score all scans and pairs, and write what was found; return an exit code."""
    from . import page, tables

    found, pairs = found
    scans, lesions, false_lesions = [], [], []
    for case in found:
        names = {'participant_id': case.participant, 'session_id': case.session, 'scan': case.scan}
        try:
            if case.problem:
                raise ValueError(case.problem)
            scores, of_scan, false_of_scan, _ = score_case(case, options)
        except ValueError as error:
            logger.warning('%s: %s', case.scan, error)
            scans.append(names | {'status': f'{error}'})
            continue
        scans.append(names | {'status': SCORED} | scores)
        lesions += [names | row for row in of_scan]
        false_lesions += [names | row for row in false_of_scan]
        logger.info('%s: Dice %.2f, %d of %d lesions', case.scan, scores['dice'], scores['detected_iou'], len(of_scan))
    changes = score_pairs(pairs, options)
    scored = [row for row in scans if row['status'] == SCORED]
    summary = tables.summarise(scored)
    detection = tables.detection_rows(lesions, options.volume_edges_ml)
    for name in dict.fromkeys(row['participant_id'] for row in scored):
        own = [row for row in lesions if row['participant_id'] == name]
        detection += tables.detection_rows(own, options.volume_edges_ml, participant=name)
    settings = settings_of(options)
    version = read_version()
    about: dict[str, Any] = {'Command': command, 'Settings': settings, 'Group': summary}
    about['Detection'] = [row for row in detection if row['participant_id'] == tables.ALL]
    about |= {'Scans': scans, 'Changes': changes}
    outputs.write_summary(options.out, about, version)
    outputs.write_table(options.out, 'scans', scans, tables.SCANS)
    outputs.write_table(options.out, 'lesions', lesions, tables.LESIONS)
    outputs.write_table(options.out, 'false_lesions', false_lesions, tables.FALSE_LESIONS)
    outputs.write_table(options.out, 'detection', detection, tables.DETECTION)
    if changes:
        outputs.write_table(options.out, 'changes', changes, tables.CHANGES)
    else:
        outputs.remove_table(options.out, 'changes')
    missed = [row for row in lesions if not row['detected_iou']]
    false = [row for row in false_lesions if row['false_iou']]
    content: dict[str, Any] = {'version': version, 'command': command, 'settings': settings, 'scans': scans}
    content |= {'summary': summary, 'detection': detection, 'changes': changes}
    content |= {'n_missed': len(missed), 'n_false': len(false)}
    content['missed'] = picture(missed, options.pictures, found, options, 'lesion')
    content['wrong'] = picture(false, options.pictures // 2, found, options, 'predicted lesion')
    page.write(options.out / outputs.PAGE, content)
    print_summary(summary, about['Detection'])
    logger.info('%s', options.out / outputs.PAGE)
    return OK if len(scored) == len(scans) else SOME_FAILED


def read_version() -> str:
    """Return the version of the app."""
    from importlib import metadata

    return metadata.version('bids_lesionfill')


def score_case(case: cases.Case, options: argparse.Namespace) -> tuple[Any, ...]:
    """Score one scan; see `tables.score_scan`."""
    from . import loading, tables

    loaded = loading.load(case, options.mask_threshold)
    known = text_files.read_tsv(case.table_file) if case.table_file else ()
    return tables.score_scan(loaded, options.min_volume_mm3, options.min_iou, options.volume_edges_ml, known)


def score_pairs(pairs: list[tuple[cases.Case, cases.Case]], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Score the changes of each pair of visits; rows, see `tables.CHANGES`."""
    from . import loading, tables

    rows = []
    for before, after in pairs:
        try:
            truths, predictions, voxel_mm3 = loading.load_pair(before, after, options.mask_threshold)
        except ValueError as error:
            logger.warning('%s and %s: %s', before.scan, after.scan, error)
            continue
        names = {'participant_id': after.participant, 'baseline': before.scan, 'followup': after.scan}
        rows += [
            names | row
            for row in tables.score_changes(
                truths, predictions, voxel_mm3, options.min_volume_mm3, options.min_iou, options.min_change
            )
        ]
    return rows


def picture(
    rows: list[dict[str, Any]], n_largest: int, found: Iterable[cases.Case], options: argparse.Namespace, kind: str
) -> list[dict[str, Any]]:
    """Picture the largest of some lesions: list of dict with `title`, `caption`, `pictures`; none without images."""
    from . import loading, page

    chosen = sorted(rows, key=lambda row: -row['volume_mm3'])[:n_largest]
    by_scan = {case.scan: case for case in found}
    entries = {}
    for scan in dict.fromkeys(row['scan'] for row in chosen):  # each scan is read once more, and let go
        case = by_scan[scan]
        if not case.images:
            continue
        loaded = loading.load(case, options.mask_threshold)
        for number, row in enumerate(chosen):
            if row['scan'] == scan:
                outlines = {'truth': loaded.truth} if kind == 'lesion' else {'prediction': loaded.prediction}
                if kind == 'lesion' and row['covered_percent'] > 0:
                    outlines['prediction'] = loaded.prediction
                centre_mm = row['x_mm'], row['y_mm'], row['z_mm']
                entries[number] = describe(row, kind) | {'pictures': page.picture_lesion(loaded, centre_mm, outlines)}
    return [entries[number] for number in sorted(entries) if entries[number]['pictures']]


def describe(row: dict[str, Any], kind: str) -> dict[str, str]:
    """Describe a lesion in words: dict with `title` and `caption`."""
    title = f'{row["scan"]}, {kind} {row["label"]}: {row["volume_mm3"]:.0f} mm³'
    words = [f'Centre at {row["x_mm"]:.0f}, {row["y_mm"]:.0f}, {row["z_mm"]:.0f} mm; IoU {row["iou"]:.2f}']
    if 'place' in row:
        words += [row['place']] if row['place'] != 'unknown' else []
        words += [f'visibility: {row["visibility"]}', f'{row["covered_percent"]:.0f} % of it predicted']
    return {'title': title, 'caption': '; '.join(words) + '.'}


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    """Return what the scores depend on, for the JSON and the page."""
    return {
        'Truth': f'{options.truth}',
        'Prediction': f'{options.prediction}',
        'Lesions': options.lesions,
        'MinVolumeMm3': options.min_volume_mm3,
        'MinIoU': options.min_iou,
        'MaskThreshold': options.mask_threshold,
        'VolumeEdgesMl': list(options.volume_edges_ml),
        'MinChange': options.min_change,
    }


def print_summary(summary: dict[str, dict[str, float]], detection: list[dict[str, Any]]) -> None:
    """Print the scores of the group, and the detection by class."""
    names = ('dice', 'volume_error_absolute_ml', 'false_lesions_overlap', 'false_lesions_iou', 'f1_overlap', 'f1_iou')
    for name in names:
        print(f'{name:28} {summary[name]["mean"]:8.3f}')
    print(f'\n{"group":16}{"class":24}{"lesions":>8}{"overlap":>9}{"iou":>9}')
    for row in detection:
        print(
            f'{row["group"]:16}{row["class"]:24}{row["n_lesions"]:8}'
            f'{row["sensitivity_overlap"]:9.2f}{row["sensitivity_iou"]:9.2f}'
        )


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
