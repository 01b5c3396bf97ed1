"""CIFAR100-LT and CIFAR10-LT: the benchmark of the LOS paper.

Every part of the argument is optional:

    configs/cifar100_lt.py:ir=100,net=resnet34,split=first,protocol=clean,methods=two,
                           data=cifar100

ir        imbalance ratio, the largest class over the smallest: 100, 50, 10, any
net       resnet34: the paper's wide one (64-128-256-512, 21.3 M parameters);
          resnet32: the common one (16-32-64, 0.5 M parameters)
split     first: the first n images of a class in the archive's order, as the authors;
          cao: shuffled inside each class with NumPy seed 0, as LDAM and most others
protocol  clean: a tenth of the training images held out, frozen batch norm in stage 2,
          the last checkpoint, the test set used once per fit;
          paper: exactly the authors' code: all training images, moving batch norm
          statistics in stage 2, mirror averaging, the epoch picked on the test set
methods   two: ce and los; all: every method, for a sweep
data      cifar100 or cifar10; the group limits and delta for cifar10 are our choice

Recipe: the authors' code. Stage 1: 200 epochs at lr 0.01 and weight decay 5e-3 on all
parameters. Stage 2: 20 epochs at lr 5e-4 from the head of stage 1, delta 0.98 (given
for IR 100 only). Training images at IR 100 / 50 / 10: 10,847 / 12,608 / 19,573.

Expected figures of others for resnet34 at IR 100 after stage 1, best epoch on test,
mirror-averaged, 320 epochs (ShadeAlsha/LTR-weight-balancing): 47.9 % all, 78.0 many,
46.9 medium, 13.9 few. The paper's tables are not quoted here.

    lt-jax run --config configs/cifar100_lt.py:ir=100 --workdir runs/cifar100_ir100
"""

from ml_collections import ConfigDict

from lt_jax import recipes
from lt_jax.experiment.defaults import base_config, parse_argument, set_methods

DEFAULTS = {"ir": "100", "net": "resnet34", "split": "first", "protocol": "clean"}
DEFAULTS |= {"methods": "two", "data": "cifar100"}
CHOICES = {
    "net": ("resnet34", "resnet32"),
    "protocol": ("clean", "paper"),
    "methods": ("two", "all"),
    "data": ("cifar100", "cifar10"),
}
NETS = {"resnet34": 64, "resnet32": 16}  # width of the first stage
# Group limits and delta; 0.83 is the same K (1 - delta) / delta at K = 10.
TASKS = {"cifar100": (100, 20, 0.98), "cifar10": (1000, 200, 0.83)}


def get_config(argument: str = "") -> ConfigDict:
    choice = parse_argument(argument, DEFAULTS, CHOICES)
    config = base_config()
    config.data.name = choice["data"]
    config.data.imbalance = float(choice["ir"])
    config.data.split = choice["split"]
    config.data.many, config.data.few, delta = TASKS[choice["data"]]
    config.model.name = choice["net"]
    config.model.width = NETS[choice["net"]]
    if choice["protocol"] == "paper":
        config.data.valid = 0.0
        config.method.batch_norm = "drift"
        config.eval.every = 1
        config.eval.select = "test"
        config.eval.flip = True
    smoothing = recipes.CIFAR100._replace(delta=delta)
    set_methods(config, recipes.Case(smoothing), choice["methods"])
    return config
