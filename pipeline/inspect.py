"""What a network consists of: a row for each layer, for each convolution whether it is binary or why not, totals and bounds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, TypeVar

import tvm
from tvm import relax
from tvm.ir import Call, GenericConst

from bitkiln.pipeline.errors import BitkilnError
from bitkiln.pipeline.inspect_advice import advise
from bitkiln.pipeline.model import Model, TensorSpec
from bitkiln.pipeline.ops import has_workload, workload_of
from bitkiln.pipeline.ops.register import ints
from bitkiln.pipeline.passes.graph import bindings, op_name, shape_of, variables
from bitkiln.pipeline.passes.lower import Survey, finish, origin, survey
from bitkiln.pipeline.passes.recognise_binary import Verdict
from bitkiln.pipeline.plan import activation_bytes, read_network
from bitkiln.pipeline.profile import LayerWork
from bitkiln.schedules.workload import Binarize, Conv2d, Pool2d, packed
from bitkiln.targets import Target

#: Layers that multiply by weights and get an answer to whether they are binary.
CONVOLUTIONS = frozenset(
    {"conv1d", "conv2d", "conv3d", "bconv2d", "matmul"} | {f"conv{n}d_transpose" for n in (1, 2, 3)}
)

_Known = TypeVar("_Known")

#: Bytes of a weight as engines without binary layers hold it.
FLOAT_BYTES = 4


@dataclass(frozen=True)
class Row:
    """A layer of the network as its file has it.

    ``shape`` is the result's, ``input_shape`` that of the first tensor it reads, both in the file's layout; ``inputs`` names
    the rows and network inputs it reads. Where one of the two is packed bits, its last axis is bytes, and ``bits`` or
    ``input_bits`` says how many channels they hold.

    ``macs`` are multiply-accumulates, padded taps included. ``binary`` is None for what is no convolution (dense layers count
    as convolutions); ``reason`` says why it is binary or not. ``suspicious``: half of the pattern of a binary convolution is
    there, and yet it is none.

    Convolutions and poolings have ``kernel``, ``strides``, ``padding`` (top, left, bottom, right; what pads a binary
    convolution from outside included) and ``dilation``. ``weight_bytes`` are those of the weights as float32,
    ``packed_bytes`` as compiled, ``constant_bytes`` those of what else the compiled layer reads: thresholds, biases, slopes.
    ``sign_zero`` is the sign (+1, -1, or 0 for none) that an exact zero of its input gets, ``pad_value`` what padded taps hold
    (+1, -1, or 0, a true zero); None where nothing is signed or padded. ``result`` is "bits" or "float32": what a compiled
    convolution writes. ``absorbed``: the layer is no operation of the compiled network, but part of how the file spells
    signs, or known beforehand. ``warnings`` are what the user may want to change, ``notes`` what is good to know.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    macs: int = 0
    binary: bool | None = None
    reason: str = ""
    suspicious: bool = False
    input_shape: tuple[int, ...] = ()
    bits: int = 0
    input_bits: int = 0
    inputs: tuple[str, ...] = ()
    kernel: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    weight_bytes: int = 0
    packed_bytes: int = 0
    constant_bytes: int = 0
    sign_zero: int | None = None
    pad_value: int | None = None
    result: str = ""
    absorbed: bool = False
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """The row as plain values."""
        return asdict(self)

    def roof_ms(self, target: Target) -> float:
        """The least time that the layer's MACs and the weights they need take on one core of ``target``."""
        read = self.packed_bytes + self.constant_bytes
        work = LayerWork(self.name, self.kind, self.macs, bool(self.binary), read)
        return work.roof_cycles(target) / (target.mhz * 1e3)


@dataclass(frozen=True)
class Totals:
    """Sums over a network. ``convolutions`` counts dense layers too; ``activation_bytes`` is the arena's size.

    ``constant_bytes`` are those of everything but weights that the compiled network reads. ``activation_bytes`` is None where
    the network cannot be compiled.
    """

    convolutions: int
    binary: int
    binary_macs: int
    float_macs: int
    weight_bytes: int
    packed_bytes: int
    constant_bytes: int
    activation_bytes: int | None


@dataclass(frozen=True)
class Bound:
    """The least time of a frame on one core of ``target``, by direct convolutions; nothing here was measured."""

    target: Target
    ms: float
    binary_ms: float
    float_ms: float

    def as_json(self) -> dict[str, Any]:
        """The bound as plain values."""
        return {
            "target": self.target.name,
            "description": self.target.description,
            "bound_ms": self.ms,
            "binary_ms": self.binary_ms,
            "float_ms": self.float_ms,
        }


@dataclass(frozen=True)
class Inspection:
    """All that is to be said of a network. ``problems`` are why it cannot be compiled as it is."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    rows: tuple[Row, ...]
    totals: Totals
    bounds: tuple[Bound, ...] = ()
    problems: tuple[str, ...] = ()
    #: The rows or inputs that the network's results are, in the order of ``outputs``.
    results: tuple[str, ...] = field(default=())

    def as_json(self) -> dict[str, Any]:
        """Everything but the rows as plain values; warnings and notes with the layers they are about."""
        return {
            "model": self.name,
            "inputs": [asdict(spec) for spec in self.inputs],
            "outputs": [asdict(spec) for spec in self.outputs],
            "totals": asdict(self.totals),
            "bounds": [bound.as_json() for bound in self.bounds],
            "problems": list(self.problems),
            "warnings": [{"layers": list(names), "text": text} for text, names in gathered(self.rows, "warnings")],
            "notes": [{"layers": list(names), "text": text} for text, names in gathered(self.rows, "notes")],
        }


def gathered(rows: Sequence[Row], kind: str) -> list[tuple[str, list[str]]]:
    """Each text among the rows' "warnings" or "notes" once, with the layers it is about."""
    found: dict[str, list[str]] = {}
    for row in rows:
        for text in getattr(row, kind):
            found.setdefault(text, []).append(row.name)
    return list(found.items())


def inspect_model(model: Model, targets: Sequence[Target]) -> Inspection:
    """Look at ``model`` without compiling it: what compiling would refuse is a problem in the answer, not an error."""
    found = survey(model.module)
    reader = _Reader(model, found)
    rows = reader.rows()
    memory, refused = _activations(found, targets) if targets and not found.problem else (None, found.problem)
    return Inspection(
        name=model.name,
        inputs=model.inputs,
        outputs=model.outputs,
        rows=tuple(rows),
        totals=_totals(rows, memory, _constants(found)),
        bounds=tuple(_bound(rows, target) for target in targets),
        problems=(refused,) if refused else (),
        results=reader.results(),
    )


def layer_table(model: Model) -> list[Row]:
    """One row for each operation of ``model``, in execution order."""
    return _Reader(model, survey(model.module)).rows()


def _activations(found: Survey, targets: Sequence[Target]) -> tuple[int | None, str]:
    """The bytes that activations share, and why the network cannot be compiled."""
    try:
        return activation_bytes(read_network(finish(found, targets[0]).module)), ""
    except BitkilnError as error:
        return None, str(error)


def _totals(rows: Sequence[Row], activations: int | None, constants: int) -> Totals:
    convolutions = [row for row in rows if row.binary is not None]
    binary = [row for row in convolutions if row.binary]
    binary_macs = sum(row.macs for row in binary)
    packed_bytes = sum(row.packed_bytes for row in rows)
    return Totals(
        convolutions=len(convolutions),
        binary=len(binary),
        binary_macs=binary_macs,
        float_macs=sum(row.macs for row in rows) - binary_macs,
        weight_bytes=sum(row.weight_bytes for row in rows),
        packed_bytes=packed_bytes,
        constant_bytes=max(constants - packed_bytes, 0),
        activation_bytes=activations,
    )


def _bound(rows: Sequence[Row], target: Target) -> Bound:
    binary = sum(row.roof_ms(target) for row in rows if row.binary)
    floats = sum(row.roof_ms(target) for row in rows if not row.binary)
    return Bound(target, binary + floats, binary, floats)


def _constants(found: Survey) -> int:
    """Bytes of all constants of the network as it is compiled, each counted once."""
    if "thresholds" not in found.phases:
        return 0
    values = [arg for _, value in bindings(found.phases["thresholds"]["main"]) for arg in _constant_args(value)]
    return sum(_nbytes(value) for value in dict.fromkeys(values))


class _Reader:
    """Makes the rows of ``model`` with what a survey found out about it."""

    def __init__(self, model: Model, found: Survey) -> None:
        self.main = model.module["main"]
        #: What the file calls the network's inputs, by their variables' names.
        self.inputs = {param.name: spec.name for param, spec in zip(self.main.params, model.inputs, strict=False)}
        self.found = found
        self.verdicts = {verdict.name: verdict for verdict in found.verdicts}
        self.advice = advise(found)
        self.operators = found.binary_operators()
        self.recognised = found.defined("recognised") if "recognised" in found.phases else {}
        #: For each binary convolution that keeps floats before the next sign, why it does.
        self.floats = {origin(note.name, self.recognised, self.verdicts): note.reason for note in found.notes}
        self.compiled = self._compiled()
        #: Other names by which passes may know an operation: those that the file's network only gives its result.
        self.aliases = {value.name: name for name, value in _operations(self.main) if isinstance(value, relax.Var)}

    def rows(self) -> list[Row]:
        names = self._row_names()
        return [
            self._row(name, value, names)
            for name, value in _operations(self.main)
            if isinstance(value, Call) and _tensor_type(value) is not None
        ]

    def results(self) -> tuple[str, ...]:
        """The names of the rows and inputs that the network's results are."""
        names = self._row_names()
        return tuple(name for var in variables(self.main.body.body) for name in names.get(var.name, ()))

    def _of(self, known: Mapping[str, _Known], name: str) -> _Known | None:
        """What is known of the file's operation ``name``."""
        while name not in known and name in self.aliases:
            name = self.aliases[name]
        return known.get(name)

    def _row_names(self) -> dict[str, tuple[str, ...]]:
        """For each variable of the file's network the rows and inputs it stands for."""
        names = {param.name: (self.inputs.get(param.name, param.name),) for param in self.main.params}
        for name, value in _operations(self.main):
            if isinstance(value, Call):
                names[name] = (name,)
            else:
                names[name] = tuple(found for var in variables(value) for found in names.get(var.name, ()))
        return names

    def _row(self, name: str, call: Call, names: Mapping[str, tuple[str, ...]]) -> Row:
        kind = op_name(call).removeprefix("nn.").removeprefix("bitkiln.")
        read = list(variables(call))
        row = Row(
            name=name,
            kind=kind,
            shape=shape_of_type(_tensor_type(call)),
            macs=_macs(call),
            input_shape=shape_of_type(read[0].ty) if read else (),
            inputs=tuple(dict.fromkeys(source for var in read for source in names.get(var.name, ()))),
            absorbed="recognised" in self.found.phases and self._of(self.recognised, name) is None,
            warnings=tuple(self._of(self.advice.warnings, name) or ()),
            notes=tuple(self._of(self.advice.notes, name) or ()),
            **_packed_channels(call),
            **_window(call),
        )
        if kind in CONVOLUTIONS:
            return self._convolution(row, call)
        workload = workload_of(call) if has_workload(call) else None
        return replace(row, sign_zero=workload.sign_zero) if isinstance(workload, Binarize) else row

    def _convolution(self, row: Row, call: Call) -> Row:
        unseen = "not looked at, since the network cannot be compiled" if self.found.problem else _unseen(call)
        verdict = self._of(self.verdicts, row.name) or Verdict(row.name, False, unseen)
        count = _weight_count(call)
        row = replace(
            row,
            binary=verdict.binary,
            suspicious=verdict.suspicious,
            reason=verdict.reason,
            weight_bytes=count * FLOAT_BYTES,
            packed_bytes=count * FLOAT_BYTES,
        )
        final = self._of(self.compiled, row.name)
        if final is not None:
            others = dict.fromkeys(_constant_args(Call(final.op, final.args[2:], final.attrs)))
            row = replace(row, result=workload_of(final).out, constant_bytes=sum(map(_nbytes, others)))
        return self._conventions(row) if verdict.binary else row

    def _conventions(self, row: Row) -> Row:
        """What a binary convolution takes the signs of zeros and of padding to be, and whether its result stays bits."""
        calls = [self.recognised[name] for name in self._of(self.operators, row.name) or ()]
        if not calls:
            return row
        call = calls[0]
        work = workload_of(call)
        out_channels, *kernel, _ = shape_of(call.args[1])
        bits = out_channels * math.prod(kernel) * packed(work.channels // work.groups)
        # Two operators with the two signs of zero add up to a zero that counts as none.
        sign_zero = self._sign_zero(call.args[0]) if len(calls) == 1 else 0
        reason = row.reason
        if sign_zero and "zeros count" not in reason:
            reason = f"{reason}, sign(0) = {sign_zero:+d}"
        floats = self._of(self.floats, row.name)
        return replace(
            row,
            reason=f"{reason}; keeps floats: {floats}" if floats else reason,
            packed_bytes=bits,
            sign_zero=sign_zero,
            padding=work.padding,
            pad_value=work.pad_value if any(work.padding) else None,
        )

    def _sign_zero(self, bits: relax.Expr) -> int | None:
        """The sign of zero by which ``bits`` of the recognised network were made; None where sums were compared."""
        while isinstance(bits, relax.Var) and bits.name in self.recognised:
            call = self.recognised[bits.name]
            if has_workload(call) and isinstance(workload_of(call), Binarize):
                return workload_of(call).sign_zero
            if op_name(call) not in ("reshape", "bitkiln.bmaxpool2d"):
                return None
            bits = call.args[0]
        return None

    def _compiled(self) -> dict[str, Call]:
        """The operator that each convolution is compiled as, with what was drawn into it."""
        if "thresholds" not in self.found.phases:
            return {}
        # Passes rename operators as they draw others in; a float convolution's new name is behind the old one, a binary
        # one's is known, and from there on operators keep their weights until thresholds turn them around.
        owners = {operator: name for name, operators in self.operators.items() for operator in operators}
        weights = {
            value.args[1]: owners.get(name) or origin(self._base(name), self.recognised, self.verdicts)
            for name, value in self.found.defined("operators").items()
            if _is_convolution(value)
        }
        fused, compiled = self.found.defined("fused"), {}
        for name, value in self.found.defined("thresholds").items():
            before = fused.get(name if name in fused else name.removesuffix(".unpooled"))
            if op_name(before) == "bitkiln.binarize":
                before = fused.get(before.args[0].name)
            if _is_convolution(value) and _is_convolution(before) and before.args[1] in weights:
                compiled[weights[before.args[1]]] = value
        return compiled

    def _base(self, name: str) -> str:
        """The operation of the recognised network that a pass made ``name`` from: passes only append to names."""
        while name not in self.recognised and "." in name:
            name = name.rpartition(".")[0]
        return name


def _operations(function: relax.Function) -> Iterator[tuple[str, relax.Expr]]:
    """Name and value of each binding, those that check a shape while the network runs included."""
    for block in function.body.blocks:
        for binding in block.bindings:
            yield binding.var.name, binding.value


def shape_of_type(ty: tvm.ir.Type) -> tuple[int, ...]:
    """The shape of a tensor, -1 where it is not known; of a tuple the first tensor's."""
    ty = ty.fields[0] if hasattr(ty, "fields") and len(ty.fields) else ty
    sizes = getattr(getattr(ty, "shape", None), "values", [None] * max(int(getattr(ty, "ndim", 0)), 0))
    return tuple(int(getattr(size, "value", -1)) for size in sizes)


def _tensor_type(value: Call) -> tvm.ir.Type | None:
    """The type of a call that gives a tensor, or several."""
    ty = value.ty
    given = isinstance(ty, relax.TensorType) or (hasattr(ty, "fields") and len(ty.fields) > 0)
    return ty if given else None


def _is_convolution(value: relax.Expr | None) -> bool:
    return has_workload(value) and isinstance(workload_of(value), Conv2d)


def _constant_args(value: relax.Expr) -> list[relax.Expr]:
    return [arg for arg in getattr(value, "args", ()) if isinstance(arg, GenericConst)]


def _nbytes(constant: relax.Expr) -> int:
    return math.prod(shape_of(constant)) * max(constant.value.numpy().itemsize, 1)


def _unseen(call: Call) -> str:
    """Why a convolution or matrix product got no verdict."""
    if not list(variables(call)):
        return "its result is known before the network runs"
    if op_name(call) == "matmul" and not isinstance(call.args[1], GenericConst):
        return "a product of two tensors that are computed while the network runs"
    if op_name(call) == "matmul":
        return "only rows of batch 1, in float32, can be binary"
    return f"only two-dimensional convolutions can be binary, not {op_name(call).removeprefix('nn.')}"


def _packed_channels(call: Call) -> dict[str, int]:
    """How many channels the bits hold that an operator of ours reads and writes."""
    workload = workload_of(call) if has_workload(call) else None
    if isinstance(workload, Binarize):
        return {"bits": workload.channels}
    if isinstance(workload, Conv2d):
        written = workload.out_channels if workload.out == "bits" else 0
        return {"bits": written, "input_bits": workload.channels if workload.binary else 0}
    if isinstance(workload, Pool2d):
        read = workload.channels if workload.bits else 0
        return {"bits": workload.channels if workload.out == "bits" else 0, "input_bits": read}
    return {}


def _window(call: Call) -> dict[str, Any]:
    """Kernel, strides, padding, dilation and groups of a convolution or pooling in the file."""
    workload = workload_of(call) if has_workload(call) else None
    if isinstance(workload, Conv2d):
        names = ("kernel", "strides", "padding", "dilation", "groups")
        return {name: getattr(workload, name) for name in names}
    if isinstance(workload, Pool2d):
        return {name: getattr(workload.pool, name) for name in ("kernel", "strides", "padding")}
    operator, attrs = op_name(call).removeprefix("nn."), call.attrs
    if operator in ("max_pool2d", "avg_pool2d"):
        kernel = ints(attrs["pool_size"])
    elif operator in CONVOLUTIONS and operator != "matmul":
        layout = str(attrs["kernel_layout"])
        kernel = tuple(size for size, letter in zip(shape_of(call.args[1]), layout, strict=False) if letter in "DHW")
    else:
        return {}
    window = {"kernel": kernel} | {name: ints(attrs[name]) for name in ("strides", "padding", "dilation")}
    return window | ({"groups": int(attrs["groups"])} if "conv" in operator else {})


def _weight_count(call: Call) -> int:
    """How many weights a convolution or matrix product has; those computed while the network runs do not count."""
    if has_workload(call):
        work = workload_of(call)
        return work.out_channels * math.prod(work.kernel) * (work.channels // work.groups)
    return sum(math.prod(shape_of(arg)) for arg in _constant_args(call))


def _macs(call: Call) -> int:
    """Multiply-accumulates of a convolution or matrix product; none where a shape is not known."""
    if has_workload(call):
        return workload_of(call).macs
    operator = op_name(call).removeprefix("nn.")
    if operator not in CONVOLUTIONS:
        return 0
    result, read, weights = (shape_of_type(expr.ty) for expr in (call, *call.args[:2]))
    if min((*result, *read, *weights), default=-1) < 0:
        return 0
    if operator == "matmul":
        return math.prod(result) * read[-1]
    if operator.endswith("_transpose"):
        # Every input element meets the weights of its channel.
        channels = weights[str(call.attrs["kernel_layout"]).index("I")]
        return math.prod(read) * (math.prod(weights) // max(channels, 1))
    channels = weights[str(call.attrs["kernel_layout"]).index("O")]
    return math.prod(result) * (math.prod(weights) // max(channels, 1))
