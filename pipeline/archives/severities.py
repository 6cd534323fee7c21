"""How strong each corruption is at its five severities, as published, and which corruptions form a fold.

Facts from two sources: ImageNet-C (Hendrycks & Dietterich, arXiv 1903.12261; create_c/make_imagenet_c.py of
hendrycks/robustness) and MedMNIST-C (arXiv 2406.17536; corruptions/registry.py of medmnistc), which has parameters of
its own for every set. What a parameter means:

    gaussian_noise, speckle_noise   standard deviation of the noise, in intensities of 0 to 1
    shot_noise                      photons at full intensity (fewer is worse)
    impulse_noise                   share of the values that become black or white
    gaussian_blur                   standard deviation in pixels
    brightness_*, contrast_*        Pillow's enhancement factor, 1 being none
    pixelate                        size of the small image, as a share of the whole
    jpeg_compression                Pillow's JPEG quality
"""

from collections.abc import Mapping

type Parameters = tuple[float, ...]

SEVERITIES = (1, 2, 3, 4, 5)
IMAGENET_C = "imagenet-c"

FOLDS: Mapping[str, tuple[str, ...]] = {
    "digital": ("pixelate", "jpeg_compression"),
    "noise": ("gaussian_noise", "speckle_noise", "impulse_noise", "shot_noise"),
    "blur": ("defocus_blur", "motion_blur", "zoom_blur", "gaussian_blur"),
    "color": ("brightness_up", "brightness_down", "contrast_up", "contrast_down", "saturate"),
    "task-specific": ("stain_deposit", "bubble", "black_corner", "characters", "gamma_corr_up", "gamma_corr_down"),
}
"""MedMNIST-C's groups of corruptions; a set has only some members of a group, or none."""


def _blur_of_kernels(*sizes: int) -> Parameters:
    """Deviation that torchvision takes for a kernel of this size, which is what MedMNIST-C states."""
    return tuple(round(0.3 * ((size - 1) * 0.5 - 1) + 0.8, 2) for size in sizes)


_JPEG = (50, 30, 15, 10, 7)
_NOISE_TO_20 = (0.04, 0.08, 0.12, 0.16, 0.20)
_NOISE_TO_26 = (0.04, 0.08, 0.12, 0.18, 0.26)
_SPECKLE_TO_30 = (0.10, 0.15, 0.20, 0.25, 0.30)
_SPECKLE_TO_45 = (0.05, 0.15, 0.20, 0.35, 0.45)
_IMPULSE_TO_17 = (0.01, 0.03, 0.06, 0.09, 0.17)
_SHOT_TO_5 = (60, 25, 18, 10, 5)
_UP_TO_15 = (1.1, 1.2, 1.3, 1.4, 1.5)
_UP_TO_16 = (1.1, 1.2, 1.3, 1.4, 1.6)
_DOWN_TO_4 = (0.9, 0.8, 0.7, 0.6, 0.4)
_DOWN_TO_5 = (0.9, 0.8, 0.7, 0.6, 0.5)
_FINE_PIXELS = (0.30, 0.25, 0.20, 0.15, 0.10)

_ORGANS: Mapping[str, Parameters] = {
    "pixelate": (0.7, 0.6, 0.5, 0.4, 0.35),
    "jpeg_compression": _JPEG,
    "gaussian_noise": _NOISE_TO_20,
    "speckle_noise": (0.05, 0.10, 0.20, 0.30, 0.40),
    "impulse_noise": (0.01, 0.02, 0.03, 0.05, 0.08),
    "shot_noise": (200, 100, 50, 25, 15),
    "gaussian_blur": _blur_of_kernels(11, 13, 15, 17, 21),
    "brightness_up": (1.2, 1.3, 1.4, 1.5, 1.6),
    "brightness_down": (0.8, 0.75, 0.7, 0.65, 0.6),
    "contrast_up": (1.3, 1.4, 1.6, 1.7, 1.8),
    "contrast_down": (0.8, 0.7, 0.6, 0.55, 0.5),
    "gamma_corr_up": (),
    "gamma_corr_down": (),
}

MEDMNIST_C: Mapping[str, Mapping[str, Parameters]] = {
    "pathmnist": {
        "pixelate": (0.8, 0.6, 0.4, 0.3, 0.25),
        "jpeg_compression": _JPEG,
        "defocus_blur": (),
        "motion_blur": (),
        "brightness_up": (1.1, 1.15, 1.2, 1.22, 1.25),
        "brightness_down": (0.85, 0.8, 0.75, 0.72, 0.7),
        "contrast_up": _UP_TO_16,
        "contrast_down": (0.8, 0.7, 0.6, 0.55, 0.5),
        "saturate": (),
        "stain_deposit": (),
        "bubble": (),
    },
    "bloodmnist": {
        "pixelate": (0.6, 0.5, 0.4, 0.3, 0.25),
        "jpeg_compression": _JPEG,
        "defocus_blur": (),
        "motion_blur": (),
        "brightness_up": (1.1, 1.2, 1.3, 1.35, 1.4),
        "brightness_down": _DOWN_TO_5,
        "contrast_up": (1.1, 1.15, 1.2, 1.25, 1.3),
        "contrast_down": _DOWN_TO_5,
        "saturate": (),
        "stain_deposit": (),
        "bubble": (),
    },
    "dermamnist": {
        "pixelate": (0.7, 0.5, 0.4, 0.3, 0.25),
        "jpeg_compression": (30, 20, 15, 10, 7),
        "gaussian_noise": _NOISE_TO_26,
        "speckle_noise": _SPECKLE_TO_45,
        "impulse_noise": _IMPULSE_TO_17,
        "shot_noise": _SHOT_TO_5,
        "defocus_blur": (),
        "motion_blur": (),
        "zoom_blur": (),
        "brightness_up": _UP_TO_15,
        "brightness_down": _DOWN_TO_5,
        "contrast_up": _UP_TO_16,
        "contrast_down": (0.8, 0.7, 0.6, 0.5, 0.4),
        "black_corner": (),
        "characters": (),
    },
    "retinamnist": {
        "pixelate": (0.8, 0.6, 0.5, 0.4, 0.35),
        "jpeg_compression": (30, 25, 20, 10, 5),
        "gaussian_noise": _NOISE_TO_20,
        "speckle_noise": _SPECKLE_TO_30,
        "defocus_blur": (),
        "motion_blur": (),
        "brightness_down": _DOWN_TO_5,
        "contrast_down": _DOWN_TO_4,
    },
    "tissuemnist": {
        "pixelate": (0.4, 0.3, 0.2, 0.15, 0.1),
        "jpeg_compression": (25, 20, 15, 10, 7),
        "impulse_noise": (0.01, 0.015, 0.02, 0.025, 0.03),
        "gaussian_blur": _blur_of_kernels(13, 15, 17, 21, 25),
        "brightness_up": (1.3, 1.4, 1.5, 1.6, 1.7),
        "brightness_down": (0.8, 0.7, 0.6, 0.5, 0.4),
        "contrast_up": _UP_TO_16,
        "contrast_down": _DOWN_TO_4,
    },
    "octmnist": {
        "pixelate": _FINE_PIXELS,
        "jpeg_compression": (30, 15, 10, 7, 5),
        "speckle_noise": (0.15, 0.30, 0.40, 0.50, 0.60),
        "defocus_blur": (),
        "motion_blur": (),
        "contrast_down": (0.6, 0.4, 0.3, 0.2, 0.15),
    },
    "breastmnist": {
        "pixelate": _FINE_PIXELS,
        "jpeg_compression": _JPEG,
        "speckle_noise": _SPECKLE_TO_30,
        "motion_blur": (),
        "brightness_up": (1.4, 1.5, 1.6, 1.8, 2.0),
        "brightness_down": (0.55, 0.5, 0.45, 0.4, 0.3),
        "contrast_down": _DOWN_TO_4,
    },
    "chestmnist": {
        "pixelate": _FINE_PIXELS,
        "jpeg_compression": _JPEG,
        "gaussian_noise": _NOISE_TO_26,
        "speckle_noise": _SPECKLE_TO_45,
        "impulse_noise": _IMPULSE_TO_17,
        "shot_noise": _SHOT_TO_5,
        "gaussian_blur": _blur_of_kernels(3, 5, 7, 9, 11),
        "brightness_up": _UP_TO_15,
        "brightness_down": _DOWN_TO_5,
        "contrast_up": _UP_TO_16,
        "contrast_down": _DOWN_TO_4,
        "gamma_corr_up": (),
        "gamma_corr_down": (),
    },
    "pneumoniamnist": {
        "pixelate": (0.8, 0.7, 0.6, 0.5, 0.4),
        "jpeg_compression": _JPEG,
        "gaussian_noise": (0.04, 0.05, 0.06, 0.07, 0.08),
        "speckle_noise": (0.05, 0.07, 0.10, 0.15, 0.20),
        "impulse_noise": (0.005, 0.01, 0.013, 0.017, 0.02),
        "shot_noise": (300, 200, 150, 100, 80),
        "gaussian_blur": _blur_of_kernels(3, 5, 7, 9, 11),
        "brightness_up": _UP_TO_15,
        "brightness_down": _DOWN_TO_5,
        "contrast_up": _UP_TO_16,
        "contrast_down": _DOWN_TO_4,
        "gamma_corr_up": (),
        "gamma_corr_down": (),
    },
    "organamnist": _ORGANS,
    "organcmnist": _ORGANS,
    "organsmnist": _ORGANS,
}
"""The corruptions of each set; those that :mod:`pipeline.archives.corruptions` does not make have no parameters."""

_IMAGENET: Mapping[str, Parameters] = {
    "gaussian_noise": (0.08, 0.12, 0.18, 0.26, 0.38),
    "shot_noise": (60, 25, 12, 5, 3),
    "impulse_noise": (0.03, 0.06, 0.09, 0.17, 0.27),
    "speckle_noise": (0.15, 0.20, 0.35, 0.45, 0.60),
    "gaussian_blur": (1, 2, 3, 4, 6),
    # Only MedMNIST-C changes these both ways: what it gives most of its sets.
    "brightness_up": _UP_TO_15,
    "brightness_down": _DOWN_TO_5,
    "contrast_up": _UP_TO_16,
    "contrast_down": _DOWN_TO_4,
    "pixelate": (0.6, 0.5, 0.4, 0.3, 0.25),
    "jpeg_compression": (25, 18, 15, 10, 7),
}

PARAMETER_SETS = (IMAGENET_C, *MEDMNIST_C)


def parameters_of(name: str) -> dict[str, Parameters]:
    """Parameters at the five severities by corruption, of one of :data:`PARAMETER_SETS`."""
    published = _IMAGENET if name == IMAGENET_C else MEDMNIST_C[name]
    return {corruption: values for corruption, values in published.items() if values}
