"""A thickness engine that takes no time."""

from bids_lesionfill.thickness import engine
from bids_lesionfill.thickness import tables as thickness_tables


class Ruler:
    """A thickness engine that needs no time: the mean of the image, and no cortex for participant 02."""

    name, has_noise, reads_results, results_pattern = 'ruler', True, False, ''
    method, references, packages = 'a ruler', (), ()

    def __init__(self, settings):
        pass

    def check(self):
        return engine.Availability(True, '1')

    def run(self, scan):
        if scan.name == 'sub-02':
            raise ValueError('no cortex in sight')
        mm = float(scan.t1w_img.get_fdata().mean()) / 100
        table = thickness_tables.table_of(dict.fromkeys(thickness_tables.REGIONS, (mm, 1)), {'lh': mm, 'rh': mm})
        return engine.Measurement(table)
