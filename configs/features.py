"""Features computed elsewhere: CLIP, DINOv2, a ViT, any other program.

No network is trained. Stage 1 fits a linear head on the features by cross-entropy, and
stage 2 re-trains it by every method. A folder holds the features and labels of a
training, a test and perhaps a validation set: train.npz, test.npz and val.npz (arrays
`features` [N, D] and `labels` [N]), train.npy and train_labels.npy, or train.parquet
(columns `features`, `labels`). Labels are names of classes or integers from 0.

Every part of the argument is optional:

    configs/features.py:path=FOLDER,ir=whole,methods=two,delta=D,limits=100-20

path      the folder; if its name has a comma or "=", use --config.data.dir=FOLDER
ir        whole: all training examples; a number: cut to this imbalance ratio
methods   two: ce and los; all: every method, for a sweep
delta     smoothing of LOS; default: the paper's K (1 - delta) / delta = 2.04 at this K
limits    a class with more training examples is many-shot, with fewer few-shot;
          default: from the class counts

Learning rates are those of the other configs, which suit features of a mean norm of 4
to 16. --config.data.norm=8 centres and scales others, such as CLIP's of unit length, or
`lt-jax sweep` tries other rates. Figures depend on your features.

    lt-jax run --config configs/features.py:path=FOLDER --workdir runs/features
"""

from ml_collections import ConfigDict

from lt_jax import recipes
from lt_jax.experiment.defaults import base_config, parse_argument, set_methods

DEFAULTS = {"path": "", "ir": "whole", "methods": "two", "delta": -1.0, "limits": ""}


def get_config(argument: str = "") -> ConfigDict:
    choice = parse_argument(argument, DEFAULTS, {"methods": ("two", "all")})
    config = base_config()
    config.data.name = "features"
    config.data.dir = choice["path"]
    if choice["ir"] == "whole":
        config.data.split = "whole"
    else:
        config.data.imbalance = float(choice["ir"])
    config.data.many = config.data.few = recipes.FROM_DATA
    if choice["limits"]:
        config.data.many, config.data.few = map(int, choice["limits"].split("-"))
    # Features have no pixels to crop, mirror or normalise.
    config.data.pad, config.data.flip = 0, False
    config.data.mean = config.data.std = ()
    config.model.name = "none"
    config.model.width = 1  # not read
    config.method.features = "cached"
    config.optim.epochs = 50
    config.optim.lr = 0.1
    config.optim.decay = 5e-4
    config.eval.every = 10
    config.save.every = 10
    smoothing = recipes.BY_CLASSES._replace(delta=choice["delta"])
    set_methods(config, recipes.Case(smoothing), choice["methods"])
    return config
