"""Residual networks: sizes, padding, shortcuts, initial weights, number types."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from float64 import enable_x64

from lt_jax import initializers, models
from lt_jax.errors import InputError
from lt_jax.models import create, init
from lt_jax.models.resnet import convolution, pad_shortcut

KEY = jax.random.key(0)


def make(name="resnet8", **changes):
    fields = {
        "stem": "cifar",
        "width": 16,
        "zero_init": False,
        "init": "torch",
        "dtype": "float32",
        "axis_name": None,
    }
    return create(name, **{**fields, **changes})


def shapes(module, size=32):
    return models.shapes(module, (size, size, 3))


def drawn(module, size):
    """Random parameters and statistics from NumPy, none of them 0 or 1."""
    rng = np.random.default_rng(0)

    def draw(leaf):
        low, high = (-0.2, 0.2) if leaf.ndim == 4 else (0.5, 1.5)
        return rng.uniform(low, high, leaf.shape).astype(np.float32)

    return jax.tree.map(draw, shapes(module, size))


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def layers(module, size, moving=False):
    """Return the output shape of every layer, by its path joined with "/"."""

    def run(key):
        x, mask = jnp.zeros((2, size, size, 3)), jnp.ones(2)
        made = module.init(key, x, mask, moving)
        return module.apply(
            made, x, mask, moving, capture_intermediates=True, mutable=True
        )[1]["intermediates"]

    tree = jax.eval_shape(run, KEY)
    paths = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {
        "/".join(str(p.key) for p in path if hasattr(p, "key")): leaf
        for path, leaf in paths
    }


@pytest.mark.parametrize(
    ("name", "total"),
    [
        ("resnet18", 11_689_512),
        ("resnet34", 21_797_672),
        ("resnet50", 25_557_032),
        ("resnet101", 44_549_160),
        ("resnet152", 60_192_808),
        ("resnext50_32x4d", 25_028_904),
    ],
)
def test_parameter_counts_match_torchvision(name, total):
    module = make(name, stem="imagenet", width=64)
    params, _ = shapes(module, 64)
    assert count(params) + 1000 * (module.num_features + 1) == total


def test_wide_resnet34_has_the_size_of_the_paper():
    module = make("resnet34", width=64)
    params, stats = shapes(module)
    assert count(params) == 21_276_992
    assert count(params) + 512 * 100 + 100 == 21_328_292
    # One mean and one variance for each scale and bias.
    norms = [leaf for leaf in jax.tree.leaves(params) if leaf.ndim == 1]
    assert count(stats) == count(norms)


def test_resnet32_counts_by_hand():
    conv = lambda i, o: 9 * i * o + 2 * o  # 3x3 and its norm  # noqa: E731
    hand = conv(3, 16) + 10 * conv(16, 16)
    hand += conv(16, 32) + 9 * conv(32, 32) + conv(32, 64) + 9 * conv(64, 64)
    params, _ = shapes(make("resnet32"))
    assert count(params) == hand == 463_504
    assert count(params) + 64 * 10 + 10 == 464_154


@pytest.mark.parametrize("name", ["resnet8", "resnet10", "resnet50", "resnext50_32x4d"])
@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
def test_features(name, stem):
    module = make(name, stem=stem)
    params, stats = shapes(module)
    out = jax.eval_shape(
        lambda p, s, x: module.apply(
            {"params": p, "batch_stats": s}, x, x[:, 0, 0, 0], False
        ),
        params,
        stats,
        jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32),
    )
    assert out.shape == (2, module.num_features)
    assert out.dtype == jnp.float32


def test_names_of_the_parameters():
    params, _ = shapes(make("resnet18", width=64))
    assert set(params) == {"stem_conv", "stem_norm"} | {
        f"stage{i}_block{j}" for i in (1, 2, 3, 4) for j in (1, 2)
    }
    plain = {"conv1", "norm1", "conv2", "norm2"}
    assert set(params["stage1_block1"]) == plain
    assert set(params["stage2_block1"]) == plain | {"short_conv", "short_norm"}
    assert set(params["stage2_block2"]) == plain
    params, _ = shapes(make("resnet50", width=64))
    deep = plain | {"conv3", "norm3"}
    assert set(params["stage1_block1"]) == deep | {"short_conv", "short_norm"}
    assert set(params["stage1_block2"]) == deep
    assert set(shapes(make("resnet8"))[0]["stage2_block1"]) == plain
    assert set(params["stem_conv"]) == {"kernel"}
    assert set(params["stem_norm"]) == {"scale", "bias"}


def test_strides():
    """The cifar stem keeps the size, imagenet quarters it."""
    small = layers(make("resnet50"), 32)
    assert small["stem_conv/__call__"].shape == (2, 32, 32, 16)
    assert small["stage1_block1/__call__"].shape == (2, 32, 32, 64)
    large = layers(make("resnet50", stem="imagenet"), 64)
    assert large["stem_conv/__call__"].shape == (2, 32, 32, 16)
    assert large["stage1_block1/__call__"].shape == (2, 16, 16, 64)
    assert large["stage2_block1/conv1/__call__"].shape == (2, 16, 16, 32)
    assert large["stage2_block1/conv2/__call__"].shape == (2, 8, 8, 32)
    assert large["stage4_block3/__call__"].shape == (2, 2, 2, 512)


def test_resnext_groups():
    params, _ = shapes(make("resnext50_32x4d", width=64))
    assert params["stage1_block1"]["conv1"]["kernel"].shape == (1, 1, 64, 128)
    assert params["stage1_block1"]["conv2"]["kernel"].shape == (3, 3, 4, 128)
    assert params["stage4_block1"]["conv2"]["kernel"].shape == (3, 3, 32, 1024)


@pytest.mark.parametrize("size", [3, 7])
def test_stride_2_pads_both_sides(size):
    """The kernel reads only its first pixel: SAME would start inside the image."""
    conv = convolution(1, size, 2, init_name="torch", dtype=jnp.float32)
    x = np.arange(1, 65, dtype=np.float32).reshape(1, 8, 8, 1)
    kernel = np.zeros((size, size, 1, 1), np.float32)
    kernel[0, 0] = 1
    y = conv.apply({"params": {"kernel": kernel}}, x)
    pad = (size - 1) // 2
    expected = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))[:, :8:2, :8:2]
    np.testing.assert_array_equal(y, expected)
    assert not np.any(expected[:, 0])


def test_imagenet_stem_pools_with_padding_on_both_sides():
    # No stages: features are the mean over the pooled stem. The stem's kernel copies
    # the middle pixel of channel 0, so only the max pool is left to see.
    module = dataclasses.replace(make("resnet10", stem="imagenet", width=1), stages=())
    params, stats = init(module, KEY, (16, 16, 3))
    kernel = np.zeros((7, 7, 3, 1), np.float32)
    kernel[3, 3, 0] = 1
    params = {**params, "stem_conv": {"kernel": kernel}}
    x = np.random.default_rng(0).uniform(1, 2, (1, 16, 16, 3)).astype(np.float32)
    y = module.apply(
        {"params": params, "batch_stats": stats}, x, np.ones(1, np.float32), False
    )
    stem = np.pad(x[0, ::2, ::2, 0], 1)
    pooled = [
        [stem[i : i + 3, j : j + 3].max() for j in range(0, 8, 2)]
        for i in range(0, 8, 2)
    ]
    np.testing.assert_allclose(y, [[np.mean(pooled) / np.sqrt(1 + 1e-5)]], rtol=1e-6)


def test_pad_shortcut_values():
    x = np.random.default_rng(0).normal(size=(2, 5, 4, 8)).astype(np.float32)
    y = pad_shortcut(x, 16, 2)
    assert y.shape == (2, 3, 2, 16)
    np.testing.assert_array_equal(y[..., 4:12], x[:, ::2, ::2])
    assert not np.any(y[..., :4])
    assert not np.any(y[..., 12:])


def forward_by_hand(params, stats, x, bottleneck, groups):
    """Compute two stages of one block each, with a cifar stem, without modules."""

    def layer(path, name, x, stride=1, groups=1):
        weights, running = (
            functools.reduce(dict.get, path, t) for t in (params, stats)
        )
        kernel, norm = weights[name]["kernel"], name.replace("conv", "norm")
        pad = kernel.shape[0] // 2
        x = jax.lax.conv_general_dilated(
            x,
            kernel,
            (stride, stride),
            [(pad, pad)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )
        mean, var = (running[norm][k][None, None, None] for k in ("mean", "var"))
        scale, bias = (weights[norm][k][None, None, None] for k in ("scale", "bias"))
        return (x - mean) / jnp.sqrt(var + 1e-5) * scale + bias

    x = jnp.maximum(layer((), "stem_conv", x), 0)
    for stage, stride in ((1, 1), (2, 2)):
        run = functools.partial(layer, (f"stage{stage}_block1",))
        if bottleneck:
            y = jnp.maximum(run("conv1", x), 0)
            y = jnp.maximum(run("conv2", y, stride, groups), 0)
            y = run("conv3", y)
        else:
            y = jnp.maximum(run("conv1", x, stride), 0)
            y = run("conv2", y)
        if stage == 2 or bottleneck:
            x = run("short_conv", x, stride)
        x = jnp.maximum(x + y, 0)
    return x.mean((1, 2))


@pytest.mark.parametrize(("name", "width"), [("resnet18", 4), ("resnext50_32x4d", 16)])
def test_forward_equals_the_network_by_hand(name, width):
    module = dataclasses.replace(make(name, width=width), stages=(1, 1))
    params, stats = drawn(module, 6)
    x = np.random.default_rng(1).normal(size=(2, 6, 6, 3)).astype(np.float32)
    y = jax.jit(module.apply, static_argnums=3)(
        {"params": params, "batch_stats": stats}, x, np.ones(2, np.float32), False
    )
    hand = jax.jit(forward_by_hand, static_argnums=(3, 4))(
        params, stats, x, module.bottleneck, module.groups
    )
    np.testing.assert_allclose(y, hand, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_zero_init_makes_a_block_the_identity(name):
    module = dataclasses.replace(make(name, width=4, zero_init=True), stages=(2,))
    params, stats = init(module, KEY, (4, 4, 3))
    x = np.random.default_rng(0).normal(size=(2, 4, 4, 3)).astype(np.float32)
    apply = functools.partial(
        module.apply, moving=True, mutable=True, capture_intermediates=True
    )
    seen = jax.jit(apply)(
        {"params": params, "batch_stats": stats}, x, np.ones(2, np.float32)
    )[1]["intermediates"]
    first, second = (seen[f"stage1_block{i}"]["__call__"][0] for i in (1, 2))
    assert np.any(first)
    np.testing.assert_array_equal(second, nn.relu(first))
    # Only the last scale of the block is 0; the others would stop its gradient.
    norms = {k: v for k, v in params["stage1_block2"].items() if k.startswith("norm")}
    assert [k for k, v in norms.items() if not np.any(v["scale"])] == [max(norms)]


def test_torch_initial_weights():
    kernel = initializers.kernel("torch")
    # U(-b, b) with b = 1/sqrt(fan_in) has mean 0 and standard deviation b/sqrt(3).
    drawn = {
        (3 * 3 * 16): kernel(KEY, (3, 3, 16, 400)),
        200: kernel(KEY, (200, 300)),
        50: initializers.bias("torch", 50)(KEY, (60_000,)),
    }
    for fan_in, w in drawn.items():
        bound = fan_in**-0.5
        assert 0.999 * bound < np.abs(w).max() <= bound
        np.testing.assert_allclose(np.std(w), bound / 3**0.5, rtol=0.02)
        assert abs(np.mean(w)) < 0.02 * bound
    # Through a layer: the fan-in of a grouped convolution is that of one group.
    layer = convolution(128, 3, groups=32, init_name="torch", dtype=jnp.float32)
    w = layer.init(KEY, jnp.zeros((1, 3, 3, 128)))["params"]["kernel"]
    assert 0.99 < np.abs(w).max() * (9 * 4) ** 0.5 <= 1


def test_flax_initial_weights():
    kernel = initializers.kernel("flax")
    w = kernel(KEY, (200, 300))
    np.testing.assert_allclose(np.std(w), 200**-0.5, rtol=0.02)
    assert np.abs(w).max() > 200**-0.5
    assert not np.any(initializers.bias("flax", 200)(KEY, (300,)))
    # Through a network: a stem without stages.
    module = dataclasses.replace(make(init="flax", width=512), stages=())
    w = init(module, KEY, (8, 8, 3))[0]["stem_conv"]["kernel"]
    np.testing.assert_allclose(np.std(w), (9 * 3) ** -0.5, rtol=0.02)


def test_init_differs_by_key_and_by_layer():
    module = dataclasses.replace(make(), stages=(1,))
    params, _ = init(module, KEY, (8, 8, 3))
    other, _ = init(module, jax.random.key(1), (8, 8, 3))
    w = params["stage1_block1"]
    assert np.all(w["norm2"]["scale"] == 1)  # zero_init is off
    assert not np.array_equal(w["conv1"]["kernel"], w["conv2"]["kernel"])
    assert not np.array_equal(
        params["stem_conv"]["kernel"], other["stem_conv"]["kernel"]
    )


def test_bfloat16_keeps_parameters_statistics_and_features_in_float32():
    module = make(dtype="bfloat16")
    params, stats = shapes(module)
    assert {leaf.dtype for leaf in jax.tree.leaves((params, stats))} == {
        jnp.dtype("float32")
    }
    seen = layers(module, 32, moving=True)
    assert seen.pop("__call__").dtype == jnp.float32
    assert {leaf.dtype for leaf in seen.values()} == {jnp.dtype("bfloat16")}


def test_float64_is_kept():
    with enable_x64(True):
        module = make(dtype="float64")
        params, stats = shapes(module)
        assert layers(module, 32)["__call__"].dtype == jnp.float64
    assert {leaf.dtype for leaf in jax.tree.leaves((params, stats))} == {
        jnp.dtype("float64")
    }


def test_devices_and_padding_change_nothing():
    """Every norm gets mask and axis: 4 ragged devices equal one full batch."""
    module = dataclasses.replace(make(width=4), stages=(1, 1))
    params, stats = drawn(module, 8)
    mask = np.array([[1, 1], [1, 0], [0, 0], [1, 1]], np.float32)
    x = np.random.default_rng(0).normal(size=(4, 2, 8, 8, 3)).astype(np.float32)

    def run(module, params, x, mask):
        def loss(params):
            features, new = module.apply(
                {"params": params, "batch_stats": stats},
                x,
                mask,
                moving=True,
                mutable=["batch_stats"],
            )
            total = jnp.sum(mask * jnp.sum(jnp.sin(3 * features), 1))
            return total, (features, new)

        grads, (features, new) = jax.grad(loss, has_aux=True)(params)
        if module.axis_name:
            grads = jax.lax.psum(grads, module.axis_name)
        return features, new, grads

    kept = mask > 0
    one = jax.jit(functools.partial(run, module))(
        params, x[kept], np.ones(kept.sum(), np.float32)
    )
    many = jax.pmap(
        functools.partial(run, dataclasses.replace(module, axis_name="batch")),
        axis_name="batch",
        in_axes=(None, 0, 0),
        out_axes=(0, None, None),
    )(params, x, mask)
    features, new, grads = jax.device_get(many)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        (features[kept], new, grads),
        jax.device_get(one),
    )


def test_modules_with_equal_fields_are_equal_keys():
    assert make() == make()
    assert hash(make()) == hash(make())
    assert make() != make(zero_init=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "resnet43"}, "did you mean .*'resnet44'"),
        ({"name": "vgg"}, "unknown arch 'vgg': expected one of resnet8, resnet20"),
        ({"stem": "imagnet"}, "did you mean 'imagenet'"),
        ({"init": "pytorch"}, "did you mean 'torch'"),
        ({"dtype": "bfloat"}, "did you mean 'bfloat16'"),
        ({"dtype": "float64"}, "only with jax.enable_x64"),
        ({"width": 0}, "at least 1 .*got 0"),
        ({"name": "resnext50_32x4d", "width": 8}, "at least 16 .*got 8"),
    ],
)
def test_bad_input(changes, message):
    with pytest.raises(InputError, match=message):
        make(**changes)


def test_unknown_initializer():
    with pytest.raises(InputError, match="did you mean 'flax'"):
        initializers.kernel("flx")


@pytest.mark.parametrize("init_name", ["torch", "flax"])
def test_shapes_are_those_of_the_initial_values(init_name):
    module = make(init=init_name)
    made = init(module, KEY, (32, 32, 3))
    expected = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), made)
    found = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), shapes(module))
    assert found == expected
