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
    config.method.views = 1
    config.method.feature_dtype = "float32"
    config.method.memory = 1.0
    config.method.batch = 32  # images of a step, all devices together
    config.method.batch_norm = "frozen"  # or "drift", the authors' moving statistics
    config.method.momentum = 0.9  # of SGD, as in PyTorch
    config.method.nesterov = False  # look ahead along the momentum
    config.method.decay_on = ".*"  # regex of the parameters that decay
    config.method.schedule = "epoch"  # cosine moves per "epoch" or per "step"
    config.method.warmup = 0.0  # epochs

    config.method.ce = ConfigDict()
    config.method.ce.lr = 5e-4  # highest learning rate
    config.method.ce.epochs = 20  # passes over the training images; 0: trains nothing
    config.method.ce.decay = 0.0  # of the weights, coupled
    config.method.ce.grid = ConfigDict()
    config.method.ce.grid.lr = (5e-4, 5e-3, 5e-2)
    config.method.ce.start = "stage1"  # or "fresh"
    config.method.ce.sampler = "instance"  # or "class", "sqrt"

    config.method.los = ConfigDict()
    config.method.los.lr = 5e-4
    config.method.los.epochs = 20
    config.method.los.decay = 0.0
    # The paper's amount of smoothing, not its number: K (1 - delta) / delta is 2.04 for
    # its delta 0.98 at K = 100, and so is it for 0.83 at K = 10.
    config.method.los.grid = ConfigDict()
    config.method.los.grid.lr = (5e-4, 5e-3, 5e-2)
    config.method.los.grid.delta = (0.0, 0.5, 0.9, 0.98)
    config.method.los.delta = 0.83
    config.method.los.start = "stage1"
    config.method.los.sampler = "instance"

    # Stage 2 of the other methods, with what their official code publishes; learning
    # rates are scaled to this batch in proportion. Where nothing is published for
    # re-training a head ("not published"), the numbers are a first choice, to be tuned.

    # not published for re-training
    config.method.label_smoothing = ConfigDict()
    config.method.label_smoothing.lr = 5e-4
    config.method.label_smoothing.epochs = 20
    config.method.label_smoothing.decay = 0.0
    config.method.label_smoothing.delta = 0.1  # mass spread over all classes
    config.method.label_smoothing.start = "stage1"
    config.method.label_smoothing.sampler = "instance"

    # not published for re-training
    config.method.reweight = ConfigDict()
    config.method.reweight.lr = 5e-4
    config.method.reweight.epochs = 20
    config.method.reweight.decay = 0.0
    config.method.reweight.power = 1.0  # weights go with counts ** -power
    config.method.reweight.start = "stage1"
    config.method.reweight.sampler = "instance"

    # not published for re-training
    config.method.class_balanced = ConfigDict()
    config.method.class_balanced.lr = 5e-4
    config.method.class_balanced.epochs = 20
    config.method.class_balanced.decay = 0.0
    config.method.class_balanced.beta = 0.9999  # of the effective number of samples
    config.method.class_balanced.start = "stage1"
    config.method.class_balanced.sampler = "instance"

    # not published for re-training
    config.method.focal = ConfigDict()
    config.method.focal.lr = 5e-4
    config.method.focal.epochs = 20
    config.method.focal.decay = 0.0
    config.method.focal.gamma = 2.0  # power of 1 - p; of the counts in the VS loss
    config.method.focal.start = "stage1"
    config.method.focal.sampler = "instance"

    # not published for re-training
    config.method.balanced_softmax = ConfigDict()
    config.method.balanced_softmax.lr = 0.05
    config.method.balanced_softmax.epochs = 20
    config.method.balanced_softmax.decay = 0.0
    config.method.balanced_softmax.start = "stage1"
    config.method.balanced_softmax.sampler = "instance"

    # not published for re-training
    config.method.logit_adjust = ConfigDict()
    config.method.logit_adjust.lr = 0.05
    config.method.logit_adjust.epochs = 20
    config.method.logit_adjust.decay = 0.0
    config.method.logit_adjust.tau = 1.0  # of log prior; of the class norm
    config.method.logit_adjust.start = "stage1"
    config.method.logit_adjust.sampler = "instance"

    # not published for re-training; gamma, tau: example of the code
    config.method.vs = ConfigDict()
    config.method.vs.lr = 0.05
    config.method.vs.epochs = 20
    config.method.vs.decay = 0.0
    config.method.vs.gamma = 0.2
    config.method.vs.tau = 1.2
    config.method.vs.start = "stage1"
    config.method.vs.sampler = "instance"

    # not published for re-training; alpha, square: CIFAR100-LT
    config.method.lade = ConfigDict()
    config.method.lade.lr = 0.05
    config.method.lade.epochs = 20
    config.method.lade.decay = 0.0
    config.method.lade.alpha = 0.1  # weight of the regulariser
    config.method.lade.square = 0.1  # lambda, of the squared terms in it
    config.method.lade.start = "stage1"
    config.method.lade.sampler = "instance"

    # not published for re-training
    config.method.cosine = ConfigDict()
    config.method.cosine.lr = 0.05
    config.method.cosine.epochs = 20
    config.method.cosine.decay = 0.0
    config.method.cosine.scale = 30.0  # of the cosines
    config.method.cosine.start = "stage1"
    config.method.cosine.sampler = "instance"

    # not published for re-training; the rest: CIFAR100-LT
    config.method.ldam = ConfigDict()
    config.method.ldam.lr = 0.05
    config.method.ldam.epochs = 20
    config.method.ldam.decay = 0.0
    config.method.ldam.max_margin = 0.5  # of the rarest class
    config.method.ldam.scale = 30.0
    config.method.ldam.beta = 0.9999
    config.method.ldam.defer = 0.8  # share of epochs before classes are weighted
    config.method.ldam.start = "stage1"
    config.method.ldam.sampler = "instance"

    # ImageNet-LT: lr 0.2 at batch 512, 10 epochs, decay 5e-4
    config.method.crt = ConfigDict()
    config.method.crt.lr = 0.0125
    config.method.crt.epochs = 10
    config.method.crt.decay = 5e-4

    # ImageNet-LT: lr 0.2 at batch 512, 5 epochs, decay 5e-4
    config.method.lws = ConfigDict()
    config.method.lws.lr = 0.0125
    config.method.lws.epochs = 5
    config.method.lws.decay = 5e-4

    # ImageNet-LT: lr 0.1 at batch 256, 10 epochs, decay 5e-4, power 1.2
    config.method.disalign = ConfigDict()
    config.method.disalign.lr = 0.0125
    config.method.disalign.epochs = 10
    config.method.disalign.decay = 5e-4
    config.method.disalign.power = 1.2
    config.method.disalign.sampler = "instance"

    # not known; as DisAlign
    config.method.marc = ConfigDict()
    config.method.marc.lr = 0.0125
    config.method.marc.epochs = 10
    config.method.marc.decay = 5e-4
    config.method.marc.power = 1.2
    config.method.marc.sampler = "instance"

    # CIFAR100-LT at batch 128: lr 0.02 (0.1 for the scale)
    config.method.label_aware_smoothing = ConfigDict()
    config.method.label_aware_smoothing.lr = 0.005
    config.method.label_aware_smoothing.epochs = 10
    config.method.label_aware_smoothing.decay = 2e-4
    config.method.label_aware_smoothing.head = 0.4  # smoothing of the largest class
    config.method.label_aware_smoothing.tail = 0.1  # and of the smallest
    config.method.label_aware_smoothing.sampler = "class"

    # CIFAR100-LT at batch 64; belongs to a loss K times smaller
    config.method.weight_balancing = ConfigDict()
    config.method.weight_balancing.lr = 0.005
    config.method.weight_balancing.epochs = 10
    config.method.weight_balancing.decay = 0.1
    config.method.weight_balancing.beta = 0.9999
    config.method.weight_balancing.quantile = 0.1  # radius within the class norms
    config.method.weight_balancing.sampler = "instance"

    # tau: weight balancing's, for CIFAR100-LT at IR 100
    config.method.tau_norm = ConfigDict()
    config.method.tau_norm.lr = 0.0
    config.method.tau_norm.epochs = 0
    config.method.tau_norm.decay = 0.0
    config.method.tau_norm.tau = 1.9

    # trains nothing
    config.method.ncm = ConfigDict()
    config.method.ncm.lr = 0.0
    config.method.ncm.epochs = 0
    config.method.ncm.decay = 0.0
    config.method.ncm.kind = "cl2"  # or "raw", "l2": see lt_jax/heads.py

    # tau: the theory's
    config.method.logit_adjust_posthoc = ConfigDict()
    config.method.logit_adjust_posthoc.lr = 0.0
    config.method.logit_adjust_posthoc.epochs = 0
    config.method.logit_adjust_posthoc.decay = 0.0
    config.method.logit_adjust_posthoc.tau = 1.0

    # not published for re-training
    config.method.los_balanced_softmax = ConfigDict()
    config.method.los_balanced_softmax.lr = 5e-4
    config.method.los_balanced_softmax.epochs = 20
    config.method.los_balanced_softmax.decay = 0.0
    config.method.los_balanced_softmax.delta = 0.83
    config.method.los_balanced_softmax.start = "stage1"
    config.method.los_balanced_softmax.sampler = "instance"

    # not published for re-training
    config.method.los_max_norm = ConfigDict()
    config.method.los_max_norm.lr = 5e-4
    config.method.los_max_norm.epochs = 20
    config.method.los_max_norm.decay = 0.0
    config.method.los_max_norm.delta = 0.83
    config.method.los_max_norm.quantile = 0.1
    config.method.los_max_norm.sampler = "instance"

    # not published for re-training
    config.method.los_tau_norm = ConfigDict()
    config.method.los_tau_norm.lr = 5e-4
    config.method.los_tau_norm.epochs = 20
    config.method.los_tau_norm.decay = 0.0
    config.method.los_tau_norm.delta = 0.83
    config.method.los_tau_norm.tau = 1.0
    config.method.los_tau_norm.start = "stage1"
    config.method.los_tau_norm.sampler = "instance"

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

    config.eval.choose = "balanced"
    config.eval.curves = "valid"

    config.save = ConfigDict()
    config.save.every = 20  # epochs between checkpoints

    config.log = ConfigDict()
    config.log.seconds = 30.0  # between progress lines where there is no terminal
    return config
