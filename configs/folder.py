"""Your own photographs: a folder per class, or a table of paths and labels.

Every part of the argument is optional:

    configs/folder.py:path=DIR,table=FILE,net=resnet50,epochs=90,features=cached,
                      methods=two,classes=K

path      DIR/train/CLASS/*.jpg, DIR/test/CLASS/*.jpg, optionally DIR/val/CLASS/*.jpg;
          or DIR/CLASS/*.jpg, of which the share `data.test` becomes the test set;
          if the name has a comma or "=", use --config.data.dir=DIR
table     a CSV or Parquet file of path,label instead of folders
net       resnet50, resnet10, resnet18, resnet34, resnet101, resnet152, resnext50_32x4d
epochs    of stage 1
features  cached: stage 2 on un-augmented features, computed once; online: on augmented
          images in every epoch, as in the paper, at 20 passes per method and seed
methods   two: ce and los; all: every method, for a sweep
classes   another K than the data have to compute delta from

Delta and the limits of many- and few-shot classes are computed from the images: see
`lt-jax config`. Recipe: stage 1 as ImageNet-LT in Decoupling's code (see
imagenet_lt.py), from random weights. With few images, start from a network trained on
more: `lt-jax fit`, or --config.init.path (a run, or the output of `lt-jax convert`)
with --config.init.skip='head/.*'. Stage 2 as the LOS authors for CIFAR100-LT. The best
delta of your set is unknown; a sweep tries a grid of K (1 - delta) / delta. Figures
depend on your images.

    lt-jax run --config configs/folder.py:path=DIR --workdir runs/mine
    lt-jax sweep --config configs/folder.py:path=DIR --workdir runs/mine
"""

from ml_collections import ConfigDict

from lt_jax import recipes
from lt_jax.experiment.defaults import parse_argument, photo_config, set_methods

DEFAULTS = {"path": "", "classes": 0, "table": "", "net": "resnet50", "epochs": 90}
DEFAULTS |= {"features": "cached", "methods": "two"}
NETS = "resnet50 resnet10 resnet18 resnet34 resnet101 resnet152 resnext50_32x4d"
CHOICES = {
    "net": tuple(NETS.split()),
    "features": ("cached", "online"),
    "methods": ("two", "all"),
}


def get_config(argument: str = "") -> ConfigDict:
    choice = parse_argument(argument, DEFAULTS, CHOICES)
    config = photo_config()
    config.data.name = "folder"
    config.data.dir = choice["path"]  # with a table: the root of its relative paths
    config.data.table = choice["table"]  # CSV or Parquet of path,label; "": folders
    config.data.many = config.data.few = recipes.FROM_DATA
    config.data.test = 0.1  # share that becomes the test set if there is no test/
    config.model.name = choice["net"]
    config.method.features = choice["features"]
    config.optim.epochs = choice["epochs"]
    smoothing = recipes.BY_CLASSES
    if choice["classes"]:
        smoothing = recipes.smoothing(choice["classes"])
    case = recipes.Case(smoothing, official="imagenet_lt")
    set_methods(config, case, choice["methods"])
    return config
