"""Decoding: all formats, both decoders, damaged files."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import struct
import zlib

import cv2
import numpy as np
import pytest
from made_photos import VIEW, dataset, encoded, scene
from PIL import EpsImagePlugin, Image, ImageCms, ImageOps

from lt_jax.data.images import crops
from lt_jax.data.images import decode as decoding
from lt_jax.data.images.decode import (
    Undecodable,
    decode,
    decode_all,
    jpeg_header,
    read_file,
)
from lt_jax.errors import InputError


def box(x, y, w, h):
    return lambda wide, high: (x, y, w, h)


def everything(wide, high):
    return 0, 0, wide, high


def oracle(image: Image.Image, where, size: int) -> np.ndarray:
    """Pillow's resize, which smooths as much as it shrinks."""
    where = where(*image.size)
    return np.asarray(
        image.resize(
            (size, size),
            Image.Resampling.BILINEAR,
            box=(where[0], where[1], where[0] + where[2], where[1] + where[3]),
        ),
        np.float64,
    )


@pytest.mark.parametrize("how", ["bicubic", "bilinear"])
@pytest.mark.parametrize("sides", [(90, 61), (40, 30), (300, 401)], ids=str)
def test_a_filter_of_pillow_gives_the_pixels_of_torchvision(how, sides):
    """Resize(36) and CenterCrop(32)."""
    data = encoded(scene(*sides, seed=3))
    image = Image.open(io.BytesIO(data)).convert("RGB")
    w, h = (36 * side // min(sides) for side in sides)
    image = image.resize((w, h), decoding.FILTERS[how])
    left, top = round((w - 32) / 2), round((h - 32) / 2)
    expected = np.asarray(image.crop((left, top, left + 32, top + 32)))
    centre = functools.partial(crops.centre_box, size=32, resize=36)
    np.testing.assert_array_equal(decode(data, centre, 32, how), expected)


def away(found: np.ndarray, expected: np.ndarray) -> float:
    assert found.dtype == np.uint8
    assert found.shape == expected.shape
    return float(np.abs(found - expected).mean())


@pytest.fixture
def no_pillow(monkeypatch):
    """Make decoding with Pillow fail."""

    def used(data):
        raise AssertionError("decoded with Pillow")

    monkeypatch.setattr(decoding, "_from_pillow", used)


@pytest.mark.parametrize("size", [16, 32, 50])
@pytest.mark.parametrize(
    "where",
    [
        everything,
        box(0, 0, 64, 64),
        box(137, 91, 63, 59),  # the last corner
        box(3, 17, 150, 120),
        box(30.4, 20.7, 120.9, 88.2),
    ],
)
def test_a_box_of_a_jpeg_agrees_with_pillow(no_pillow, where, size):
    image = Image.fromarray(scene(200, 150))
    for how in ({}, {"subsampling": 0}, {"progressive": True}, {"quality": 80}):
        found = decode(encoded(image, **how), where, size)
        assert away(found, oracle(image, where, size)) < 3, how


@pytest.mark.parametrize("where", [box(0, 0, 120, 41), box(40, 7, 33, 70)])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("grey", [False, True])
def test_stopping_below_the_box_changes_no_pixel(where, subsampling, grey):
    image = Image.fromarray(scene(120, 200, seed=3)).convert("L" if grey else "RGB")
    data = encoded(image, subsampling=subsampling)
    header = jpeg_header(data)
    assert header is not None
    assert header.height_at
    for size in (8, 16, 32):
        stopped = decoding._from_jpeg(data, header, where, size)
        whole = decoding._from_jpeg(data, header._replace(height_at=0), where, size)
        np.testing.assert_array_equal(stopped, whole)


def test_shrinking_aliases_less_than_area_averaging():
    """Stripes finer than the result can show should be grey in it."""
    left = {"ours": 0.0, "area": 0.0, "linear": 0.0}
    for period in (2, 3):
        stripes = np.zeros((300, 300, 3), np.uint8)
        stripes[:, ::period] = 255
        for side in (64, 80, 100, 112, 128, 150, 180, 200, 220, 250):
            ways = {
                "ours": decoding.resized(stripes, side),
                "area": cv2.resize(stripes, (side, side), interpolation=cv2.INTER_AREA),
                "linear": cv2.resize(
                    stripes, (side, side), interpolation=cv2.INTER_LINEAR
                ),
            }
            for way, found in ways.items():
                left[way] += found[4:-4, 4:-4].astype(float).std()
    assert left["ours"] < left["area"] < left["linear"]
    assert left["ours"] < 0.5 * left["linear"]


def test_resizing_neither_shifts_nor_darkens():
    image = scene(240, 240)
    for side in (40, 70, 79, 81, 120, 160, 220, 240, 300):
        found = decoding.resized(image, side)
        expected = Image.fromarray(image).resize(
            (side, side), Image.Resampling.BILINEAR
        )
        assert away(found, np.asarray(expected, np.float64)) < 1, side


FORMATS = {
    "JPEG": {},
    "PNG": {},
    "WEBP": {"lossless": True},
    "BMP": {},
    "TIFF": {},
}


@pytest.mark.parametrize("format", FORMATS)
def test_formats(format):
    image = Image.fromarray(scene(90, 70))
    found = decode(encoded(image, format, **FORMATS[format]), everything, 24)
    assert away(found, oracle(image, everything, 24)) < 2


@pytest.mark.parametrize(
    "mode", ["L", "LA", "RGBA", "P", "1", "I;16", "RGBA16", "CMYK", "JPEG L"]
)
def test_kinds_of_pixels(mode):
    image = Image.fromarray(scene(90, 70))
    expected = image
    if mode == "CMYK":
        data, tolerated = encoded(image.convert("CMYK")), 3
    elif mode == "JPEG L":
        data, tolerated = encoded(image.convert("L")), 2
        expected = image.convert("L").convert("RGB")
    elif mode == "I;16":
        grey = np.asarray(image.convert("L"))
        expected = Image.fromarray(grey).convert("RGB")
        deep = Image.fromarray(grey.astype(np.uint16) * 257)
        assert deep.mode == mode
        data, tolerated = encoded(deep, "PNG"), 1
    elif mode == "RGBA16":
        deep = np.asarray(image.convert("RGBA")).astype(np.uint16) * 257
        data = cv2.imencode(".png", deep[:, :, [2, 1, 0, 3]])[1].tobytes()
        tolerated = 1
    else:
        other = image.convert(mode)
        expected = other.convert("RGB")
        # Dithered, so that each pixel is far from its neighbours.
        tolerated = {"P": 2, "1": 10}.get(mode, 1)
        data = encoded(other, "PNG")
    found = decode(data, everything, 24)
    assert away(found, oracle(expected, everything, 24)) < tolerated


def test_transparent_colours_of_a_palette():
    image = Image.fromarray(scene(90, 70)).convert("P")
    data = encoded(image, "PNG", transparency=bytes(range(256)))
    found = decode(data, everything, 24)
    assert away(found, oracle(image.convert("RGB"), everything, 24)) < 2


def test_a_colour_profile_is_ignored(no_pillow):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image = Image.fromarray(scene(90, 70))
    found = decode(encoded(image, icc_profile=profile), everything, 24)
    assert away(found, oracle(image, everything, 24)) < 2


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_exif_rotates_the_photograph_and_the_box(orientation, format):
    stored = Image.fromarray(scene(90, 70, seed=5))
    exif = Image.Exif()
    exif[decoding.ORIENTATION] = orientation
    data = encoded(stored, format, exif=exif, **FORMATS[format])
    if format == "JPEG":
        header = jpeg_header(data)
        assert header is not None
        assert header.orientation == orientation
    stored.info["exif"] = exif.tobytes()
    seen = ImageOps.exif_transpose(stored)
    assert seen.size == ((70, 90) if orientation > 4 else (90, 70))
    sizes = []

    def where(wide, high):
        sizes.append((wide, high))
        return 8, 13, 40, 50

    found = decode(data, where, 24)
    assert sizes == [seen.size]
    assert away(found, oracle(seen, where, 24)) < 3


def test_a_broken_exif_entry_is_ignored():
    data = encoded(scene(90, 70), exif=b"Exif\0\0MM\0*\0\0\0\x99")
    header = jpeg_header(data)
    assert header is not None
    assert header.orientation == 1


def test_a_rotation_only_in_xmp_is_decoded_with_pillow():
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><tiff:Orientation>6</tiff:Orientation>'
    assert jpeg_header(encoded(scene(90, 70), xmp=xmp)) is None


@pytest.mark.parametrize("sides", [(1, 1), (2, 9), (15, 40), (40, 3), (17, 17)])
def test_tiny_and_narrow_images(sides):
    image = Image.fromarray(scene(*sides))
    for format in ("JPEG", "PNG"):
        data = encoded(image, format)
        expected = Image.open(io.BytesIO(data)).convert("RGB")
        assert away(decode(data, everything, 24), oracle(expected, everything, 24)) < 2


def test_bytes_after_the_end_are_ignored(no_pillow):
    data = encoded(scene(90, 70))
    np.testing.assert_array_equal(
        decode(data + bytes(100), everything, 24), decode(data, everything, 24)
    )


JPEG = encoded(scene(90, 70))
WRONG = {
    "empty": b"",
    "text": b"<html>not found</html>",
    "two bytes": JPEG[:2],
    "cut in the header": JPEG[:100],
    "cut in the middle": JPEG[: len(JPEG) // 2],
    "cut at the end": JPEG[: -len(JPEG) // 10],
    "cut PNG": encoded(scene(90, 70), "PNG")[:-400],
    "cut WebP": encoded(scene(90, 70), "WEBP")[:-200],
    "no tables": JPEG[:2] + JPEG[JPEG.index(b"\xff\xc0") :],
    "fractions": encoded(Image.fromarray(np.zeros((9, 9), np.float32)), "TIFF"),
}


@pytest.mark.parametrize("what", WRONG)
def test_undecodable_bytes(what):
    # The box is in the part that exists: the crop must not decide what is broken.
    with pytest.raises(Undecodable) as caught:
        decode(WRONG[what], box(0, 0, 20, 4), 16)
    assert str(caught.value)
    with pytest.raises(InputError, match=r"0000\.jpg cannot be decoded"):
        dataset([WRONG[what]]).read(np.array([0]))


@pytest.mark.parametrize("how", ["JPEG", "progressive", "PNG", "WEBP"])
def test_damaged_bytes_never_crash(how):
    """With some bytes changed, decoding returns an image or raises Undecodable."""
    rng = np.random.default_rng(0)
    special = {"progressive": ("JPEG", {"progressive": True})}
    format, options = special.get(how, (how, {}))
    data, ends = encoded(scene(90, 70), format, **options), {"image": 0, "error": 0}
    for turn in range(60):
        spoilt = bytearray(data)
        within = len(data) if turn % 2 else min(len(data), 700)  # or in the header
        for at in rng.integers(0, within, 3):
            spoilt[at] = rng.integers(0, 256)
        try:
            found = decode(bytes(spoilt), lambda w, h: (0, 0, w, max(1, h // 2)), 24)
            assert found.shape == (24, 24, 3)
            ends["image"] += 1
        except Undecodable:
            ends["error"] += 1
    assert ends["error"]
    assert ends["image"] or format in ("PNG", "WEBP")  # which have checksums


def test_a_huge_image_is_rejected(monkeypatch):
    monkeypatch.setattr(decoding, "MAX_PIXELS", 1000)
    for data in (JPEG, encoded(scene(90, 70), "PNG")):
        with pytest.raises(Undecodable, match="more than 1,000 pixels"):
            decode(data, everything, 16)


def test_a_thin_image_is_not_resized_to_a_huge_one(monkeypatch):
    """It is resized whole by a filter of Pillow."""
    monkeypatch.setattr(decoding, "MAX_PIXELS", 36 * 360 - 1)
    centre = functools.partial(crops.centre_box, size=32, resize=36)
    assert decode(encoded(scene(4, 39), "PNG"), centre, 32, "bicubic").any()
    thin = encoded(scene(4, 40), "PNG")
    with pytest.raises(Undecodable, match="4 x 40 pixels would be resized to 36 x 360"):
        decode(thin, centre, 32, "bicubic")
    assert decode(thin, centre, 32).any()


def png_of_size(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header gives this size."""
    made = bytearray(encoded(scene(4, 4), "PNG"))
    made[16:24] = struct.pack(">II", width, height)
    made[29:33] = struct.pack(">I", zlib.crc32(made[12:29]))
    return bytes(made)


@pytest.mark.parametrize("side", [10_001, 30_000, 2**31 - 1])
def test_a_decompression_bomb_is_rejected_before_it_expands(side):
    with pytest.raises(Undecodable, match=r"pixels|image"):
        decode(png_of_size(side, side), everything, 16)


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\n"


def test_an_image_never_starts_ghostscript(tmp_path, monkeypatch):
    """Pillow's reader of PostScript runs ``gs``; the name of the file is no matter."""
    gs, trace = tmp_path / "gs", tmp_path / "started"
    gs.write_text(f"#!/bin/sh\ntouch {trace}\nexit 1\n")
    gs.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # found once per process
    for reads in (decode_all, lambda data: decode(data, everything, 16)):
        with pytest.raises(Undecodable, match="not an image"):
            reads(POSTSCRIPT)
    assert not trace.exists()
    # Without the list of formats, it would have been started.
    with contextlib.suppress(Exception):
        Image.open(io.BytesIO(POSTSCRIPT)).load()
    assert trace.exists()


def test_files_that_are_no_images(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    with (tmp_path / "huge.jpg").open("wb") as file:
        file.truncate(decoding.MAX_BYTES + 1)
    for name, reason in {
        "pipe.jpg": "not a regular file",
        "huge.jpg": r"has 536,870,913 bytes, limit 536,870,912",
        "none.jpg": "No such file",
        ".": "not a regular file",
        "a\0b": "null",
        "a" * 999: "too long",
    }.items():
        with pytest.raises(Undecodable, match=reason):
            read_file(tmp_path / name)


def test_the_centre_crop_agrees_with_torchvision():
    """Resize(256), CenterCrop(224) in the order and rounding of torchvision."""
    view = VIEW._replace(size=56, resize=64)
    for wide, high in ((200, 150), (150, 201), (64, 64), (333, 100)):
        image = Image.fromarray(scene(wide, high, seed=wide))
        short = min(wide, high)
        sides = (64 * wide // short, 64 * high // short)
        left, top = round((sides[0] - 56) / 2), round((sides[1] - 56) / 2)
        expected = image.resize(sides, Image.Resampling.BILINEAR).crop(
            (left, top, left + 56, top + 56)
        )
        found = dataset([encoded(image)], view).read(np.array([0]))[0]
        assert away(found, np.asarray(expected, np.float64)) < 2
