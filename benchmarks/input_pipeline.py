"""Speed from encoded photographs to batches, compared with other libraries.

Makes JPEGs of 800x600 (the spectrum of photographs, edges, a little noise; quality 90,
about 215 kB) and turns each into a random resized crop of 224, with one worker. In each
round all ways take turns on the same crops. Ratios are medians over the rounds of CPU
seconds of all threads, so other work on the machine has little effect. The rows of
tf.data and Grain need those installed (the extra `prepare` brings the first).

    python benchmarks/input_pipeline.py [--json] [--quick]

JSON keys: `over_decode` (rate relative to decoding full images with libjpeg-turbo
through simplejpeg), `over_pillow` (to a PyTorch user's Pillow path),
`over_tfdata_area` (to tf.data's fused decode_and_crop_jpeg with an area resize; null
without TensorFlow), `two_over_one` (two workers to one, wall time: needs an idle
machine; `two_over_one_by_cpu` does not, but ignores waiting), each with its `spread`;
`memory`, resident, in MiB; `python_microseconds`, an upper bound per image of the time
with Python's lock held, which limits the threads of one process.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import io
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

SIZE, RESIZE = 224, 256
SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
WIDE, HIGH = 800, 600
BATCH = 64
BARS = {
    "over_decode": 0.85,
    "over_pillow": 1.6,
    "over_tfdata_area": 1.0,
    "two_over_one": 1.9,
}
RATES = (2_500, 7_000)  # images/s that an accelerator consumes


class Scale(NamedTuple):
    """Size of the measurement."""

    files: int
    images: int  # per round
    rounds: int
    memory: int  # images decoded while the memory is watched


FULL = Scale(files=32, images=256, rounds=7, memory=20_000)
QUICK = Scale(files=16, images=64, rounds=3, memory=1_000)


def photograph(seed: int) -> bytes:
    """Make a JPEG with the spectrum of photographs (1/f), some edges, and noise."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(seed)
    rows, columns = np.fft.fftfreq(HIGH)[:, None], np.fft.rfftfreq(WIDE)[None]
    frequency = np.hypot(rows, columns)
    frequency[0, 0] = np.inf
    y, x = np.mgrid[:HIGH, :WIDE]
    planes = []
    for strength in (60, 20, 20):  # luma and two chroma channels
        waves = rng.normal(size=(2, *frequency.shape))
        plane = np.fft.irfft2((waves[0] + 1j * waves[1]) / frequency**1.3, (HIGH, WIDE))
        planes.append(128 + plane / plane.std() * strength)
    for _ in range(12):
        middle = rng.uniform(0, WIDE), rng.uniform(0, HIGH)
        inside = np.hypot(x - middle[0], y - middle[1]) < rng.uniform(20, 150)
        for plane, strength in zip(planes, (30, 12, 12), strict=True):
            plane += inside * rng.normal(0, strength)
    planes[0] += rng.normal(0, 3, planes[0].shape)
    image = np.stack(planes, axis=-1).clip(0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(image, "YCbCr").save(file, "JPEG", quality=90, subsampling=2)
    return file.getvalue()


def made(files: list[bytes], workers: int = 1) -> Any:
    """Wrap the files as a dataset of the package."""
    import numpy as np

    from lt_jax.data.images.photos import PhotoOptions, photographs

    return photographs(
        "made",
        ("one",),
        np.zeros(len(files), np.int32),
        np.arange(len(files)).astype(str),
        lambda rows: [files[i] for i in rows],
        PhotoOptions(SIZE, RESIZE, SCALE, RATIO, broken=0.0, workers=workers),
    )


def plan(files: int, images: int) -> Any:
    import numpy as np

    from lt_jax import samplers

    return samplers.batch_indices(np.arange(images) % files, BATCH)


def fed(dataset: Any, rows: Any, epoch: int, train: bool = True) -> None:
    """Load every batch of a plan to the host."""
    import numpy as np

    from lt_jax.data.loader import CropPlan, load_batches

    places = np.arange(rows.size).reshape(rows.shape)
    crops = CropPlan((1, 0), epoch, places) if train else None
    for _ in load_batches(dataset, rows, lambda batch: batch, crops=crops):
        pass


Crop = tuple[int, int, int, int]


def boxes(images: int, epoch: int) -> list[Crop]:
    """Return the crops of ``load_batches``, for the other ways."""
    import numpy as np

    from lt_jax import seeds
    from lt_jax.data.images import crops

    drawn = seeds.uniform((1, 0), epoch, np.arange(images), crops.NUMBERS)
    return [
        tuple(int(v) for v in crops.random_box(WIDE, HIGH, n, SCALE, RATIO))  # type: ignore[misc]
        for n in drawn
    ]


def whole(data: bytes, box: Crop) -> Any:
    import simplejpeg

    return simplejpeg.decode_jpeg(data)


def pillow(data: bytes, box: Crop) -> Any:
    """Crop as torchvision's RandomResizedCrop on a PIL image, without the flip."""
    import numpy as np
    from PIL import Image

    x, y, w, h = box
    image = Image.open(io.BytesIO(data)).convert("RGB")
    image = image.crop((x, y, x + w, y + h))
    return np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BILINEAR))


def pillow_draft(data: bytes, box: Crop) -> Any:
    """Crop as ``pillow``, decoded at the scale that covers the crop."""
    import numpy as np
    from PIL import Image

    x, y, w, h = box
    image, divisor = Image.open(io.BytesIO(data)), _divisor(w, h)
    if divisor > 1:
        image.draft("RGB", (WIDE // divisor, HIGH // divisor))
    box_now = tuple(v / divisor for v in (x, y, x + w, y + h))
    image = image.convert("RGB")
    return np.asarray(
        image.resize((SIZE, SIZE), Image.Resampling.BILINEAR, box=box_now)
    )


def opencv(data: bytes, box: Crop) -> Any:
    """Decode with OpenCV at the scale that covers the crop; resize by area."""
    import cv2
    import numpy as np

    flags = {
        1: cv2.IMREAD_COLOR,
        2: cv2.IMREAD_REDUCED_COLOR_2,
        4: cv2.IMREAD_REDUCED_COLOR_4,
        8: cv2.IMREAD_REDUCED_COLOR_8,
    }
    divisor = _divisor(*box[2:])
    image = cv2.imdecode(np.frombuffer(data, np.uint8), flags[divisor])
    small = _cut_resize(image, box, divisor, cv2.INTER_AREA)
    return cv2.cvtColor(small, cv2.COLOR_BGR2RGB)


def scaled(data: bytes, box: Crop, area: bool) -> Any:
    """Decode all rows with simplejpeg at that scale; resize with OpenCV."""
    import cv2
    import simplejpeg

    divisor = _divisor(*box[2:])
    image = simplejpeg.decode_jpeg(
        data, min_height=-(-HIGH // divisor), min_width=-(-WIDE // divisor)
    )
    how = cv2.INTER_AREA if area else cv2.INTER_LINEAR
    return _cut_resize(image, box, divisor, how)


def _divisor(w: int, h: int) -> int:
    return next(d for d in (8, 4, 2, 1) if d == 1 or min(w, h) >= d * SIZE)


def _cut_resize(image: Any, box: Crop, divisor: int, how: int) -> Any:
    import cv2

    x, y, w, h = (v / divisor for v in box)
    part = image[round(y) : round(y + h), round(x) : round(x + w)]
    return cv2.resize(part, (SIZE, SIZE), interpolation=how)


def tfdata(files: list[bytes], images: int, method: str) -> Callable[[int], Any]:
    """Use tf.data with one thread: fused decoder, resize, batches of uint8."""
    import numpy as np
    import tensorflow as tf

    def one(index: Any, box: Any) -> Any:
        data = tf.gather(encoded, index)
        image = tf.image.decode_and_crop_jpeg(data, box, channels=3)
        image = tf.image.resize(image, (SIZE, SIZE), method=method, antialias=False)
        return tf.cast(tf.clip_by_value(image + 0.5, 0, 255), tf.uint8)

    encoded = tf.constant(files)
    options = tf.data.Options()
    options.threading.private_threadpool_size = 1
    options.threading.max_intra_op_parallelism = 1
    options.autotune.enabled = False
    options.experimental_optimization.inject_prefetch = False

    def ready(epoch: int) -> Callable[[], None]:
        # y, x, height, width
        crops = np.array([(y, x, h, w) for x, y, w, h in boxes(images, epoch)])
        indices = np.arange(images) % len(files)
        data = tf.data.Dataset.from_tensor_slices((indices, crops.astype(np.int32)))
        iterator = iter(data.map(one).batch(BATCH).with_options(options))

        def run() -> None:
            for _ in iterator:
                pass

        return run

    return ready


def grain(files: list[bytes], images: int) -> Callable[[int], Any]:
    """Use our decoder with Grain's threads."""
    import numpy as np
    from grain import MapDataset, ReadOptions

    from lt_jax import seeds
    from lt_jax.data.images import crops
    from lt_jax.data.images.decode import decode

    def ready(epoch: int) -> Callable[[], None]:
        drawn = seeds.uniform((1, 0), epoch, np.arange(images), crops.NUMBERS)

        def one(index: int) -> Any:
            box_of = functools.partial(
                crops.random_box, numbers=drawn[index], scale=SCALE, ratio=RATIO
            )
            return decode(files[index % len(files)], box_of, SIZE)

        source = MapDataset.range(images).map(one).batch(BATCH)
        options = ReadOptions(num_threads=1, prefetch_buffer_size=2)
        iterator = iter(source.to_iter_dataset(options))

        def run() -> None:
            for _ in iterator:
                pass

        return run

    return ready


def each(
    files: list[bytes], images: int, way: Callable[[bytes, Crop], Any]
) -> Callable[[int], Callable[[], None]]:
    """Apply a way for single images to all images of a round."""

    def ready(epoch: int) -> Callable[[], None]:
        crops = boxes(images, epoch)

        def run() -> None:
            for i, box in enumerate(crops):
                way(files[i % len(files)], box)

        return run

    return ready


def ours(
    files: list[bytes], images: int, workers: int, train: bool = True
) -> Callable[[int], Callable[[], None]]:
    dataset, rows = made(files, workers), plan(len(files), images)
    return lambda epoch: functools.partial(fed, dataset, rows, epoch, train)


def importable(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


class Clock:
    """Measure CPU and wall seconds by round and way."""

    def __init__(self) -> None:
        self.cpu: dict[str, list[float]] = {}
        self.wall: dict[str, list[float]] = {}

    def run(self, name: str, work: Callable[[], None]) -> None:
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        self.cpu.setdefault(name, []).append(time.process_time() - cpu)
        self.wall.setdefault(name, []).append(time.perf_counter() - wall)


def rates_of(scale: Scale, files: list[bytes]) -> tuple[Clock, Clock]:
    """Measure all ways with one worker, and ours with one and two."""
    images = scale.images
    ways = {
        "decode": each(files, images, whole),
        "ours": ours(files, images, 1),
        "ours, evaluation": ours(files, images, 1, train=False),
        "pillow": each(files, images, pillow),
        "pillow, draft": each(files, images, pillow_draft),
        "opencv, area": each(files, images, opencv),
        "simplejpeg, area": each(files, images, functools.partial(scaled, area=True)),
        "simplejpeg, linear": each(
            files, images, functools.partial(scaled, area=False)
        ),
    }
    if importable("grain"):
        ways["ours in grain"] = grain(files, images)
    if importable("tensorflow"):
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(1)
        ways["tf.data, area"] = tfdata(files, images, "area")
        ways["tf.data, linear"] = tfdata(files, images, "bilinear")
    for ready in ways.values():  # imports, tracing, first pages
        ready(0)()
    single, double = Clock(), Clock()
    for epoch in range(1, scale.rounds + 1):
        for name, ready in ways.items():
            single.run(name, ready(epoch))
    pair = {"one": ours(files, images, 1), "two": ours(files, images, 2)}
    for epoch in range(1, scale.rounds + 1):
        for name, ready in pair.items():
            double.run(name, ready(epoch))
    return single, double


def python_seconds(files: list[bytes]) -> float:
    """Measure seconds per image during which no other thread can run Python.

    It is the time that remains when the calls that release the lock do nothing.
    """
    import numpy as np

    from lt_jax.data.images import decode

    class Nothing:
        INTER_LINEAR = INTER_AREA = 0
        pixels = np.zeros((HIGH, WIDE, 3), np.uint8)
        small = np.zeros((SIZE, SIZE, 3), np.uint8)
        decode_jpeg = staticmethod(lambda *_, **__: Nothing.pixels)
        sepFilter2D = staticmethod(lambda pixels, *_: pixels)
        resize = staticmethod(lambda *_, **__: Nothing.small)

    kept = decode.opencv, decode.simplejpeg
    decode.opencv = lambda: Nothing  # type: ignore[assignment]
    decode.simplejpeg = Nothing  # type: ignore[assignment]
    try:
        rows, seconds = plan(len(files), 256), []
        for epoch in range(5):
            begun = time.process_time()
            fed(made(files), rows, epoch)
            seconds.append((time.process_time() - begun) / 256)
    finally:
        decode.opencv, decode.simplejpeg = kept
    return statistics.median(seconds)


def resident() -> float:
    """Return the resident memory of this process in MiB."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def watch(workers: int, images: int) -> dict[str, Any]:
    """Measure resident memory before, and after each tenth of the images."""
    import jax

    jax.config.update("jax_platforms", "cpu")
    files = [photograph(i) for i in range(8)]
    dataset, tenth = made(files, workers), images // 10
    before, after = resident(), []
    for epoch in range(10):
        fed(dataset, plan(len(files), tenth), epoch)
        after.append(resident())
    return {"workers": workers, "images": images, "before": before, "after": after}


def memory(scale: Scale) -> Iterator[dict[str, Any]]:
    """Measure in separate processes, because freed memory may stay resident."""
    for workers in (1, 2):
        command = [sys.executable, __file__, "--watch", f"{workers},{scale.memory}"]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        yield json.loads(done.stdout.splitlines()[-1])


def ratio(over: list[float], under: list[float]) -> tuple[float, list[float]]:
    """Return the median, minimum and maximum over the rounds of a ratio of seconds."""
    found = [a / b for a, b in zip(over, under, strict=True)]
    return statistics.median(found), [min(found), max(found)]


def measure(scale: Scale) -> dict[str, Any]:
    files = [photograph(i) for i in range(scale.files)]
    load = [os.getloadavg()[0]]
    single, double = rates_of(scale, files)
    load.append(os.getloadavg()[0])
    found: dict[str, Any] = {"spread": {}}
    for key, other in (
        ("over_decode", "decode"),
        ("over_pillow", "pillow"),
        ("over_tfdata_area", "tf.data, area"),
    ):
        found[key] = None
        if other in single.cpu:
            found[key], found["spread"][key] = ratio(
                single.cpu[other], single.cpu["ours"]
            )
    found["two_over_one"], found["spread"]["two_over_one"] = ratio(
        double.wall["one"], double.wall["two"]
    )
    # An estimate for two idle cores if wall time is unreliable.
    found["two_over_one_by_cpu"] = 2 * ratio(double.cpu["one"], double.cpu["two"])[0]
    rates = {
        name: scale.images / statistics.median(seconds)
        for name, seconds in single.cpu.items()
    }
    found["images_per_cpu_second"] = rates
    found["over_decode_of_each"] = {
        name: ratio(single.cpu["decode"], seconds)[0]
        for name, seconds in single.cpu.items()
    }
    found["images_per_second_of_wall"] = {
        name: scale.images / statistics.median(seconds)
        for name, seconds in (single.wall | double.wall).items()
    }
    found["python_microseconds"] = 1e6 * python_seconds(files)
    found["memory"] = list(memory(scale)) if os.path.exists("/proc/self/statm") else []
    found["cores"] = [
        {"rate": rate, "accelerators": n, "cores": math.ceil(rate * n / rates["ours"])}
        for rate in RATES
        for n in (1, 4, 8)
    ]
    found["kilobytes"] = sum(map(len, files)) / len(files) / 1e3
    found["load"], found["cpus"] = load, os.cpu_count()
    found["device"], found["versions"] = platform.processor() or "cpu", versions()
    return found


def versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    names = ("simplejpeg", "opencv-python-headless", "pillow", "numpy", "grain")
    known = {"python": platform.python_version()}
    for name in (*names, "tensorflow-cpu", "tensorflow"):
        try:
            known[name] = version(name)
        except PackageNotFoundError:
            continue
    return known


def show(found: dict[str, Any]) -> None:
    print(
        f"{WIDE}x{HIGH}, {found['kilobytes']:.0f} kB; load {found['load'][0]:.1f} to "
        f"{found['load'][1]:.1f} on {found['cpus']} CPUs; {found['versions']}\n"
    )
    print(f"{'one worker':22s}{'img/s of CPU':>14s}{'of decoding':>13s}")
    for name, rate in found["images_per_cpu_second"].items():
        share = found["over_decode_of_each"][name]
        print(f"{name:22s}{rate:14.0f}{share:13.2f}")
    for name in ("tensorflow", "grain"):
        if not importable(name):
            print(f"{name} is not installed here, its line is missing")
    print()
    for key, bar in BARS.items():
        if found[key] is None:
            print(f"{key:18s} not measured (asked: {bar})")
            continue
        least, greatest = found["spread"][key]
        print(
            f"{key:18s} {found[key]:.2f} ({least:.2f} to {greatest:.2f}; asked: {bar})"
        )
    print(
        f"{'':18s} {found['two_over_one_by_cpu']:.2f} if each worker had a core, by "
        "seconds of CPU"
    )
    held = found["python_microseconds"]
    print(
        f"\nPython's lock is held for {held:.0f} us of an image: threads of one "
        f"process cannot pass {1e6 / held:,.0f} images a second"
    )
    for one in found["memory"]:
        after = one["after"]
        print(
            f"memory, {one['workers']} worker(s): {one['before']:.0f} MiB before, "
            f"{after[0]:.0f} after {one['images'] // 10:,} images, {after[-1]:.0f} "
            f"after {one['images']:,} (most {max(after):.0f})"
        )
    print(f"\n{'accelerators':>14s}{'img/s each':>12s}{'cores':>8s}")
    for row in found["cores"]:
        print(f"{row['accelerators']:14d}{row['rate']:12,d}{row['cores']:8d}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object, last")
    parser.add_argument("--quick", action="store_true", help="less of everything")
    parser.add_argument("--watch", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.watch:
        workers, images = map(int, options.watch.split(","))
        print(json.dumps(watch(workers, images)))
        return
    found = measure(QUICK if options.quick else FULL)
    show(found)
    if options.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
