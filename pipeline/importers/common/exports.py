"""How to get a file that is imported out of one of a framework's own."""

from __future__ import annotations

from pathlib import Path

_TFLITE = (
    "export it: python -c \"import tensorflow as tf; open('model.tflite', 'wb').write("
    'tf.lite.TFLiteConverter.{}.convert())"'
)
_KERAS = "from_keras_model(tf.keras.models.load_model('{}'))"
_SAVED_MODEL = "from_saved_model('{}')"
_TORCH = (
    "export it from Python, with the size of its input: "
    "torch.onnx.export(model.eval(), torch.zeros(1, 3, 224, 224), 'model.onnx')"
)
_GRAPH = (
    "export it: pip install tf2onnx, then python -m tf2onnx.convert --graphdef {} --output model.onnx "
    "--inputs NAME:0 --outputs NAME:0"
)


def export_hint(path: Path) -> str:
    """The command to type for the file or folder ``path``; "" where it is no framework's."""
    suffix = path.suffix.lower()
    if (path / "saved_model.pb").is_file():
        return _TFLITE.format(_SAVED_MODEL.format(path))
    if path.name == "saved_model.pb":
        return _TFLITE.format(_SAVED_MODEL.format(path.parent))
    if suffix in (".keras", ".h5", ".hdf5"):
        return _TFLITE.format(_KERAS.format(path))
    if suffix in (".pt", ".pth", ".pt2", ".safetensors"):
        return _TORCH
    return _GRAPH.format(path) if suffix == ".pb" else ""
