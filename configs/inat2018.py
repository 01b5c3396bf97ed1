"""iNaturalist 2018: 437,513 photographs of 8,142 species, naturally long-tailed.

Data: TFDS `i_naturalist2018` 1.0.0 as array_record; `lt-jax data prepare
i_naturalist2018` makes it from the original archives. As in the literature, the test
set is the published validation set of 24,426 photographs, three per class: the labels
of the published test set are not public.

Every part of the argument is optional:

    configs/inat2018.py:net=resnet50,epochs=90,protocol=clean,features=cached,
                        methods=two

net       resnet50: the common one; resnet101, resnet152, resnet10
epochs    of stage 1: 90, 200, any
protocol  clean: a tenth of each class held out, to choose settings; paper: all training
          images, and no validation set
features  cached: stage 2 on un-augmented features, computed once; online: on augmented
          images in every epoch, as in the paper, at 20 passes per method and seed
methods   two: ce and los; all: every method, for a sweep

Recipe of stage 1: Decoupling's code (facebookresearch/classifier-balancing,
config/iNaturalist18): ResNet-50, 90 epochs (200 in its longer one), batch 512 at lr
0.2, which is 256 at 0.1, momentum 0.9, weight decay 1e-4, cosine per epoch, random
resized crop 224 and flip, resize 256 and centre crop 224. MiSLAS's code has batch 256
at lr 0.1, 200 epochs and mixup 0.2. Stage 2: the LOS authors' recipe for this set is
unknown. Learning rates and epochs are those of CIFAR100-LT, delta has the same
K (1 - delta) / delta, 2.04, and a sweep tries a grid of it.

Overall accuracy of others with ResNet-50: weight decay only 65.4, weight balancing
70.2, MiSLAS 71.6. Not yet run here.

    lt-jax run --config configs/inat2018.py --workdir runs/inat
    lt-jax sweep --config configs/inat2018.py --workdir runs/inat
"""

from ml_collections import ConfigDict

from lt_jax import recipes
from lt_jax.experiment.defaults import parse_argument, photo_config, set_methods

DEFAULTS = {"net": "resnet50", "epochs": 90, "protocol": "clean"}
DEFAULTS |= {"features": "cached", "methods": "two"}
CHOICES = {
    "net": ("resnet50", "resnet101", "resnet152", "resnet10"),
    "protocol": ("clean", "paper"),
    "features": ("cached", "online"),
    "methods": ("two", "all"),
}


def get_config(argument: str = "") -> ConfigDict:
    choice = parse_argument(argument, DEFAULTS, CHOICES)
    config = photo_config()
    config.data.name = "i_naturalist2018"
    if choice["protocol"] == "paper":
        config.data.valid = 0.0
    config.data.mean = (0.466, 0.471, 0.380)
    config.data.std = (0.195, 0.194, 0.192)
    config.model.name = choice["net"]
    config.method.features = choice["features"]
    config.optim.epochs = choice["epochs"]
    config.optim.decay = 1e-4
    case = recipes.Case(recipes.smoothing(8142), official="inat2018")
    set_methods(config, case, choice["methods"])
    return config
