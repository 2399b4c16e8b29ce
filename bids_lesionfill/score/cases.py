"""Find the masks of a truth and of a prediction, and pair them; `loading` reads them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from ..layout import ambiguity, errors, indexing, naming, pairing, tools

# Names of entities in file names, and as pybids and `layout` call them.
ENTITIES = {'ses': 'session', 'run': 'run', 'acq': 'acquisition', 'ce': 'ceagent', 'rec': 'reconstruction'}
MODALITIES = ('T1w', 'FLAIR')
SYNTH = 'synth'  # `desc-` of the app's synthetic images
OTHER_MASKS = ('changed', 'used')  # ends of the `desc-` of masks of this app that are no truth
LESION_WORDS = ('lesion', 'wmh', 'wml', 'hyperintens')  # in the names of labels of nnU-Net
MINDGLIDE_LESION, MINDGLIDE_LABELS = 18, 19  # README of MindGlide: 18 is Lesion, labels run to 19
NO_PREDICTION = 'no prediction'


@dataclass(frozen=True)
class Choice:
    """Selection among several masks."""

    truth_desc: str | None = None  # `desc-` of the true masks; for a variant of a synthesis `synth2`
    prediction_desc: str | None = None  # `desc-` of the predicted masks
    lesions: str = 'new'  # of the app's synthesis: the new ones alone, or `all`
    space: str | None = None  # `space-` of the masks of both; that of the participant if not given


@dataclass(frozen=True)
class Case:
    """One scan with its true and predicted lesions."""

    participant: str  # sub-01
    session: str | None  # ses-1
    scan: str  # sub-01_ses-1
    truth_file: Path
    truth_labels: tuple = ()  # values of the file that are lesions; all above zero if empty
    all_lesions_file: Path | None = None  # of the app's synthesis: also the lesions that the patient had
    table_file: Path | None = None  # of the app's synthesis: one row per new lesion
    prediction_file: Path | None = None
    prediction_labels: tuple = ()
    images: dict = field(default_factory=dict)  # modality -> image that shows the lesions
    is_synthetic: bool = False  # the raw images do not show the lesions
    problem: str = ''  # why it cannot be scored


def find_cases(truth_dir: Path, prediction_dir: Path, choice: Choice, images_dir: Path | None = None) -> list[Case]:
    """Pair each true mask with its predicted mask, by participant, session, run and acquisition.

    Parameters
    ----------
    truth_dir, prediction_dir : path
        BIDS derivatives, or folders of LST-AI, SAMSEG, nnU-Net or MindGlide.
    choice : Choice
    images_dir : path, optional
        BIDS dataset with the images, if the truth is not a synthesis; by default the raw dataset of the truth.

    Returns
    -------
    list of Case

    Raises
    ------
    UsageError
        If the truth holds no lesion mask.
    """
    truths = find_truths(truth_dir, choice)
    if not truths:
        asked = f' with desc-{choice.truth_desc}' if choice.truth_desc else ''
        raise errors.UsageError(
            f'{truth_dir} holds no lesion mask{asked}; expected files such as '
            'sub-01/anat/sub-01_label-lesion_mask.nii.gz'
        )
    predicted = index_masks(prediction_dir, choice)
    images = index_images(images_dir or raw_dataset(truth_dir))

    def predict(case: Case, others: list[Case]) -> Case:
        return find_prediction(case, others, predicted.get(case.participant, []), Path(prediction_dir))

    cases = [predict(case, truths) for case in one_per_scan(truths, predict)]
    return [case if case.is_synthetic else replace(case, images=choose_images(case, images)) for case in cases]


def index_files(root: Path) -> dict[str, list[indexing.IndexedFile]]:
    """Index the NIfTI files of a BIDS folder: dict of participant -> list of `layout.IndexedFile`."""
    found = {}
    for path in sorted(Path(root).glob('sub-*/**/*.nii*')):
        entities = entities_of(path.name)
        if path.name.endswith(tuple(naming.NIFTI)) and entities['subject']:
            file = indexing.IndexedFile(str(path), path.name, entities)
            found.setdefault(f'sub-{entities["subject"]}', []).append(file)
    return found


def entities_of(filename: str) -> dict[str, Any]:
    """Read the entities of a file name that tell scans apart: `subject`, `suffix`, `session`, `run`, ..."""
    named = naming.name_entities(filename)
    entities = {long: named[short] for short, long in ENTITIES.items() if short in named}
    suffix = naming.strip_extension(filename).rpartition('_')[2]
    return {'subject': named.get('sub', ''), 'suffix': suffix, **entities}


def desc_of(file: indexing.IndexedFile) -> str:
    """Return the `desc-` of a file, '' without."""
    return naming.name_entities(file.filename).get('desc', '')


def is_lesion_mask(file: indexing.IndexedFile, space: str | None = None) -> bool:
    """Return True for lesion masks in a space, that of the participant if not given, by name."""
    named = naming.name_entities(file.filename).get('space', 'orig').casefold()
    in_space = named == space.casefold() if space else named in (*naming.SPACES, *naming.NATIVE_SPACES)
    return in_space and naming.lesion_kind(file.filename) is not None


def index_masks(root: Path, choice: Choice) -> dict[str, list[indexing.IndexedFile]]:
    """Index the predicted masks of a BIDS derivative; see `index_files`. Of a mask and its probabilities, the mask."""
    found = {}
    for participant, files in index_files(root).items():
        alike = {}
        for file in files:
            if is_lesion_mask(file, choice.space) and choice.prediction_desc in (None, desc_of(file)):
                key = desc_of(file), naming.space_of(file.filename), *(file.entities.get(k) for k in naming.IMAGE_KEYS)
                alike.setdefault(key, []).append(file)
        found[participant] = [min(same, key=rank_of) for same in alike.values()]
    return found


def rank_of(file: indexing.IndexedFile) -> Any:
    """Order masks from the plainest kind on; see `layout.MASK_KINDS`."""
    return naming.MASK_KINDS.index(naming.lesion_kind(file.filename)), file.filename


def find_truths(truth_dir: Path, choice: Choice) -> list[Case]:
    """Find the true masks: list of Case without predictions; of the app's synthesis with its images and table."""
    found = []
    for participant, files in index_files(truth_dir).items():
        masks = [
            file for file in files if is_lesion_mask(file, choice.space) and not desc_of(file).endswith(OTHER_MASKS)
        ]
        base = choice.truth_desc or SYNTH
        new = [file for file in masks if desc_of(file) == f'{base}new']
        if new:
            found += [synthetic_truth(participant, file, base, choice.lesions) for file in new]
            continue
        if choice.truth_desc:
            masks = [file for file in masks if desc_of(file) == choice.truth_desc]
        plain = {}
        for file in masks:  # one for each scan and space
            key = naming.space_of(file.filename), *(file.entities.get(k) for k in naming.IMAGE_KEYS)
            plain.setdefault(key, []).append(file)
        for same in plain.values():
            found.append(truth_case(participant, min(same, key=rank_of), several=same))
    return found or tool_truths(truth_dir)


def truth_case(
    participant: str, file: indexing.IndexedFile, several: Sequence[indexing.IndexedFile] = (), **more: Any
) -> Case:
    """Make a Case of a true mask; with a problem if several are of one scan."""
    session = file.entities.get('session')
    parts = naming.strip_extension(file.filename).split('_')
    scan = '_'.join(part for part in parts if part.partition('-')[0] in ('sub', *ENTITIES))
    ranks = [rank_of(other)[0] for other in several]
    alike = [other.filename for other in several if rank_of(other)[0] == min(ranks)]
    problem = f'{len(alike)} true masks fit: {", ".join(alike)}; choose with --truth-desc' if len(alike) > 1 else ''
    return Case(participant, f'ses-{session}' if session else None, scan, Path(file.path), problem=problem, **more)


def synthetic_truth(participant: str, file: indexing.IndexedFile, base: str, lesions: Any) -> Case:
    """Make a Case of the new lesions of the app's synthesis, with its images and its table."""
    path = Path(file.path)
    case = truth_case(participant, file)
    everything = path.with_name(path.name.replace(f'desc-{base}new', f'desc-{base}'))
    space = naming.space_entity(naming.space_of(file.filename))
    table = path.with_name(f'{case.scan}{space}_desc-{base}lesions_qc.tsv')
    images = {
        modality: found
        for modality in MODALITIES
        for found in sorted(path.parent.glob(f'sub-*_desc-{base}_{modality}.nii.gz'))
        if is_of_scan(found.name, file.entities)
    }
    case = replace(case, images=images, table_file=table if table.is_file() else None, is_synthetic=True)
    if lesions == 'all':
        return replace(case, truth_file=everything)
    return replace(case, all_lesions_file=everything if everything.is_file() else None)


def is_of_scan(filename: str, entities: dict[str, Any]) -> bool:
    """Return True if a file names the session of a scan, and its run and acquisition where both name one."""
    named = entities_of(filename)
    return named.get('session') == entities.get('session') and all(
        named[key] == entities[key] for key in naming.SCAN_KEYS if key in named and key in entities
    )


def tool_truths(root: Path) -> list[Case]:
    """Find true masks under names of LST-AI and SAMSEG: list of Case."""
    sessions = (path for path in sorted(Path(root).glob('sub-*/ses-*')) if path.is_dir())
    visits: list[tuple[str, str | None]] = [(path.parent.name, path.name) for path in sessions]
    for path in sorted(Path(root).glob('sub-*')):
        if path.is_dir() and not any(path.name == parent for parent, _ in visits):
            participant, _, session = path.name.partition('_ses-')
            visits.append((participant, f'ses-{session}' if session else None))
    found = []
    for participant, session in visits:
        subject, label = participant.removeprefix('sub-'), session.removeprefix('ses-') if session else None
        masks = tools.find_lesion_masks([root], subject, label)
        if masks:
            scan = f'{participant}_{session}' if session else participant
            found.append(Case(participant, session, scan, masks[0][0], masks[0][1]))
    return found


def one_per_scan(truths: list[Case], predict: Callable[[Case, list[Case]], Case]) -> list[Case]:
    """Drop the truth in FLAIR space where the prediction is in T1w space, and the other way round: list of Case.

    The app writes the lesions of a visit once on the grid of the T1w and once on that of the FLAIR.

    Parameters
    ----------
    truths : list of Case
    predict : function
        Adds its prediction to a Case, see `find_prediction`.
    """
    visits = {}
    for case in truths:
        visits.setdefault((case.participant, case.session), []).append(case)
    chosen = []
    for cases in visits.values():
        on_flair = [case for case in cases if naming.space_of(case.truth_file.name) == 'FLAIR']
        others = [case for case in cases if case not in on_flair]
        if on_flair and others:
            predicted = predict(others[0], others).prediction_file or predict(on_flair[0], on_flair).prediction_file
            use_flair = predicted and is_on_flair(predicted, on_flair[0].truth_file, others[0].truth_file)
            cases = on_flair if use_flair else others
        chosen += cases
    return sorted(chosen, key=lambda case: case.scan)


def is_on_flair(prediction_file: Path, flair_mask: Path, t1w_mask: Path) -> bool:
    """Return True if a prediction is in FLAIR space: by its name, else by its grid."""
    space = naming.space_of(prediction_file.name)
    if space:
        return space == 'FLAIR'
    from ..images import placement
    from ..layout import files

    prediction_img, flair_img, t1w_img = map(files.open_image, (prediction_file, flair_mask, t1w_mask))
    return placement.same_grid(prediction_img, flair_img) and not placement.same_grid(prediction_img, t1w_img)


def find_prediction(case: Case, truths: list[Case], masks: list[indexing.IndexedFile], prediction_dir: Path) -> Case:
    """Add to a Case the predicted mask of its scan, or the reason why there is none.

    Parameters
    ----------
    case : Case
    truths : list of Case
        All of them: a mask that fits several scans is used for none.
    masks : list of `layout.IndexedFile`
        Predicted masks of the participant with names of BIDS.
    prediction_dir : Path
        Where masks are looked for under the names of tools.
    """
    if case.problem:
        return case
    space = naming.space_of(case.truth_file.name) or 'T1w'
    image, *others = (
        entities_of(f'{other.scan}_{space}')
        for other in (case, *truths)
        if other.participant == case.participant and (naming.space_of(other.truth_file.name) or 'T1w') == space
    )
    try:
        mask = pairing.choose_mask(image, others or [image], masks, case.scan)
    except ambiguity.AmbiguousMaskError as error:
        words = f'{error}'.partition('; choose with')[0]
        return replace(case, problem=f'{words}; choose with --prediction-desc')
    if mask is not None:
        return replace(case, prediction_file=Path(mask.path))
    session = case.session.removeprefix('ses-') if case.session else None
    found = tools.find_lesion_masks([prediction_dir], case.participant.removeprefix('sub-'), session)
    if found:
        path, labels = pairing.choose_own(found, space)
        return replace(case, prediction_file=path, prediction_labels=labels)
    return find_flat(case, prediction_dir)


def find_flat(case: Case, folder: Path) -> Case:
    """Add to a Case its mask in a folder that has all masks side by side, as nnU-Net and MindGlide write them.

    nnU-Net: `CASE.nii.gz` with `dataset.json`, which names the labels. MindGlide: `SCAN_seg.nii.gz`. Case and scan are
    named after the participant: `sub-01`, `sub-01_ses-1`, `01_1`, or anything longer that begins like this.
    """
    names = {case.scan: 3, f'{case.participant}_{case.session}' if case.session else case.participant: 2}
    if not case.session:
        names[case.participant.removeprefix('sub-')] = 1
    else:
        names['_'.join(part.partition('-')[2] for part in (case.participant, case.session))] = 1
    fitting = {}
    for path in sorted(folder.glob('*.nii*')):
        stem = naming.strip_extension(path.name).removesuffix('_seg')
        ranks = [rank for name, rank in names.items() if stem == name or stem.startswith(f'{name}_')]
        other_session = naming.name_entities(path.name).get('ses') not in (None, (case.session or '')[4:])
        if ranks and not other_session:
            fitting.setdefault((stem == case.scan, max(ranks)), []).append(path)
    if not fitting:
        return replace(case, problem=NO_PREDICTION)
    best = fitting[max(fitting)]
    if len(best) > 1:
        names = ', '.join(path.name for path in best)
        return replace(case, problem=f'{len(best)} predictions fit: {names}; leave one in a folder of its own')
    try:
        return replace(case, prediction_file=best[0], prediction_labels=flat_labels(best[0], folder))
    except ValueError as error:
        return replace(case, problem=f'{error}')


def flat_labels(path: Path, folder: Path) -> tuple[int, ...]:
    """Return the values of a mask of nnU-Net or MindGlide that are lesions, () if all above zero.

    Raises
    ------
    ValueError
        If `dataset.json` cannot be read, or names several labels and no lesions.
    """
    description = Path(folder, 'dataset.json')
    if description.is_file():
        try:
            labels = json.loads(description.read_text(encoding='utf-8'))['labels']
            labels = {str(name): value for name, value in labels.items()}
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise ValueError(f'{description} has no labels that can be read: {error}') from None
        if all(name.isdigit() for name in labels):  # of version 1: number -> name
            labels = {name: int(number) for number, name in labels.items()}
        foreground = {name: value for name, value in labels.items() if value != 0}
        lesions = [value for name, value in foreground.items() if any(word in name.lower() for word in LESION_WORDS)]
        if not lesions and len(foreground) > 1:
            raise ValueError(f'{description} names the labels {sorted(foreground)}, expected one with "lesion" in it')
        return tuple(lesions)
    return (MINDGLIDE_LESION,) if naming.strip_extension(path.name).endswith('_seg') else ()


def raw_dataset(truth_dir: Path) -> Path | None:
    """Return the raw dataset of a derivative: around it, or of its `DatasetLinks`; None if it is not there."""
    around = Path(truth_dir).resolve().parents[1]
    if Path(truth_dir).resolve().parent.name == 'derivatives' and around.is_dir():
        return around
    description = Path(truth_dir, 'dataset_description.json')
    links = indexing.read_description(truth_dir).get('DatasetLinks', {}) if description.is_file() else {}
    address = urlparse(str(links.get('raw', ''))) if isinstance(links, dict) else None
    folder = Path(unquote(address.path)) if address and address.scheme == 'file' else None
    return folder if folder and folder.is_dir() else None


def index_images(folder: Path | None) -> dict[str, Any]:
    """Index the T1w and FLAIR of a raw dataset; empty without one. See `index_files`."""
    if folder is None:
        return {}
    return {
        participant: [file for file in files if file.entities['suffix'] in MODALITIES]
        for participant, files in index_files(folder).items()
    }


def choose_images(case: Case, images: dict[str, Any]) -> dict[str, Path]:
    """Choose the T1w and the FLAIR of the session of a case that fit it best: dict of modality -> path."""
    chosen = {}
    for modality in MODALITIES:
        files = [file for file in images.get(case.participant, []) if file.entities['suffix'] == modality]
        best = pairing.closest(entities_of(f'{case.scan}_{modality}'), files)
        if best:
            chosen[modality] = Path(best[0].path)
    return chosen


def pair_sessions(found: list[Case]) -> list[tuple[Case, Case]]:
    """Pair each scan with that of the session before, of participants with several: list of (Case, Case)."""
    by_scan = {}
    for case in found:
        if case.session:
            rest = case.scan.replace(f'_{case.session}', '')
            by_scan.setdefault(rest, []).append(case)
    return [pair for same in by_scan.values() for pair in zip(same[:-1], same[1:])]
