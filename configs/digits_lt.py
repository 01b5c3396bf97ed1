"""The embedded default: handwritten digits, made long-tailed. No download, no GPU.

scikit-learn's 1,797 digits (8x8, extra `demo`), 60 images a class as the test set, the
rest cut to a long tail by the formula of CIFAR-LT. Both stages, five seeds. The set is
far too easy and too small to rank methods on; it shows the whole way of the data.

    lt-jax run --config configs/digits_lt.py --workdir runs/digits
"""

from typing import Any

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0  # first seed of everything random; the further ones count up

    config.data = ConfigDict()
    config.data.name = "digits"  # a key of lt_jax.data.SOURCES
    config.data.dir = ""  # where the data set lies; "": where its source looks
    config.data.imbalance = 20.0  # largest class over smallest class
    config.data.split = "first"  # which images of a class: "first" or "cao"
    config.data.valid = 0.2  # share of each training class held out; 0: none
    config.data.valid_seed = 0  # which ones
    config.data.many = 50  # more training images than this: a many-shot class
    config.data.few = 15  # fewer than this: a few-shot class
    config.data.pad = 1  # pixels of black that random crops may reach into
    config.data.flip = False  # random mirror images; a digit has none
    # Strength of random brightness, contrast, saturation and hue; zeros: none.
    config.data.jitter = (0.0, 0.0, 0.0, 0.0)
    config.data.randaugment = (0, 9.0)  # operations an image, magnitude up to 30
    config.data.mean = (0.305,)  # of the pixels, by channel, in 0..1
    config.data.std = (0.376,)  # and their deviation

    config.model = ConfigDict()
    config.model.name = "resnet8"  # a key of lt_jax.models.ARCHS
    config.model.stem = "cifar"  # "cifar": 3x3, no pooling; "imagenet": 7x7, pooling
    config.model.width = 16  # channels of the first stage
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
    config.method.repeats = 1  # seeds for each method and representation
    # "online": the backbone sees augmented images in every epoch, as the paper;
    # "cached": it sees each image once, un-augmented, and all heads are fitted at once.
    config.method.features = "online"
    config.method.views = 1  # of an image; 1: un-augmented; V: epoch e sees e mod V
    config.method.feature_dtype = "float32"  # of cached features; "bfloat16": half
    config.method.memory = 1.0  # GiB on the device for features and heads at once
    config.method.batch = 32  # images of a step, all devices together
    config.method.lr_batch = 32  # batch that lr belongs to; lr grows with the batch
    config.method.accumulate = 1  # micro-batches of a step, to save memory
    config.method.batch_norm = "frozen"  # or "drift", the authors' moving statistics
    config.method.momentum = 0.9  # of SGD, as in PyTorch
    config.method.nesterov = False  # look ahead along the momentum
    config.method.decay_on = ".*"  # regex of the parameters that decay
    config.method.schedule = "epoch"  # cosine moves per "epoch" or per "step"
    config.method.warmup = 0.0  # epochs

    for name, entry in entries().items():
        config.method[name] = ConfigDict(entry)

    config.optim = ConfigDict()  # stage 1
    config.optim.repeats = 5  # representations, one for each seed
    config.optim.epochs = 60  # passes over the training images
    config.optim.batch = 32
    config.optim.lr_batch = 32
    config.optim.accumulate = 1
    config.optim.lr = 0.05  # highest learning rate
    config.optim.momentum = 0.9
    config.optim.nesterov = False
    config.optim.decay = 5e-3  # of the weights, coupled
    config.optim.decay_on = ".*"
    config.optim.schedule = "epoch"
    config.optim.warmup = 0.0
    config.optim.mixup = 0.0  # alpha of mixing images and targets by pairs; 0: none
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
    config.eval.batch = 200  # images of an evaluation step
    config.eval.every = 10  # epochs between evaluations on validation
    config.eval.select = "last"  # checkpoint: "last", or best on "validation", "test"
    config.eval.flip = False  # average logits over the mirror image
    # What a sweep chooses by, on validation: "balanced", "all", "many", "medium",
    # "few", "worst", "top5" (highest mean over seeds) or "nll", "ece" (lowest).
    config.eval.choose = "balanced"
    # "valid" or "test": where every head of a sweep is measured for figures; nothing
    # is chosen by it.
    config.eval.curves = "valid"

    config.save = ConfigDict()
    config.save.every = 20  # epochs between checkpoints

    config.log = ConfigDict()
    config.log.seconds = 30.0  # between progress lines where there is no terminal
    # Folder for a profiler trace of five steps of each fit, see README; "": none.
    config.log.profile = ""
    return config


# Stage 2, an entry for each method. Learning rates of official code are scaled to this
# batch in proportion. "Not published": nothing is, for re-training a head, and the
# number is a first choice. Keys of an entry, beside the method's own numbers, for which
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


def entries() -> dict[str, dict[str, Any]]:
    def usual(**own: Any) -> dict[str, Any]:
        """The plain continuation of stage 1, which most methods share."""
        shared = {"epochs": 20, "decay": 0.0, "start": "stage1", "sampler": "instance"}
        return shared | own

    def untrained(**own: Any) -> dict[str, Any]:
        return {"lr": 0.0, "epochs": 0, "decay": 0.0} | own

    def grid(**values: tuple[Any, ...]) -> dict[str, Any]:
        return {"grid": values}

    # The paper's amount of smoothing, not its number: K (1 - delta) / delta is 2.04 for
    # its delta 0.98 at K = 100, and so is it for 0.83 at K = 10.
    delta = 0.83
    starts = ("stage1", "fresh")
    return {
        # the authors' recipe of LOS, at delta 0; the baseline gets the finest grid
        "ce": usual(lr=5e-4) | grid(lr=HALF_DECADES, start=starts),
        # the authors' recipe; their grid is not published, delta here is the whole
        # curve (its 0 is `ce`); fresh heads and other samplers have their own entries
        "los": usual(lr=5e-4, delta=delta)
        | grid(
            lr=(5e-4, 1.6e-3, 5e-3, 5e-2, 0.5),
            delta=(0.1, 0.3, 0.5, 0.83, 0.9, 0.95, 0.98, 0.99, 0.999),
        ),
        # not published; 0.1 is everyone's
        "label_smoothing": usual(lr=5e-4, delta=0.1)
        | grid(lr=LR, delta=(0.05, 0.1, 0.2, 0.4)),
        # not published; 1.0: inverse frequency, 0.5: its square root
        "reweight": usual(lr=5e-4, power=1.0) | grid(lr=LR, power=(0.5, 1.0, 1.5)),
        # not published; beta 0.9999: CIFAR-LT in the official code
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
        # not published; 0.1, 0.1: CIFAR100-LT, 0.05, 0.5: iNaturalist
        "lade": usual(lr=0.05, alpha=0.1, square=0.1)
        | grid(lr=LR, alpha=(0.05, 0.1), square=(0.1, 0.5)),
        # not published
        "cosine": usual(lr=0.05, scale=30.0) | grid(lr=LR, scale=(10.0, 20.0, 30.0)),
        # not published; the rest: CIFAR100-LT, of whole networks; defer 1: plain LDAM
        "ldam": usual(lr=0.05, max_margin=0.5, scale=30.0, beta=0.9999, defer=0.8)
        | grid(lr=LR, max_margin=(0.1, 0.3, 0.5), defer=(0.8, 1.0)),
        # ImageNet-LT: lr 0.2 at batch 512, 10 epochs, decay 5e-4; no grid published
        "crt": {"lr": 0.0125, "epochs": 10, "decay": 5e-4} | grid(lr=HALF_DECADES),
        # ImageNet-LT: lr 0.2 at batch 512, 5 epochs, decay 5e-4; no grid published
        "lws": {"lr": 0.0125, "epochs": 5, "decay": 5e-4} | grid(lr=HALF_DECADES),
        # ImageNet-LT: lr 0.1 at batch 256, 10 epochs, decay 5e-4, power 1.2
        "disalign": {"lr": 0.0125, "epochs": 10, "decay": 5e-4}
        | {"power": 1.2, "sampler": "instance"}
        | grid(lr=LR, power=(0.5, 1.0, 1.2, 1.5)),
        # not known; as DisAlign; power 0: without weights
        "marc": {"lr": 0.0125, "epochs": 10, "decay": 5e-4}
        | {"power": 1.2, "sampler": "instance"}
        | grid(lr=LR, power=(0.0, 0.5, 1.0, 1.2)),
        # CIFAR100-LT at batch 128: lr 0.02 (0.1 for the scale); head and tail 0.4 and
        # 0.1 at IR 100, 0.2 and 0 at IR 10
        "label_aware_smoothing": {"lr": 0.005, "epochs": 10, "decay": 2e-4}
        | {"head": 0.4, "tail": 0.1, "sampler": "class"}
        | grid(lr=LR, head=(0.2, 0.3, 0.4), tail=(0.0, 0.1)),
        # CIFAR100-LT at batch 64, where they belong to a loss about K times smaller:
        # the same steps take a decay K times larger here, so decay goes up to 10
        "weight_balancing": {"lr": 0.005, "epochs": 10, "decay": 0.1, "beta": 0.9999}
        | {"quantile": 0.1, "every": "epoch", "sampler": "instance"}
        | grid(
            lr=(1e-4, 5e-4, 5e-3, 5e-2),
            decay=(1e-3, 1e-2, 0.1, 1.0, 10.0),
            every=("step", "epoch"),
        ),
        # tau 1: unit vectors. 1.9 was tuned for CIFAR100-LT by weight balancing,
        # whose code keeps the bias, which is dropped here. The grid is
        # Decoupling's code's.
        "tau_norm": untrained(tau=1.0)
        | grid(tau=tuple(step / 10 for step in range(21))),
        # all kinds of Decoupling
        "ncm": untrained(kind="cl2") | grid(kind=("raw", "l2", "cl2")),
        # tau 1: the theory's; no grid published
        "logit_adjust_posthoc": untrained(tau=1.0)
        | grid(tau=tuple(step / 5 for step in range(16))),
        # not published; LOS from a fresh head
        "los_fresh": usual(lr=5e-2, delta=delta, start="fresh")
        | grid(lr=LR, delta=(0.5, 0.83, 0.9, 0.98)),
        # not published; LOS under balancing samplers
        "los_resampled": usual(lr=5e-4, delta=delta, sampler="class")
        | grid(lr=LR, delta=(0.5, 0.83, 0.98), sampler=("class", "sqrt")),
        # not published
        "los_balanced_softmax": usual(lr=5e-4, delta=delta)
        | grid(lr=LR, delta=(0.1, 0.5, 0.83, 0.98)),
        # not published; quantile and every: weight balancing's
        "los_max_norm": {"lr": 5e-4, "epochs": 20, "decay": 0.0, "delta": delta}
        | {"quantile": 0.1, "every": "epoch", "sampler": "instance"}
        | grid(lr=LR, delta=(0.5, 0.83, 0.98), quantile=(0.1, 0.5)),
        # not published
        "los_tau_norm": usual(lr=5e-4, delta=delta, tau=1.0)
        | grid(lr=(5e-4, 5e-3, 5e-2), delta=(0.5, 0.83, 0.98), tau=(0.5, 1.0, 1.5)),
    }
