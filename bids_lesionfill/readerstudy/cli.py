"""Can readers tell a synthetic lesion from real ones? The reader study of the thesis (3.5, 4.1), blinded and scored.

`python -m bids_lesionfill.readerstudy make BIDS_DIR STUDY_DIR --model MODEL` replaces one of the largest lesions of
every patient by a synthetic one; it writes what readers are given, and the sealed key into another folder.
`python -m bids_lesionfill.readerstudy score STUDY_DIR FORM.tsv ...` sets what they found against guessing.
"""

import argparse
import itertools
import logging
import secrets
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jinja2
import nibabel as nib
import numpy as np

from .. import statistics, text_files
from ..diffusion import models
from ..layout import datasets, errors, naming
from ..layout import files as layout_files
from ..modality import MODALITIES
from . import cases as readerstudy_cases

logger = logging.getLogger('bids_lesionfill.readerstudy')

TEMPLATE = 'readerstudy.md.jinja'
SYNTHESIZED = [name for name in MODALITIES if MODALITIES[name].synth_model]
USAGE = 2  # exit code
FEWEST_STEPS = 20  # one step gives the mean, and the image's own noise there is that of the lesion to be replaced
FORM_COLUMNS = ['case', 'lesion', 'confidence', 'comment']
CONFIDENCES = range(1, 6)
SCORES = ('readers', 'confidences', 'agreement', 'answers')  # what `score` writes into `scores.json`


def make(options: argparse.Namespace) -> None:
    """Write a study: what readers are given into `options.study_dir`, the key into `options.key_dir`.

    Raises
    ------
    UsageError, FileNotFoundError
        If there can be no such study; nothing was written then.
    """
    for folder in (options.study_dir, options.key_dir):
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise errors.UsageError(f'{folder} is not empty, expected a new folder: a study is never overwritten')
    if options.key_dir.resolve().is_relative_to(options.study_dir.resolve()):
        raise errors.UsageError(f'--key {options.key_dir} lies in STUDY_DIR, which readers are given')
    model, patients = load_model(options), find_patients(options)
    steps = options.num_inference_steps or max(model.plan['num_inference_steps'], FEWEST_STEPS)
    # A seed that nobody can guess also keeps the key from being guessed and checked against its hash.
    random_seed = secrets.randbits(63) if options.random_seed is None else options.random_seed
    rng = np.random.default_rng(random_seed)
    cases = {}
    for index in rng.permutation(len(patients)):  # cases are written in their own order: times of files tell nothing
        subject, *files = patients[index]
        name = Path(files[0]).name
        if any(case['subject'] == subject for case in cases.values()):
            logger.warning(
                '%s: left out, this patient has a case: two visits side by side would show what is new', name
            )
            continue
        try:
            images = [nib.load(path) for path in files]
            case_img, rows, drawn = readerstudy_cases.draw_case(  # type: ignore[call-arg]
                *images, model, steps, rng, options.n_largest, models.choose_device(options.device)
            )
        except Exception as error:  # one bad patient never stops the others
            logger.warning('%s: left out, %s', name, str(error) or type(error).__name__)
            continue
        case = f'case-{len(cases) + 1:02d}'
        layout_files.write_image(options.study_dir / f'{case}_{options.modality}.nii.gz', case_img)
        layout_files.write_tsv(options.study_dir / f'{case}_lesions.tsv', rows, list(rows[0]))
        cases[case] = {'subject': subject, 'session': naming.name_entities(name).get('ses'), **drawn}
        logger.info('%s is written', case)
    if not cases:
        raise errors.UsageError(f'no patient in {options.bids_dir} can be used; the lines above say why')
    key = {'modality': options.modality, 'model': model.name, 'num_inference_steps': steps}
    key |= {'random_seed': random_seed, 'version': metadata.version('bids_lesionfill'), 'cases': cases}
    write_papers(options.study_dir, options.key_dir, key)
    logger.info('%d cases are in %s; keep %s from the readers', len(cases), options.study_dir, options.key_dir)


def write_papers(study_dir: Path, key_dir: Path, key: dict[str, Any]) -> None:
    """Write instructions, an empty form, the key, and its seal: its SHA-256, which is all of it that readers have."""
    environment = jinja2.Environment(trim_blocks=True, keep_trailing_newline=True)
    template = environment.from_string(Path(__file__).with_name(TEMPLATE).read_text(encoding='utf-8'))
    text = template.render(cases=key['cases'], modality=key['modality'])
    layout_files.write_bytes(study_dir / 'instructions.md', text.encode())
    layout_files.write_tsv(study_dir / 'form.tsv', [{'case': case} for case in key['cases']], FORM_COLUMNS)
    layout_files.write_json(key_dir / 'key.json', key)
    seal = f'{models.sha256_of(key_dir / "key.json")}  key.json\n'  # as sha256sum writes it
    layout_files.write_bytes(study_dir / 'key.sha256', seal.encode())


def load_model(options: argparse.Namespace) -> models.Model:
    """Load the model on its device; it must be one that synthesizes the modality."""
    try:
        model = models.load_model(options.model, models.choose_device(options.device))
    except ValueError as error:
        raise errors.UsageError(str(error)) from None
    if (model.plan['task'], model.plan['modality']) != ('synth', options.modality):
        made_for = f'{model.plan["task"]} {model.plan["modality"]}'
        raise errors.UsageError(f'model {model.name} is made for {made_for}, expected synth {options.modality}')
    return model


def find_patients(options: argparse.Namespace) -> list[tuple[str, Path, Path, Path]]:
    """Find patients as `datasets.find_patients`, of the participants asked for."""
    if not (options.bids_dir / 'dataset_description.json').is_file():
        raise errors.UsageError(f'BIDS_DIR {options.bids_dir} has no dataset_description.json: it is no BIDS dataset')
    patients = datasets.find_patients(options.bids_dir, options.modality)
    wanted = {label.removeprefix('sub-') for label in options.participant_label}
    if missing := sorted(wanted - {subject for subject, *_ in patients}):
        raise errors.UsageError(f'participants {missing} have no {options.modality} with T1w and lesion mask')
    return [patient for patient in patients if not wanted or patient[0] in wanted]


def read_key(study_dir: Path, key_dir: Path) -> dict[str, Any]:
    """Read the key; UsageError if it is not the one that was sealed when the study was made."""
    key_file, seal_file = key_dir / 'key.json', study_dir / 'key.sha256'
    for path in (key_file, seal_file):
        if not path.is_file():
            raise errors.UsageError(f'{path} is missing, expected a study made by `make` and its key')
    found, sealed = models.sha256_of(key_file), seal_file.read_text(encoding='utf-8').partition(' ')[0]
    if found != sealed:
        raise errors.UsageError(f'{key_file} has SHA-256 {found}, but {sealed} was sealed in {seal_file}')
    return text_files.read_json(key_file)


def check_scores(key_dir: Path) -> None:
    """Raise UsageError if scores beside the key are there that `score` did not write: they are not replaced."""
    table, content = key_dir / 'scores.tsv', key_dir / 'scores.json'
    try:
        is_own = not content.exists() or set(SCORES) <= set(text_files.read_json(content))
    except text_files.UnreadableError:
        is_own = False
    if not is_own:
        raise errors.UsageError(f'{content} is not by `score`, and is not replaced: move it, or the key')
    if table.exists() and not text_files.read_text(table).startswith('reader\t'):
        raise errors.UsageError(f'{table} is not by `score`, and is not replaced: move it, or the key')


def read_form(path: Path, cases: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Read a reader's answers by case: dict of dict with `lesion`, `confidence` (None where missing) and `hit`.

    Raises
    ------
    UsageError
        If the form cannot be read or answers what was not asked.
    """
    try:
        rows = text_files.read_tsv(path)
    except (OSError, text_files.UnreadableError) as error:
        raise errors.UsageError(f'form {path} cannot be read: {error}') from None
    if not rows or not set(FORM_COLUMNS[:3]) <= rows[0].keys():
        columns = list(rows[0]) if rows else []
        raise errors.UsageError(f'form {path} has columns {columns}, expected {FORM_COLUMNS}, separated by tabs')
    answers = {}
    for row in rows:
        case, lesion, confidence = (None if row[column] == '' else row[column] for column in FORM_COLUMNS[:3])
        if case is None and lesion is None:
            continue  # an empty line
        if case not in cases or case in answers:
            problem = 'is answered twice' if case in answers else f'is unknown, expected one of {", ".join(cases)}'
            raise errors.UsageError(f'form {path}: case {case} {problem}')
        allowed = {'lesion': range(1, cases[case]['n_lesions'] + 1), 'confidence': CONFIDENCES}
        for (name, numbers), value in zip(allowed.items(), (lesion, confidence)):
            if value is not None and value not in numbers:
                got = f'{value:g}' if isinstance(value, float) else repr(value)
                raise errors.UsageError(f'form {path}: {case} has {name} {got}, expected 1 to {numbers[-1]} or n/a')
        lesion, confidence = (None if value is None else int(value) for value in (lesion, confidence))
        answers[case] = {'lesion': lesion, 'confidence': confidence, 'hit': lesion == cases[case]['lesion']}
    unanswered = {'lesion': None, 'confidence': None, 'hit': False}
    return {case: answers.get(case, unanswered) for case in cases}


def compare(one: dict[str, dict[str, Any]], other: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Compare two readers: cases that both hit, in which both name one lesion, and Cohen's kappa of the hits."""
    hits = [[row['hit'] for row in answers.values()] for answers in (one, other)]
    same = [one[case]['lesion'] == other[case]['lesion'] for case in one if one[case]['lesion'] is not None]
    kappa = statistics.cohen_kappa(*hits)
    kappa = round(kappa, 3) if kappa == kappa else None  # JSON knows no NaN
    return {'both_hit': sum(map(all, zip(*hits))), 'same_lesion': sum(same), 'kappa': kappa}


def score(options: argparse.Namespace) -> None:
    """Set the readers' answers against guessing: tables beside the key, so that STUDY_DIR stays blind, and Markdown.

    Raises
    ------
    UsageError
        If the key is not the one that was sealed, or a form cannot be read.
    """
    cases = read_key(options.study_dir, options.key_dir)['cases']
    check_scores(options.key_dir)
    if len({path.stem for path in options.forms}) < len(options.forms):
        raise errors.UsageError('two forms have one name: name each after its reader')
    answers = {path.stem: read_form(path, cases) for path in options.forms}
    chances = [1 / case['n_lesions'] for case in cases.values()]
    readers = [
        {'reader': reader}
        | statistics.score_hits([row['hit'] for row in rows.values()], chances)
        | {'answered': sum(row['lesion'] is not None for row in rows.values())}
        for reader, rows in answers.items()
    ]
    confidences = [
        {'reader': reader, 'confidence': level, 'cases': len(hits), 'hits': sum(hits)}
        for reader, rows in answers.items()
        for level in (*CONFIDENCES, None)
        if (hits := [row['hit'] for row in rows.values() if row['confidence'] == level])
    ]
    agreement = [
        {'readers': pair} | compare(answers[pair[0]], answers[pair[1]])
        for pair in itertools.combinations(answers, 2)
    ]
    layout_files.write_tsv(options.key_dir / 'scores.tsv', readers, list(readers[0]))
    content = dict(zip(SCORES, (readers, confidences, agreement, answers)))
    layout_files.write_json(options.key_dir / 'scores.json', content)
    print(to_markdown(readers, confidences, agreement))


def to_markdown(
    readers: Sequence[dict[str, Any]], confidences: Sequence[dict[str, Any]], agreement: Sequence[dict[str, Any]]
) -> str:
    """Format the results of `score` as Markdown."""
    lines = ['| reader | hits | 95 % interval | hits by chance | p of guessing |', '|---|---|---|---|---|']
    lines += [
        '| {reader} | {hits} of {cases} ({hit_percent:.0f} %) | {low_percent:.1f} to {high_percent:.1f} % '
        '| {hits_by_chance:.1f} | {p_value:.3f} |'.format(**row)
        for row in readers
    ]
    lines += ['', '| reader | confidence | hits |', '|---|---|---|']
    lines += [
        f'| {row["reader"]} | {row["confidence"] or "n/a"} | {row["hits"]} of {row["cases"]} |' for row in confidences
    ]
    for row in readers:
        if missing := row['cases'] - row['answered']:
            lines += ['', f'{row["reader"]} gave no answer in {missing} of {row["cases"]} cases: counted as missed.']
    for pair in agreement:
        kappa = 'not defined' if pair['kappa'] is None else f'{pair["kappa"]:.2f}'
        lines += [
            '',
            f'{" and ".join(pair["readers"])}: {pair["both_hit"]} hit by both, the same lesion named in '
            f'{pair["same_lesion"]} cases, kappa of hit or miss {kappa}.',
        ]
    return '\n'.join(lines)


def parse_options(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line of the reader study."""
    parser = argparse.ArgumentParser(
        prog='python -m bids_lesionfill.readerstudy',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest='command', required=True)
    making = commands.add_parser('make', help='write the images, tables and form for readers, and the sealed key')
    making.add_argument('bids_dir', type=Path, help='patients: T1w, FLAIR, derivatives with lesion masks')
    making.add_argument('study_dir', type=Path, help='a new folder, for the readers')
    making.add_argument('--model', required=True, help='name or folder of a model that synthesizes')
    making.add_argument('--modality', default='FLAIR', choices=SYNTHESIZED, help='default: FLAIR')
    making.add_argument(
        '--participant-label', nargs='+', default=[], help='patients the model has not seen; default: all'
    )
    making.add_argument('--n-largest', type=int, default=10, help='lesions to choose from; default: 10')
    making.add_argument('--num-inference-steps', type=int, help=f"default: the model's own, at least {FEWEST_STEPS}")
    making.add_argument('--random-seed', type=int, help='default: drawn, and written into the key')
    making.add_argument('--device', default='auto', choices=['auto', 'cpu', 'cuda'])
    scoring = commands.add_parser('score', help='hits per reader against guessing')
    scoring.add_argument('study_dir', type=Path)
    scoring.add_argument(
        'forms', type=Path, nargs='+', metavar='FORM.tsv', help='filled in, each named after its reader'
    )
    for command in (making, scoring):
        command.add_argument('--key', dest='key_dir', type=Path, help='folder of the key; default: STUDY_DIR_key')
    options = parser.parse_args(argv)
    if options.command == 'make' and (options.n_largest < 2 or (options.random_seed or 0) < 0):
        making.error('expected --n-largest of at least 2 and no negative --random-seed')
    study_dir = options.study_dir.resolve()
    options.key_dir = options.key_dir or study_dir.with_name(f'{study_dir.name}_key')
    return options


def main(argv: list[str] | None = None) -> int:
    """Make or score a study; return the exit code."""
    logging.basicConfig(level=logging.INFO, format='%(asctime)s %(message)s')
    options = parse_options(argv)
    try:
        {'make': make, 'score': score}[options.command](options)
    except (errors.UsageError, FileNotFoundError) as error:
        logger.error('%s', error)
        return USAGE
    return 0
