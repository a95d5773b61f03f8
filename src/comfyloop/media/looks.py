"""Features of a picture without a model: colour, light, contrast, detail, and their layout.

Some fifty numbers of a picture scaled down to two thousand pixels: a millisecond once it is decoded. They tell warm
from cold, bright from dark, plain from busy and centred from even; what is shown they do not tell. Their scales say how
much each counts where little is known: what is seen at first sight most, where it is least.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 48
"""Pixels a side of what is looked at."""
_GRID = 3
_HUES = 8

_Plane = NDArray[np.float64]


def looks(image: Image.Image) -> NDArray[np.float64]:
    """The numbers of an RGB picture."""
    small = image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX)
    rgb = np.asarray(small, dtype=np.float64) / 255
    light = rgb @ np.array([0.299, 0.587, 0.114])
    high = rgb.max(-1)
    colourful = high - rgb.min(-1)
    warm, green = rgb[..., 0] - rgb[..., 2], rgb[..., 1] - (rgb[..., 0] + rgb[..., 2]) / 2
    across, down = np.abs(np.diff(light, axis=1)), np.abs(np.diff(light, axis=0))
    middle = light[SIDE // 4 : -SIDE // 4, SIDE // 4 : -SIDE // 4]
    # each divided by its usual spread among pictures
    first = [
        light.mean() / 0.12, light.std() / 0.06, colourful.mean() / 0.14, warm.mean() / 0.25, green.mean() / 0.2,
        (across.mean() + down.mean()) / 0.012,
    ]  # fmt: skip
    second = [
        *(np.quantile(light, (0.05, 0.95)) / 0.25), colourful.std() / 0.1, warm.std() / 0.12, green.std() / 0.1,
        (across.mean() - down.mean()) / 0.01, (middle.mean() - light.mean()) / 0.1,
        np.log(image.width / image.height) / 0.3,
    ]  # fmt: skip
    hues = np.zeros(_HUES)
    which = (_hue(rgb, high, colourful) * _HUES).astype(int) % _HUES
    np.add.at(hues, which.ravel(), colourful.ravel() / (SIDE**2 * 0.1))
    layout = [_cells(part) / 0.1 for part in (light, colourful, warm)]
    return np.concatenate([first, 0.3 * np.array(second), 0.3 * hues, 0.1 * np.concatenate(layout)])


def _hue(rgb: _Plane, high: _Plane, colourful: _Plane) -> _Plane:
    """[h, w] from 0 to 1; 0 where there is no colour."""
    red, green, blue = rgb[..., 0], rgb[..., 1], rgb[..., 2]
    step = np.maximum(colourful, 1e-9)
    of_blue = (red - green) / step + 4
    of_green = np.where(high == green, (blue - red) / step + 2, of_blue)
    sixths = np.where(high == red, (green - blue) / step % 6, of_green)
    return np.asarray(np.where(colourful > 1e-9, sixths / 6, 0.0))


def _cells(part: _Plane) -> _Plane:
    """Means of a grid's cells, less that of the whole."""
    size = SIDE // _GRID
    cells = part.reshape(_GRID, size, _GRID, size).mean((1, 3)).ravel()
    return np.asarray(cells - part.mean())
