"""Vision transformers under the names of transformers give the same features."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
import safetensors.numpy

from lt_jax import models
from lt_jax.errors import InputError
from lt_jax.pretrained import load, transformers_names

WIDTH = 24
FAMILIES = {  # architecture, and the sides of patch and image
    "vit": ("vit_small_patch16_224", 16, 32),
    "dinov2": ("vit_small_patch14_dinov2", 14, 28),
    "clip": ("vit_base_patch16_clip_quickgelu_224", 16, 32),
}
ATTENTION = {
    "vit": (
        *("attention.attention.query", "attention.attention.key"),
        *("attention.attention.value", "attention.output.dense"),
    ),
    "clip": (
        *("self_attn.q_proj", "self_attn.k_proj"),
        *("self_attn.v_proj", "self_attn.out_proj"),
    ),
}
ATTENTION["dinov2"] = ATTENTION["vit"]
DENSE = {
    "vit": ("intermediate.dense", "output.dense"),
    "dinov2": ("mlp.fc1", "mlp.fc2"),
    "clip": ("mlp.fc1", "mlp.fc2"),
}
NORMS = {
    "vit": ("layernorm_before", "layernorm_after"),
    "dinov2": ("norm1", "norm2"),
    "clip": ("layer_norm1", "layer_norm2"),
}


def network(family):
    arch, patch, side = FAMILIES[family]
    small = {"depth": 2, "width": WIDTH, "heads": 2, "grid": side // patch}
    return dataclasses.replace(models.create(arch), **small)


def written(family):
    """Random arrays under the names that transformers writes."""
    rng = np.random.default_rng(0)
    patch = FAMILIES[family][1]
    shapes = {}

    def layer(name, *shape):
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = shape, shape[:1]

    clip = family == "clip"
    start = "vision_model." if clip else ""
    blocks = f"{start}encoder.{'layers' if clip else 'layer'}"
    for i in range(2):
        for name in ATTENTION[family]:
            layer(f"{blocks}.{i}.{name}", WIDTH, WIDTH)
        first, second = DENSE[family]
        layer(f"{blocks}.{i}.{first}", 4 * WIDTH, WIDTH)
        layer(f"{blocks}.{i}.{second}", WIDTH, 4 * WIDTH)
        for name in NORMS[family]:
            layer(f"{blocks}.{i}.{name}", WIDTH)
        if family == "dinov2":
            for name in ("layer_scale1", "layer_scale2"):
                shapes[f"{blocks}.{i}.{name}.lambda1"] = (WIDTH,)
    if clip:
        shapes["vision_model.embeddings.class_embedding"] = (WIDTH,)
        shapes["vision_model.embeddings.position_embedding.weight"] = (5, WIDTH)
        stem = "vision_model.embeddings.patch_embedding.weight"
        shapes[stem] = (WIDTH, 3, patch, patch)
        layer("vision_model.pre_layrnorm", WIDTH)
        layer("vision_model.post_layernorm", WIDTH)
        shapes["text_model.embeddings.position_embedding.weight"] = (7, WIDTH)
        shapes["visual_projection.weight"] = (8, WIDTH)
    else:
        shapes["embeddings.cls_token"] = (1, 1, WIDTH)
        shapes["embeddings.position_embeddings"] = (1, 5, WIDTH)
        layer("embeddings.patch_embeddings.projection", WIDTH, 3, patch, patch)
        layer("layernorm", WIDTH)
        layer("pooler.dense", WIDTH, WIDTH)
    if family == "dinov2":
        shapes["embeddings.mask_token"] = (1, WIDTH)
    return {n: rng.normal(size=s).astype(np.float32) for n, s in shapes.items()}


def read(file, family):
    return load.backbone(load.find(str(file)), FAMILIES[family][0], network(family), 3)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_array_is_found(family, tmp_path):
    state, file = written(family), tmp_path / "model.safetensors"
    safetensors.numpy.save_file(state, file)
    leaves = read(file, family)
    own = {n.removeprefix("params/backbone/"): leaf for n, leaf in leaves.items()}
    start = "vision_model.encoder.layers.1." if family == "clip" else "encoder.layer.1."
    theirs = [state[f"{start}{name}.weight"].T for name in ATTENTION[family]]
    np.testing.assert_array_equal(
        own["block2/qkv/kernel"], np.concatenate(theirs[:3], axis=1)
    )
    np.testing.assert_array_equal(own["block2/proj/kernel"], theirs[3])
    assert own["cls_token"].shape == (1, 1, WIDTH)

    below = {f"model.{name}": leaf for name, leaf in state.items()}
    below["classifier.weight"] = np.zeros((2, WIDTH), np.float32)
    safetensors.numpy.save_file(below, file)
    for name, leaf in read(file, family).items():
        np.testing.assert_array_equal(leaf, leaves[name])


def test_a_missing_projection_is_named(tmp_path):
    state, file = written("vit"), tmp_path / "model.safetensors"
    del state["encoder.layer.1.attention.attention.key.weight"]
    safetensors.numpy.save_file(state, file)
    with pytest.raises(InputError, match="block2/qkv/kernel"):
        read(file, "vit")


def test_other_names_are_left_alone():
    state = {"blocks.0.attn.qkv.weight": np.zeros(2), "cls_token": np.zeros(3)}
    assert transformers_names.to_timm(state) == state


@pytest.mark.parity
@pytest.mark.parametrize("family", FAMILIES)
def test_features_are_those_of_transformers(family, tmp_path):
    torch = pytest.importorskip("torch", reason="pip install 'lt_jax[parity]'")
    library = pytest.importorskip("transformers", reason="pip install transformers")
    _, patch, side = FAMILIES[family]
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"patch_size": patch, "image_size": side}
    module = network(family)
    sizes["layer_norm_eps"] = module.epsilon
    torch.manual_seed(0)
    if family == "dinov2":
        theirs = library.Dinov2Model(library.Dinov2Config(mlp_ratio=4, **sizes))
    elif family == "clip":
        sizes |= {"intermediate_size": 4 * WIDTH, "hidden_act": "quick_gelu"}
        theirs = library.CLIPVisionModel(library.CLIPVisionConfig(**sizes))
    else:
        sizes["intermediate_size"] = 4 * WIDTH
        theirs = library.ViTModel(library.ViTConfig(**sizes))
    theirs = theirs.eval()
    for parameter in theirs.parameters():  # no weight is 0 or 1
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    theirs.save_pretrained(tmp_path)
    leaves = read(tmp_path / "model.safetensors", family)
    images = np.random.default_rng(0).normal(size=(2, side, side, 3)).astype(np.float32)
    with torch.no_grad():
        found = theirs(torch.from_numpy(images.transpose(0, 3, 1, 2)))
    right = found.pooler_output if family == "clip" else found.last_hidden_state[:, 0]
    params: dict = {}
    for name, leaf in leaves.items():
        *path, last = name.removeprefix("params/backbone/").split("/")
        inner = params
        for key in path:
            inner = inner.setdefault(key, {})
        inner[last] = leaf
    ours = jax.jit(module.apply, static_argnums=3)(
        {"params": params}, images, None, False
    )
    np.testing.assert_allclose(ours, right.numpy(), rtol=0, atol=1e-4)
