"""CIFAR-100-LT (and CIFAR-10-LT): the set of the LOS paper.

The argument picks the variant, every part optional:

    configs/cifar100_lt.py:ir=100,net=resnet34,split=first,protocol=clean,data=cifar100

ir        imbalance ratio, the largest class over the smallest: 100, 50, 10, any
net       resnet34: the paper's wide one (64-128-256-512, 21.3 M parameters);
          resnet32: the literature's usual one (16-32-64, 0.5 M parameters)
split     first: the first n images of a class in the archive's order, as the authors;
          cao: NumPy seed 0, shuffled inside each class, as LDAM and most others
protocol  clean: a tenth of the training images held out, frozen batch norm in stage 2,
          the last checkpoint, the test set seen once for each fit;
          paper: the authors' code to the letter: all training images, moving batch
          norm statistics in stage 2, mirror averaging, the test set picks the epoch
data      cifar100 or cifar10; for the latter group limits and delta are not the paper's

Recipe: the authors' code, stage 1 200 epochs at lr 0.01 and weight decay 5e-3 on
everything, stage 2 20 epochs at lr 5e-4 on the head of stage 1, delta 0.98. Images,
counts and groups: 10,847 / 12,608 / 19,573 training images at IR 100 / 50 / 10.

Other people's figures for this network and IR 100, best epoch on test, mirror-averaged
(ShadeAlsha/LTR-weight-balancing, 320 epochs): 47.9 % all, 78.0 many, 46.9 medium, 13.9
few after stage 1. The paper's own tables are not quoted here.

    lt-jax run --config configs/cifar100_lt.py:ir=100 --workdir runs/cifar100_ir100
"""

from ml_collections import ConfigDict

DEFAULTS = {
    "ir": "100",
    "net": "resnet34",
    "split": "first",
    "protocol": "clean",
    "data": "cifar100",
}
CHOICES = {
    "net": ("resnet34", "resnet32"),
    "protocol": ("clean", "paper"),
    "data": ("cifar100", "cifar10"),
}
NETS = {"resnet34": 64, "resnet32": 16}  # width of the first stage
# Group limits and delta. CIFAR-100: the authors' code, which names a delta for IR 100
# alone. CIFAR-10: ours; 0.83 is the same K (1 - delta) / delta, 2.04, at K = 10.
TASKS = {"cifar100": (100, 20, 0.98), "cifar10": (1000, 200, 0.83)}


def get_config(argument: str = "") -> ConfigDict:
    choice = parse(argument)
    paper = choice["protocol"] == "paper"
    many, few, delta = TASKS[choice["data"]]
    config = ConfigDict()
    config.seed = 0  # first seed of everything random; the further ones count up

    config.data = ConfigDict()
    config.data.name = choice["data"]  # a key of lt_jax.data.SOURCES
    config.data.dir = ""  # where TFDS data lies; "": TFDS_DATA_DIR or TFDS's default
    config.data.imbalance = float(choice["ir"])  # largest class over smallest class
    config.data.split = choice["split"]  # which images of a class: "first" or "cao"
    config.data.valid = 0.0 if paper else 0.1  # share of each class held out
    config.data.valid_seed = 0  # which ones
    config.data.many = many  # more training images than this: a many-shot class
    config.data.few = few  # fewer than this: a few-shot class
    config.data.pad = 4  # pixels of black that random crops may reach into
    config.data.flip = True  # random mirror images
    config.data.mean = (0.4914, 0.4822, 0.4465)  # of the pixels, by channel, in 0..1
    config.data.std = (0.2023, 0.1994, 0.2010)  # and their deviation

    config.model = ConfigDict()
    config.model.name = choice["net"]  # a key of lt_jax.models.ARCHS
    config.model.stem = "cifar"  # "cifar": 3x3, no pooling; "imagenet": 7x7, pooling
    config.model.width = NETS[choice["net"]]  # channels of the first stage
    config.model.init = "torch"  # initial values as in "torch" or "flax"
    config.model.zero_init = False  # residual branches start at zero
    config.model.dtype = "float32"  # of the computation; parameters are float32

    config.init = ConfigDict()
    # Where stage 1 starts from, and stage 2 if this workdir trained no stage 1: the
    # workdir of a finished stage 1 (its first seed for stage 1); "": from nothing.
    config.init.path = ""
    config.init.skip = ""  # regex of parameters not taken from it, as "head/.*"

    config.method = ConfigDict()  # stage 2
    config.method.names = ("ce", "los")  # entries below; override: "('los',)"
    config.method.repeats = 3  # seeds for each method and representation
    # "online": the backbone sees augmented images in every epoch, as the paper;
    # "cached": it sees each image once, un-augmented, and all heads are fitted at once.
    config.method.features = "online"
    config.method.batch = 64  # images of a step, all devices together
    config.method.batch_norm = "drift" if paper else "frozen"  # statistics of stage 2
    config.method.momentum = 0.9  # of SGD, as in PyTorch
    config.method.nesterov = False  # look ahead along the momentum
    config.method.decay = 0.0  # weight decay, coupled
    config.method.decay_on = ".*"  # regex of the parameters it acts on
    config.method.schedule = "epoch"  # cosine moves per "epoch" or per "step"
    config.method.warmup = 0.0  # epochs

    config.method.ce = ConfigDict()
    config.method.ce.lr = 5e-4  # highest learning rate
    config.method.ce.epochs = 20  # passes over the training images
    config.method.ce.start = "stage1"  # or "fresh"
    config.method.ce.sampler = "instance"  # or "class", "sqrt"

    config.method.los = ConfigDict()
    config.method.los.lr = 5e-4
    config.method.los.epochs = 20
    config.method.los.delta = delta  # smoothed mass, over all classes
    config.method.los.start = "stage1"
    config.method.los.sampler = "instance"

    config.optim = ConfigDict()  # stage 1
    config.optim.repeats = 1  # representations, one for each seed
    config.optim.epochs = 200
    config.optim.batch = 64
    config.optim.lr = 0.01
    config.optim.momentum = 0.9
    config.optim.nesterov = False
    config.optim.decay = 5e-3
    config.optim.decay_on = ".*"  # batch norm and biases too, as the authors
    config.optim.schedule = "epoch"
    config.optim.warmup = 0.0
    config.optim.sampler = "instance"
    config.optim.trains = ".*"  # regex of the parameters that are trained
    config.optim.batch_norm = "train"

    config.eval = ConfigDict()
    config.eval.batch = 500  # images of an evaluation step
    config.eval.every = 1 if paper else 5  # epochs between evaluations
    config.eval.select = "test" if paper else "last"  # or best on "validation"
    config.eval.flip = paper  # average logits over the mirror image

    config.save = ConfigDict()
    config.save.every = 5  # epochs between checkpoints

    config.log = ConfigDict()
    config.log.seconds = 30.0  # between progress lines where there is no terminal
    return config


def parse(argument: str) -> dict[str, str]:
    """``key=value,...`` over the defaults; unknown keys and values are errors."""
    choice = dict(DEFAULTS)
    for part in filter(None, argument.split(",")):
        key, _, value = part.partition("=")
        if key not in DEFAULTS or value not in CHOICES.get(key, (value,)) or not value:
            known = {**DEFAULTS, **{k: "|".join(v) for k, v in CHOICES.items()}}
            raise ValueError(
                f"config argument {part!r}: expected some of "
                + ", ".join(f"{k}={v}" for k, v in known.items())
            )
        choice[key] = value
    return choice
