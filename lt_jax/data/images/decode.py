"""Decoding a crop of a photograph: only the part of a JPEG it needs, then one resize.

libjpeg-turbo (simplejpeg) decodes a plain JPEG at its smallest fast scale (1, 1/2, 1/4,
1/8) at which the crop is large enough. It stops after the crop's last row, because the
height in the header is lowered first. Pillow decodes everything else.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import stat
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from lt_jax.data.images.crops import Box
from lt_jax.errors import InputError

# The formats that the documentation names. Pillow has many more readers, and that for
# PostScript starts Ghostscript, whatever the file is called.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
MAX_PIXELS = 89_478_485  # where Pillow starts to warn; WebP takes 21 bytes for each
MAX_BYTES = 2**29  # of an encoded image

# Pillow warns about damaged metadata, and about sizes that are checked here.
warnings.filterwarnings("ignore", module=r"PIL\.")

ORIENTATION = 0x0112  # EXIF tag
# EXIF orientation -> transpose, then flip vertically, then flip horizontally.
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
SCALES = (8, 4, 2, 1)  # divisors of the side; the decoder's other scales are slow
MIN_SIDE = 16  # pixels; below this, simplejpeg chooses other scales
XMP = b"http://ns.adobe.com/xap/"
# Pillow's filters for a resize, as recipes of pre-trained networks name them.
FILTERS = {each.name.lower(): each for each in Image.Resampling}


class Undecodable(Exception):
    """A file or its bytes are not a complete image; the message gives the reason."""


class Header(NamedTuple):
    """The header of a JPEG that libjpeg-turbo can decode, with sizes as stored."""

    width: int
    height: int
    height_at: int  # byte offset of the height, or 0 if it must not be lowered
    orientation: int  # EXIF's, 1 to 8


def read_file(path: str | Path, size: int = -1) -> bytes:
    """Read an encoded image, or its first ``size`` bytes; may raise Undecodable."""
    try:
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):  # opening a named pipe would wait
            raise Undecodable("not a regular file")
        if found.st_size > MAX_BYTES:
            raise Undecodable(f"it has {found.st_size:,} bytes, limit {MAX_BYTES:,}")
        with open(path, "rb") as file:
            return file.read(size)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = error.strerror if isinstance(error, OSError) else None
        raise Undecodable(reason or str(error)) from error


def opencv() -> ModuleType:
    """Import OpenCV, which the extra `photos` installs: 150 MB."""
    try:
        import cv2
    except ImportError as error:
        raise InputError(
            f"photographs are resized by OpenCV, which cannot be imported ({error}): "
            "run pip install 'lt_jax[photos]'"
        ) from error
    return cv2


def decode_all(data: bytes | Undecodable) -> np.ndarray:
    """Decode a complete image at its own size: uint8[h, w, 3]; see ``decode``."""
    if isinstance(data, Undecodable):
        raise data
    return _upright(*_from_pillow(data))


def decode(
    data: bytes | Undecodable,
    box_of: Callable[[int, int], Box],
    size: int,
    interpolation: str = "",
) -> np.ndarray:
    """Decode a box of a photograph and resize it to uint8[size, size, 3], not aliased.

    ``box_of`` maps width and height of the upright photograph to the box, which is
    exact to half a pixel of the decoded scale. Of an animation, the first frame is
    decoded. A truncated JPEG is undecodable even if the box is in the part that exists.
    A JPEG with damaged content may give wrong pixels, as with any decoder.
    ``interpolation``, a key of ``FILTERS``, decodes and resizes the complete photograph
    by Pillow, for centre crops to the pixels of torchvision's and timm's transforms; ""
    is faster. A photograph so thin that it would be resized to more than ``MAX_PIXELS``
    raises Undecodable.
    """
    if isinstance(data, Undecodable):
        raise data
    if interpolation:
        image = Image.fromarray(decode_all(data))
        x, y, w, h = box_of(*image.size)
        full = round(image.width * size / w), round(image.height * size / h)
        if full[0] * full[1] > MAX_PIXELS:
            raise Undecodable(
                f"too thin: {image.width} x {image.height} pixels would be resized to "
                f"{full[0]} x {full[1]}, more than {MAX_PIXELS:,}"
            )
        left, top = round(x * size / w), round(y * size / h)
        image = image.resize(full, FILTERS[interpolation])
        return np.asarray(image.crop((left, top, left + size, top + size)))
    if (header := jpeg_header(data)) is not None:
        with contextlib.suppress(ValueError):  # Pillow has better error messages
            return _from_jpeg(data, header, box_of, size)
    pixels, orientation = _from_pillow(data)
    height, width = pixels.shape[:2]
    box = _stored_box(box_of, width, height, orientation)
    return _upright(resized(_cut(pixels, box, 1), size), orientation)


def jpeg_header(data: bytes) -> Header | None:
    """Read the header of a JPEG, or return None if Pillow must decode the image.

    Left to Pillow: other formats, truncated files, CMYK, 12 or 16 bits, arithmetic or
    lossless coding, very small or huge images, and rotations given only in XMP.
    """
    if data[:2] != b"\xff\xd8":
        return None
    at, orientation, xmp, frame = 2, None, False, None
    try:
        while data[at] == 0xFF and (kind := data[at + 1]) != 0xDA:  # the scan
            if kind == 0xFF:  # padding
                at += 1
                continue
            length = data[at + 2] << 8 | data[at + 3]
            if kind == 0xE1 and data[at + 4 : at + 10] == b"Exif\0\0":
                orientation = _orientation(data[at + 4 : at + 2 + length])
            elif kind == 0xE1 and data.startswith(XMP, at + 4):
                xmp = data.find(b"Orientation", at, at + length) > 0
            elif kind in (0xC0, 0xC1, 0xC2):  # baseline, extended, progressive
                frame = kind, at + 5, struct.unpack_from(">BHHB", data, at + 4)
            elif 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):
                return None
            at += 2 + length
        in_scan = data[at + 4]  # channels
    except (IndexError, struct.error):
        return None
    if frame is None or data[at] != 0xFF:
        return None
    kind, height_at, (bits, height, width, channels) = frame
    if (
        bits != 8
        or channels not in (1, 3)
        or min(width, height) < MIN_SIDE
        or width * height > MAX_PIXELS
        or (xmp and orientation is None)
        or data.rfind(b"\xff\xd9", at) < 0  # no end-of-image marker
    ):
        return None
    # Only a single scan can end early; several are read one after the other.
    lowered = height_at if kind != 0xC2 and in_scan == channels else 0
    return Header(width, height, lowered, orientation or 1)


def resized(pixels: np.ndarray, size: int, interpolation: str = "") -> np.ndarray:
    """Resize uint8[h, w, 3] to uint8[size, size, 3], smoothing as much as it shrinks.

    ``interpolation`` is a key of ``FILTERS``; "" is faster and linear.

    To shrink by r, Pillow's linear resize convolves with a triangle of variance
    r^2 / 6, OpenCV's with one of 1 / 6. A filter first adds the difference, in 3 taps
    up to r = 2 and 5 up to r = 3. This aliases less than area averaging and is several
    times faster; above 3, area averaging is used.
    """
    if interpolation:
        image = Image.fromarray(pixels)
        return np.asarray(image.resize((size, size), FILTERS[interpolation]))
    cv2 = opencv()
    height, width = pixels.shape[:2]
    ratio = max(width, height) / size
    if ratio > 3:
        return cv2.resize(pixels, (size, size), interpolation=cv2.INTER_AREA)
    if ratio > 1.1:
        kernels = _kernel(width / size), _kernel(height / size)
        pixels = cv2.sepFilter2D(pixels, -1, *kernels)
    return cv2.resize(pixels, (size, size), interpolation=cv2.INTER_LINEAR)


def _kernel(ratio: float) -> np.ndarray:
    """float32[3 or 5] of variance (ratio^2 - 1) / 6."""
    variance = max(ratio * ratio - 1, 0) / 6
    parts = 1 if variance <= 0.5 else 2
    side = variance / parts / 2
    one = np.array([side, 1 - 2 * side, side], np.float32)
    return one if parts == 1 else np.convolve(one, one)


def _from_jpeg(
    data: bytes | bytearray,
    header: Header,
    box_of: Callable[[int, int], Box],
    size: int,
) -> np.ndarray:
    """Decode with libjpeg-turbo, which raises ValueError when it fails."""
    width, height, height_at, orientation = header
    box = _stored_box(box_of, width, height, orientation)
    divisor = next(d for d in SCALES if d == 1 or min(box[2:]) >= d * size)
    # Colours may be interpolated from two rows below the box; blocks have 16 rows. The
    # decoder skips the rest of the file as garbage.
    last = -(-(math.ceil(box[1] + box[3]) + 2) // 16) * 16
    if height_at and last < height:
        height, data = last, bytearray(data)
        data[height_at : height_at + 2] = height.to_bytes(2, "big")
    pixels = simplejpeg.decode_jpeg(
        data,
        min_height=-(-height // divisor),
        min_width=-(-width // divisor),
        strict=False,  # data after the last row counts as a recoverable error
    )
    return _upright(resized(_cut(pixels, box, divisor), size), orientation)


def _from_pillow(data: bytes) -> tuple[np.ndarray, int]:
    """uint8[h, w, 3] as stored, and the EXIF orientation."""
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        if image.width * image.height > MAX_PIXELS:
            raise Image.DecompressionBombError
        image.load()
        exif = image.info.get("exif")
        orientation = image.getexif().get(ORIENTATION, 1) if exif else 1
        if image.mode == "F":
            raise ValueError("floating-point pixels, whose range is unknown")
        if image.mode.startswith("I"):  # 16 bits, which Pillow would clip at 255
            values = np.asarray(image).clip(0, 65535).astype(np.uint32)
            grey = ((values + 128) // 257).astype(np.uint8)
            pixels = np.repeat(grey[:, :, None], 3, axis=2)
        else:
            if "transparency" in image.info:
                image = image.convert("RGBA")
            pixels = np.asarray(image.convert("RGB"))
    except MemoryError:  # a fault of this machine, since pixels are limited
        raise
    except UnidentifiedImageError as error:  # Pillow's message names an object id
        raise Undecodable(f"not an image ({', '.join(FORMATS)})") from error
    except Image.DecompressionBombError as error:
        raise Undecodable(f"more than {MAX_PIXELS:,} pixels") from error
    except Exception as error:  # Pillow's readers raise anything on damaged files
        raise Undecodable(str(error) or type(error).__name__) from error
    return pixels, orientation if orientation in TURNS else 1


def _orientation(exif: bytes) -> int | None:
    """The orientation in an EXIF segment, 1 to 8; None if it is absent or invalid."""
    entries, found = Image.Exif(), None
    with contextlib.suppress(Exception):  # whatever Pillow raises for a damaged one
        entries.load(exif)
        found = entries.get(ORIENTATION)
    return found if found in TURNS else None


def _stored_box(
    box_of: Callable[[int, int], Box], width: int, height: int, orientation: int
) -> Box:
    """The box in stored pixels, from ``width`` and ``height`` as stored."""
    transpose, flip_y, flip_x = TURNS[orientation]
    if transpose:
        width, height = height, width
    x, y, w, h = box_of(width, height)
    if flip_x:
        x = width - x - w
    if flip_y:
        y = height - y - h
    return (y, x, h, w) if transpose else (x, y, w, h)


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Rotate and flip stored pixels upright."""
    transpose, flip_y, flip_x = TURNS[orientation]
    if transpose:
        pixels = pixels.swapaxes(0, 1)
    return pixels[:: -1 if flip_y else 1, :: -1 if flip_x else 1]


def _cut(pixels: np.ndarray, box: Box, divisor: int) -> np.ndarray:
    """The box, at least one pixel, from pixels decoded at 1 / divisor."""
    x, y, w, h = (number / divisor for number in box)
    left, top = min(round(x), pixels.shape[1] - 1), min(round(y), pixels.shape[0] - 1)
    right, bottom = max(round(x + w), left + 1), max(round(y + h), top + 1)
    return pixels[top:bottom, left:right]
