"""Glyphs of the fonts that come with matplotlib, reduced to the path of a pen.

The fonts are DejaVu (Bitstream Vera's licence), STIX (the STIX fonts' licence) and Computer Modern (BaKoMa's licence): free,
and fixed by the version of matplotlib in `requirements.lock`, so no data is downloaded.
"""

import string
from functools import lru_cache
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.ft2font import FT2Font
from scipy.ndimage import distance_transform_edt, gaussian_filter
from skimage.morphology import skeletonize

CHARACTERS = string.digits + string.ascii_uppercase + string.ascii_lowercase
SIZE = 84  # pixels of a glyph's image, height and width
UNIT = 4  # steps of a stored distance per pixel: uint8 then reaches further than a pen is wide
_LONGER = 54  # pixels of a glyph's longer side, so that a bent one stays inside
_SMOOTHING = 1.0  # pixels: less, and the skeleton grows loops
_INSIDE = 100  # grey from which on a smoothed pixel counts: more tears hairlines
_NAMES = dict(zip(string.digits, "zero one two three four five six seven eight nine".split(), strict=True))


@lru_cache(maxsize=1)
def faces() -> tuple[str, ...]:
    """Return the names of the usable faces, sorted.

    A face is usable if the glyph it has for each of CHARACTERS bears that character's name. Faces of symbols have none, or
    others in these places: Computer Modern's mathematical italic has digits named "oldstyle", its symbols have "infinity".
    """
    return tuple(path.stem for path in sorted(_folder().glob("*.ttf")) if _complete(FT2Font(path)))


@lru_cache(maxsize=1)
def pen_paths() -> np.ndarray:
    """Return the distance of each pixel from the path of a pen, uint8 [faces, CHARACTERS, 84, 84], in units of 1/4 pixel.

    The path is the skeleton of the glyph, which is 54 pixels long on its longer side, in the middle of the image. So faces
    that differ in weight alone are nearly alike, and a pen of any width can follow the path. Half a second, once per process.
    """
    fonts = [FT2Font(_folder() / f"{name}.ttf") for name in faces()]
    return np.stack([[_distance(_image(font, character)) for character in CHARACTERS] for font in fonts])


def _folder() -> Path:
    return Path(matplotlib.get_data_path()) / "fonts" / "ttf"


def _complete(font: FT2Font) -> bool:
    places = font.get_charmap()
    names = [font.get_glyph_name(places[ord(each)]) if ord(each) in places else None for each in CHARACTERS]
    return names == [_NAMES.get(each, each) for each in CHARACTERS]


def _image(font: FT2Font, character: str) -> np.ndarray:
    """Draw a character in grey, uint8 [84, 84], white on black."""
    if character == "0" and "Mono" in font.family_name:
        character = "O"  # no pen writes the dot in the zeros of DejaVu Sans Mono
    size = 64.0
    for _ in range(2):  # first to learn how large it comes out
        font.set_size(size, 72)
        font.set_text(character)
        font.draw_glyphs_to_bitmap()
        drawn = np.asarray(font.get_image())
        rows, columns = (np.flatnonzero(drawn.any(axis)) for axis in (1, 0))
        drawn = drawn[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        size *= _LONGER / max(drawn.shape)
    above, left = ((SIZE - side) // 2 for side in drawn.shape)
    image = np.zeros((SIZE, SIZE), np.uint8)
    image[above : above + drawn.shape[0], left : left + drawn.shape[1]] = drawn
    return image


def _distance(image: np.ndarray) -> np.ndarray:
    inside = gaussian_filter(image.astype(np.float32), _SMOOTHING) > _INSIDE
    distance = distance_transform_edt(~skeletonize(inside))
    return np.minimum(np.rint(UNIT * distance), 255).astype(np.uint8)
