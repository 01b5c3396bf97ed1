"""ImageNet-LT: 115,846 photographs of 1,000 classes, cut from ImageNet.

Data: TFDS `imagenet_lt` as array_record; `lt-jax data prepare imagenet_lt` makes it
from ImageNet's archives and the published lists. Training images 115,846 (1,280 to 5
per class), a balanced validation set of 20,000 and a test set of 50,000.

Every part of the argument is optional:

    configs/imagenet_lt.py:net=resnext50_32x4d,epochs=90,colours=plain,features=cached,
                           methods=two

net       resnext50_32x4d: the common one; resnet50, resnet10, resnet101, resnet152
epochs    of stage 1: 90, 180, 200, any
colours   plain: unchanged; jitter: brightness, contrast and saturation by 0.4, as in
          Decoupling's code
features  cached: stage 2 on un-augmented features, computed once; online: on augmented
          images in every epoch, as in the paper, at 20 passes per method and seed
methods   two: ce and los; all: every method, for a sweep

Recipe of stage 1: Decoupling's code (facebookresearch/classifier-balancing,
config/ImageNet_LT): ResNeXt-50, 90 epochs (180 and 200 elsewhere), batch 512 at lr 0.2,
which is 256 at 0.1, momentum 0.9, weight decay 5e-4, cosine per epoch, random resized
crop 224 and flip, resize 256 and centre crop 224. Stage 2: the LOS authors' recipe for
this set is unknown. Learning rates and epochs are those of CIFAR100-LT, delta has the
same K (1 - delta) / delta, 2.04, and a sweep tries a grid of it.

Overall accuracy of others with ResNeXt-50, 90 epochs: joint 44.4, NCM 47.3, cRT 49.6,
tau-norm 49.4, LWS 49.9; weight balancing 53.9 (200 epochs). Not yet run here.

    lt-jax run --config configs/imagenet_lt.py --workdir runs/imagenet_lt
    lt-jax sweep --config configs/imagenet_lt.py --workdir runs/imagenet_lt
"""

from ml_collections import ConfigDict

from lt_jax import recipes
from lt_jax.experiment.defaults import parse_argument, photo_config, set_methods

DEFAULTS = {"net": "resnext50_32x4d", "epochs": 90, "colours": "plain"}
DEFAULTS |= {"features": "cached", "methods": "two"}
CHOICES = {
    "net": ("resnext50_32x4d", "resnet50", "resnet10", "resnet101", "resnet152"),
    "colours": ("plain", "jitter"),
    "features": ("cached", "online"),
    "methods": ("two", "all"),
}


def get_config(argument: str = "") -> ConfigDict:
    choice = parse_argument(argument, DEFAULTS, CHOICES)
    config = photo_config()
    config.data.name = "imagenet_lt"
    config.data.valid = 0.0  # the set has a validation set
    if choice["colours"] == "jitter":
        config.data.jitter = (0.4, 0.4, 0.4, 0.0)
    config.model.name = choice["net"]
    config.method.features = choice["features"]
    config.optim.epochs = choice["epochs"]
    case = recipes.Case(recipes.smoothing(1000), official="imagenet_lt")
    set_methods(config, case, choice["methods"])
    return config
