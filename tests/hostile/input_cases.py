"""Hostile input besides workdirs: data, images, archives, weights, configs, flags."""

from __future__ import annotations

import gzip
import importlib.util
import io
import itertools
import json
import os
import shutil
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tiny_archives
import tiny_photos
from harness import CONFIG, FLAGS, ROOT, Box, Guard, Server, faults
from workdir_cases import IMAGE

Make = Callable[[Box], object]
REFUSED = (2,)
EITHER = (0, 2)
TRAINED = (0, 1, 2)  # 1: the training diverged


class Case(NamedTuple):
    """A command on hostile input.

    Args:
      make: puts the input in the box's ``cwd``, or changes the workdir ``work``.
      workdir: whether the box has a workdir.
      codes: the exit codes that are right.
      quick: a second or less.
    """

    id: str
    argv: tuple[str, ...]
    make: Make = lambda box: None
    workdir: bool = False
    codes: tuple[int, ...] = REFUSED
    env: dict[str, str] = {}  # noqa: RUF012 # a NamedTuple, never changed
    quick: bool = True


def run(case: Case, server: Server, workdir: Path, root: Path) -> list[str]:
    """Run a case in a new box; return what is wrong."""
    box = Box(root, workdir if case.workdir else None)
    case.make(box)
    guard = Guard(box, writes=False)
    ended = box.run(server, case.argv, case.env)
    found = faults(ended, case.codes) + guard.faults(ended)
    box.remove()
    return found


# Features of other programs.

INFO = ("data", "info", "--config", str(ROOT / "configs" / "features.py"))
INFO += ("--config.data.dir={cwd}",)
FEATURES = np.eye(4, dtype=np.float32).repeat(3, axis=0)
LABELS = np.arange(4, dtype=np.int32).repeat(3)


def npy(shape: str, dtype: str = "<f4", body: bytes = b"", version: int = 1) -> bytes:
    """A .npy file whose header claims any shape and type."""
    return npy_header(
        f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape}}}",
        body,
        version,
    )


def npy_header(text: str, body: bytes = b"", version: int = 1) -> bytes:
    header = text.encode("latin1") + b"\n"
    size = struct.pack("<H" if version == 1 else "<I", len(header))
    return b"\x93NUMPY" + bytes([version, 0]) + size + header + body


def saved(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def zipped(members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def npz(features: bytes, labels: bytes | None = None, **how: Any) -> bytes:
    labels = saved(LABELS) if labels is None else labels
    return zipped({"features.npy": features, "labels.npy": labels}, **how)


GOOD = npz(saved(FEATURES))


def patched(content: bytes, at: bytes, offset: int, value: bytes) -> bytes:
    """Overwrite bytes at an offset from every occurrence of a signature."""
    made, found = bytearray(content), content.find(at)
    while found >= 0:
        made[found + offset : found + offset + len(value)] = value
        found = content.find(at, found + 1)
    return bytes(made)


def _zip_bomb() -> bytes:
    """Three gigabytes of zeros in three megabytes."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("labels.npy", saved(LABELS))
        with archive.open("features.npy", "w", force_zip64=True) as member:
            member.write(npy(f"(12, {2**26})"))
            for _ in range(192):
                member.write(bytes(2**24))
    return file.getvalue()


NPZ: dict[str, Callable[[], bytes]] = {
    "4 PB in a header": lambda: npz(npy("(1000000000000000, 1)")),
    "negative shape": lambda: npz(npy("(-1, 4)")),
    "shape beyond 64 bits": lambda: npz(npy("(99999999999999999999999, 4)")),
    "4 PB without data": lambda: npz(npy("(2, 500000000000000)", "<f8")),
    "4 PB of nothing": lambda: npz(npy("(0, 500000000000000)", "<f8")),
    "code in a header": lambda: npz(npy_header("__import__('os').system('touch x')")),
    "1,500 brackets in a header": lambda: npz(npy_header("(" * 1500 + ")" * 1500)),
    "1,500 minus signs in a header": lambda: npz(npy("-" * 1500 + "1")),
    "a header of 1 MB": lambda: npz(npy_header("{" + " " * 2**20 + "}", version=2)),
    "version 9": lambda: npz(npy("(12, 4)", version=9)),
    "objects": lambda: npz(saved(np.array([{}, Path("x")], object))),
    "records": lambda: npz(saved(np.zeros(12, "f4,i4"))),
    "complex": lambda: npz(saved(FEATURES.astype(complex))),
    "dates": lambda: npz(saved(np.zeros((12, 4), "M8[s]"))),
    "text": lambda: npz(saved(np.full((12, 4), "x"))),
    "one number": lambda: npz(saved(np.float32(1))),
    "no rows": lambda: npz(saved(FEATURES[:0]), saved(LABELS[:0])),
    "nan": lambda: npz(saved(FEATURES * np.nan)),
    "float64 beyond float32": lambda: npz(saved(FEATURES.astype(float) * 1e300)),
    "cut data": lambda: npz(saved(FEATURES)[:-8]),
    "no array": lambda: npz(b"not an array"),
    "an empty member": lambda: npz(b""),
    "no labels": lambda: zipped({"features.npy": saved(FEATURES)}),
    "other names": lambda: zipped({"x/../../features.npy": saved(FEATURES)}),
    "labels of -1": lambda: npz(saved(FEATURES), saved(LABELS - 1)),
    "a label of 2,000,000,000": lambda: npz(
        saved(FEATURES), saved(np.append(LABELS[1:], np.int32(2_000_000_000)))
    ),
    "a label of 2**63": lambda: npz(
        saved(FEATURES), saved(np.append(LABELS[1:], np.uint64(2**63)).astype("u8"))
    ),
    "float labels": lambda: npz(saved(FEATURES), saved(LABELS + 0.5)),
    "text labels": lambda: npz(saved(FEATURES), saved(LABELS.astype(str))),
    "label table": lambda: npz(saved(FEATURES), saved(np.eye(12, dtype=int))),
    "one class": lambda: npz(saved(FEATURES), saved(LABELS * 0)),
    "encrypted": lambda: patched(
        patched(GOOD, b"PK\3\4", 6, b"\1"), b"PK\1\2", 8, b"\1"
    ),
    "unknown compression": lambda: patched(
        patched(GOOD, b"PK\3\4", 8, b"\x63"), b"PK\1\2", 10, b"\x63"
    ),
    "wrong checksum": lambda: patched(
        patched(GOOD, b"PK\3\4", 14, b"abcd"), b"PK\1\2", 16, b"abcd"
    ),
    "claims 4 GB": lambda: patched(
        GOOD, b"PK\1\2", 20, b"\xf0\xff\xff\xff\xf0\xff\xff\xff"
    ),
    "lzma": lambda: npz(saved(FEATURES), method=zipfile.ZIP_LZMA)[:-60],
    "half": lambda: GOOD[: len(GOOD) // 2],
    "empty": lambda: b"",
    "binary": lambda: bytes(range(256)) * 8,
    "a pickle": lambda: b"\x80\x04cos\nsystem\n(S'touch x'\ntR.",
}
NPZ_READABLE = ("claims 4 GB",)
NPZ_SLOW = {"zip bomb of 3 GB": _zip_bomb}
NPY = {
    "4 PB": npy("(1000000000000000, 1)"),
    "objects": saved(np.array([{}, []], object)),
    "empty": b"",
    "a zip archive": GOOD,
    "64 GB of nothing behind a header": npy("(16000000000, 1)"),
}


def _write(name: str, content: Callable[[], bytes] | bytes) -> Make:
    def make(box: Box) -> None:
        made = content() if callable(content) else content
        (box.cwd / name).write_bytes(made)

    return make


def _pipe(name: str) -> Make:
    return lambda box: os.mkfifo(box.cwd / name)


def _all(*makes: Make) -> Make:
    def make(box: Box) -> None:
        for one in makes:
            one(box)

    return make


def _parquet(**columns: Callable[[Any], Any]) -> Make:
    def make(box: Box) -> None:
        import pyarrow
        from pyarrow import parquet

        made = {name: column(pyarrow) for name, column in columns.items()}
        parquet.write_table(pyarrow.table(made), box.cwd / "train.parquet")

    return make


def _numbers(pa: Any) -> Any:
    return pa.array([[1.0, 2.0], [3.0, 4.0]])


def _two(pa: Any) -> Any:
    return pa.array([0, 1])


PARQUET: dict[str, Make] = {
    "structs": _parquet(
        features=lambda pa: pa.array([{"a": 1}, {"a": 2}]), labels=_two
    ),
    "maps": _parquet(
        features=lambda pa: pa.array(
            [[("a", 1)], [("b", 2)]], pa.map_(pa.string(), pa.int64())
        ),
        labels=_two,
    ),
    "numbers": _parquet(features=_two, labels=_two),
    "text": _parquet(features=lambda pa: pa.array(["a", "b"]), labels=_two),
    "ragged": _parquet(features=lambda pa: pa.array([[1.0], [1.0, 2.0]]), labels=_two),
    "nulls": _parquet(features=lambda pa: pa.array([None, [1.0]]), labels=_two),
    "nested": _parquet(features=lambda pa: pa.array([[[1.0]], [[2.0]]]), labels=_two),
    "null labels": _parquet(features=_numbers, labels=lambda pa: pa.array([None, 1])),
    "struct labels": _parquet(
        features=_numbers, labels=lambda pa: pa.array([{"a": 1}, {"a": 2}])
    ),
    "list labels": _parquet(features=_numbers, labels=lambda pa: pa.array([[1], [2]])),
    "text labels": _parquet(features=_numbers, labels=lambda pa: pa.array(["a", "b"])),
    "other columns": _parquet(a=_two, b=_two),
    "no rows": _parquet(
        features=lambda pa: pa.array([], pa.list_(pa.float32())),
        labels=lambda pa: pa.array([], pa.int32()),
    ),
    "empty file": _write("train.parquet", b""),
    "magic alone": _write("train.parquet", b"PAR1" * 4),
    "binary": _write("train.parquet", b"PAR1" + bytes(range(256)) * 8 + b"PAR1"),
}


def _features() -> Iterator[Case]:
    test = _write("test.npz", GOOD)
    for kind, content in (NPZ | NPZ_SLOW).items():
        make = _all(test, _write("train.npz", content))
        codes = EITHER if kind in NPZ_READABLE else REFUSED
        quick = kind in NPZ
        yield Case(f"features npz | {kind}", INFO, make, codes=codes, quick=quick)
    for kind, content in NPY.items():
        labels = _write("train_labels.npy", saved(LABELS))
        make = _all(test, labels, _write("train.npy", content))
        yield Case(f"features npy | {kind}", INFO, make)
        make = _all(
            test,
            _write("train.npy", saved(FEATURES)),
            _write("train_labels.npy", content),
        )
        yield Case(f"feature labels npy | {kind}", INFO, make)
    for kind, make in PARQUET.items():
        yield Case(f"features parquet | {kind}", INFO, _all(test, make))
    yield Case("features | a pipe", INFO, _all(test, _pipe("train.npz")))
    yield Case("features | an empty folder", INFO)
    yield Case(
        "features | good", INFO, _all(test, _write("train.npz", GOOD)), codes=(0,)
    )


# `lt-jax fit`.

FIT = ("fit", "{cwd}/photos", "--workdir", "{out}/run")
BACKBONES = ("vit_smal", "../victim", "x\x1b[31m", "hf:", "hf:a/b/c@", "torch:x")
NETWORKS = {
    "no config": {"model.safetensors": b"x"},
    "null": {"model.safetensors": b"x", "config.json": b"null"},
    "an unknown architecture": {
        "model.safetensors": b"x",
        "config.json": b'{"architecture": "../x", "pretrained_cfg": {"mean": [], '
        b'"std": [], "input_size": [3, 8, 8]}}',
    },
}


def _put(folder: str, files: dict[str, bytes]) -> Make:
    def make(box: Box) -> None:
        (box.cwd / folder).mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (box.cwd / folder / name).write_bytes(content)

    return make


def _photos_in_folder(box: Box) -> None:
    tiny_photos.write(box.cwd / "photos", TINY)


def _fits() -> Iterator[Case]:
    for kind in ("half", "nan", "float labels", "label table", "one class"):
        files = {"test.npz": GOOD, "train.npz": NPZ[kind]()}
        yield Case(f"fit features | {kind}", FIT, _put("photos", files))
    for name in BACKBONES:
        argv = (*FIT, "--backbone", name)
        yield Case(f"fit backbone | {name!r}", argv, _photos_in_folder)
    for kind, files in NETWORKS.items():
        make = _all(_photos_in_folder, _put("net", files))
        argv = (*FIT, "--backbone", "{cwd}/net")
        yield Case(f"fit network | {kind}", argv, make)
    # They are refused before any weights are looked for.
    yield Case("fit | one class", FIT, _put("photos/a", {"a.jpg": b"x"}))
    yield Case("fit | no class folders", FIT, _put("photos", {"a.jpg": b"x"}))


# Folders and tables of photographs.

PHOTOS = ("data", "info", "--config", str(ROOT / "configs" / "folder.py:classes=2"))
FOLDER = (*PHOTOS, "--config.data.dir={cwd}", "--config.data.test=0.25")
TABLE = (*PHOTOS, "--config.data.table={cwd}/t.csv", "--config.data.test=0.25")
TINY = {"rot": 4, "blau": 4}
ESCAPE = "=cmd|'x'!A1\x1b[31m\x07"


def photos(box: Box) -> Path:
    return tiny_photos.write(box.cwd, TINY)


def _named(name: bytes) -> Make:
    """A folder of photographs, one with this name."""

    def make(box: Box) -> None:
        photos(box)
        source = next((box.cwd / "rot").iterdir())
        shutil.copy(source, os.fsencode(box.cwd / "rot") + b"/" + name)

    return make


def _class(name: bytes) -> Make:
    """A folder of photographs, whose classes include one of this name."""

    def make(box: Box) -> None:
        photos(box)
        target = os.fsencode(box.cwd) + b"/" + name
        shutil.copytree(os.fsencode(box.cwd / "rot"), target)

    return make


def _deep(box: Box) -> None:
    """1,500 nested folders; their path is longer than the system's limit."""
    photos(box)
    here = os.open(box.cwd / "rot", os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=here)
        inner = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(here)


def _with_file(name: str, make_file: Callable[[Path], object]) -> Make:
    def make(box: Box) -> None:
        photos(box)
        make_file(box.cwd / name)

    return make


FOLDERS: dict[str, tuple[Make, tuple[int, ...]]] = {
    "good": (photos, (0,)),
    "a file name that is not UTF-8": (_named(b"Stra\xdfe.jpg"), EITHER),
    "a class name that is not UTF-8": (_class(b"gr\xfcn"), EITHER),
    "a class name with escape codes": (_class(ESCAPE.encode()), EITHER),
    "a file name with escape codes": (_named(b"\x1b]0;x\x07.txt"), EITHER),
    "a class name with a line break": (_class(b"a\nlt-jax: b"), EITHER),
    "a class name of spaces": (_class(b"   "), EITHER),
    "1,500 folders in each other": (_deep, EITHER),
    "a pipe": (_with_file("rot/x.jpg", os.mkfifo), EITHER),
    "a link to itself": (
        _with_file("rot/x.jpg", lambda p: p.symlink_to("x.jpg")),
        EITHER,
    ),
    "a link to zeros": (
        _with_file("rot/x.jpg", lambda p: p.symlink_to("/dev/zero")),
        EITHER,
    ),
    "a folder that links to its parent": (
        _with_file("rot/again", lambda p: p.symlink_to("..")),
        EITHER,
    ),
    "an empty image": (_with_file("rot/x.jpg", Path.touch), REFUSED),
    "a folder named as an image": (_with_file("rot/x.jpg", Path.mkdir), EITHER),
}

TABLES: dict[str, bytes] = {
    "empty": b"",
    "header alone": b"path,label\n",
    "other columns": b"a,b\n1,2\n",
    "not UTF-8": b"path,label\nrot/Stra\xdfe.jpg,rot\n",
    "null bytes": b"path,label\nrot/\0.jpg,rot\n",
    "a path out": b"path,label\n../victim/secret.txt,a\n/etc/passwd,b\n",
    "an image twice": b"path,label\nrot/bild 0.jpg,a\nrot/bild 0.jpg,b\n",
    "no label": b"path,label\nrot/bild 0.jpg,\n",
    "a cell of 1 MB": b"path,label\n" + b"x" * 2**20 + b",a\n",
    "columns twice": b"path,path,label\na,b,c\n",
    "ragged rows": b"path,label\na\nb,c,d,e\n",
    "a quote that never ends": b'path,label\n"a,b\n',
    "binary": bytes(range(256)) * 16,
    "100,000 missing files": b"path,label\n"
    + b"".join(b"x%d.jpg,a\n" % i for i in range(100_000)),
}


def _photographs() -> Iterator[Case]:
    for kind, (make, codes) in FOLDERS.items():
        yield Case(f"folder | {kind}", FOLDER, make, codes=codes)
    for kind, content in TABLES.items():
        codes = EITHER if kind == "a path out" else REFUSED
        make = _all(photos, _write("t.csv", content))
        yield Case(f"table | {kind}", TABLE, make, codes=codes)


# Images given to predict, and images of a folder that is trained on.

POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n%%EOF\n"


def png(width: int, height: int, body: bytes = b"") -> bytes:
    """A PNG whose header claims any size."""
    import zlib

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", body or zlib.compress(bytes(10**6)))
    return b"\x89PNG\r\n\x1a\n" + data + chunk(b"IEND", b"")


IMAGES: dict[str, bytes] = {
    "PostScript": POSTSCRIPT,
    "PNG of 60,000 x 60,000": png(60_000, 60_000),
    "PNG of 2**31 - 1 squared": png(2**31 - 1, 2**31 - 1),
    "PNG of 0 x 0": png(0, 0),
    "PNG of 8 x 9": png(8, 9),
    "PNG without pixels": png(8, 8, b"x"),
    "empty": b"",
    "text": b"not an image\n",
    "binary": bytes(range(256)) * 8,
    "JPEG's first bytes": b"\xff\xd8\xff\xe0",
    "GIF's first bytes": b"GIF89a\xff\xff\xff\xff",
    "TIFF that points at itself": b"II*\0\x08\0\0\0\1\0\0\1\4\0\1\0\0\0"
    b"\xff\xff\0\0\x08\0\0\0",
    "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'><script>1</script></svg>",
    "icon": b"\0\0\1\0\1\0\xff\xff\0\0\1\0\x20\0\xff\xff\xff\x7f\x16\0\0\0",
    "WMF": b"\xd7\xcd\xc6\x9a\0\0" + bytes(40),
}


def _fake_gs(box: Box) -> None:
    """A program ``gs`` that shows that it was started."""
    tool = box.cwd / "gs"
    tool.write_text(f"#!/bin/sh\ntouch '{box.victim}/gs was started'\n")
    tool.chmod(0o755)


def _images() -> Iterator[Case]:
    predict = ("predict", "--workdir", "{work}")
    path = {"PATH": f".:{os.environ.get('PATH', '')}"}
    for kind, content in IMAGES.items():
        make = _all(_fake_gs, _write("x.jpg", content))
        argv = (*predict, "{cwd}/x.jpg")
        yield Case(f"predict | {kind}", argv, make, workdir=True, env=path)
    for kind, argv in {
        "a pipe": (*predict, "{cwd}/pipe"),
        "a folder": (*predict, "{cwd}"),
        "/dev/zero": (*predict, "/dev/zero"),
        "an empty name": (*predict, ""),
        "a missing file": (*predict, "{cwd}/missing.png"),
        "a name of 300 letters": (*predict, "x" * 300),
        "a name that is not UTF-8": (*predict, "{cwd}/Stra\udcdfe.png"),
        "--top 0": (*predict, str(IMAGE), "--top", "0"),
        "--top of 40 digits": (*predict, str(IMAGE), "--top", "9" * 40),
        "a method that is a path": (*predict, str(IMAGE), "--method", "../../victim"),
        "an absolute method": (*predict, str(IMAGE), "--method", "{victim}"),
    }.items():
        make = _pipe("pipe")
        yield Case(f"predict | {kind}", argv, make, workdir=True, codes=EITHER)


# Archives of `data prepare`.


def _cifar_files() -> dict[str, bytes]:
    row = bytes([1]) + bytes(3072)
    names = "".join(f"class{i}\n" for i in range(10)).encode()
    files = {f"data_batch_{i}.bin": row for i in range(1, 6)}
    return {"batches.meta.txt": names, "test_batch.bin": row, **files}


def _tar(files: dict[str, bytes], *extra: tuple[tarfile.TarInfo, bytes]) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as out:
        for name, content in files.items():
            info = tarfile.TarInfo(f"top/{name}")
            info.size = len(content)
            out.addfile(info, io.BytesIO(content))
        for info, content in extra:
            out.addfile(info, io.BytesIO(content))
    return made.getvalue()


def _member(
    name: str, content: bytes = b"", **values: Any
) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in values.items():
        setattr(info, key, value)
    return info, content


def _sparse() -> tuple[tarfile.TarInfo, bytes]:
    headers = {"GNU.sparse.size": str(2**40), "GNU.sparse.map": "0,0"}
    return _member("top/train.bin", pax_headers=headers)


def _claims(size: int) -> bytes:
    """An archive that ends behind the header of a member of this size."""
    info = tarfile.TarInfo("top/data_batch_1.bin")
    info.size = size
    return info.tobuf()


def _gzip_bomb(size: int) -> bytes:
    """A member of zeros; its gzip is a thousandth of it."""
    info = tarfile.TarInfo("top/data_batch_1.bin")
    info.size = size
    made = io.BytesIO()
    with gzip.GzipFile(fileobj=made, mode="wb", compresslevel=1) as out:
        out.write(info.tobuf())
        for _ in range(size // 2**24):
            out.write(bytes(2**24))
    return made.getvalue()


def _swapped(name: str, content: bytes) -> bytes:
    return _tar(_cifar_files() | {name: content})


CIFAR: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "binary": lambda: bytes(range(256)) * 64,
    "gzip of nothing": lambda: gzip.compress(b""),
    "half a gzip": lambda: good_cifar()[: len(good_cifar()) // 2],
    "no members": lambda: _tar({}),
    "another archive": lambda: _tar({"readme.txt": b"x"}),
    "a sparse member of 1 TB": lambda: _tar(_cifar_files(), _sparse()),
    "a member that claims 1 TB": lambda: _claims(2**40),
    "a pipe and a device": lambda: _tar(
        _cifar_files(),
        _member("top/data_batch_1.bin", type=tarfile.FIFOTYPE),
        _member("top/test_batch.bin", type=tarfile.CHRTYPE, devmajor=1, devminor=5),
    ),
    "links out": lambda: _tar(
        {},
        *(
            _member(f"top/{name}", type=tarfile.SYMTYPE, linkname="/etc/passwd")
            for name in _cifar_files()
        ),
    ),
    "names out": lambda: _tar(
        _cifar_files(), _member("../../victim/secret.txt", b"overwritten")
    ),
    "a cut row": lambda: _swapped("data_batch_1.bin", bytes(3000)),
    "labels beyond the names": lambda: _swapped(
        "data_batch_1.bin", bytes([200]) + bytes(3072)
    ),
    "names that are not UTF-8": lambda: _swapped(
        "batches.meta.txt", b"\xff\xfe\xfa\n" * 10
    ),
    "no names": lambda: _swapped("batches.meta.txt", b""),
    "names twice": lambda: _swapped("batches.meta.txt", b"cat\n" * 10),
    "a name of escape codes": lambda: _swapped(
        "batches.meta.txt", b"\x1b[31m\n" + b"".join(b"c%d\n" % i for i in range(9))
    ),
}
CIFAR_IGNORED = (
    "names out",
    "a name of escape codes",
    "a sparse member of 1 TB",
    "a pipe and a device",
)
CIFAR_SLOW = {"a gzip bomb of 4 GB": lambda: _gzip_bomb(2**32)}


def good_cifar() -> bytes:
    return gzip.compress(_tar(_cifar_files()))


INAT_JSON: dict[str, Any] = {
    "null": None,
    "list": [],
    "number": 5,
    "text": "x",
    "empty": {},
    "categories null": {"categories": None, "images": [], "annotations": []},
    "categories [1]": {"categories": [1], "images": [], "annotations": []},
    "categories [{}]": {"categories": [{}], "images": [], "annotations": []},
    "a list as an id": {
        "categories": [{"id": [], "supercategory": "Fungi"}],
        "images": [],
        "annotations": [],
    },
    "images of numbers": {
        "categories": [],
        "images": [{"id": 1, "file_name": 5}],
        "annotations": [],
    },
    "images null": {"categories": [], "images": None, "annotations": None},
    "annotations of unknown": {
        "categories": [],
        "images": [],
        "annotations": [{"image_id": 9, "category_id": 9}],
    },
}
INAT_TEXT = {
    "1,500 lists": b"[" * 1500 + b"]" * 1500,
    "100,000 lists": b"[" * 100_000,
    "not UTF-8": b'"\xff\xfe"',
    "half": b'{"categories": [',
    "empty file": b"",
}


def _prepare(name: str) -> tuple[str, ...]:
    dirs = ("--from", "{cwd}", "--dir", "{out}/tfds", "--partial")
    return ("data", "prepare", name, *dirs)


PREPARE_CIFAR = _prepare("cifar10")


def _archives() -> Iterator[Case]:
    for kind, content in (CIFAR | CIFAR_SLOW).items():
        # What is only in an archive next to the right files may be left alone.
        codes = EITHER if kind in CIFAR_IGNORED else REFUSED
        make = _write("cifar-10-binary.tar.gz", content)
        quick = kind in CIFAR
        yield Case(f"cifar | {kind}", PREPARE_CIFAR, make, codes=codes, quick=quick)
    texts = {kind: json.dumps(value).encode() for kind, value in INAT_JSON.items()}
    for (kind, text), name in itertools.product(
        (texts | INAT_TEXT).items(), ("train2018", "categories")
    ):

        def make(box: Box, text: bytes = text, name: str = name) -> None:
            tiny_archives.inat(box.cwd, [0, 1, 5], [1, 0])
            archive = tiny_archives.tar([(f"{name}.json", text)], "w:gz")
            (box.cwd / f"{name}.json.tar.gz").write_bytes(archive)

        yield Case(f"inat {name} | {kind}", _prepare("i_naturalist2018"), make)


# Files of weights.


def safetensors(header: Any, body: bytes = b"", size: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + body


def _tensor(shape: Any, dtype: str = "F32", offsets: Any = (0, 16)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": list(offsets)}


SAFETENSORS: dict[str, bytes] = {
    "empty": b"",
    "binary": bytes(range(256)) * 8,
    "a header of 2**63": safetensors({}, size=2**63),
    "a header of 8 GB": safetensors({}, size=2**33),
    "no tensors": safetensors({}),
    "a list": safetensors([]),
    "null": safetensors(None),
    "not UTF-8": safetensors(b"\xff\xfe{}"),
    "1,500 lists": safetensors(b'{"a":' + b"[" * 1500 + b"]" * 1500 + b"}"),
    "shapes that overflow": safetensors({"a": _tensor([2**62, 4])}, bytes(16)),
    "a shape of 4 PB": safetensors({"a": _tensor([2**50], offsets=(0, 2**52))}),
    "offsets out of the file": safetensors(
        {"a": _tensor([4], offsets=(2**40, 2**40 + 16))}
    ),
    "offsets backwards": safetensors({"a": _tensor([4], offsets=(16, 0))}, bytes(16)),
    "a negative shape": safetensors({"a": _tensor([-4])}, bytes(16)),
    "a shape of text": safetensors({"a": _tensor("x")}, bytes(16)),
    "float8": safetensors({"conv1.weight": _tensor([16], "F8_E4M3")}, bytes(16)),
    "an unknown type": safetensors({"a": _tensor([4], "F31")}, bytes(16)),
    "a convolution of no numbers": safetensors(
        {"conv1.weight": _tensor([0, 0, 3, 3], offsets=(0, 0))}
    ),
    "a width of 2**40": safetensors(
        {"conv1.weight": _tensor([2**40, 0, 3, 3], offsets=(0, 0))}
    ),
    "a head of 2**40 classes": safetensors(
        {"fc.weight": _tensor([2**40, 0], offsets=(0, 0))}
    ),
    "a scalar convolution": safetensors(
        {"conv1.weight": _tensor([], offsets=(0, 4))}, bytes(4)
    ),
    "a name of escape codes": safetensors({"\x1b[31m\x07": _tensor([4])}, bytes(16)),
    "10,000 names": safetensors(
        {f"layer{i}.conv1.weight": _tensor([0], offsets=(0, 0)) for i in range(10_000)}
    ),
}
ARGUMENTS = ("{out}/new", "--arch", "resnet32")


def _torch(make_state: Callable[[Any], Any]) -> Make:
    def make(box: Box) -> None:
        import torch

        torch.save(make_state(torch), box.cwd / "w.pth")

    return make


class _Touch:
    """A pickle that runs a command."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch 'code was run'",)


def _cyclic(torch: Any) -> dict[str, Any]:
    made: dict[str, Any] = {"conv1.weight": torch.zeros(16, 3, 3, 3)}
    made["again"] = made
    return made


def _nested(torch: Any) -> dict[str, Any]:
    made: dict[str, Any] = {"conv1.weight": torch.zeros(2)}
    for _ in range(300):  # pickle's own limit is near
        made = {"a": made}
    return made


def _deep_pickle(depth: int) -> bytes:
    """A pickle of dicts in each other, deeper than Python could write."""
    return b"\x80\x02" + b"}X\1\0\0\0a" * depth + b"N" + b"s" * depth + b"."


TORCH: dict[str, Callable[[Any], Any]] = {
    "code": lambda torch: {"conv1.weight": _Touch()},
    "a cycle": _cyclic,
    "300 dicts in each other": _nested,
    "sparse": lambda torch: {"conv1.weight": torch.eye(4).to_sparse()},
    "meta": lambda torch: {"conv1.weight": torch.zeros(16, 3, 3, 3, device="meta")},
    "complex": lambda torch: {
        "conv1.weight": torch.zeros(16, 3, 3, 3, dtype=torch.complex64)
    },
    "float8": lambda torch: {
        "conv1.weight": torch.zeros(16, 3, 3, 3).to(torch.float8_e4m3fn)
    },
    "booleans": lambda torch: {"conv1.weight": torch.zeros(16, 3, 3, 3) > 0},
    "147 M numbers in 4 KB": lambda torch: {
        f"layer{i}.conv1.weight": torch.zeros(1).expand(16384, 1000, 3, 3)
        for i in range(8)
    },
    "a list": lambda torch: [torch.zeros(3)],
    "a number": lambda torch: 7,
    "numbers as names": lambda torch: {1: torch.zeros(3), None: torch.zeros(2)},
    "names of escape codes": lambda torch: {"\x1b[31m": torch.zeros(3)},
    "a convolution of rank 0": lambda torch: {"conv1.weight": torch.tensor(1.0)},
}
PYTORCH_BYTES = {
    "empty": b"",
    "binary": bytes(range(256)) * 8,
    "half a zip": GOOD[:100],
    "an npz": GOOD,
    "a pickle of 1,500 dicts": _deep_pickle(1500),
    "a pickle of 100,000 dicts": _deep_pickle(100_000),
    "a pickle that runs code": b"cos\nsystem\n(S'touch ran'\ntR.",
}


def _weights() -> Iterator[Case]:
    for kind, content in SAFETENSORS.items():
        argv = ("convert", "{cwd}/w.safetensors", *ARGUMENTS)
        yield Case(f"safetensors | {kind}", argv, _write("w.safetensors", content))
    argv = ("convert", "{cwd}/w.pth", *ARGUMENTS)
    for kind, content in PYTORCH_BYTES.items():
        yield Case(f"pytorch | {kind}", argv, _write("w.pth", content))
    if importlib.util.find_spec("torch"):
        for kind, state in TORCH.items():
            yield Case(f"pytorch | {kind}", argv, _torch(state), quick=False)


# Stage 1 of another workdir.


def _outcome(**values: Any) -> Make:
    def make(box: Box) -> None:
        file = box.work / "checkpoints" / "stage1" / "0" / "outcome.json"
        content = json.loads(file.read_text())
        for key, value in values.items():
            text = (
                value.replace("{victim}", str(box.victim))
                if isinstance(value, str)
                else value
            )
            content[key] = text
        file.write_text(json.dumps(content))

    return make


FOREIGN: dict[str, dict[str, Any]] = {
    "run out": {"run": "../../victim"},
    "run far out": {"run": "../../../../../../../../{victim}"},
    "an absolute run": {"run": "{victim}"},
    "an empty run": {"run": ""},
    "run of null": {"run": None},
    "a run with a null byte": {"run": "a\0b"},
    "weights out": {"weights": "../../../../victim/final"},
    "absolute weights": {"weights": "{victim}/final", "step": 200},
    "backbone out": {"backbone": "../../victim"},
    "negative seeds": {"seeds": [-1]},
    "textual seeds": {"seeds": ["../x"]},
    "no seeds": {"seeds": []},
    "two seeds": {"seeds": [0, 0]},
    "a huge seed": {"seeds": [10**30]},
    "a negative step": {"step": -1},
    "a huge step": {"step": 10**30},
    "a step of null": {"step": None},
    "fitted on escape codes": {"fitted_on": "\x1b[31m\n"},
}


def _foreign() -> Iterator[Case]:
    for skip, (kind, values) in itertools.product(("", "head/.*"), FOREIGN.items()):
        argv = (
            "retrain",
            *FLAGS,
            "--config.init.path={work}",
            "--workdir",
            "{out}/new",
        )
        argv += (f"--config.init.skip={skip}",)
        yield Case(
            f"init.path{skip and ' and skip'} | {kind}",
            argv,
            _outcome(**values),
            workdir=True,
            codes=EITHER,
            quick=False,
        )


# Values of a config.

REFUSED_VALUES = (
    "optim.epochs=99999999999999999999",
    "optim.epochs=-1",
    "optim.batch=0",
    "optim.lr=nan",
    "optim.lr=-1",
    "optim.momentum=2",
    "optim.momentum=nan",
    "optim.mixup=1e30",
    "optim.mixup=-1",
    "optim.resident=nan",
    "optim.trains=(",
    "optim.trains=x",
    "optim.decay_on=[",
    "optim.warmup=nan",
    "optim.schedule=never",
    "optim.sampler=all",
    "optim.accumulate=0",
    "optim.repeats=-1",
    "seed=4294967296",
    "seed=-1",
    "seed=99999999999999999999",
    "model.width=3",
    "model.width=0",
    "model.width=100000",
    "model.width=99999999999999999999",
    "model.name=resnet9",
    "model.dtype=float8",
    "data.std=inf",
    "data.std=0",
    "data.std=nan",
    "data.std='x'",
    "data.mean=nan",
    "data.mean=None",
    "data.mean=(1,2)",
    "data.pad=1000",
    "data.pad=-1",
    "data.jitter='x'",
    "data.jitter=(1,)",
    "data.jitter=(nan,0,0,0)",
    "data.randaugment=(1000000,9)",
    "data.randaugment=(-1,9)",
    "data.imbalance=0",
    "data.imbalance=nan",
    "data.valid=1",
    "data.valid=nan",
    "data.name=folder",
    "data.name=i_naturalist2018",
    "data.name=nothing",
    "data.many=-1",
    "eval.batch=0",
    "eval.select=random",
    "eval.choose=luck",
    "eval.curves=train",
    "save.every=0",
    "method.batch=0",
    "method.names=nothing",
    "method.names=1",
    "method.repeats=-1",
    "method.los.lr=nan",
    "method.los.delta=2",
    "method.los.delta=nan",
    "method.memory=nan",
    "method.views=0",
    "method.feature_dtype=int8",
    "method.features=none",
    "init.path={cwd}/missing",
    "init.skip=(",
)
FINE_VALUES = (  # odd but legitimate; a batch larger than the set is cut to it
    "method.names=('los','los')",
    "method.names=()",
    "eval.batch=1000000000",
    "method.batch=1000000",
    "optim.batch=1000000",
    "log.seconds=1e300",
    "log.seconds=nan",
    "optim.resident=1e300",
    "method.memory=1e300",
    "save.every=1000000000",
    "eval.every=1000000000",
)
CONFIG_FILES: dict[str, str] = {
    "nothing": "",
    "a syntax error": "def get_config(:\n",
    "no function": "x = 1\n",
    "an exception": "def get_config():\n    raise KeyError('x\\ny')\n",
    "an exit": "def get_config():\n    raise SystemExit(0)\n",
    "None": "def get_config():\n    return None\n",
    "a dict": "def get_config():\n    return {'seed': 1}\n",
    "text": "def get_config():\n    return 'x'\n",
    "an empty config": (
        "from ml_collections import ConfigDict\ndef get_config():\n"
        "    return ConfigDict()\n"
    ),
    "no methods": (
        "from lt_jax.experiment.defaults import base_config\ndef get_config():\n"
        "    return base_config()\n"
    ),
    "a key less": (
        "from lt_jax.experiment.defaults import base_config\ndef get_config():\n"
        "    c = base_config()\n    del c.optim.lr\n    return c\n"
    ),
    "a key more": (
        "from lt_jax.experiment.defaults import base_config\ndef get_config():\n"
        "    c = base_config()\n    c.more = 1\n    return c\n"
    ),
    "None as a number": (
        "import runpy\ndef get_config():\n"
        f"    c = runpy.run_path({CONFIG[1]!r})['get_config']()\n"
        "    c.optim.update({'lr': None})\n    return c\n"
    ),
    "a null byte in a path": (
        "import runpy\ndef get_config():\n"
        f"    c = runpy.run_path({CONFIG[1]!r})['get_config']()\n"
        "    c.init.path = 'a\\0b'\n    return c\n"
    ),
    "a number as a name": (
        "import runpy\ndef get_config():\n"
        f"    c = runpy.run_path({CONFIG[1]!r})['get_config']()\n"
        "    with c.ignore_type():\n        c.data.name = 5\n    return c\n"
    ),
}


def _configs() -> Iterator[Case]:
    for value in REFUSED_VALUES:
        argv = ("train", *FLAGS, f"--config.{value}", "--workdir", "{out}/new")
        if value.startswith(("method", "eval.c")):
            argv = ("run", *argv[1:])
        yield Case(f"config | {value}", argv, quick=False)
    for value in FINE_VALUES:
        argv = ("run", *FLAGS, f"--config.{value}", "--workdir", "{out}/new")
        yield Case(f"config | {value}", argv, codes=TRAINED, quick=False)
    for kind, text in CONFIG_FILES.items():
        for command in ("config", "train"):
            argv = (command, "--config", "{cwd}/c.py")
            argv += ("--workdir", "{out}/new") if command == "train" else ()
            codes = EITHER if kind == "no methods" and command == "config" else REFUSED
            make = _write("c.py", text.encode())
            yield Case(f"{command} file | {kind}", argv, make, codes=codes)


# Flags and the environment.

WRONG_FLAGS: dict[str, tuple[str, ...]] = {
    "an empty --workdir": ("train", *FLAGS, "--workdir", ""),
    "a file as --workdir": ("train", *FLAGS, "--workdir", "{victim}/secret.txt"),
    "--workdir in a file": ("train", *FLAGS, "--workdir", "{victim}/secret.txt/x"),
    "--workdir in a bucket": ("train", *FLAGS, "--workdir", "gs://bucket/x"),
    "--workdir of 300 letters": ("train", *FLAGS, "--workdir", "x" * 300),
    "--png in a missing folder": ("data", "info", *CONFIG, "--png", "{cwd}/no/x.png"),
    "report of nothing": ("report", "{cwd}"),
    "report of a file": ("report", "{victim}/secret.txt"),
    "report twice": ("report", "{victim}", "{victim}"),
    "evaluate nothing": ("evaluate", *FLAGS, "--workdir", "{cwd}"),
    "evaluate a missing workdir": ("evaluate", *FLAGS, "--workdir", "{cwd}/missing"),
    "convert nothing": ("convert", "{cwd}/missing", "{out}/x"),
    "convert a folder": ("convert", "{cwd}", "{out}/x.safetensors"),
    "an unknown dataset": ("data", "prepare", "x", "--from", "{cwd}"),
    "no such archives": ("data", "prepare", "cifar10", "--from", "{cwd}/missing"),
    "one process of none": (
        "train",
        *FLAGS,
        "--workdir",
        "{out}/x",
        "--num_processes",
        "0",
    ),
    "process 5 of 2": (
        *("train", *FLAGS, "--workdir", "{out}/x", "--num_processes", "2"),
        *("--process_id", "5", "--coordinator", "127.0.0.1:1"),
    ),
    "a coordinator without a port": (
        *("train", *FLAGS, "--workdir", "{out}/x", "--num_processes", "2"),
        *("--process_id", "1", "--coordinator", "somewhere"),
    ),
    "a regular expression": ("evaluate", *FLAGS, "--workdir", "{cwd}", "--heads", "("),
}
ENVIRONMENTS: dict[str, dict[str, str]] = {
    "SLURM without a rank": {"SLURM_JOB_ID": "1", "SLURM_STEP_NUM_TASKS": "2"},
    "SLURM of text": {"SLURM_JOB_ID": "1", "SLURM_STEP_NUM_TASKS": "two"},
    "SLURM with a rank of text": {
        "SLURM_JOB_ID": "1",
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_PROCID": "x",
        "SLURM_LOCALID": "x",
        "SLURM_STEP_NODELIST": "a",
    },
    "Open MPI without a rank": {"OMPI_COMM_WORLD_SIZE": "2"},
    "Open MPI of text": {"OMPI_COMM_WORLD_SIZE": "x", "OMPI_COMM_WORLD_RANK": "y"},
    "Open MPI of -1": {"OMPI_COMM_WORLD_SIZE": "-1", "OMPI_COMM_WORLD_RANK": "-1"},
}


def _flags() -> Iterator[Case]:
    for kind, argv in WRONG_FLAGS.items():
        yield Case(f"flags | {kind}", argv)
    for kind, env in ENVIRONMENTS.items():
        argv = ("train", *FLAGS, "--workdir", "{out}/new", "--join_timeout", "5")
        codes = EITHER if kind == "Open MPI of -1" else REFUSED
        yield Case(f"environment | {kind}", argv, codes=codes, env=env, quick=False)


CASES: list[Case] = [
    *_features(),
    *_fits(),
    *_photographs(),
    *_images(),
    *_archives(),
    *_weights(),
    *_foreign(),
    *_configs(),
    *_flags(),
]
