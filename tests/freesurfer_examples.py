"""Tables of FreeSurfer, as it writes them."""

from bids_lesionfill.thickness import tables


def stats_text(mean_mm=2.46, regions=tables.REGION_NAMES, thick=2.5):
    rows = [f'{name} {100 + n} 700 1700 {thick + n / 100:.3f} 0.5 0.1 0.02 10 1.5' for n, name in enumerate(regions)]
    header = [
        '# Title Segmentation Statistics',
        f'# Measure Cortex, MeanThickness, Mean Thickness, {mean_mm}, mm',
        '# ColHeaders StructName NumVert SurfArea GrayVol ThickAvg ThickStd MeanCurv GausCurv FoldInd CurvInd',
    ]
    return '\n'.join(header + rows) + '\n'


def write_stats(folder, **options):
    for hemisphere in ('lh', 'rh'):
        path = folder / 'stats' / f'{hemisphere}.aparc.stats'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(stats_text(**options))
