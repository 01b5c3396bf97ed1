"""Vision transformers: timm's features from timm's weights, sizes, and bad images."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import timm_library

from lt_jax import models, trees
from lt_jax.errors import InputError
from lt_jax.experiment import stored
from lt_jax.heads import linear
from lt_jax.models import vit
from lt_jax.pretrained import torch_names

SMALL = "vit_small_patch16_224"


def shallow(name, **changes):
    """Build a network of the table with two blocks."""
    return dataclasses.replace(models.create(name), **{"depth": 2, **changes})


def drawn(module, size=(32, 32, 3), num_classes=3):
    """Random parameters, none of them 0 or 1, of a backbone and a head."""
    rng = np.random.default_rng(0)
    like = stored.blank(module, linear, size, num_classes)
    return jax.tree.map(
        lambda leaf: rng.normal(0, 0.1, leaf.shape).astype(np.float32), like
    )


def features(module, params, images):
    variables = {"params": params, "batch_stats": {}}
    return jax.jit(module.apply, static_argnums=3)(variables, images, None, False)


@pytest.fixture(scope="module")
def timm():
    return timm_library.load()


def compare(timm, name, depth, sizes):
    """Compare both kinds of features at image sizes in patches."""
    import torch

    torch.manual_seed(0)
    token = dataclasses.replace(models.create(name), depth=depth)
    patch, side = token.patch, token.patch * token.grid
    fields = {"depth": depth, "num_classes": 5, "dynamic_img_size": True}
    theirs = timm.create_model(name, img_size=side, **fields).eval()
    for parameter in theirs.parameters():  # no weight is 0 or 1
        parameter.data.add_(0.02 * torch.randn_like(parameter))
    state = {n: t.detach().numpy() for n, t in theirs.state_dict().items()}
    like = stored.blank(token, linear, (side, side, 3), 5)._asdict()
    found = torch_names.from_torch(state, trees.leaves(like))
    params = trees.rebuild(like, found.leaves)["params"]["backbone"]
    assert not found.skipped
    rng = np.random.default_rng(0)
    for height, width in sizes:
        shape = 2, height * patch, width * patch, 3
        images = rng.normal(size=shape).astype(np.float32)
        for pool, module in (("token", token), ("avg", token.clone(pool="mean"))):
            theirs.global_pool = pool
            with torch.no_grad():
                x = torch.from_numpy(images.transpose(0, 3, 1, 2))
                right = theirs.forward_head(theirs.forward_features(x), True).numpy()
            ours = features(module, params, images)
            np.testing.assert_allclose(ours, right, rtol=0, atol=1e-4)
            assert np.abs(ours - right).max() < 1e-4 * np.abs(right).max()


@pytest.mark.parity
@pytest.mark.parametrize("name", vit.ARCHS)
def test_features_are_those_of_timm(timm, name):
    """At the size of the position embedding, a smaller and an oblong one."""
    grid = models.create(name).grid
    compare(timm, name, 2, ((grid, grid), (5, 5), (3, 9)))


@pytest.mark.parity
@pytest.mark.slow
@pytest.mark.parametrize("name", vit.ARCHS)
def test_features_of_the_complete_network_are_those_of_timm(timm, name):
    compare(timm, name, models.create(name).depth, ((14, 14), (16, 16)))


@pytest.mark.parametrize(
    ("name", "total"),
    [
        ("vit_small_patch16_224", 21_665_664),
        ("vit_base_patch16_224", 85_798_656),
        ("vit_large_patch16_224", 303_301_632),
        ("vit_base_patch16_clip_224", 85_799_424),
        ("vit_small_patch14_dinov2", 22_056_192),
        ("vit_base_patch14_dinov2", 86_579_712),
    ],
)
def test_parameter_counts_match_timm(name, total):
    module = models.create(name)
    params, stats = models.shapes(module, (module.patch, module.patch, 3))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == total
    assert stats == {}
    assert module.num_features == module.width


def test_pools_and_position_embeddings():
    """Hand-made: without blocks, features are norms of patches plus positions."""
    module = shallow(SMALL, depth=0, grid=2, patch=1, width=4)
    params = drawn(module, (2, 2, 3)).params["backbone"]
    images = np.random.default_rng(1).normal(size=(2, 2, 2, 3)).astype(np.float32)
    kernel, bias = params["stem_conv"]["kernel"][0, 0], params["stem_conv"]["bias"]
    patches = images.reshape(2, 4, 3) @ kernel + bias + params["pos_embed"][:, 1:]
    token = params["cls_token"] + params["pos_embed"][:, :1]

    def normed(x):
        mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
        scale, bias = params["norm"]["scale"], params["norm"]["bias"]
        return (x - mean) / np.sqrt(var + 1e-6) * scale + bias

    right = np.broadcast_to(normed(token)[:, 0], (2, 4))
    np.testing.assert_allclose(features(module, params, images), right, rtol=1e-4)
    module = module.clone(pool="mean")
    right = normed(patches).mean(1)
    np.testing.assert_allclose(features(module, params, images), right, 1e-4, 1e-6)


def test_bfloat16_keeps_parameters_and_features_in_float32():
    exact = shallow(SMALL, width=12, heads=2, grid=2)
    module = exact.clone(dtype=jnp.dtype("bfloat16"))
    params = drawn(exact).params["backbone"]
    made, _ = models.shapes(module, (32, 32, 3))
    assert {leaf.dtype for leaf in jax.tree.leaves(made)} == {jnp.dtype("float32")}
    images = np.random.default_rng(1).normal(size=(2, 48, 32, 3)).astype(np.float32)
    ours, right = (features(m, params, images) for m in (module, exact))
    assert ours.dtype == jnp.float32
    np.testing.assert_allclose(ours, right, rtol=0, atol=0.05 * np.abs(right).max())
    assert np.any(ours != right)


def test_names_go_to_timm_and_back():
    module = shallow("vit_small_patch14_dinov2", width=12, heads=2)
    leaves = trees.leaves(drawn(module, (28, 28, 3))._asdict())
    state = torch_names.to_torch(leaves)
    assert state["blocks.1.attn.qkv.weight"].shape == (36, 12)
    assert state["patch_embed.proj.weight"].shape == (12, 3, 14, 14)
    assert {"cls_token", "pos_embed", "head.bias", "blocks.0.ls2.gamma"} <= set(state)
    renamed = {f"visual.trunk.{name}": leaf for name, leaf in state.items()}
    for given in (state, renamed, {**state, "mask_token": np.zeros((1, 12))}):
        found = torch_names.from_torch(given, leaves)
        for name, leaf in leaves.items():
            np.testing.assert_array_equal(found.leaves[name], leaf)
    with pytest.raises(InputError, match=r"no residual network: .* got"):
        torch_names.from_torch(state, {"params/backbone/stem_conv/kernel": leaves})
    with pytest.raises(
        InputError, match=r"no vision transformer: expected .*blocks\.0"
    ):
        torch_names.from_torch({"layer1.0.conv1.weight": np.zeros(2)}, leaves)


def test_modules_with_equal_fields_are_equal_keys():
    assert hash(models.create(SMALL)) == hash(models.create(SMALL))
    assert models.create(SMALL) != models.create(SMALL, pool="mean")


@pytest.mark.parametrize("size", [(15, 32), (8, 8), (32, 40)])
def test_an_image_that_patches_do_not_cover_is_refused(size):
    found = f"multiples of 16 pixels, at least 16, got {size[0]} x {size[1]}"
    with pytest.raises(InputError, match=found):
        models.shapes(shallow(SMALL), (*size, 3))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "vit_small_patch16"}, "did you mean 'vit_small_patch16_224'"),
        ({"pool": "average"}, "unknown pool 'average': expected one of token, mean"),
        ({"dtype": "float16"}, "did you mean 'bfloat16'"),
    ],
)
def test_bad_input(changes, message):
    with pytest.raises(InputError, match=message):
        models.create(**{"name": SMALL, **changes})
