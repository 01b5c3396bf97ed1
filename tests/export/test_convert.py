"""Weights in and out: names, layouts, refusals, and what runs without the package."""

from __future__ import annotations

import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import tiny_digits
from test_stages import arrays

from lt_jax import models, trees
from lt_jax.cli import main
from lt_jax.data.augment.transforms import Augment
from lt_jax.errors import InputError
from lt_jax.experiment import stages, stored, weights
from lt_jax.export import fits, predict, stablehlo
from lt_jax.heads import linear
from lt_jax.pretrained import torch_names, weight_files
from lt_jax.training import checkpoint

ROOT = Path(__file__).resolve().parents[2]
DIGITS = str(tiny_digits.CONFIGS / "digits_lt.py")
SMALL = ["--config.model.width=4", "--config.optim.repeats=1"]
SMALL += ["--config.method.ce.epochs=1", "--config.method.los.epochs=1"]


def ours(name="resnet8", width=4, channels=1, num_classes=10, stem="cifar"):
    """Leaves of a network by our names, no two of them alike."""
    backbone = models.create(name, stem, width)
    like = stored.blank(backbone, linear, (32, 32, channels), num_classes)._asdict()
    rng = np.random.default_rng(0)
    return {
        leaf: rng.uniform(0.5, 1.5, spec.shape).astype(np.float32)
        for leaf, spec in trees.leaves(like).items()
    }


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, leaf in expected.items():
        np.testing.assert_array_equal(found[name], leaf, err_msg=name)


@pytest.mark.parametrize(
    ("name", "stem"),
    [("resnet32", "cifar"), ("resnet50", "imagenet"), ("resnext50_32x4d", "imagenet")],
)
def test_names_of_torchvision_there_and_back(name, stem):
    leaves = ours(name, 16, 3, 7, stem)
    state = torch_names.to_torch(leaves)
    assert state["conv1.weight"].shape[:2] == (16, 3)
    assert state["fc.weight"].shape[0] == 7
    assert "layer3.1.bn2.running_var" in state
    assert ("layer2.0.downsample.1.weight" in state) == (name != "resnet32")
    found = torch_names.from_torch(state, leaves)
    assert_same(found.leaves, leaves)
    assert {line.source for line in found.lines} == set(state)


def renamed(state, **groups):
    """Names of the backbone and of the head under other prefixes."""
    return {
        (groups["head"] + name.removeprefix("fc."))
        if name.startswith("fc.")
        else groups["backbone"] + name: leaf
        for name, leaf in state.items()
    }


@pytest.mark.parametrize(
    ("backbone", "head"),
    [
        ("", "fc."),  # torchvision, timm, the authors of LOS
        ("encoder.", "encoder.fc."),  # weight balancing
        (
            "state_dict_best.feat_model.module.",  # Decoupling
            "state_dict_best.classifier.module.fc.",
        ),
        ("state_dict_model.module.", "state_dict_classifier.module.fc."),  # MiSLAS
        ("state_dict.module.", "state_dict.module.linear."),  # LDAM
        ("_orig_mod.", "_orig_mod.fc."),  # torch.compile
    ],
)
def test_prefixes_and_heads_of_other_code(backbone, head):
    leaves = ours("resnet10", 4)
    state = renamed(torch_names.to_torch(leaves), backbone=backbone, head=head)
    state |= {
        f"{backbone}bn1.num_batches_tracked": np.array(3),
        "best_acc1": np.array(51.0),
        "optimizer.state.0.momentum_buffer": np.ones((3, 3)),
    }
    found = torch_names.from_torch(state, leaves)
    assert_same(found.leaves, leaves)
    assert len(found.skipped) == 3


def test_shortcuts_of_cifar_code_are_downsamples():
    leaves = ours("resnet10", 4)
    state = {
        name.replace("downsample", "shortcut"): leaf
        for name, leaf in torch_names.to_torch(leaves).items()
    }
    assert_same(torch_names.from_torch(state, leaves).leaves, leaves)


def test_learned_scales_are_folded_into_the_head():
    leaves = ours()
    scale = np.arange(1, 11, dtype=np.float32)
    state = torch_names.to_torch(leaves)
    state["state_dict_lws_model.module.learned_norm"] = scale[None]
    found = torch_names.from_torch(state, leaves).leaves
    for name in ("params/head/kernel", "params/head/bias"):
        np.testing.assert_allclose(found[name], leaves[name] * scale, rtol=1e-6)


def test_a_head_without_a_bias_gets_zeros():
    leaves = ours()
    state = torch_names.to_torch(leaves)
    del state["fc.bias"]
    found = torch_names.from_torch(state, leaves)
    assert not found.leaves["params/head/bias"].any()
    (line,) = (line for line in found.lines if line.name == "params/head/bias")
    assert "has none" in line.note


@pytest.mark.parametrize("kind", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_precisions_become_float32_and_are_noted(kind):
    leaves = ours()
    state = {
        name: leaf.astype(kind) for name, leaf in torch_names.to_torch(leaves).items()
    }
    found = torch_names.from_torch(state, leaves)
    assert {leaf.dtype for leaf in found.leaves.values()} == {np.dtype(np.float32)}
    assert all(line.note == f"was {np.dtype(kind)}" for line in found.lines)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fc.weight": np.ones((10, 3))}, r"! params/head/kernel: \(3, 10\) in the fi"),
        ({"layer1.0.se.conv1.weight": np.ones((4, 4, 1, 1))}, r"\+ layer1\.0\.se"),
        ({"layer4.0.conv1.weight": np.ones((4, 4, 3, 3))}, r"\+ layer4\.0\.conv1"),
        ({"layer1.0.bn1.weight": None}, r"- params/backbone/stage1_block1/norm1/scale"),
        ({"layer1.0.bn1.weight": np.full(4, np.inf)}, "4 values that are not finite"),
        ({"layer1.0.bn1.weight": np.full(4, 1e300)}, "not finite in float32"),
        (
            {"layer1.0.bn1.weight": np.ones(4, np.int8)},
            "has dtype int8, exp",
        ),
        ({"ema.layer1.0.bn1.weight": np.ones(4)}, "2 networks, under '', 'ema.'"),
    ],
)
def test_another_network_is_refused_with_the_difference(change, message):
    leaves = ours()
    state = torch_names.to_torch(leaves) | change
    state = {name: leaf for name, leaf in state.items() if leaf is not None}
    with pytest.raises(InputError, match=message):
        torch_names.from_torch(state, leaves)


def test_a_part_names_one_of_several_networks():
    leaves = ours()
    state = torch_names.to_torch(leaves)
    both = {f"model.{n}": leaf for n, leaf in state.items()}
    both |= {f"ema.{n}": leaf + 1 for n, leaf in state.items()}
    assert_same(torch_names.from_torch(both, leaves, "model.").leaves, leaves)


def test_no_network_at_all():
    with pytest.raises(InputError, match=r"holds no residual network.*got x, y"):
        torch_names.from_torch({"x": np.ones(2), "y": np.ones(2)}, ours())


def kernel_of(head, features):
    params = {n.removeprefix("params/head/"): v for n, v in head.items()}
    return features @ params["kernel"] + params["bias"]


@pytest.mark.parametrize(
    "extra", [{"scale": 10}, {"omega": 10, "beta": 10}], ids=["scaled", "marc"]
)
def test_scaled_heads_are_written_as_the_linear_layer_they_are(extra):
    from lt_jax import heads

    rng = np.random.default_rng(0)
    own = {"kernel": rng.normal(size=(16, 10)), "bias": rng.normal(size=10)}
    own |= {name: rng.normal(size=size) for name, size in extra.items()}
    head = heads.scaled if "scale" in extra else heads.marc
    features = rng.normal(size=(5, 16))
    state = torch_names.to_torch({f"params/head/{n}": v for n, v in own.items()})
    np.testing.assert_allclose(
        features @ state["fc.weight"].T + state["fc.bias"],
        head.apply(own, features),
        rtol=1e-4,
        atol=1e-5,
    )


def test_a_cosine_head_is_no_linear_layer():
    leaves = {"params/head/kernel": np.ones((4, 3)), "params/head/scale": np.ones(())}
    with pytest.raises(InputError, match=r"it has kernel, scale.*write a \.stablehlo"):
        torch_names.to_torch(leaves)


# Files and commands.


def save(file, leaves=None, **more):
    state = {**torch_names.to_torch(leaves or ours()), **more}
    safetensors.numpy.save_file(state, file)
    return str(file)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    config = tiny_digits.config(method__names=("los", "cosine"))
    config.optim.epochs = config.method.los.epochs = config.method.cosine.epochs = 1
    config.method.features = "cached"
    stages.run(config, workdir)
    return workdir, config


def test_there_and_back_through_files_and_two_commands(run, tmp_path, capsys):
    """A run's stage 1 out, in again, re-trained and measured: the very same figures."""
    workdir, _ = run
    file, folder = str(tmp_path / "net.safetensors"), str(tmp_path / "theirs")
    assert main.main(["convert", str(workdir), file]) == 0
    output = capsys.readouterr().out
    assert re.search(r"layer1\.0\.conv1\.weight +4x4x3x3", output)
    assert main.main(["convert", file, folder, "--arch", "resnet8"]) == 0
    output = capsys.readouterr().out
    assert re.search(r"fc\.weight +-> head/kernel +16x10", output)
    assert "resnet8, width 4, cifar stem" in output
    assert_same(
        checkpoint.load_leaves(f"{folder}/checkpoints/stage1/0/final/0"),
        {n: leaf for n, leaf in arrays(workdir, "stage1/0").items() if "opt" not in n
         and n != "step"},
    )  # fmt: skip
    flags = ["--config", DIGITS, "--workdir", str(tmp_path / "work"), *SMALL]
    flags += [f"--config.init.path={folder}", "--config.method.features=cached"]
    assert main.main(["retrain", *flags]) == 0
    assert "converted from net.safetensors" in capsys.readouterr().out
    one, other = (
        json.loads((path / "result.json").read_text())["methods"]["none"]["all"]
        for path in (workdir, tmp_path / "work")
    )
    assert one == other
    assert main.main(["evaluate", *flags, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["stage1/0"]["all"] == one["mean"]
    assert (
        main.main(["convert", folder, file]) == 0
    )  # a converted folder goes out again


def test_a_converted_checkpoint_sweeps(tmp_path):
    save(tmp_path / "net.safetensors")
    folder = tmp_path / "theirs"
    arguments = ["convert", str(tmp_path / "net.safetensors"), str(folder)]
    assert main.main([*arguments, "--arch=resnet8"]) == 0
    config = tiny_digits.config(init__path=str(folder), method__names=("tau_norm",))
    config.method.tau_norm.grid = {"tau": (0.0, 1.0)}
    assert stages.sweep(config, tmp_path / "work")["sweep"]["heads"] == 2


def test_a_backbone_alone_needs_skip(tmp_path, capsys):
    leaves = {n: leaf for n, leaf in ours().items() if "/head/" not in n}
    state = {
        torch_names.torch_name(n): torch_names.to_torch_layout(leaf)
        for n, leaf in leaves.items()
    }
    safetensors.numpy.save_file(state, tmp_path / "net.safetensors")
    folder = str(tmp_path / "theirs")
    arguments = ["convert", str(tmp_path / "net.safetensors"), folder]
    assert main.main([*arguments, "--arch=resnet8"]) == 0
    assert "--config.init.skip='head/.*'" in capsys.readouterr().out
    (source,) = stored.stage1(Path(folder))
    backbone = models.create("resnet8", "cifar", 4)
    like = stored.blank(backbone, linear, (8, 8, 1), 10)
    with pytest.raises(InputError, match="- params/head/kernel"):
        stored.load(source, like)
    found = trees.leaves(stored.load(source, like, "head/.*")._asdict())
    assert_same({n: leaf for n, leaf in found.items() if "/head/" not in n}, leaves)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["net.safetensors", "out"],
            "--arch is missing: which network is in net.safet",
        ),
        (["net.safetensors", "out", "--arch=resnet9"], "unknown arch 'resnet9'"),
        (
            ["net.safetensors", "out", "--arch=resnet20"],
            "It is a resnet8: --arch",
        ),
        (["net.safetensors", "there", "--arch=resnet8"], "exists already"),
        (["net.txt", "out", "--arch=resnet8"], "neither a workdir nor a file of weigh"),
        (["gone.pth", "out", "--arch=resnet8"], "no such file"),
        (
            ["bad.safetensors", "out", "--arch=resnet8"],
            "bad.safetensors: not a safetensors file",
        ),
        (["there", "out.safetensors"], "no finished fit of 'stage1'"),
    ],
)
def test_bad_input_is_one_message_and_nothing_is_written(
    tmp_path, capsys, monkeypatch, arguments, message
):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "net.safetensors")
    (tmp_path / "there/checkpoints/stage1/0").mkdir(parents=True)
    (tmp_path / "bad.safetensors").write_bytes(b"rubbish")
    (tmp_path / "net.txt").write_text("")
    before = sorted(tmp_path.rglob("*"))
    assert main.main(["convert", *arguments]) == 2
    output = capsys.readouterr().err
    assert message in output
    assert "Traceback" not in output
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["out.safetensors", "--method=marc"],
            "expected one of cosine, los, stage1",
        ),
        (["out.safetensors", "--method=los", "--seeds=0.7"], "unknown seeds '0.7'"),
        (["out.onnx", "--method=los"], "expected a name that ends in .safetensors"),
        (["out.safetensors", "--method=cosine"], "write a .stablehlo"),
    ],
)
def test_bad_requests_of_a_workdir(run, tmp_path, capsys, arguments, message):
    target = str(tmp_path / arguments[0])
    assert main.main(["convert", str(run[0]), target, *arguments[1:]]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def script_of_the_readme():
    page = (ROOT / "docs/howto/convert_weights.md").read_text(encoding="utf-8")
    section = page.split("## To PyTorch, safetensors or StableHLO")[1].split("\n## ")[0]
    (script,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    return script


@pytest.mark.parametrize("method", ["los", "cosine"])
def test_the_artefact_runs_without_the_package(run, tmp_path, method):
    """The script of the README, where importing lt_jax fails, against the logits."""
    workdir, _ = run
    file = tmp_path / "net.stablehlo"
    assert main.main(["convert", str(workdir), str(file), f"--method={method}"]) == 0
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (5, 8, 8, 1), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    (tmp_path / "lt_jax").mkdir()
    (tmp_path / "lt_jax/__init__.py").write_text("raise ImportError('hidden')")
    script = script_of_the_readme()
    assert len(script.strip().splitlines()) <= 10
    script += "\nnp.save('logits.npy', logits)\n"
    env = {**os.environ, "PYTHONPATH": str(tmp_path), "JAX_PLATFORMS": "cpu"}
    subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=env, check=True, timeout=200
    )
    fit = fits.finished(workdir, method)
    program, _ = stablehlo.program(fit)
    found = np.load(tmp_path / "logits.npy")
    np.testing.assert_allclose(
        found, program(fit.network, images), rtol=1e-4, atol=1e-5
    )
    assert json.loads((tmp_path / "net.stablehlo.json").read_text())["classes"] == [
        str(k) for k in range(10)
    ]


def test_fits_share_one_compiled_program(run):
    """`predict` finds it in the cache, whatever the values of the weights are."""
    workdir, *_ = run
    images = np.zeros((1, 8, 8, 1), np.uint8)
    texts = set()
    for method in ("los", "none"):
        fit = fits.finished(workdir, method)
        compute, _ = stablehlo.program(fit)
        texts.add(jax.jit(compute).lower(fit.network, images).as_text())
    assert len(texts) == 1


def test_the_artefact_of_features_takes_features(tmp_path):
    from test_feature_files import config, write

    stages.retrain(config(write(tmp_path / "f")), tmp_path / "run")
    file = tmp_path / "head.stablehlo"
    arguments = ["convert", str(tmp_path / "run"), str(file), "--method=los"]
    assert main.main(arguments) == 0
    fit = fits.finished(tmp_path / "run", "los")
    program, spec = stablehlo.program(fit)
    assert str(spec.shape) == "(b, 8)"
    again = jax.export.deserialize(bytearray(file.read_bytes()))
    for size in (1, 7):
        given = np.ones((size, 8), np.float32)
        expected = program(fit.network, given)
        np.testing.assert_allclose(again.call(given), expected, rtol=1e-5)
    with pytest.raises(InputError, match=r"takes features, 8 numbers .*got x\.png"):
        predict.predict_by_artefact(file, [Path("x.png")], 1)


def test_a_damaged_artefact_and_a_note_of_another_program(tmp_path):
    backbone = models.create("resnet8", "cifar", 4)
    like = trees.rebuild(stored.blank(backbone, linear, (8, 8, 1), 10), ours())
    fit = fits.Finished(
        title="los/0.0",
        classes=[str(k) for k in range(10)],
        model={"name": "resnet8"},
        backbone=backbone,
        head=linear,
        network=weights.Weights(*like),
        temperature=1.0,
        dataset="digits",
        augment=Augment(0, False, (0.3,), (0.3,)),
        images={"size": [8, 8], "resize": None, "flip": False},
    )
    file, note = tmp_path / "net.stablehlo", tmp_path / "net.stablehlo.json"
    stablehlo.write(fit, file)
    content, found = file.read_bytes(), json.loads(note.read_text())
    assert stablehlo.read(file)[1] == found
    images = found["images"]
    for changes in (
        {"classes": ["a"]},
        {"classes": None},
        {"images": None},
        {"images": {**images, "size": [100_000, 100_000]}},
        {"images": {**images, "size": [8, 8, 8]}},
        {"images": {**images, "size": [7, 9]}},
        {"images": {**images, "resize": 8}},
        {"images": {**images, "flip": "yes"}},
    ):
        note.write_text(json.dumps(found | changes))
        with pytest.raises(InputError, match="Convert the workdir again"):
            stablehlo.read(file)
    note.write_text(json.dumps(found))
    file.write_bytes(content[:-1] + b"x")
    with pytest.raises(InputError, match="has changed since it was written"):
        stablehlo.read(file)
    del found["sha256"]  # of an older version
    note.write_text(json.dumps(found))
    file.write_bytes(content[:1000])
    with pytest.raises(InputError, match="is damaged or not an artefact"):
        stablehlo.read(file)


def test_safetensors_of_every_float(tmp_path):
    """bfloat16 is read; float8, which NumPy lacks, is refused."""
    data = np.array([1.5, -2], ml_dtypes.bfloat16).tobytes()
    file = tmp_path / "x.safetensors"

    def write(kind: str, size: int) -> None:
        header = {"x": {"dtype": kind, "shape": [2], "data_offsets": [0, size]}}
        text = json.dumps(header).encode()
        file.write_bytes(len(text).to_bytes(8, "little") + text + data[:size])

    write("BF16", 4)
    np.testing.assert_array_equal(weight_files.read(file)["x"], [1.5, -2])
    write("F8_E4M3", 2)
    assert weight_files.read(file)["x"].dtype == "F8_E4M3"


def tensor(*shape, kind="F32", size=16):
    return {"dtype": kind, "shape": shape, "data_offsets": [0, size]}


BLOCK = {"layer1.0.conv1.weight": tensor(2, 2, 1, 1)}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b" " * 2**25, "a header of 33,554,432 bytes, expected at most 16,777,216"),
        ({"a": tensor(2**62, 4)}, "verflow"),
        ({"a": tensor(2**50, size=2**52)}, "not a safetensors file"),
        ({"a": tensor(-4)}, "not a safetensors file"),
        ({"conv1.weight": tensor(2**40, 0, 3, 3, size=0)}, "from 1 to 1,000,000 exp"),
        ({"fc.weight": tensor(2**40, 0, size=0)} | BLOCK, "from 1 to 1,000,000 exp"),
        ({"conv1.weight": tensor(0, 3, 3, 3, size=0)} | BLOCK, "from 1 to 1,000,000"),
        ({"\x1b[31m": tensor(4)}, "a name is not printable text of at"),
        ({"a": tensor(4, kind="F31")}, "not a safetensors file"),
        ([], "not a safetensors file"),
        (b'{"a":' + b"[" * 1500 + b"]" * 1500 + b"}", "not a safetensors file"),
        (b"\xff", "not a safetensors file"),
        ({}, "got no arrays at all. No known architecture fits"),
    ],
)
def test_headers_that_lie(tmp_path, capsys, header, message):
    file = tmp_path / "net.safetensors"
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    body = bytes(16 if b"16]" in text else 0)
    file.write_bytes(len(text).to_bytes(8, "little") + text + body)
    assert main.main(["convert", str(file), str(tmp_path / "x"), "--arch=resnet8"]) == 2
    output = capsys.readouterr().err
    assert message in output
    assert output.count("\n") == 1
    assert list(tmp_path.iterdir()) == [file]


# PyTorch's own files.


@pytest.mark.parity
def test_torch_files_there_and_back(tmp_path):
    import torch
    from torch_networks import network, state

    theirs = network("resnet10", 4, 7)
    saved = {
        "epoch": 3,
        "state_dict_best": {
            "feat_model": {
                f"module.{n}": t
                for n, t in theirs.state_dict().items()
                if not n.startswith("fc")
            },
            "classifier": {
                f"module.fc.{n}": t for n, t in theirs.fc.named_parameters()
            },
        },
        # What Decoupling's code writes in addition to the weights.
        "best_acc": np.float64(0.5),
        "centroids": {"mean": np.ones(3, np.float32)},
    }
    file, folder = tmp_path / "net.pth", tmp_path / "theirs"
    torch.save(saved, file)
    assert main.main(["convert", str(file), str(folder), "--arch=resnet10"]) == 0
    assert main.main(["convert", str(folder), str(tmp_path / "back.pth")]) == 0
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    other = network("resnet10", 4, 7)
    for parameter in other.parameters():
        parameter.data.zero_()
    other.load_state_dict(back)  # strict
    for name, leaf in state(theirs).items():
        if "num_batches" not in name:
            np.testing.assert_array_equal(state(other)[name], leaf, err_msg=name)


@pytest.mark.parity
def test_a_pickled_module_is_refused_with_what_to_do(tmp_path, capsys):
    """The authors' stage 1 saves one. The suggested command works."""
    import torch
    from torch_networks import network

    file = tmp_path / "best_model_stage1.pth"
    torch.save(network("resnet8", 4, 7), file)
    arguments = ["--arch=resnet8"]
    folder = str(tmp_path / "out")
    assert main.main(["convert", str(file), folder, *arguments]) == 2
    output = capsys.readouterr().err
    assert "pickle that holds more than weights (torch_networks.Network)" in output
    (command,) = re.findall(r'python -c "(.*)"', output)
    paths = [str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    subprocess.run(
        [sys.executable, "-c", command], cwd=tmp_path, env=env, check=True, timeout=200
    )
    assert (
        main.main(["convert", str(tmp_path / "weights.pth"), folder, *arguments]) == 0
    )


@pytest.mark.parity
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"rubbish", "not a file of weights from PyTorch"),
        (b"", "not a file of weights from PyTorch"),
        (b"PK\3\4rubbish", "not a file of weights from PyTorch"),
        (pickle.dumps({"a": 1}), "not a file of weights from PyTorch"),
        (pickle.dumps(Path("x")), "not a file of weights from PyTorch"),
        (["no", "weights"], "holds no residual network"),
        ({"epoch": 3}, "no arrays at all"),
        ({1: "x", None: 2, (3, 4): 5}, "no arrays at all"),
    ],
)
def test_files_that_hold_no_weights(tmp_path, capsys, content, message):
    import torch

    file = tmp_path / "net.pth"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        torch.save(content, file)
    assert main.main(["convert", str(file), str(tmp_path / "x"), "--arch=resnet8"]) == 2
    output = capsys.readouterr().err
    assert message in output
    for word in ("Traceback", "Warning", "will likely succeed"):
        assert word not in output
    assert output.count("\n") == 1
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parity
def test_half_precision_and_quantised_weights_of_torch(tmp_path):
    import torch
    from torch_networks import network

    theirs = network("resnet8", 4, 7)
    file = tmp_path / "net.pt"
    for kind in (torch.float16, torch.bfloat16):
        torch.save(theirs.to(kind).state_dict(), file)
        found = np.asarray(weight_files.read(file)["fc.weight"])
        np.testing.assert_array_equal(
            found.astype(np.float32), theirs.fc.weight.detach().float().numpy()
        )
    torch.save({"n": {"numbers": torch.ones(3)}, "text": "x", "none": None}, file)
    assert list(weight_files.read(file)) == ["n.numbers"]


@pytest.mark.parity
def test_hostile_tensors(tmp_path, capsys):
    import torch

    good = {n: torch.from_numpy(a) for n, a in torch_names.to_torch(ours()).items()}
    weight, one = good["fc.weight"], torch.ones(1)
    wide = torch_names.to_torch(ours("resnet8", 512))
    cycle, shared = {}, {"x": one}
    cycle["a"] = cycle
    for _ in range(18):
        shared = {"a": shared, "b": shared}
    file = tmp_path / "net.pth"
    for content, message in (
        (cycle, "dicts more than 20 deep"),
        (shared, "more than 100,000 entries"),
        (good | {"fc.weight": weight.to_sparse()}, "float32 (cpu, sparse_"),
        (good | {"fc.weight": weight.to("meta")}, "float32 (meta, strided)"),
        (good | {"fc.weight": weight * 1j}, "has dtype complex64"),
        (good | {"fc.weight": weight.to(torch.float8_e4m3fn)}, "float8_e4m3"),
        (good | {"fc.weight": weight > 0}, "has dtype bool, expected one"),
        (good | {"fc.bias": one.expand(10) / 0}, "10 values that are not finite"),
        # A few KB that claim 300 MB and 4 GB.
        ({n: one.expand(a.shape) for n, a in wide.items()}, "bytes cannot be 75,"),
        (good | {"learned_norm": one.expand(2**30)}, "must have one value per class"),
        (good | {"x": np.array([1, None])}, "not a file of weights from PyTorch"),
        ({"\x1b[31m": one}, "a name is not printable text"),
        ({"x" * 2**20: {str(i): 0 for i in range(50_000)}}, "a name is not printable"),
    ):
        torch.save(content, file)
        arguments = ["convert", str(file), str(tmp_path / "x"), "--arch=resnet8"]
        assert main.main(arguments) == 2
        output = capsys.readouterr().err
        assert message in output
        assert output.count("\n") == 1
        assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parity
def test_a_compressed_zip_and_a_record_that_is_too_short(tmp_path):
    """A small file cannot expand, and no byte beyond a record is read."""
    import zipfile

    import torch

    torch.save({"a": torch.ones(1000)}, tmp_path / "net.pth")
    with zipfile.ZipFile(tmp_path / "net.pth") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    for name, kind in (("bomb.pth", zipfile.ZIP_DEFLATED), ("lie.pth", 0)):
        with zipfile.ZipFile(tmp_path / name, "w", kind) as archive:
            for member, content in members.items():
                cut = "/data/" in member and name == "lie.pth"
                archive.writestr(member, content[:4] if cut else content)
    with pytest.raises(InputError, match="is compressed or has more than 16,777,216"):
        weight_files.read(tmp_path / "bomb.pth")
    with pytest.raises(InputError, match="damaged"):
        weight_files.read(tmp_path / "lie.pth")
