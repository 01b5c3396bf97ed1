"""Networks of open_clip: the features of their image model, at random weights."""

from __future__ import annotations

import numpy as np
import pytest
import timm_library

from lt_jax.errors import InputError
from lt_jax.pretrained import torch_backbones

pytestmark = pytest.mark.parity
NAME = "torch:open_clip/ViT-S-32"  # 63 million parameters


@pytest.fixture(scope="module")
def open_clip():
    timm_library.load()  # torchvision's operators
    return pytest.importorskip("open_clip", reason="pip install open_clip_torch")


def test_features_are_those_of_the_library(open_clip):
    import torch

    torch.manual_seed(0)
    model = open_clip.create_model("ViT-S-32")
    torch.manual_seed(0)
    loaded = torch_backbones.load(NAME, "float32", 0)
    images = np.random.default_rng(0).normal(size=(2, 224, 224, 3)).astype(np.float32)
    with torch.no_grad():
        right = model.encode_image(torch.from_numpy(images.transpose(0, 3, 1, 2)))
    np.testing.assert_allclose(loaded.apply(images), right.numpy(), atol=1e-5)
    assert loaded.recipe.size == loaded.recipe.resize == 224
    assert np.allclose(
        loaded.recipe.colours, (model.visual.image_mean, model.visual.image_std)
    )


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        (NAME, 160, "takes images of 224 pixels, not 160"),
        ("torch:open_clip/ViT-S-33", 0, "open_clip cannot load 'ViT-S-33'"),
        (f"{NAME}/laion9b", 0, "open_clip cannot load 'ViT-S-32/laion9b'"),
    ],
)
def test_what_it_lacks_is_named(open_clip, name, size, message):
    with pytest.raises(InputError, match=message):
        torch_backbones.load(name, "float32", size)
