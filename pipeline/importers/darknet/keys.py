"""Keys of a cfg that no layer reads: those that cannot be ignored, those that can, and those that nobody knows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

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
