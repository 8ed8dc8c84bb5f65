"""A small binarised network, and boards that compute it, faithfully or with a fault."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tvm
from tvm import relax

from bitkiln import targets
from bitkiln.pipeline import ops, reference
from bitkiln.pipeline.boards.emulated import Answer
from bitkiln.pipeline.bundle import Bundle
from bitkiln.pipeline.ir.graph import bindings, op_name
from bitkiln.pipeline.model import Model, TensorSpec
from bitkiln.pipeline.passes.pipeline import Lowered, lower
from bitkiln.pipeline.verify.steps import output_steps

op, nn = relax.op, relax.op.nn

DIGEST = "0" * 64


@dataclass(frozen=True)
class Case:
    """How the small network is varied: what zeros before the first sign count as, padding, and the seed of its weights."""

    sign_zero: int = 1
    pad_value: int = 0
    seed: int = 2


#: The network unvaried.
PLAIN = Case()


def small_module(case: Case) -> tvm.IRModule:
    """A float stem, two binary layers (one with a pooling), a dense layer and softmax, NHWC."""
    rng = np.random.default_rng(case.seed)

    def normal(*shape: int) -> relax.Expr:
        return relax.const(rng.standard_normal(shape).astype("float32"))

    x = relax.Var("x", relax.TensorType((1, 8, 8, 3), "float32"))
    builder = relax.BlockBuilder()

    def conv(x, channels, outs, name):
        weight = normal(outs, 3, 3, channels)
        call = nn.conv2d(x, weight, padding=1, data_layout="NHWC", kernel_layout="OHWI", out_layout="NHWC")
        return builder.emit(op.add(builder.emit(call), normal(outs)), name)

    def binary(x, channels, outs, name):
        weight = relax.const(ops.pack_bits(rng.choice([-1, 1], (outs, 3, 3, channels))), "uint8")
        bits = builder.emit(ops.binarize(x, sign_zero=case.sign_zero), f"{name}_bits")
        call = ops.bconv2d(bits, weight, channels=channels, padding=(1, 1, 1, 1), pad_value=case.pad_value)
        return builder.emit(call, name)

    with builder.function("main", [x]):
        with builder.dataflow():
            stem = conv(x, 3, 16, "stem")
            first = binary(stem, 16, 24, "first")
            second = binary(builder.emit(op.add(first, normal(24)), "norm"), 24, 16, "second")
            pooled = builder.emit(nn.max_pool2d(second, (2, 2), (2, 2), layout="NHWC", out_layout="NHWC"), "pooled")
            third = binary(pooled, 16, 16, "third")
            row = builder.emit(op.reshape(builder.emit(nn.relu(third), "relu"), (1, 256)), "row")
            logits = builder.emit(op.matmul(row, op.multiply(normal(256, 10), relax.const(0.02))), "logits")
            result = builder.emit_output(builder.emit(nn.softmax(logits, 1), "softmax"))
        builder.emit_func_output(result)
    return relax.transform.Normalize()(builder.finalize())


def small_model(case: Case = PLAIN) -> Model:
    """The network as an importer would give it."""
    specs = (TensorSpec("x", (1, 8, 8, 3), layout="NHWC"),), (TensorSpec("y", (1, 10)),)
    return Model("small", small_module(case), *specs, DIGEST)


def listed(lowered: Lowered) -> list[tuple[str, str]]:
    """Name and kind of each step, as a bundle lists them."""
    names = [(name, op_name(value)) for name, value in bindings(lowered.module["main"])]
    return [(name, "kernel") for name, operator in names if operator == "call_tir"]


def run_steps(lowered: Lowered, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What a faithful board gives: the inputs, and every step's result."""
    names = [name for name, _ in listed(lowered)]
    return {**inputs, **reference.evaluate(lowered.phases["fold_threshold"], inputs, names)}


class FakeBoard:
    """Computes ``model`` with the reference; hands out its bundle, which claims to be compiled from ``claims``."""

    def __init__(self, model: Model, folder: Path, claims: Model | None = None) -> None:
        self.model, self.lowered = model, lower(model, targets.load("rasp3b"))
        claims = claims or model
        tensors = [
            [{"name": spec.name, "dtype": "float32", "shape": list(spec.shape)} for spec in specs]
            for specs in (model.inputs, model.outputs)
        ]
        self.bundle = Bundle(
            folder,
            {
                "model": {"name": claims.name, "sha256": claims.source_digest},
                "target": "rasp3b",
                "inputs": tensors[0],
                "outputs": tensors[1],
                "files": {},
                "steps": [{"name": name, "kind": kind} for name, kind in listed(self.lowered)],
            },
        )

    def __call__(self, _bundle: Bundle, inputs: dict[str, np.ndarray]) -> Answer:
        trace = run_steps(self.lowered, dict(inputs))
        outputs = {name: trace[step] for name, step in output_steps(self.model, self.lowered)}
        return Answer(outputs, 0.0, "a fake board", 1, (), trace)
