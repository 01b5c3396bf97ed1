"""Encoded photographs to pixels: as much of a JPEG as a crop needs, then one resize.

A plain JPEG is decoded by libjpeg-turbo (simplejpeg) at the smallest of its fast
scales, 1, 1/2, 1/4 and 1/8, that still covers the crop, and only down to the crop's
last row: the height in the header is lowered, so that the decoder stops there.
Everything else (PNG, WebP, CMYK, 16 bits, damaged files) goes through Pillow.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from lt_jax.data.images.crops import Box

ORIENTATION = 0x0112  # the number of the EXIF entry
# What EXIF asks for: (transpose, then flip up-down, then flip left-right).
TURNS = {
    1: (False, False, False),
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}
SCALES = (8, 4, 2, 1)  # divisors of a side; the decoder's other scales are slow
SMALLEST = 16  # pixels of a side; below, simplejpeg takes scales of its own choice
XMP = b"http://ns.adobe.com/xap/"


class Undecodable(Exception):
    """Bytes that are no image, or not a whole one; the message says why."""


class Header(NamedTuple):
    """What the fast way needs to know of a JPEG."""

    wide: int  # as stored, before the rotation of EXIF
    high: int
    height_at: int  # where its height stands, if it may be lowered, or else 0
    orientation: int


def decode(data: bytes, box_of: Callable[[int, int], Box], size: int) -> np.ndarray:
    """uint8[size, size, 3]: a box of a photograph, resized without aliasing.

    The box is met to half a pixel of the scale that is decoded.

    Args:
      data: an encoded image; of an animation the first picture.
      box_of: from width and height, as the photograph is to be seen, to the box.
      size: pixels of a side of the result.

    Raises:
      Undecodable: what Pillow does not decode, either. A JPEG without its end is
        undecodable even where the box lies in the part that is there; one that is
        damaged inside may come out with wrong pixels, as from any decoder.
    """
    header = jpeg_header(data)
    if header is not None:
        try:
            return _from_jpeg(data, header, box_of, size)
        except ValueError:
            pass  # Pillow has the last word, and the better message
    pixels, orientation = _by_pillow(data)
    high, wide = pixels.shape[:2]
    box = _stored(box_of, wide, high, orientation)
    return _turned(resized(_cut(pixels, box, 1), size), orientation)


def jpeg_header(data: bytes) -> Header | None:
    """What the header of a JPEG says; None for all that is left to Pillow.

    That is: no JPEG, a cut one, one of four colours or of other than 8 bits, arithmetic
    or lossless coding, very small or enormous, or rotated by XMP alone.
    """
    if data[:2] != b"\xff\xd8":
        return None
    at, orientation, xmp, frame = 2, None, False, None
    try:
        while True:
            if data[at] != 0xFF:
                return None
            kind = data[at + 1]
            if kind == 0xFF:  # filling
                at += 1
                continue
            length = data[at + 2] << 8 | data[at + 3]
            if kind == 0xE1 and data[at + 4 : at + 10] == b"Exif\0\0":
                orientation = _orientation(data[at + 4 : at + 2 + length])
            elif kind == 0xE1 and data.startswith(XMP, at + 4):
                xmp = data.find(b"Orientation", at, at + length) > 0
            elif kind in (0xC0, 0xC1, 0xC2):  # baseline, extended, progressive
                frame = kind, at + 5, data[at + 4], data[at + 9]
            elif 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):
                return None
            elif kind == 0xDA:  # the scan, after which there are no more headers
                break
            at += 2 + length
        if frame is None:
            return None
        kind, height_at, bits, colours = frame
        high = data[height_at] << 8 | data[height_at + 1]
        wide = data[height_at + 2] << 8 | data[height_at + 3]
        in_scan = data[at + 4]
    except IndexError:
        return None
    limit = Image.MAX_IMAGE_PIXELS or math.inf
    if (
        bits != 8
        or colours not in (1, 3)
        or min(wide, high) < SMALLEST
        or wide * high > limit
        or (xmp and orientation is None)
        or data.rfind(b"\xff\xd9", at) < 0  # the end of the image is not there
    ):
        return None
    # Several scans are read one after the other, each to the end.
    lowered = height_at if kind != 0xC2 and in_scan == colours else 0
    return Header(wide, high, lowered, orientation or 1)


def resized(pixels: np.ndarray, size: int) -> np.ndarray:
    """uint8[size, size, 3] of uint8[h, w, 3], smoothed as much as it shrinks.

    Linear interpolation looks at two neighbours, so fine detail must be smoothed away
    before it skips pixels. With r pixels to one of the result, Pillow's linear resize
    is a triangle of variance r^2 / 6, and interpolation one of 1 / 6: the filter before
    it has what lacks, in 3 taps up to r = 2 and 5 up to 3. It aliases less than means
    of areas and is several times faster; beyond 3 those take over.
    """
    high, wide = pixels.shape[:2]
    most = max(wide, high) / size
    if most > 3:
        return cv2.resize(pixels, (size, size), interpolation=cv2.INTER_AREA)
    if most > 1.1:
        kernels = _kernel(wide / size), _kernel(high / size)
        pixels = cv2.sepFilter2D(pixels, -1, *kernels)
    return cv2.resize(pixels, (size, size), interpolation=cv2.INTER_LINEAR)


def _kernel(ratio: float) -> np.ndarray:
    """float32[1, 3 or 5], of variance (ratio^2 - 1) / 6."""
    variance = max(ratio * ratio - 1, 0) / 6
    parts = 1 if variance <= 0.5 else 2
    side = variance / parts / 2
    one = np.array([side, 1 - 2 * side, side], np.float32)
    return one if parts == 1 else np.convolve(one, one)


def _from_jpeg(
    data: bytes, header: Header, box_of: Callable[[int, int], Box], size: int
) -> np.ndarray:
    """The fast way. Raises ValueError where the decoder gives up."""
    wide, high, height_at, orientation = header
    box = _stored(box_of, wide, high, orientation)
    divisor = next(d for d in SCALES if d == 1 or min(box[2:]) >= d * size)
    # Two rows more than the box, as colours may be interpolated from below, and whole
    # blocks. What follows in the file is skipped as if it were garbage.
    last = -(-(math.ceil(box[1] + box[3]) + 2) // 16) * 16
    source: bytes | bytearray = data
    if height_at and last < high:
        high, source = last, bytearray(data)
        source[height_at : height_at + 2] = high.to_bytes(2, "big")
    pixels = simplejpeg.decode_jpeg(
        source,
        min_height=-(-high // divisor),
        min_width=-(-wide // divisor),
        strict=False,  # what follows the last row is reported as a recoverable error
    )
    return _turned(resized(_cut(pixels, box, divisor), size), orientation)


def _by_pillow(data: bytes) -> tuple[np.ndarray, int]:
    """uint8[h, w, 3] as stored, and the orientation that EXIF asks for."""
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
        exif = image.info.get("exif")
        orientation = image.getexif().get(ORIENTATION, 1) if exif else 1
        if image.mode == "F":
            raise ValueError("its pixels are fractions, whose range is not known")
        if image.mode.startswith("I"):  # 16 bits, which Pillow would cut off at 255
            values = np.asarray(image).astype(np.int64).clip(0, 65535)
            grey = ((values + 128) // 257).astype(np.uint8)
            pixels = np.repeat(grey[:, :, None], 3, axis=2)
        else:
            if "transparency" in image.info:
                image = image.convert("RGBA")
            pixels = np.asarray(image.convert("RGB"))
    except MemoryError:  # of this machine, not of the image
        raise
    except UnidentifiedImageError as error:  # its own words name an object in memory
        raise Undecodable("no image of any format that Pillow knows") from error
    except Exception as error:  # Pillow's readers raise whatever a bad file makes them
        raise Undecodable(str(error) or type(error).__name__) from error
    return pixels, orientation if orientation in TURNS else 1


def _orientation(exif: bytes) -> int | None:
    """The orientation in an EXIF segment, 1 to 8; None where it says nothing useful."""
    entries = Image.Exif()
    try:
        entries.load(exif)
        found = entries.get(ORIENTATION)
    except Exception:  # a damaged segment raises whatever it makes Pillow do
        return None
    return found if found in TURNS else None


def _stored(
    box_of: Callable[[int, int], Box], wide: int, high: int, orientation: int
) -> Box:
    """The box in the pixels as they are stored, ``wide`` by ``high``."""
    transpose, flip_y, flip_x = TURNS[orientation]
    if transpose:
        wide, high = high, wide
    x, y, w, h = box_of(wide, high)
    if flip_x:
        x = wide - x - w
    if flip_y:
        y = high - y - h
    return (y, x, h, w) if transpose else (x, y, w, h)


def _turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Pixels as stored -> as they are to be seen."""
    transpose, flip_y, flip_x = TURNS[orientation]
    if transpose:
        pixels = pixels.swapaxes(0, 1)
    return pixels[:: -1 if flip_y else 1, :: -1 if flip_x else 1]


def _cut(pixels: np.ndarray, box: Box, divisor: int) -> np.ndarray:
    """The box, at least a pixel of it, from pixels decoded at 1 / divisor."""
    x, y, w, h = (number / divisor for number in box)
    left, top = min(round(x), pixels.shape[1] - 1), min(round(y), pixels.shape[0] - 1)
    right, bottom = max(round(x + w), left + 1), max(round(y + h), top + 1)
    return pixels[top:bottom, left:right]
