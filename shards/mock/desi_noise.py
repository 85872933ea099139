"""What DESI's spectrographs and the night sky do to a spectrum: its inverse variance, from photon counts.

Counts of a fibre in one pixel of 0.8 angstrom: sky and source through telescope, fibre and spectrograph, and the
detector's read noise. The three arms (B, R, Z) overlap; a coadd adds their inverse variances. The numbers are our
reading of DESI Collaboration (2022) and of dark-time coadds of the survey: throughput to about 15 %, sky lines to
about a factor of 1.5; the shape that matters to a model (blue loss, dichroics, airglow, water) is the real one.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from astroclip_dist.data.stored.manifest import SpectrumLayout

_LAYOUT = SpectrumLayout()
WAVELENGTH = _LAYOUT.start_angstrom + _LAYOUT.step_angstrom * np.arange(_LAYOUT.size)
# Instrumental resolution as a Gaussian sigma, angstrom: R = 2000 in the blue to 5000 in the red, DESI Coll. (2022).
RESOLUTION_SIGMA = 0.75
# Effective exposure of the bright-galaxy survey: Hahn et al. (2023).
NOMINAL_EXPOSURE = 180.0

_MIRROR_AREA = 8.66e4  # cm2, unobstructed
_READ_VARIANCE = 30.0  # electrons^2 per pixel of the extracted spectrum
_SKY_CONTINUUM = 1.5  # 1e-17 erg/s/cm2/A in a fibre, dark
_PHOTON_ENERGY = 1.98645e-8  # erg angstrom

# Wavelength (A) and share of the photons above the atmosphere that are counted, fibre losses and absorption included.
_THROUGHPUT = {
    "B": (
        (3600, 3700, 3800, 3900, 4000, 4200, 4400, 4600, 4800, 5000, 5200, 5400, 5600, 5720, 5800),
        (0.035, 0.056, 0.073, 0.095, 0.105, 0.128, 0.135, 0.155, 0.172, 0.182, 0.190, 0.188, 0.182, 0.170, 0.080),
    ),
    "R": (
        (5760, 5800, 5860, 6000, 6200, 6400, 6600, 6800, 7000, 7200, 7500, 7560, 7620),
        (0.080, 0.170, 0.190, 0.215, 0.237, 0.252, 0.272, 0.295, 0.310, 0.307, 0.303, 0.250, 0.100),
    ),
    "Z": (
        (7520, 7560, 7650, 7800, 8000, 8300, 8600, 8900, 9290, 9330, 9600, 9700, 9824),
        (0.100, 0.200, 0.310, 0.355, 0.385, 0.415, 0.450, 0.420, 0.415, 0.270, 0.265, 0.250, 0.230),
    ),
}
# Oxygen's A and B bands: centre, Gaussian sigma (A), absorbed share at the centre.
_TELLURIC = ((7604.0, 6.0, 0.70), (7632.0, 14.0, 0.35), (6879.0, 9.0, 0.20))
# Airglow: vacuum wavelength (A) and brightness (1e-17 erg/s/cm2 in a fibre). [O I], Na I, O2 and the OH Meinel bands;
# positions: Osterbrock et al. (1996), Rousselot et al. (2000).
_AIRGLOW = """
    5198.8:5 5462.2:8 5578.9:180 5891.6:25 5897.6:17 5916.8:5 5934.4:5 5954.4:5 5979.0:5
    6237.0:9 6259.8:9 6289.5:8 6302.05:97 6308.6:9 6331.8:7 6365.54:42 6472.3:8 6500.4:12
    6534.8:9 6556.0:9 6564.3:6 6831.3:15 6836.1:15 6843.3:5 6865.7:25 6872.7:15 6891.2:8
    6902.7:8 6914.6:8 6925.1:16 6940.9:8 6950.9:17 6980.4:10 7013.0:6 7242.2:35 7246.3:30
    7254.9:9 7278.4:50 7286.4:16 7305.7:13 7318.3:35 7331.3:15 7342.9:37 7360.7:14 7371.3:35
    7394.2:10 7403.9:21 7440.4:12 7474.9:9 7485.6:10 7525.9:32 7532.8:10 7560.0:10 7573.9:31
    7588.1:20 7714.4:35 7719.2:44 7728.0:8 7752.6:50 7762.1:15 7775.5:7 7782.5:9 7796.2:40
    7810.5:13 7823.5:46 7843.4:11 7855.5:53 7862.8:17 7872.0:22 7881.0:10 7891.5:25 7915.9:66
    7923.1:26 7933.4:14 7951.0:11 7966.8:48 7981.6:17 7995.6:60 8016.3:12 8027.9:36 8054.0:8
    8064.7:16 8104.3:7 8280.6:18 8283.6:33 8290.6:52 8301.4:52 8313.0:12 8346.9:149 8355.2:36
    8367.0:12 8384.5:26 8401.5:82 8417.5:28 8432.5:100 8454.6:28 8467.7:70 8495.7:16 8507.0:34
    8540.4:6 8551.1:13 8627.5:15 8631.0:17 8635.0:16 8652.5:14 8657.3:14 8662.1:14 8667.0:13
    8672.3:11 8763.6:60 8770.1:82 8780.5:94 8793.0:24 8829.5:219 8838.2:66 8852.1:16 8870.0:40
    8888.3:180 8905.4:46 8922.1:170 8945.9:42 8960.6:117 8984.2:20 8990.2:56 9003.5:70 9040.5:10
    9051.9:27 9095.0:8 9104.9:11 9154.6:10 9163.0:7 9310.0:150 9315.8:190 9326.4:290 9340.5:50
    9345.6:25 9356.3:11 9378.7:500 9404.7:42 9422.1:87 9429.7:19 9442.3:500 9461.4:190 9479.0:350
    9504.7:150 9521.7:100 9555.4:71 9569.5:174 9609.8:22 9623.0:50 9671.0:30 9684.0:65 9701.8:76
    9714.0:25 9722.3:92 9740.6:38 9793.4:300 9802.0:80
"""


@cache
def _sky_lines() -> np.ndarray:
    """(wavelengths,), 1e-17 erg/s/cm2/A in a fibre."""
    density = np.zeros_like(WAVELENGTH)
    for entry in _AIRGLOW.split():
        centre, brightness = (float(part) for part in entry.split(":"))
        profile = np.exp(-0.5 * ((WAVELENGTH - centre) / RESOLUTION_SIGMA) ** 2)
        density += brightness * profile / (np.sqrt(2 * np.pi) * RESOLUTION_SIGMA)
    return density


@cache
def _flux_of_one_electron() -> np.ndarray:
    """(3 arms, wavelengths), 1e-17 erg/s/cm2/A that give one electron in one second; infinite where an arm is blind."""
    transmission = np.ones_like(WAVELENGTH)
    for centre, sigma, depth in _TELLURIC:
        transmission *= 1 - depth * np.exp(-0.5 * ((WAVELENGTH - centre) / sigma) ** 2)
    arms = []
    for nodes, values in _THROUGHPUT.values():
        throughput = np.interp(WAVELENGTH, nodes, values, left=0, right=0) * transmission
        with np.errstate(divide="ignore"):
            arms.append(_PHOTON_ENERGY / (WAVELENGTH * _MIRROR_AREA * _LAYOUT.step_angstrom * throughput) / 1e-17)
    return np.array(arms)


def inverse_variance(flux: np.ndarray, exposure: float, airglow: float) -> np.ndarray:
    """Of a coadded spectrum on the DESI grid.

    Args:
        flux: (wavelengths,), noiseless, 1e-17 erg/s/cm2/A: its photons make noise too.
        exposure: effective seconds.
        airglow: brightness of the sky's lines over a typical night's.

    Returns:
        (wavelengths,), positive, in units of ``flux`` to the -2.
    """
    incoming = _SKY_CONTINUUM + airglow * _sky_lines() + np.maximum(flux, 0)
    unit = _flux_of_one_electron() / exposure
    with np.errstate(invalid="ignore"):
        by_arm = 1 / (unit * incoming + unit**2 * _READ_VARIANCE)
    return by_arm.sum(axis=0)
