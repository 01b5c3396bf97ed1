"""Parity with PyTorch: same weights, same batches, same results.

The references are plain ``torch.nn`` modules (``torch_networks``) and short torch
versions of every method. Needs the extra ``parity``; run with ``pytest -m parity``.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from float64 import enable_x64

from lt_jax import api, heads, losses, methods, metrics, models, samplers, trees
from lt_jax.data.augment import transforms as augmentation
from lt_jax.data.augment.transforms import Augment
from lt_jax.distributed import sharding
from lt_jax.experiment import stored
from lt_jax.heads import linear
from lt_jax.pretrained import torch_names
from lt_jax.training import inference, optim, steps

pytestmark = pytest.mark.parity

PLAIN = Augment(pad=0, flip=False, mean=(), std=())  # float32 images as they are


@pytest.fixture(scope="module")
def nets():
    """Import torch_networks here, so that collection does not need torch."""
    pytest.importorskip("torch", reason="pip install 'lt_jax[parity]'")
    import torch
    import torch_networks

    torch.set_num_threads(2)
    return torch_networks


def taken(theirs, nets, backbone, num_classes, dtype=np.float32):
    """Convert a torch network to our params and batch_stats."""
    like = stored.blank(backbone, linear, (32, 32, 3), num_classes)
    found = torch_names.from_torch(nets.state(theirs), trees.leaves(like._asdict()))
    values = {name: jnp.asarray(leaf, dtype) for name, leaf in found.leaves.items()}
    return trees.rebuild(like, values)


def cifar(name, dtype="float32"):
    """Make a narrow network."""
    return models.create(name, "cifar", 8, dtype=dtype, axis_name=sharding.AXIS)


def close(ours, theirs, tolerance):
    """Compare up to a fraction of the largest value, as float32 allows."""
    theirs = np.asarray(theirs)
    limit = tolerance * max(1.0, float(np.abs(theirs).max()))
    np.testing.assert_allclose(np.asarray(ours), theirs, rtol=0, atol=limit)


# --- networks -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "width", "stem", "size", "total"),
    [
        ("resnet34", 64, "cifar", 32, 21_328_292),
        ("resnet32", 16, "cifar", 32, 469_904 + 100),
        ("resnet50", 64, "imagenet", 64, 25_557_032 - 900 * 2049),
        ("resnext50_32x4d", 64, "imagenet", 64, 25_028_904 - 900 * 2049),
    ],
)
@pytest.mark.slow
def test_networks(nets, name, width, stem, size, total):
    """Features and logits agree in eval and train mode, and running statistics too."""
    torch = nets.torch
    theirs = nets.network(name, width, 100, stem=stem)
    assert sum(p.numel() for p in theirs.parameters()) == total
    backbone = models.create(name, stem, width)
    params, stats = taken(theirs, nets, backbone, 100)
    assert sum(p.size for p in jax.tree.leaves(params)) == total
    exact = nets.network(name, width, 100, stem=stem).double()
    rng = np.random.default_rng(0)
    mask = np.ones(8, np.float32)

    @jax.jit
    def fixed(stats, x):
        variables = {"params": params["backbone"], "batch_stats": stats}
        return backbone.apply(variables, x, mask, False)

    @jax.jit
    def moving(stats, x):
        variables = {"params": params["backbone"], "batch_stats": stats}
        features, new = backbone.apply(
            variables, x, mask, True, mutable=["batch_stats"]
        )
        return features, new["batch_stats"]

    def compare(features, x):
        """Compare up to 1e-5, or torch's own distance to float64 in train mode."""
        x = torch.from_numpy(x.transpose(0, 3, 1, 2))
        with torch.no_grad():  # once each: in train mode the statistics move
            expected, right = theirs.features(x), exact.features(x.double())
            pairs = (
                (features, expected, right),
                (
                    heads.linear.apply(params["head"], features),
                    theirs.fc(expected),
                    exact.fc(right),
                ),
            )
        for ours, single, double in pairs:
            top = max(1.0, float(double.abs().max()))
            own = float((single - double).abs().max()) / top
            close(ours, double, max(1e-5, 2 * own) if theirs.training else 1e-5)

    def images():
        return rng.normal(size=(8, size, size, 3)).astype(np.float32)

    x = images()
    theirs.eval()
    exact.eval()
    compare(fixed(stats, x), x)
    theirs.train()
    exact.train()
    for _ in range(3):
        x = images()
        features, stats = moving(stats, x)
        compare(features, x)
    _, expected = taken(theirs, nets, backbone, 100)
    for leaf, value in trees.leaves(expected).items():
        close(trees.leaves(stats)[leaf], value, 1e-4)


@pytest.mark.parametrize(("name", "width"), [("resnet10", 16), ("resnet8", 32)])
def test_initial_values(nets, name, width):
    """Every leaf has the bounds and the deviation of torch's defaults."""
    torch = nets.torch
    torch.manual_seed(1)
    backbone = models.create(name, "cifar", width)
    theirs = nets.Network(name, width, 100)  # not `network`, which moves the norms
    expected = trees.leaves(taken(theirs, nets, backbone, 100)._asdict())
    key = jax.random.key(0)
    params, stats = models.init(backbone, key, (8, 8, 3))
    head = linear.init(key, None, backbone.num_features, 100, "torch")
    found = trees.leaves(
        {"params": {"backbone": params, "head": head}, "batch_stats": stats}
    )
    assert found.keys() == expected.keys()
    for leaf, value in expected.items():
        ours, theirs = np.asarray(found[leaf]), np.asarray(value)
        if theirs.std() == 0:  # a norm layer: all 0 or all 1
            np.testing.assert_array_equal(ours, theirs, err_msg=leaf)
            continue
        fan_in = np.prod(ours.shape[:-1]) if ours.ndim > 1 else len(head["kernel"])
        bound = fan_in**-0.5
        for one in (ours, theirs):
            assert np.abs(one).max() <= bound * (1 + 1e-6), leaf
            assert np.abs(one).max() > bound * (1 - 10 / one.size), leaf
        # The deviation of a deviation over n uniform numbers is 0.45 / sqrt(n) of it.
        spread = 5 * 0.45 * 2**0.5 / ours.size**0.5
        assert abs(ours.std() / theirs.std() - 1) < spread, leaf
        assert abs(ours.mean() - theirs.mean()) < 5 * bound / ours.size**0.5, leaf


# --- methods --------------------------------------------------------------------

COUNTS = np.array([200, 80, 30, 9, 4])
K, D = len(COUNTS), 6
NUMBERS = {
    "delta": 0.98, "power": 1.2, "beta": 0.9999, "gamma": 1.5, "tau": 1.3,
    "alpha": 0.1, "square": 0.5, "scale": 30.0, "max_margin": 0.5, "defer": 0.5,
    "head": 0.4, "tail": 0.1, "quantile": 0.1, "every": "step", "kind": "cl2",
    "start": "stage1", "sampler": "instance", "mean": "examples",
    "form": "classification",
}  # fmt: skip


def made(name, **numbers):
    import inspect

    wanted = inspect.signature(methods.METHODS[name]).parameters
    given = {k: v for k, v in {**NUMBERS, **numbers}.items() if k in wanted}
    if name == "vs":
        given["gamma"] = 0.2
    return methods.make(name, COUNTS, given)


def head_and_batch(method, seed=0):
    rng = np.random.default_rng(seed)
    start = {"kernel": rng.normal(size=(D, K)), "bias": rng.normal(size=K)}
    params = method.head.init(jax.random.key(0), start, D, K, "torch")
    # Move away from the neutral values, where some gradients vanish.
    params = {
        name: leaf if name in start or np.ndim(leaf) == 0
        else leaf + rng.uniform(0.1, 0.3, np.shape(leaf))
        for name, leaf in params.items()
    }  # fmt: skip
    labels = rng.integers(0, K, 17)
    return params, rng.normal(size=(17, D)), labels[labels != 3]  # a class is absent


def linear_logits(p, f):
    return f @ p["kernel"] + p["bias"]


def cosine_logits(p, f):
    from torch.nn.functional import normalize

    return p["scale"] * normalize(f, dim=1) @ normalize(p["kernel"], dim=0)


def scaled_logits(p, f):
    return p["scale"] * linear_logits(p, f)


def aligned_logits(p, f):
    """Magnify and shift by a confidence, the form of DisAlign's ImageNet-LT code."""
    import torch

    confidence = torch.sigmoid(f @ p["confidence"] + p["confidence_bias"])[:, None]
    factor = 1 + confidence * p["scale"]
    return factor * linear_logits(p, f) + confidence * p["offset"]


def blended_logits(p, f):
    """Mix scaled and plain logits, the form of DisAlign's segmentation code."""
    import torch

    z = linear_logits(p, f)
    confidence = torch.sigmoid(f @ p["confidence"])[:, None]
    return confidence * (p["scale"] * z + p["offset"]) + (1 - confidence) * z


def marc_logits(p, f):
    return p["omega"] * linear_logits(p, f) + p["beta"] * p["kernel"].norm(dim=0)


def weighted(weight):
    """Return torch's weighted mean: sum of weighted losses over sum of weights."""

    def loss(z, y, n):
        from torch.nn.functional import cross_entropy

        return cross_entropy(z, y, weight=weight(n))

    return loss


def weighted_over_examples(weight):
    """Return the sum of weighted losses over the batch size."""

    def loss(z, y, n):
        from torch.nn.functional import cross_entropy

        each = weight(n) * K / weight(n).sum()  # mean 1, as in the official code
        return (each[y] * cross_entropy(z, y, reduction="none")).sum() / len(y)

    return loss


def plain_ce(z, y, n):
    from torch.nn.functional import cross_entropy

    return cross_entropy(z, y)


def smoothed(z, y, n):
    from torch.nn.functional import cross_entropy

    return cross_entropy(z, y, label_smoothing=NUMBERS["delta"])


def focal_loss(z, y, n):
    import torch

    log_p = torch.log_softmax(z, 1).gather(1, y[:, None])[:, 0]
    return (-((1 - log_p.exp()) ** NUMBERS["gamma"]) * log_p).mean()


def shifted(tau, loss=plain_ce):
    def shift(z, y, n):
        return loss(z + tau * (n / n.sum()).log(), y, n)

    return shift


def vs_loss(z, y, n):
    return shifted(NUMBERS["tau"])((n / n.max()) ** 0.2 * z, y, n)


def ldam_loss(weight):
    def loss(z, y, n):
        import torch
        from torch.nn.functional import cross_entropy

        margin = n**-0.25
        margin = NUMBERS["max_margin"] * margin / margin.max()
        hit = torch.nn.functional.one_hot(y, K)
        cosines = z / NUMBERS["scale"]
        moved = NUMBERS["scale"] * (cosines - margin * hit)
        return cross_entropy(moved, y, weight=weight(n))

    return loss


def lade_loss(z, y, n):
    import torch

    p = n / n.sum()
    terms = 0.0
    for c in range(K):
        own = z[y == c, c]
        first = own.mean() if len(own) else 0.0
        t = (z[:, c] - p[c].log() - np.log(K)).logsumexp(0) - np.log(len(z))
        terms = terms + p[c] * (t + NUMBERS["square"] * t**2 - first)
    assert isinstance(terms, torch.Tensor)
    return shifted(1.0)(z, y, n) + NUMBERS["alpha"] * terms


def aware_loss(z, y, n):
    import torch

    share = (n - n.min()) / (n.max() - n.min())
    low, high = NUMBERS["tail"], NUMBERS["head"]
    smooth = (low + (high - low) * torch.sin(share * np.pi / 2))[y]
    log_p = torch.log_softmax(z, 1)
    hit = log_p.gather(1, y[:, None])[:, 0]
    return (-(1 - smooth) * hit - smooth * log_p.mean(1)).mean()


def no_weight(n):
    return n * 0 + 1


def inverse(n):
    return n ** -NUMBERS["power"]


def effective(n):
    return (1 - NUMBERS["beta"]) / (1 - NUMBERS["beta"] ** n)


# Logits and loss of every method in torch.
VERSIONS = {
    "ce": (linear_logits, plain_ce),
    "label_smoothing": (linear_logits, smoothed),
    "los": (linear_logits, smoothed),
    "los_fresh": (linear_logits, smoothed),
    "los_resampled": (linear_logits, smoothed),
    "los_max_norm": (linear_logits, smoothed),
    "los_tau_norm": (linear_logits, smoothed),
    "los_balanced_softmax": (linear_logits, shifted(1.0, smoothed)),
    "reweight": (linear_logits, weighted(inverse)),
    "class_balanced": (linear_logits, weighted_over_examples(effective)),
    "weight_balancing": (linear_logits, weighted_over_examples(effective)),
    "focal": (linear_logits, focal_loss),
    "balanced_softmax": (linear_logits, shifted(1.0)),
    "logit_adjust": (linear_logits, shifted(NUMBERS["tau"])),
    "vs": (linear_logits, vs_loss),
    "lade": (linear_logits, lade_loss),
    "cosine": (cosine_logits, plain_ce),
    "ldam": (cosine_logits, ldam_loss(no_weight)),
    "crt": (linear_logits, plain_ce),
    "lws": (scaled_logits, plain_ce),
    "disalign": (aligned_logits, weighted(inverse)),
    "marc": (marc_logits, weighted(inverse)),
    "label_aware_smoothing": (scaled_logits, aware_loss),
}
UNTRAINED = {
    *("tau_norm", "ncm", "logit_adjust_posthoc"),
    *("logistic", "logistic_balanced"),
}


def test_every_method_has_a_torch_version():
    assert set(VERSIONS) | UNTRAINED == set(methods.METHODS)


def both(nets, method, version, adjust):
    """Compute loss and gradients of the head in both libraries."""
    torch = nets.torch
    params, features, labels = head_and_batch(method)
    features = features[: len(labels)]
    logits, loss = version
    with enable_x64(True):
        trained = {k: jnp.asarray(v, jnp.float64) for k, v in params.items()}
        mask = jnp.ones(len(labels))

        def mean(p):
            z = method.head.apply(p, jnp.asarray(features))
            each = method.loss(z, jnp.asarray(labels), mask, adjust, losses.one_device)
            divisor = jnp.sum(losses.divisors(adjust, jnp.asarray(labels)))
            return jnp.sum(each) / divisor

        value, grads = jax.value_and_grad(mean)(trained)
        value, grads = float(value), jax.device_get(grads)
    p = {k: torch.tensor(np.asarray(v, np.float64)) for k, v in params.items()}
    for leaf in p.values():
        leaf.requires_grad_(True)
    n = torch.tensor(COUNTS, dtype=torch.float64)
    z = logits(p, torch.tensor(features))
    expected = loss(z, torch.tensor(labels), n)
    expected.backward()
    return value, grads, float(expected.detach()), p


# Method, hyperparameters other than NUMBERS, and the torch version.
CASES = {
    **{name: (name, {}, version) for name, version in VERSIONS.items()},
    "class_balanced mean over weights": (
        *("class_balanced", {"mean": "weights"}),
        (linear_logits, weighted(effective)),
    ),
    "disalign segmentation": (
        *("disalign", {"form": "segmentation"}),
        (blended_logits, weighted(inverse)),
    ),
    "ldam deferred": ("ldam", {}, (cosine_logits, ldam_loss(effective))),
}


@pytest.mark.parametrize("case", CASES)
def test_losses_and_gradients(nets, case):
    name, numbers, version = CASES[case]
    method = made(name, **numbers)
    adjust = method.deferred if "deferred" in case else method.adjust
    value, grads, expected, p = both(nets, method, version, adjust)
    np.testing.assert_allclose(value, expected, rtol=1e-6, atol=1e-6)
    for leaf, grad in grads.items():
        theirs = p[leaf].grad.numpy()
        if leaf in ("scale",) and np.ndim(grad) == 0:
            continue  # the cosine head's scale, which is not trained
        np.testing.assert_allclose(grad, theirs, rtol=1e-6, atol=1e-6, err_msg=leaf)


def test_weight_balancing_trains_as_the_binary_loss_of_its_code(nets):
    """Its lr 0.01 and decay 0.1 are lr 0.01 / K and decay 0.1 K of our loss."""
    torch = nets.torch
    from torch.nn.functional import binary_cross_entropy, one_hot

    classes, width, epochs, batch = 100, 64, 10, 64
    counts = np.round(100 * 0.01 ** (np.arange(classes) / (classes - 1))).astype(int)
    labels = np.repeat(np.arange(classes), counts)
    rng = np.random.default_rng(0)
    features = rng.normal(size=(classes, width))[labels]
    features = (features + rng.normal(size=features.shape)).astype(np.float32)
    start = {"kernel": 0.05 * rng.normal(size=(width, classes)), "bias": np.zeros(100)}

    def trained(mean):
        numbers = {"beta": 0.9999, "quantile": 0.1, "every": "epoch", "mean": mean}
        method = methods.make(
            "weight_balancing", counts, {**numbers, "sampler": "instance"}
        )
        recipe = api.Recipe(method, lr=0.01 / classes, epochs=epochs, decay=10.0)
        fitted = api.fit_head(features, labels, recipe, start=start, batch=batch)
        return fitted.params["kernel"]

    weight = (1 - 0.9999) / (1 - 0.9999 ** torch.tensor(counts))
    weight = classes * weight / weight.sum()
    w, b = (torch.tensor(v, dtype=torch.float32) for v in start.values())
    norms = w.norm(dim=0)
    radius = float(norms.min() + 0.1 * (norms.max() - norms.min()))
    w.requires_grad_(True)
    b.requires_grad_(True)
    optimiser = torch.optim.SGD([w, b], 0.01, momentum=0.9, weight_decay=0.1)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs)
    for epoch in range(epochs):
        for row in samplers.plan(labels, "instance", batch, (2, 0, 0), epoch):
            x, y = torch.tensor(features[row[row >= 0]]), labels[row[row >= 0]]
            p, y = torch.softmax(x @ w + b, 1), torch.tensor(y)
            target = one_hot(y, classes).float()
            loss = binary_cross_entropy(p, target, weight[y][:, None].float())
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        scheduler.step()
        with torch.no_grad():
            w.copy_(torch.renorm(w, 2, 1, radius))
    theirs = w.detach().numpy()
    size = np.linalg.norm(theirs)
    apart = {m: np.linalg.norm(trained(m) - theirs) / size for m in losses.MEANS}
    assert apart["examples"] < 0.01
    assert apart["weights"] > 0.05


@pytest.mark.parametrize("kind", ["raw", "l2", "cl2"])
def test_nearest_mean(nets, kind):
    torch = nets.torch
    from torch.nn.functional import normalize

    rng = np.random.default_rng(0)
    labels = np.arange(20) % K
    features = rng.normal(size=(20, D)).astype(np.float32)

    def blocks():  # 20 rows in two
        yield from (jnp.asarray(features[:13]), jnp.asarray(features[13:]))

    head = heads.nearest_mean(blocks, labels, (D, K), kind)
    ours = heads.NEAREST[kind].apply(head, jnp.asarray(features))
    f = torch.tensor(features)
    f = f - f.mean(0) if kind == "cl2" else f
    f = f if kind == "raw" else normalize(f, dim=1)
    means = torch.stack([f[torch.tensor(labels == k)].mean(0) for k in range(K)])
    distance = torch.cdist(f, means) ** 2
    # Logits differ from minus the squared distance by |f|^2, which all classes share.
    expected = (f**2).sum(1, keepdim=True) - distance
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(np.argmax(ours, 1), distance.argmin(1))


def test_corrections_and_projections(nets):
    torch = nets.torch
    rng = np.random.default_rng(0)
    start = {
        "kernel": rng.normal(size=(D, K)).astype(np.float32),
        "bias": rng.normal(size=K).astype(np.float32),
    }
    w, b = (torch.tensor(start[name]) for name in ("kernel", "bias"))
    labels = jnp.asarray(np.repeat(np.arange(K), COUNTS))
    norms = w.norm(dim=0)
    tau = NUMBERS["tau"]
    for name in ("tau_norm", "los_tau_norm"):
        found = made(name).correct(start, None, labels)
        np.testing.assert_allclose(found["kernel"], w / norms**tau, rtol=1e-5)
        assert not np.any(found["bias"])
    found = made("logit_adjust_posthoc").correct(start, None, labels)
    prior = torch.tensor(COUNTS / COUNTS.sum())
    np.testing.assert_allclose(found["bias"], b - tau * prior.log(), rtol=1e-5)
    np.testing.assert_array_equal(found["kernel"], w)
    radius = norms.min() + 0.1 * (norms.max() - norms.min())
    longer = {**start, "kernel": 2 * start["kernel"]}
    for name in ("weight_balancing", "los_max_norm"):
        found = made(name).project(longer, start)
        expected = torch.renorm(2 * w, 2, 1, float(radius))
        np.testing.assert_allclose(found["kernel"], expected, rtol=1e-5)


# --- training -------------------------------------------------------------------

STEPS, EPOCHS = 50, 5


def batches(num_classes, size=8, rows=20):
    """Yield noisy class patterns; the last batch of an epoch is short."""
    rng = np.random.default_rng(0)
    patterns = rng.normal(size=(num_classes, size, size, 3))
    for step in range(STEPS):
        count = 7 if step % (STEPS // EPOCHS) == 9 else rows
        labels = rng.integers(0, num_classes, rows).astype(np.int32)
        mask = (np.arange(rows) < count).astype(np.float32)
        images = patterns[labels] + rng.normal(size=(rows, size, size, 3))
        yield images.astype(np.float32), labels, mask


def trained(nets, dtype, *, trains, batch_norm, lr, decay, delta):
    """Train in both libraries; return leaves by our names and both loss curves."""
    torch = nets.torch
    kind = {"float32": torch.float32, "float64": torch.float64}[dtype]
    theirs = nets.network("resnet10", 8, 5).to(kind)
    backbone = cifar("resnet10", dtype)
    params, stats = taken(theirs, nets, backbone, 5, np.dtype(dtype))
    rates = optim.rates(lr, EPOCHS, STEPS // EPOCHS, 0, "epoch")
    sgd = optim.Sgd(0.9, decay, ".*")
    adjust = losses.cross_entropy(5)._replace(smooth=jnp.full(5, delta, dtype))
    method = methods.Method(adjust)
    inputs = steps.StepInputs(
        key=jax.random.key(0),
        rates=rates,
        adjust=method.adjust,
        start=params["head"],
        projects=np.zeros(STEPS, bool),
    )
    program = steps.StepSpec(
        backbone=backbone,
        head=linear,
        loss=method.loss,
        project=None,
        sgd=sgd,
        trains=trains,
        batch_norm=batch_norm,
        augment=PLAIN,
    )
    step = steps.make_train_step(program)
    inputs = sharding.replicate(inputs)
    state = steps.init_state(params, stats, sgd, trains)
    ours = []
    for images, labels, mask in batches(5):
        batch = {"image": images, "label": labels, "mask": mask}
        state, measured = step(state, sharding.shard_batch(batch), inputs)
        ours.append(float(measured["loss_sum"] / measured["weight_sum"]))

    moved = theirs.parameters() if trains == ".*" else theirs.fc.parameters()
    optimiser = torch.optim.SGD(moved, lr=lr, momentum=0.9, weight_decay=decay)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, EPOCHS)
    criterion = torch.nn.CrossEntropyLoss(label_smoothing=delta)
    theirs.train(batch_norm != "frozen")
    curve = []
    for number, (images, labels, mask) in enumerate(batches(5)):
        (group,) = optimiser.param_groups
        assert group["lr"] == pytest.approx(float(rates[number]), rel=1e-6)
        group["lr"] = float(rates[number])  # ours are rounded to float32
        kept = mask > 0
        x = torch.from_numpy(images[kept].transpose(0, 3, 1, 2)).to(kind)
        loss = criterion(theirs(x), torch.from_numpy(labels[kept]).long())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        curve.append(float(loss.detach()))
        if number % (STEPS // EPOCHS) == STEPS // EPOCHS - 1:
            scheduler.step()
    state = jax.device_get(state)
    found = {"params": state.params, "batch_stats": state.batch_stats}
    names = {torch_names.torch_name(name): name for name in trees.leaves(found)}
    expected = {
        names[name]: torch_names.to_our_layout(leaf)
        for name, leaf in nets.state(theirs).items()
        if name in names
    }
    return trees.leaves(found), expected, ours, curve


STAGE1 = {"trains": ".*", "batch_norm": "train", "lr": 0.01, "decay": 5e-3, "delta": 0}
STAGE2 = {"trains": "head/.*", "lr": 5e-4, "decay": 0.0, "delta": 0.98}
RECIPES = {
    "stage 1": STAGE1,
    "stage 2 drift": {**STAGE2, "batch_norm": "drift"},
    "stage 2 frozen": {**STAGE2, "batch_norm": "frozen"},
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_fifty_steps(nets, recipe, dtype):
    """Weight decay, momentum, cosine schedule and short last batches agree."""
    tolerance = {"float32": 1e-4, "float64": 1e-9}[dtype]
    with enable_x64(dtype == "float64"):
        found, expected, ours, theirs = trained(nets, dtype, **RECIPES[recipe])
    assert found.keys() == expected.keys()
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance)
    for name, leaf in expected.items():
        close(found[name], leaf, tolerance)
        assert found[name].dtype == np.dtype(dtype)
    if recipe == "stage 1":
        assert ours[-1] < 0.8 * ours[0]


def test_first_losses_are_within_the_spread_of_seeds(nets):
    """Eight initialisations of each library, on the same 20 batches and steps."""
    torch = nets.torch
    backbone = cifar("resnet8")
    sgd = optim.Sgd(0.9, 5e-3, ".*")
    rates = optim.rates(0.01, 2, 10, 0, "epoch")
    adjust = losses.cross_entropy(5)
    program = steps.StepSpec(
        backbone=backbone,
        head=linear,
        loss=losses.adjusted_xent,
        project=None,
        sgd=sgd,
        trains=".*",
        batch_norm="train",
        augment=PLAIN,
    )
    step = steps.make_train_step(program)

    def curve(params, stats):
        inputs = sharding.replicate(
            steps.StepInputs(
                key=jax.random.key(0),
                rates=rates,
                adjust=adjust,
                start=params["head"],
                projects=np.zeros(20, bool),
            )
        )
        state = steps.init_state(params, stats, sgd, ".*")
        seen = []
        for number, (images, labels, mask) in enumerate(batches(5)):
            if number == 20:
                return seen
            batch = {"image": images, "label": labels, "mask": mask}
            state, m = step(state, sharding.shard_batch(batch), inputs)
            seen.append(float(m["loss_sum"] / m["weight_sum"]))
        raise AssertionError

    def ours(seed):
        keys = jax.random.split(jax.random.key(seed))
        params, stats = models.init(backbone, keys[0], (8, 8, 3))
        head = linear.init(keys[1], None, 32, 5, "torch")
        return {"backbone": params, "head": head}, stats

    def theirs(seed):
        torch.manual_seed(seed)
        return taken(nets.Network("resnet8", 8, 5), nets, backbone, 5)

    one, other = (
        np.array([curve(*start(seed)) for seed in range(8)]) for start in (ours, theirs)
    )
    error = np.sqrt((one.var(0, ddof=1) + other.var(0, ddof=1)) / 8)
    assert (np.abs(one.mean(0) - other.mean(0)) < 4 * error).all()
    assert other.mean(0)[-1] < 0.9 * other.mean(0)[0]


# --- data and evaluation --------------------------------------------------------


def test_equal_crop_offsets_give_equal_pixels(nets):
    torch = nets.torch
    augment = Augment(4, True, (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
    key, positions = jax.random.key(3), jnp.arange(40)
    top, left, mirrored = augmentation.offsets(augment, key, positions)
    assert 0 < np.sum(mirrored) < 40
    ours = augmentation.crop_flip(augment, key, positions, images)
    ours = augmentation.normalise(augment, ours)
    x = torch.from_numpy(images.transpose(0, 3, 1, 2)).float() / 255
    x = torch.nn.functional.pad(x, (4, 4, 4, 4))  # black, before normalisation
    pair = (augment.mean, augment.std)
    mean, std = (torch.tensor(v).reshape(3, 1, 1) for v in pair)
    for i in range(40):
        t, s = int(top[i]), int(left[i])
        crop = x[i, :, t : t + 32, s : s + 32]
        crop = torch.flip(crop, (2,)) if mirrored[i] else crop
        expected = ((crop - mean) / std).numpy().transpose(1, 2, 0)
        np.testing.assert_allclose(ours[i], expected, rtol=1e-5, atol=1e-5)


def test_mirror_averaging_groups_and_classes(nets):
    """Evaluate as the authors' code does, on the same images and network."""
    torch = nets.torch
    theirs = nets.network("resnet8", 8, K).eval()
    backbone = cifar("resnet8")
    params, stats = sharding.replicate(tuple(taken(theirs, nets, backbone, K)))
    augment = Augment(4, True, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(K), 8).astype(np.int32)
    images = rng.integers(0, 256, (len(labels), 8, 8, 3), dtype=np.uint8)
    evaluate = inference.make_eval_step(backbone, linear, augment, True)
    batch = {"image": images, "label": labels, "mask": np.ones(len(labels), np.float32)}
    empty = sharding.replicate(metrics.empty(K))
    tally = jax.device_get(evaluate(params, stats, sharding.shard_batch(batch), empty))
    x = (torch.from_numpy(images.transpose(0, 3, 1, 2)).float() / 255 - 0.5) / 0.25
    with torch.no_grad():
        logits = (theirs(x) + theirs(x.flip(3))) / 2
        assert (logits.argmax(1) != theirs(x).argmax(1)).any()  # not a no-op
    right = (logits.argmax(1).numpy() == labels).reshape(K, -1)
    np.testing.assert_array_equal(tally.right, right.sum(1))
    np.testing.assert_allclose(metrics.per_class(tally)["accuracy"], right.mean(1))
    found = metrics.summary(tally, metrics.groups(COUNTS, 100, 20))
    expected = {"many": right[:1], "medium": right[1:3], "few": right[3:], "all": right}
    for name, hits in expected.items():
        assert found[name] == pytest.approx(hits.mean(1).mean())
    nll = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels).long())
    assert found["nll"] == pytest.approx(float(nll), rel=1e-5)
