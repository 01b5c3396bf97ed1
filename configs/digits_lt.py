"""Handwritten digits, made long-tailed: the built-in demo. No download, no GPU.

Data: scikit-learn's 1,797 digits (8x8, extra `demo`). 60 images per class form the
test set; the rest is cut to a long tail by the formula of CIFAR-LT. Both stages run
with five seeds. The set is too easy and too small to rank methods; it shows the full
pipeline.

    lt-jax run --config configs/digits_lt.py --workdir runs/digits
"""

from ml_collections import ConfigDict

from lt_jax import recipes
from lt_jax.experiment.defaults import base_config, set_methods

# The paper's amount of smoothing: K (1 - delta) / delta is 2.04 for its delta 0.98 at
# K = 100, and for 0.83 at K = 10.
SMOOTHING = recipes.Smoothing(
    delta=0.83,
    curve=(0.1, 0.3, 0.5, 0.83, 0.9, 0.95, 0.98, 0.99, 0.999),
    coarse=(0.5, 0.83, 0.98),
    fresh=(0.5, 0.83, 0.9, 0.98),
)


def get_config() -> ConfigDict:
    config = base_config()
    config.data.name = "digits"
    config.data.imbalance = 20.0
    config.data.valid = 0.2
    config.data.many, config.data.few = 50, 15
    config.data.pad = 1
    config.data.flip = False  # a mirrored digit is not a digit
    config.data.mean, config.data.std = (0.305,), (0.376,)
    config.model.name = "resnet8"
    config.method.repeats = 1
    config.method.batch = config.method.lr_batch = 32
    config.optim.repeats = 5
    config.optim.epochs = 60
    config.optim.batch = config.optim.lr_batch = 32
    config.optim.lr = 0.05
    config.eval.batch = 200
    config.eval.every = 10
    config.save.every = 20
    set_methods(config, recipes.Case(SMOOTHING, batch=32))
    return config
