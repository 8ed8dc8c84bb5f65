"""Model files as Relax: ``load_model`` chooses the importer by the file's suffix, or builds a built-in network.

To add a format, write a package ``<format>`` here with ``load(path, options) -> Model`` and name it in ``FORMATS``.
"""

from __future__ import annotations

import difflib
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType

from bitkiln.pipeline.errors import BitkilnError, ModelError
from bitkiln.pipeline.importers import builtin
from bitkiln.pipeline.importers.common.exports import export_hint
from bitkiln.pipeline.importers.common.labels import class_count, find_labels, read_labels
from bitkiln.pipeline.importers.common.limits import check_module
from bitkiln.pipeline.importers.common.options import ImportOptions
from bitkiln.pipeline.importers.common.preprocessing import with_options
from bitkiln.pipeline.meaning.recognise import with_head
from bitkiln.pipeline.model import Model
from bitkiln.pipeline.support.tvm_messages import reason_of, silenced

__all__ = ["BUILTIN_NAMES", "FORMATS", "ImportOptions", "load_model"]

#: File suffix -> module of this package that imports it.
FORMATS = {
    ".onnx": "onnx",
    ".onnx.xz": "onnx",
    ".ell": "ell",
    ".ell.zip": "ell",
    ".tflite": "tflite",
    ".cfg": "darknet",
    ".weights": "darknet",
}

BUILTIN_NAMES = builtin.NAMES


def load_model(source: str | Path, options: ImportOptions | None = None) -> Model:
    """Import the model file ``source``, or the built-in network of that name.

    Raises ModelError (ShapeNeeded, UnsupportedLayer) with one line that names the file or node.
    """
    options = options or ImportOptions()
    builtin_name = str(source) if str(source) in BUILTIN_NAMES else None
    path = builtin.archive_path(builtin_name) if builtin_name else Path(source)
    importer = _importer(path)
    if options.weights is not None and not importer.__name__.endswith(".darknet"):
        raise ModelError(f"{path}: --weights is for darknet's .cfg files; leave it out")
    if options.values and not importer.__name__.endswith(".onnx"):
        raise ModelError(f"{path}: --value is for inputs of ONNX files; leave it out")
    model = with_head(_imported(importer, path, options), path, options.head)
    if builtin_name:
        model = replace(model, name=builtin_name)
    labels, origin = _labels(model, path, builtin_name, options)
    model = replace(model, labels=labels, origins={**model.origins, "labels": origin})
    return with_options(model, path, options)


def _imported(importer: ModuleType, path: Path, options: ImportOptions) -> Model:
    """What the importer makes of ``path``. Damaged files meet exceptions that nobody foresaw: they name the file too."""
    try:
        with silenced():
            model = importer.load(path, options)
    except (BitkilnError, OSError):
        raise
    except MemoryError as error:
        raise ModelError(f"{path}: out of memory while importing it") from error
    except Exception as error:
        kind = type(error).__name__
        raise ModelError(
            f"{path}: internal error while importing it, {kind}: {reason_of(error)}; --debug shows where"
        ) from error
    check_module(path, model.module)
    return model


def _importer(path: Path) -> ModuleType:
    for suffix in sorted(FORMATS, key=len, reverse=True):
        if path.name.lower().endswith(suffix):
            return import_module(f"{__name__}.{FORMATS[suffix]}")
    known = ", ".join([*FORMATS, *BUILTIN_NAMES])
    close = difflib.get_close_matches(str(path), BUILTIN_NAMES, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"known formats and names: {known}"
    hint = export_hint(path) or hint
    what = "no known model format" if path.exists() else "no such file, and no built-in network of that name"
    raise ModelError(f"{path}: {what}; {hint}")


def _labels(model: Model, path: Path, builtin_name: str | None, options: ImportOptions) -> tuple[tuple[str, ...], str]:
    """Class names, and where they come from."""
    count, background = class_count(model), model.head is not None and model.head.background == 0
    if options.labels:
        return read_labels(options.labels, count, background), f"{options.labels} (--labels)"
    if builtin_name:
        return builtin.labels(), "the built-in network"
    if model.labels:
        return model.labels, model.origins.get("labels", "the file")
    return find_labels(path, count, background)
