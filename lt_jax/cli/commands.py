"""The commands: each calls the package and prints its result.

Heavy imports are inside the functions, so that ``--help`` is fast.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from lt_jax.distributed import cluster
from lt_jax.errors import InputError

if TYPE_CHECKING:
    from lt_jax.experiment.config import UserConfig


def work(config: UserConfig, options: argparse.Namespace) -> None:
    """Run ``run``, ``train``, ``retrain`` or ``sweep``; write the page of results."""
    import jax

    from lt_jax.experiment import stages

    getattr(stages, options.command)(config, options.workdir)
    if options.command in ("run", "sweep") and jax.process_index() == 0:
        _write_page(options)


def _write_page(options: argparse.Namespace) -> None:
    import shlex

    try:
        from lt_jax.report import build

        print(f"page: {build.write([options.workdir], options.workdir / 'report')}")
    except Exception as error:  # the figures of the run are complete without a page
        retry = f"lt-jax report {shlex.quote(str(options.workdir))}"
        reason = f"{type(error).__name__}: {error}"
        print(f"warning: no report page ({reason}); retry: {retry}", file=sys.stderr)


def fit(overrides: list[str], options: argparse.Namespace) -> None:
    from pathlib import Path

    from lt_jax.cli import config_flags, fit
    from lt_jax.experiment import backbones

    cluster.use_devices()
    source, name = options.source, options.backbone or fit.BACKBONE
    given = backbones.Options(name, options.weights)
    backbones.check(given)
    if any(flag.startswith("--config=") for flag in overrides):
        raise InputError("fit makes its own config: it takes --config.KEY=VALUE alone")
    table = source.suffix in (".csv", ".parquet") and source.exists()
    if not table and not source.is_dir():
        raise InputError(
            f"no such folder or table: {source}. Expected photographs "
            "(SOURCE/CLASS/*.jpg), a table of path,label (.csv, .parquet), or features "
            "(train.npz and test.npz)"
        )
    if config_flags.has_features(str(source)):
        if options.backbone or options.weights:
            raise InputError(f"{source} has features already: leave out --backbone")
        given = None
    options.workdir = options.workdir or Path("runs") / source.stem
    predict = fit.fit(str(source), given, options.workdir, overrides)
    _write_page(options)
    print(f"next: {predict}")


def features(config: UserConfig, options: argparse.Namespace) -> None:
    import shlex

    from lt_jax.distributed import cluster
    from lt_jax.experiment import extraction

    for name, least in (("size", 0), ("batch", 1)):
        if (value := getattr(options, name)) < least:
            raise InputError(f"--{name} must be at least {least}, got {value}")
    cluster.use_devices()
    names = extraction.Options._fields
    given = extraction.Options(**{name: getattr(options, name) for name in names})
    extraction.write_features(config, given, options.out)
    print(f"next: lt-jax fit {shlex.quote(str(options.out))}")


def evaluate(config: UserConfig, options: argparse.Namespace) -> None:
    import json

    from lt_jax.experiment import evaluation
    from lt_jax.files import jsonable

    found = evaluation.evaluate_all(
        config, options.workdir, options.split, options.heads
    )
    if options.json:
        print(json.dumps(jsonable(found), allow_nan=False))
        return
    names = ("all", "many", "medium", "few", "balanced", "worst", "ece")
    print(f"{options.split} split, per cent")
    width = max([16, *(len(run) + 2 for run in found)])
    last = "" if options.heads else "  lowest classes"
    print(f"{'fit':{width}s}" + "".join(f"{name:>10s}" for name in names) + last)
    for run, values in found.items():
        cells = "".join(f"{100 * values[name]:10.1f}" for name in names)
        lowest = (f"{name} {100 * a:.1f}" for name, a in values.get("lowest", ()))
        print(f"{run:{width}s}{cells}  {', '.join(lowest)}".rstrip())


def benchmark(config: UserConfig, options: argparse.Namespace) -> None:
    from lt_jax.cli import benchmark

    cluster.use_devices()
    benchmark.benchmark(config, options.seconds, options.json)


def config(config: UserConfig, options: argparse.Namespace) -> None:
    from lt_jax.cli import config_plan

    if options.plan:
        cluster.use_devices()
        config_plan.show_plan(config, options.workdir, options.json)
    else:
        config_plan.show(config, options.json)


def report(options: argparse.Namespace) -> None:
    from lt_jax.report import build

    out = options.out or options.runs[0] / "report"
    print(f"report: {build.write(options.runs, out, options.figures)}")


def convert(options: argparse.Namespace) -> None:
    from lt_jax.export import convert

    cluster.use_devices()
    convert.convert(
        options.source,
        options.target,
        arch=options.arch,
        method=options.method,
        seeds=options.seeds,
        part=options.part,
    )


def predict(options: argparse.Namespace) -> None:
    import json

    from lt_jax.export import predict

    cluster.use_devices()
    images, method, top = options.images, options.method, options.top
    if top < 1:
        raise InputError(f"--top must be at least 1, got {top}")
    if options.artefact is None:
        backbone = options.backbone
        found = predict.predict(options.workdir, images, method, top, backbone)
    elif method or options.backbone:
        raise InputError("--artefact takes no --method, --backbone: it holds one head")
    else:
        found = predict.predict_by_artefact(options.artefact, images, top)
    if options.json:
        print(json.dumps(found))
        return
    best = " (recommended by validation)" * found.get("recommended", False)
    best += ", fitted on all training examples" * found.get("refit", False)
    print(f"head: {found['head']}{best}, temperature {found['temperature']:.2f}")
    for image in found["images"]:
        print(image["path"])
        for guess in image["top"]:
            print(f"  {100 * guess['probability']:5.1f} %  {guess['class']}")


def data_info(config: UserConfig, options: argparse.Namespace) -> None:
    from lt_jax.cli import data_info

    if options.png and options.png.suffix.lower() != ".png":
        raise InputError(f"--png must end in .png, got {options.png}")
    data_info.show(config, options.json, options.png)


def data_prepare(options: argparse.Namespace) -> None:
    from lt_jax.data.prepare import build

    build.prepare(
        options.name,
        options.archives,
        str(options.dir or ""),
        lists=options.lists,
        checksum=options.checksum,
        partial=options.partial,
    )


def list_names(options: argparse.Namespace) -> None:
    from lt_jax.cli import listing

    lines = getattr(listing, options.what)()
    width = max([0, *(len(name) for name, _ in lines)])
    for name, text in lines:
        print(f"{name:{width}s}  {text}")
