"""The embedded default: handwritten digits, made long-tailed. No download, no GPU.

scikit-learn's 1,797 digits (8x8, extra `demo`), 60 images a class as the test set, the
rest cut to a long tail by the formula of CIFAR-LT. Both stages, five seeds. The set is
far too easy and too small to rank methods on; it shows the whole way of the data.

    lt-jax run --config configs/digits_lt.py --workdir runs/digits
"""

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
    config.method.batch = 32  # images of a step, all devices together
    config.method.batch_norm = "frozen"  # or "drift", the authors' moving statistics
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
    # The paper's amount of smoothing, not its number: K (1 - delta) / delta is 2.04 for
    # its delta 0.98 at K = 100, and so is it for 0.83 at K = 10.
    config.method.los.delta = 0.83
    config.method.los.start = "stage1"
    config.method.los.sampler = "instance"

    config.optim = ConfigDict()  # stage 1
    config.optim.repeats = 5  # representations, one for each seed
    config.optim.epochs = 60
    config.optim.batch = 32
    config.optim.lr = 0.05
    config.optim.momentum = 0.9
    config.optim.nesterov = False
    config.optim.decay = 5e-3
    config.optim.decay_on = ".*"
    config.optim.schedule = "epoch"
    config.optim.warmup = 0.0
    config.optim.sampler = "instance"
    config.optim.trains = ".*"  # regex of the parameters that are trained
    config.optim.batch_norm = "train"

    config.eval = ConfigDict()
    config.eval.batch = 200  # images of an evaluation step
    config.eval.every = 10  # epochs between evaluations on validation
    config.eval.select = "last"  # checkpoint: "last", or best on "validation", "test"
    config.eval.flip = False  # average logits over the mirror image

    config.save = ConfigDict()
    config.save.every = 20  # epochs between checkpoints

    config.log = ConfigDict()
    config.log.seconds = 30.0  # between progress lines where there is no terminal
    return config
