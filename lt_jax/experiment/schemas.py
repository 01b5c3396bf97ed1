"""How the JSON files of a workdir must look, see ``files.Schema``.

The fields are those of version 0.1.0. A "?" marks those that not every file has.
"""

from __future__ import annotations

from lt_jax.files import COUNT, NUMBER, Schema
from lt_jax.metrics import CHOOSE, GROUPS, NUM_BINS, RSD

ACCURACIES = ("all", *GROUPS, "balanced", "worst", "top5", "ece", "nll")
RSD_METRICS = tuple(f"rsd_{part}" for part in RSD)
ENDS = ("", *(f"_{part}" for part in (*GROUPS, "spread")))
METRICS = (
    *ACCURACIES,
    *(name + end for name in ("loma_row", "loma_col") for end in ENDS),
    *(*RSD_METRICS, "weight_norm", "weight_norm_spread"),
)
PER_CLASS = ("accuracy", "loma_row", "loma_col", *RSD_METRICS, "weight_norm")

HYPER: Schema = {"lr?": float, "delta?": float, str: object}
BINS: Schema = {k: [float, NUM_BINS, NUM_BINS] for k in ("seen", "right", "conf")}
ANALYSIS: Schema = {
    "temperature": NUMBER,
    "calibrated": ({"nll": NUMBER, "ece": NUMBER}, None),
    "reliability": {"before": BINS, "after": (BINS, None)},
    "confusion": {"groups": [{*GROUPS}, 3, 3], "counts": [[float, 4, 4], 3, 3]},
    "taken_for?": {"class": [COUNT], "share": [float]},
    "mistakes?": [{"row": COUNT, "predicted": COUNT, "confidence": float, "id?": str}],
}
# A fit that can be loaded, as `lt-jax convert` writes it too.
OUTCOME: Schema = {
    "seeds": [COUNT, 1],
    "step": COUNT,
    "fitted_on": str,
    "weights?": str,
    "backbone?": str,
    "adopted_for?": str,
    "model?": {"name": str, "stem": str, "width": COUNT},
    "hyper?": HYPER,
    "epochs?": (COUNT, None),
    "seconds?": NUMBER,
    "images_per_second?": NUMBER,
    "analysis?": (ANALYSIS, None),
    "temperature?": NUMBER,
}
# A fit that was evaluated.
MEASURED: Schema = {
    **OUTCOME,
    "hyper": HYPER,
    "metrics": dict.fromkeys(METRICS, NUMBER),
    "valid?": (dict.fromkeys(METRICS, NUMBER), None),
    "per_class": {
        "class": [str],
        "train_count": [COUNT],
        **{name: [NUMBER] for name in PER_CLASS},
        str: [NUMBER],
    },
}
ROW: Schema = {
    "method": str,
    "hyper": HYPER,
    "seeds": [COUNT, 2],
    "index": COUNT,
    "diverged": (COUNT, None),
    "seconds": NUMBER,
    "metrics": {"valid": {str: NUMBER}, str: {str: NUMBER}},
}
ROWS: Schema = {"origin": {str: object}, "rows": [ROW]}
RESULT: Schema = {
    "dataset": {
        **dict.fromkeys(("name", "split_hash"), str),
        **dict.fromkeys(("num_train", "num_classes"), COUNT),
        **dict.fromkeys(("counts_max", "counts_min"), COUNT),
    },
    "protocol": {
        **dict.fromkeys(("batch_norm", "features"), str),
        "select": {"last", "validation", "test"},
        "flip": bool,
        "seeds": [[COUNT, 1]],
        "group_limits": {"many": float, "few": float},
        "interrupted?": bool,
    },
    "methods": {str: {"hyper?": HYPER}},
    "recommended?": (
        {
            **{"method": str, "fit": str, "refit?": bool, "folds?": COUNT},
            "test?": {"balanced": NUMBER, "all": NUMBER},
        },
        None,
    ),
    "sweep?": {"choose?": {*CHOOSE}},
    "versions": {str: str},
    "device": str,
}
