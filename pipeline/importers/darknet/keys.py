"""Keys of a cfg that no layer reads: those that cannot be ignored, those that can, and those that nobody knows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from difflib import get_close_matches

from bitkiln.pipeline.importers.darknet.cfg import Section, shown

#: Keys that change what a layer computes in a way that is not supported, unless they are 0.
_REFUSED = (
    "antialiasing",
    "coordconv",
    "dontload",
    "dontloadscales",
    "maxpool_depth",
    "numload",
    "rotate",
    "share_index",
    "stretch",
    "stretch_sway",
    "sway",
)

#: Keys that matter for training, or for decoding boxes, alone.
_HARMLESS = frozenset(
    (
        "absolute",
        "anchors",
        "angle",
        "assisted_excitation",
        "beta_nms",
        "bflops",
        "bias_match",
        "burnin_update",
        "class_scale",
        "classfix",
        "cls_normalizer",
        "coord_scale",
        "counters_per_class",
        "delta_normalizer",
        "dets_for_show",
        "dets_for_track",
        "dontsave",
        "dot",
        "dropblock",
        "dropblock_size_abs",
        "dropblock_size_rel",
        "embedding_layer",
        "exposure",
        "flip",
        "focal_loss",
        "forced",
        "grad_centr",
        "ignore_thresh",
        "iou_loss",
        "iou_normalizer",
        "iou_thresh",
        "iou_thresh_kind",
        "jitter",
        "joint",
        "label_smooth_eps",
        "learning_rate",
        "log",
        "map",
        "mask_scale",
        "max",
        "max_delta",
        "nms_kind",
        "noloss",
        "noobj",
        "noobject_scale",
        "num",
        "obj_normalizer",
        "object_scale",
        "objectness_smooth",
        "onlyforward",
        "out_channels",
        "probability",
        "random",
        "ratio",
        "reorg",
        "rescore",
        "resize",
        "saturation",
        "scale",
        "shift",
        "show_details",
        "sim_thresh",
        "smooth",
        "softmax",
        "sqrt",
        "stopbackward",
        "thresh",
        "track_ciou_norm",
        "track_history_size",
        "train_only_bn",
        "truth",
        "truth_thresh",
        "type",
        "uc_normalizer",
    )
)


#: Keys of [net] that matter for training alone, or for how darknet runs.
_HARMLESS_OF_NET = frozenset(
    (
        *(
            "B1",
            "B2",
            "adam",
            "adversarial_lr",
            "angle",
            "aspect",
            "attention",
            "augment_speed",
            "batch",
            "benchmark_layers",
        ),
        *("blur", "burn_in", "channels", "clip", "contrastive", "contrastive_color", "contrastive_jit_flip", "cutmix"),
        *(
            "decay",
            "dynamic_minibatch",
            "ema_alpha",
            "equidistant_point",
            "eps",
            "exposure",
            "flip",
            "gamma",
            "gaussian_noise",
        ),
        *("height", "hue", "inputs", "label_smooth_eps", "learning_rate", "learning_rate_min", "letter_box"),
        *("loss_scale", "max_batches", "max_chart_loss", "max_crop", "min_crop", "mixup", "momentum", "mosaic"),
        *(
            "mosaic_bound",
            "num_sigmas_reject_badlabels",
            "optimized_memory",
            "policy",
            "power",
            "random",
            "reverse",
            "rotate",
        ),
        *("saturation", "scale", "scales", "seq_scales", "sequential_subdivisions", "show_receptive_field"),
        *(
            "sgdr_cycle",
            "sgdr_mult",
            "squeeze",
            "step",
            "steps",
            "subdivisions",
            "time_steps",
            "track",
            "track_history_size",
        ),
        *(
            "translate",
            "try_fix_nan",
            "unsupervised",
            "use_cuda_graph",
            "weights_reject_freq",
            "width",
            "workspace_size_limit_MB",
        ),
        *("badlabels_rejection_percentage", "badlabels_reject_threshold", "dropblock", "init_sequential_subdivisions"),
        *("notruth", "center", "hierarchy"),
    )
)

#: Keys that only AlexeyAB's fork knows.
_OF_FORK = frozenset(
    (
        *("assisted_excitation", "beta_nms", "cutmix", "iou_loss", "iou_normalizer", "cls_normalizer", "iou_thresh"),
        *("letter_box", "mixup", "mosaic", "nms_kind", "optimized_memory", "scale_x_y", "obj_normalizer", "new_coords"),
        *("activate", "max_delta", "dynamic_minibatch", "antialiasing"),
    )
)


def unknown_net_keys(net: Section) -> Iterator[str]:
    """Warnings of keys of [net] that darknet does not know: they are misspelt, and ignored."""
    for key in net.options:
        if key not in net.read and key not in _HARMLESS_OF_NET:
            close = get_close_matches(key, sorted(_HARMLESS_OF_NET), 1)
            hint = f"; {close[0]}?" if close else ""
            yield str(net.error(f"{shown(key)} is not known and was ignored{hint}", key))


def has_keys_of_fork(sections: Sequence[Section]) -> bool:
    """Was the cfg written for AlexeyAB's fork?"""
    return any(key in _OF_FORK for section in sections for key in section.options)


def check_keys(section: Section) -> None:
    """Raise ModelError where a key asks for what is not supported."""
    for key in _REFUSED:
        if section.text(key) and (key == "share_index" or section.number(key, 0)):
            raise section.unsupported(f"{key}={shown(section.text(key))} is not supported", key)


def ignored_keys(sections: Sequence[Section]) -> Iterator[str]:
    """Warnings of keys that nothing has read and that may have been meant to do something, once all layers are planned."""
    for section in sections:
        for key in section.options:
            if key not in section.read and key not in _HARMLESS:
                yield str(section.error(f"{shown(key)} is not known and was ignored", key))
        for key, line in section.repeated.items():
            if key in section.read:
                yield str(section.error(f"{key} is given again in line {line}; the first one counts", key))
