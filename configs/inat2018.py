"""iNaturalist 2018: 437,513 photographs of 8,142 species, long-tailed by nature.

TFDS `i_naturalist2018` 1.0.0 in array_record form: `lt-jax data prepare
i_naturalist2018` makes it from the original archives. The published validation set,
24,426 photographs and three a class, is the test set here, as everywhere in the
literature; the labels of the published test set are not public. The argument picks the
variant, every part optional:

    configs/inat2018.py:net=resnet50,epochs=90,protocol=clean,features=cached,
                        methods=two

net       resnet50: the literature's; resnet101, resnet152, resnet10
epochs    of stage 1: 90, 200, any
protocol  clean: a tenth of each class held out, to choose settings by; paper: all
          training images, and nothing to choose by
features  cached: stage 2 on un-augmented features, computed once; online: on augmented
          images in every epoch, as the paper, which costs 20 passes a method and seed
methods   two: ce and los; all: every one of the table below, as a sweep may want

Recipe of stage 1: Decoupling's code (facebookresearch/classifier-balancing,
config/iNaturalist18): ResNet-50, 90 epochs (200 in its longer one), batch 512 at lr
0.2, which is 256 at 0.1, momentum 0.9, weight decay 1e-4, cosine by epochs, random
resized crop 224 and flip, resize 256 and centre crop 224. MiSLAS's code has batch 256
at lr 0.1, 200 epochs and mixup 0.2. Stage 2: the LOS authors' recipe for this set, its
delta above all, is unknown here. Learning rates and epochs are those of CIFAR100-LT,
delta has the same K (1 - delta) / delta, 2.04, and a sweep tries a fixed grid of it:

    lt-jax run --config configs/inat2018.py --workdir runs/inat
    lt-jax sweep --config configs/inat2018.py --workdir runs/inat

Other people's overall accuracy with ResNet-50: weight decay only 65.4, weight balancing
70.2, MiSLAS 71.6. Not run here so far: no expected figures, no wall time of ours.
"""

import os
from typing import Any

from ml_collections import ConfigDict

DEFAULTS = {
    "net": "resnet50",
    "epochs": "90",
    "protocol": "clean",
    "features": "cached",
    "methods": "two",
}
CHOICES = {
    "net": ("resnet50", "resnet101", "resnet152", "resnet10"),
    "protocol": ("clean", "paper"),
    "features": ("cached", "online"),
    "methods": ("two", "all"),
}
NUM_CLASSES = 8142


def get_config(argument: str = "") -> ConfigDict:
    choice = parse(argument)
    config = ConfigDict()
    config.seed = 0  # first seed of everything random; the further ones count up

    config.data = ConfigDict()
    config.data.name = "i_naturalist2018"  # a key of lt_jax.data.PHOTOS
    config.data.dir = ""  # where TFDS data lies; "": TFDS_DATA_DIR or TFDS's default
    config.data.imbalance = 1.0  # the set is long-tailed by itself, nothing is cut
    config.data.split = "whole"  # all training images; "first", "cao": cut, see README
    # Share of each class held out for validation, at least one of two images.
    config.data.valid = 0.0 if choice["protocol"] == "paper" else 0.1
    config.data.valid_seed = 0  # which ones
    config.data.many = 100  # more training images than this: a many-shot class
    config.data.few = 20  # fewer than this: a few-shot class
    config.data.size = 224  # pixels of a side, of what the network sees
    config.data.resize = 256  # of the shorter side before an evaluation's centre crop
    config.data.scale = (0.08, 1.0)  # share of the area that a random crop takes
    config.data.ratio = (3 / 4, 4 / 3)  # its width over its height
    config.data.broken = 0.001  # share of undecodable images at which a run stops
    config.data.workers = os.cpu_count() or 1  # that decode; no result depends on them
    config.data.pad = 0  # pixels of black that random crops may reach into
    config.data.flip = True  # random mirror images
    # Strength of random brightness, contrast, saturation and hue; zeros: none.
    config.data.jitter = (0.0, 0.0, 0.0, 0.0)
    config.data.randaugment = (0, 9.0)  # operations an image, magnitude up to 30
    config.data.mean = (0.466, 0.471, 0.380)  # of the pixels, by channel, in 0..1
    config.data.std = (0.195, 0.194, 0.192)  # and their deviation

    config.model = ConfigDict()
    config.model.name = choice["net"]  # a key of lt_jax.models.ARCHS
    config.model.stem = "imagenet"  # "cifar": 3x3, no pooling; "imagenet": 7x7, pooling
    config.model.width = 64  # channels of the first stage
    config.model.init = "torch"  # initial values as in "torch" or "flax"
    config.model.zero_init = False  # residual branches start at zero
    # Of the computation; parameters, statistics, logits and losses are float32.
    config.model.dtype = "bfloat16"

    config.init = ConfigDict()
    # Where stage 1 starts from, and stage 2 if this workdir trained no stage 1: the
    # workdir of a finished stage 1 (its first seed for stage 1); "": from nothing.
    config.init.path = ""
    config.init.skip = ""  # regex of parameters not taken from it, as "head/.*"

    config.method = ConfigDict()  # stage 2
    # Entries of the table below; override: "('los',)".
    config.method.names = ("ce", "los")
    if choice["methods"] == "all":
        config.method.names = tuple(entries(NUM_CLASSES))
    config.method.repeats = 3  # seeds for each method and representation
    # "online": the backbone sees augmented images in every epoch, as the paper;
    # "cached": it sees each image once, un-augmented, and all heads are fitted at once.
    config.method.features = choice["features"]
    config.method.views = 1  # of an image; 1: un-augmented; V: epoch e sees e mod V
    config.method.feature_dtype = "bfloat16"  # of cached features; "float32": twice
    config.method.memory = 16.0  # GiB on the device for features and heads at once
    config.method.batch = 512  # images of a step, all devices together
    # Batch that lr belongs to; lr grows with the batch. 64 is the authors'.
    config.method.lr_batch = 64
    config.method.accumulate = 1  # micro-batches of a step, to save memory
    config.method.batch_norm = "frozen"  # or "drift", the authors' moving statistics
    config.method.momentum = 0.9  # of SGD, as in PyTorch
    config.method.nesterov = False  # look ahead along the momentum
    config.method.decay_on = ".*"  # regex of the parameters that decay
    config.method.schedule = "epoch"  # cosine moves per "epoch" or per "step"
    config.method.warmup = 0.0  # epochs

    for name, entry in entries(NUM_CLASSES).items():
        config.method[name] = ConfigDict(entry)

    config.optim = ConfigDict()  # stage 1
    config.optim.repeats = 1  # representations, one for each seed
    config.optim.epochs = int(choice["epochs"])  # passes over the training images
    config.optim.batch = 256
    config.optim.lr_batch = 256
    config.optim.lr = 0.1  # highest learning rate
    # Micro-batches: batch 256 does not fit a small GPU. Gradients are added up, so
    # only batch norm's statistics, each of a micro-batch, differ.
    config.optim.accumulate = 1
    config.optim.momentum = 0.9
    config.optim.nesterov = False
    config.optim.decay = 1e-4  # of the weights, coupled
    config.optim.decay_on = ".*"  # batch norm and biases too, as in PyTorch
    config.optim.schedule = "epoch"  # as Decoupling's code
    config.optim.warmup = 0.0  # raise it, to 5, with batches of thousands
    # Alpha of mixing images and targets by pairs; 0: none. MiSLAS: 0.2.
    config.optim.mixup = 0.0
    config.optim.sampler = "instance"  # "instance", "class" or "sqrt"
    # Leaves out the last batch of an epoch where it is smaller than the others.
    config.optim.drop_last = False
    # GiB of training images that each device may hold; larger sets are streamed.
    config.optim.resident = 1.0
    # Steps in one call, where the devices hold the images; 0: 1 on CPUs, else 16.
    config.optim.at_once = 0
    config.optim.trains = ".*"  # regex of the parameters that are trained
    config.optim.batch_norm = "train"

    config.eval = ConfigDict()
    config.eval.batch = 512  # images of an evaluation step
    config.eval.every = 5  # epochs between evaluations on validation
    config.eval.select = "last"  # checkpoint: "last", or best on "validation", "test"
    config.eval.flip = False  # average logits over the mirror image
    # What a sweep chooses by, on validation: "balanced", "all", "many", "medium",
    # "few", "worst", "top5" (highest mean over seeds) or "nll", "ece" (lowest).
    config.eval.choose = "balanced"
    # "valid" or "test": where every head of a sweep is measured for figures; nothing
    # is chosen by it.
    config.eval.curves = "valid"

    config.save = ConfigDict()
    config.save.every = 5  # epochs between checkpoints

    config.log = ConfigDict()
    config.log.seconds = 30.0  # between progress lines where there is no terminal
    # Folder for a profiler trace of five steps of each fit, see README; "": none.
    config.log.profile = ""
    return config


# Stage 2, an entry for each method, as in cifar100_lt.py. Learning rates are for
# `method.lr_batch` images, those of official code scaled to it in proportion. "Not
# published": nothing is, for re-training a head, and the number is a first choice, that
# of CIFAR100-LT. Keys of an entry, beside the method's own numbers, for which
# see lt_jax/methods.py too:
#
#   lr          highest learning rate
#   epochs      passes over the training images; 0: trains nothing
#   decay       of the weights, coupled
#   start       of the head: "stage1" or "fresh"
#   sampler     "instance", "class" or "sqrt"
#   delta       smoothed mass, over all classes
#   power       weights go with counts ** -power
#   beta        of the effective number of samples
#   gamma       focal: power of 1 - p; vs: power of the counts that scale logits
#   tau         of log prior; tau_norm: of the class norm
#   alpha       weight of LADE's regulariser
#   square      LADE's lambda, of the squared terms in it
#   scale       of the cosines
#   max_margin  of the rarest class, in cosines
#   defer       share of the epochs before classes are weighted
#   head        smoothing of the largest class
#   tail        smoothing of the smallest class
#   quantile    place of the radius between the least and largest class norm
#   every       the projection acts after every "step" or "epoch"
#   kind        of nearest mean: "raw", "l2" or "cl2", see lt_jax/heads.py
#   grid        of a sweep: every combination of these values over the others, and the
#               entry's own; lr is in the grid of all that train, at spreads of ours
LR = (5e-4, 5e-3, 5e-2, 0.5)
HALF_DECADES = (5e-4, 1.6e-3, 5e-3, 1.6e-2, 5e-2, 0.16, 0.5)

# Over-smoothing goes by C = K (1 - delta) / delta, the odds of the true class times K:
# one delta is another amount of smoothing at another K. 2.04 is the authors' 0.98 at
# K = 100. The grid is that of cifar100_lt.py, delta 0.1 to 0.999 there.
SAME = 2.04
GRID = (900.0, 233.0, 100.0, 25.0, 11.1, 5.26, 2.04, 1.01, 0.1)


def delta_of(c: float, num_classes: int) -> float:
    """The delta of ``K (1 - delta) / delta = c``."""
    return round(num_classes / (num_classes + c), 7)


def entries(num_classes: int) -> dict[str, dict[str, Any]]:
    def deltas(*amounts: float) -> tuple[float, ...]:
        return tuple(delta_of(c, num_classes) for c in amounts)

    delta = delta_of(SAME, num_classes)

    def usual(**own: Any) -> dict[str, Any]:
        """The plain continuation of stage 1, which most methods share."""
        shared = {"epochs": 20, "decay": 0.0, "start": "stage1", "sampler": "instance"}
        return shared | own

    def untrained(**own: Any) -> dict[str, Any]:
        return {"lr": 0.0, "epochs": 0, "decay": 0.0} | own

    def grid(**values: tuple[Any, ...]) -> dict[str, Any]:
        return {"grid": values}

    starts = ("stage1", "fresh")
    return {
        # the authors' recipe of LOS, at delta 0; the baseline gets the finest grid
        "ce": usual(lr=5e-4) | grid(lr=HALF_DECADES, start=starts),
        # the authors' recipe of CIFAR100-LT; theirs for this set, delta included, is
        # unknown here, so a sweep tries the whole curve (its 0 is `ce`); fresh heads
        # and other samplers have their own entries
        "los": usual(lr=5e-4, delta=delta)
        | grid(
            lr=(5e-4, 1.6e-3, 5e-3, 5e-2, 0.5),
            delta=deltas(*GRID),
        ),
        # not published; 0.1 is everyone's
        "label_smoothing": usual(lr=5e-4, delta=0.1)
        | grid(lr=LR, delta=(0.05, 0.1, 0.2, 0.4)),
        # not published; 1.0: inverse frequency, 0.5: its square root
        "reweight": usual(lr=5e-4, power=1.0) | grid(lr=LR, power=(0.5, 1.0, 1.5)),
        # not published; beta 0.9999 as for CIFAR-LT in the official code
        "class_balanced": usual(lr=5e-4, beta=0.9999)
        | grid(lr=LR, beta=(0.9, 0.99, 0.999, 0.9999)),
        # not published; gamma 2: the paper's, 1: LDAM-DRW's and class-balanced's code
        "focal": usual(lr=5e-4, gamma=2.0) | grid(lr=LR, gamma=(0.5, 1.0, 2.0)),
        # not published
        "balanced_softmax": usual(lr=0.05) | grid(lr=LR, start=starts),
        # not published; tau 1: the theory's and the official code's
        "logit_adjust": usual(lr=0.05, tau=1.0) | grid(lr=LR, tau=(0.5, 1.0, 1.5, 2.0)),
        # not published; gamma, tau: example of the code
        "vs": usual(lr=0.05, gamma=0.2, tau=1.2)
        | grid(lr=(5e-3, 5e-2, 0.5), gamma=(0.05, 0.1, 0.2), tau=(0.5, 0.8, 1.2)),
        # lr not published; 0.05, 0.5: iNaturalist, 0.1, 0.1: ImageNet-LT
        "lade": usual(lr=0.05, alpha=0.05, square=0.5)
        | grid(lr=LR, alpha=(0.05, 0.1), square=(0.1, 0.5)),
        # not published
        "cosine": usual(lr=0.05, scale=30.0) | grid(lr=LR, scale=(10.0, 20.0, 30.0)),
        # not published; the rest as for CIFAR100-LT; defer 1: plain LDAM
        "ldam": usual(lr=0.05, max_margin=0.5, scale=30.0, beta=0.9999, defer=0.8)
        | grid(lr=LR, max_margin=(0.1, 0.3, 0.5), defer=(0.8, 1.0)),
        # Decoupling's code for this set: lr 0.2 at batch 512, 30 epochs; no grid
        "crt": {"lr": 0.025, "epochs": 30, "decay": 1e-4} | grid(lr=HALF_DECADES),
        # Decoupling's code for this set: lr 0.2 at batch 512, 5 epochs; no grid
        "lws": {"lr": 0.025, "epochs": 5, "decay": 1e-4} | grid(lr=HALF_DECADES),
        # ImageNet-LT: lr 0.1 at batch 256, 10 epochs, decay 5e-4, power 1.2
        "disalign": {"lr": 0.025, "epochs": 10, "decay": 5e-4}
        | {"power": 1.2, "sampler": "instance"}
        | grid(lr=LR, power=(0.5, 1.0, 1.2, 1.5)),
        # not known; as DisAlign; power 0: without weights
        "marc": {"lr": 0.025, "epochs": 10, "decay": 5e-4}
        | {"power": 1.2, "sampler": "instance"}
        | grid(lr=LR, power=(0.0, 0.5, 1.0, 1.2)),
        # MiSLAS's code for this set, batch 256: lr 0.1 for the scale, 0.05 of it for
        # the rest of the head, which shares one rate here
        "label_aware_smoothing": {"lr": 0.025, "epochs": 10, "decay": 1e-4}
        | {"head": 0.3, "tail": 0.0, "sampler": "class"}
        | grid(lr=LR, head=(0.2, 0.3, 0.4), tail=(0.0, 0.1)),
        # CIFAR100-LT at batch 64, where they belong to a loss about K times smaller:
        # the same steps are near lr 1e-4 and decay 10 at K = 100, so far goes the grid
        "weight_balancing": {"lr": 0.01, "epochs": 10, "decay": 0.1, "beta": 0.9999}
        | {"quantile": 0.1, "every": "epoch", "sampler": "instance"}
        | grid(
            lr=(1e-4, 5e-4, 5e-3, 5e-2),
            decay=(1e-3, 1e-2, 0.1, 1.0, 10.0),
            every=("step", "epoch"),
        ),
        # tau 1: unit vectors; the grid is Decoupling's code's
        "tau_norm": untrained(tau=1.0)
        | grid(tau=tuple(step / 10 for step in range(21))),
        # all kinds of Decoupling
        "ncm": untrained(kind="cl2") | grid(kind=("raw", "l2", "cl2")),
        # tau 1: the theory's; no grid published
        "logit_adjust_posthoc": untrained(tau=1.0)
        | grid(tau=tuple(step / 5 for step in range(16))),
        # not published; LOS from a fresh head
        "los_fresh": usual(lr=5e-2, delta=delta, start="fresh")
        | grid(lr=LR, delta=deltas(100.0, 11.1, 2.04, 1.01)),
        # not published; LOS under balancing samplers
        "los_resampled": usual(lr=5e-4, delta=delta, sampler="class")
        | grid(lr=LR, delta=deltas(100.0, 11.1, 2.04), sampler=("class", "sqrt")),
        # not published
        "los_balanced_softmax": usual(lr=5e-4, delta=delta)
        | grid(lr=LR, delta=deltas(900.0, 100.0, 11.1, 2.04)),
        # not published; quantile and every: weight balancing's
        "los_max_norm": {"lr": 5e-4, "epochs": 20, "decay": 0.0, "delta": delta}
        | {"quantile": 0.1, "every": "epoch", "sampler": "instance"}
        | grid(lr=LR, delta=deltas(100.0, 11.1, 2.04), quantile=(0.1, 0.5)),
        # not published
        "los_tau_norm": usual(lr=5e-4, delta=delta, tau=1.0)
        | grid(
            lr=(5e-4, 5e-3, 5e-2),
            delta=deltas(100.0, 11.1, 2.04),
            tau=(0.5, 1.0, 1.5),
        ),
    }


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
