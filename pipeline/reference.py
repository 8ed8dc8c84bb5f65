"""What a network has to compute, in numpy, evaluated binding by binding.

Operators that are not listed here (no common layer of a CNN) are run as TVM defines them, on this machine.

Binary convolutions are integer-exact. Float arithmetic is float32, one operation after another as the graph states them;
only convolutions and means sum in an order of numpy's choosing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import tvm
from tvm import relax
from tvm.ir import Call, GenericConst
from tvm.relax import TupleGetItem

from bitkiln.pipeline.errors import ModelError
from bitkiln.pipeline.ops import has_workload, pack_bits, unpack_bits, workload_of
from bitkiln.pipeline.ops.register import ints
from bitkiln.pipeline.ops.words import evaluate_words
from bitkiln.pipeline.passes.graph import bindings, op_name, variables
from bitkiln.schedules.workload import Binarize, Concat, Conv2d, Pool, Pool2d, Step

Tensors = Mapping[str, np.ndarray]
Value = np.ndarray | tuple[np.ndarray, ...]


#: Stands in for the evaluation of single bindings: the name, the operation, what is known -> its value, or None.
Instead = Callable[[str, relax.Expr, Mapping[str, Value]], Value | None]


def evaluate(
    module: tvm.IRModule,
    known: Tensors,
    wanted: Iterable[str] | None = None,
    wide: bool = False,
    instead: Instead = lambda _name, _expr, _values: None,
) -> dict[str, np.ndarray]:
    """The tensors called ``wanted`` (all, where None) of ``main``, given ``known`` ones: inputs or anything between.

    Only what ``wanted`` needs beyond ``known`` is computed, so a part of the network can be run from its own inputs.
    With ``wide`` every float32 between is float64: the difference to float32 is what rounding makes of it. ``instead``
    may evaluate a binding in another way.
    """
    defined = dict(bindings(module["main"]))
    targets = list(defined) if wanted is None else list(wanted)
    widen = _widened if wide else lambda value: value
    values: dict[str, Value] = {name: widen(value) for name, value in known.items()}
    for name in _order(defined, values, targets):
        try:
            value = instead(name, defined[name], values)
            values[name] = widen(evaluate_call(module, defined[name], values) if value is None else value)
        except NotImplementedError as error:
            raise ModelError(f"{name}: no reference for operator {error}") from None
    return {name: values[name] for name in targets if isinstance(values[name], np.ndarray)}


def needed(module: tvm.IRModule, known: Iterable[str], wanted: Iterable[str]) -> list[str]:
    """The bindings of ``main`` that compute ``wanted`` from ``known`` tensors, in order."""
    return _order(dict(bindings(module["main"])), dict.fromkeys(known), wanted)


def _widened(value: Value) -> Value:
    if isinstance(value, tuple):
        return tuple(map(_widened, value))
    return value.astype(np.float64) if value.dtype == np.float32 else value


def run(module: tvm.IRModule, inputs: Tensors) -> list[np.ndarray]:
    """The network's outputs."""
    names = output_names(module)
    values = evaluate(module, inputs, names)
    return [values[name] for name in names]


def output_names(module: tvm.IRModule) -> list[str]:
    """Names of the tensors that ``main`` returns."""
    function = module["main"]
    result = function.body.body
    made_by = dict(bindings(function)).get(result.name) if isinstance(result, relax.Var) else None
    return [var.name for var in variables(made_by if isinstance(made_by, relax.Tuple) else result)]


def apply_epilogue(steps: Sequence[Step], value: np.ndarray, operands: Sequence[np.ndarray]) -> np.ndarray:
    """``value`` float32 [..., H, W, C] after the steps of an epilogue."""
    remaining = iter(operands)
    for step in steps:
        operand = next(remaining) if step.operand else None
        if step.operand == "half":
            operand = np.concatenate([operand, operand], axis=-1)
        value = _step(step, value, operand)
    return value


def sign_bits(value: np.ndarray, sign_zero: int) -> np.ndarray:
    """The signs of float32 [..., C] as bits; ``sign_zero`` is that of zero, NaN counts as negative."""
    with np.errstate(invalid="ignore"):
        return pack_bits(value >= 0 if sign_zero > 0 else value > 0)


def pool(value: np.ndarray, window: Pool) -> np.ndarray:
    """Maximum or average pooling of [1, H, W, C]."""
    fill = (np.finfo(value.dtype).min if value.dtype.kind == "f" else np.iinfo(value.dtype).min) * (
        window.kind == "max"
    )
    taps = _windows(_pad(value, window.padding, fill), window.kernel, window.strides, (1, 1))
    if window.kind == "max":
        return taps.max(axis=(3, 4))
    if window.count_include_pad:
        return taps.sum(axis=(3, 4)) / value.dtype.type(window.kernel[0] * window.kernel[1])
    inside = _windows(_pad(np.ones_like(value), window.padding, 0), window.kernel, window.strides, (1, 1))
    return taps.sum(axis=(3, 4)) / inside.sum(axis=(3, 4))


def convolve(
    value: np.ndarray,
    weight: np.ndarray,
    strides: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    pad_value: float = 0,
) -> np.ndarray:
    """Cross-correlation of float32 (or float64) [N, H, W, C] with OHWI weights -> [N, H', W', O]; exact for small integers."""
    out_channels, height, width, per_group = weight.shape
    dtype = np.result_type(value, weight)
    taps = _windows(_pad(value, padding, pad_value), (height, width), strides, dilation)
    batch, out_height, out_width = taps.shape[:3]
    if per_group == 1 and groups == value.shape[3] == out_channels:
        return np.einsum("nhwyxc,cyx->nhwc", taps, weight[..., 0], optimize=True).astype(dtype)
    result = np.empty((batch, out_height, out_width, out_channels), dtype)
    outs = out_channels // groups
    for group in range(groups):
        part = taps[..., group * per_group : (group + 1) * per_group].reshape(batch * out_height * out_width, -1)
        filters = weight[group * outs : (group + 1) * outs].reshape(outs, -1)
        result[..., group * outs : (group + 1) * outs] = (part @ filters.T).reshape(batch, out_height, out_width, outs)
    return result


def accumulate(workload: Conv2d, data: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The sums of a convolution before its epilogue, float32 [1, H', W', O] (whole numbers for a binary one)."""
    if workload.binary:
        data = unpack_bits(data, workload.channels).astype(np.float32)
        weight = unpack_bits(weight, workload.channels // workload.groups).astype(np.float32)
    return convolve(
        data,
        weight,
        workload.strides,
        workload.padding,
        workload.dilation,
        workload.groups,
        workload.pad_value,
    )


def compute(workload: Conv2d | Binarize | Pool2d | Concat, args: Sequence[np.ndarray]) -> np.ndarray:
    """One of our operators on its arguments, in the order of ``workload.shapes``."""
    if isinstance(workload, Binarize):
        return sign_bits(apply_epilogue(workload.epilogue, args[0], args[1:]), workload.sign_zero)
    if isinstance(workload, Pool2d):
        return _compute_pool(workload, args)
    if isinstance(workload, Concat):
        parts = len(workload.parts)
        return apply_epilogue(workload.epilogue, np.concatenate(args[:parts], axis=3), args[parts:])
    if workload.shift or workload.layout != "NHWC":
        return _compute_on_image(workload, args)
    value = accumulate(workload, args[0], args[1])
    if workload.threshold:
        size = value.shape if workload.threshold == "element" else value.shape[3:]
        return pack_bits(
            np.logical_xor.reduce([value >= each for each in args[-1].reshape(workload.thresholds, *size)])
        )
    value = apply_epilogue(workload.epilogue, value, args[2:])
    value = pool(value, workload.pool) if workload.pool else value
    return sign_bits(value, workload.sign_zero) if workload.out == "bits" else value


def _compute_on_image(workload: Conv2d, args: Sequence[np.ndarray]) -> np.ndarray:
    """A first layer that reads the image as it comes."""
    image = args[0] if workload.layout == "NHWC" else args[0].transpose(0, 2, 3, 1)
    if workload.shift:
        image, args = image + args[-1], args[:-1]
    return compute(replace(workload, shift=False, layout="NHWC"), [image, *args[1:]])


def _compute_pool(workload: Pool2d, args: Sequence[np.ndarray]) -> np.ndarray:
    if not workload.bits:
        value = apply_epilogue(workload.epilogue, pool(args[0], workload.pool), args[1:])
        return sign_bits(value, workload.sign_zero) if workload.out == "bits" else value
    result = pack_bits(pool(unpack_bits(args[0], workload.channels), workload.pool))
    return result ^ args[1] if workload.invert else result


def _step(step: Step, x: np.ndarray, operand: np.ndarray | None) -> np.ndarray:
    values = [np.float32(value) for value in step.values]
    with np.errstate(over="ignore", invalid="ignore"):
        match step.op:
            case "mul":
                return x * operand
            case "div":
                return x / operand
            case "add":
                return x + operand
            case "prelu":
                return np.where(x > 0, x, x * operand)
            case "relu":
                return np.maximum(x, np.float32(0))
            case "clip":
                return np.minimum(np.maximum(x, values[0]), values[1])
            case "leaky":
                return np.where(x > 0, x, x * values[0])
            case "sigmoid":
                return _sigmoid(x)
            case "tanh":
                return np.tanh(x)
            case "silu":
                return x * _sigmoid(x)
            case "hardsigmoid":
                return np.clip(x * values[0] + values[1], np.float32(0), np.float32(1))
            case "hardswish":
                return x * np.clip(x * np.float32(1 / 6) + np.float32(0.5), np.float32(0), np.float32(1))
    raise NotImplementedError(step.op)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return np.float32(1) / (np.float32(1) + np.exp(-x))


def _pad(value: np.ndarray, padding: Sequence[int], fill: float) -> np.ndarray:
    top, left, bottom, right = padding
    return np.pad(value, ((0, 0), (top, bottom), (left, right), (0, 0)), constant_values=fill)


def _windows(value: np.ndarray, kernel: Sequence[int], strides: Sequence[int], dilation: Sequence[int]) -> np.ndarray:
    """[N, H, W, C] -> [N, H', W', kh, kw, C], a view."""
    reach = [(size - 1) * step + 1 for size, step in zip(kernel, dilation, strict=True)]
    taps = np.lib.stride_tricks.sliding_window_view(value, reach, axis=(1, 2))
    taps = taps[:, :: strides[0], :: strides[1], :, :: dilation[0], :: dilation[1]]
    return taps.transpose(0, 1, 2, 4, 5, 3)


def _order(defined: Mapping[str, relax.Expr], known: Collection[str], wanted: Iterable[str]) -> list[str]:
    """The bindings to compute for ``wanted``, in the order they stand in."""
    needed: set[str] = set()
    pending = list(wanted)
    while pending:
        name = pending.pop()
        if name in known or name in needed:
            continue
        if name not in defined:
            raise KeyError(f"{name} is neither known nor computed by the network")
        needed.add(name)
        pending.extend(var.name for var in variables(defined[name]))
    return [name for name in defined if name in needed]


def evaluate_call(module: tvm.IRModule, expr: relax.Expr, values: Mapping[str, Value]) -> Value:
    """One operation on the tensors it reads; NotImplementedError names an operator that has no reference."""
    if isinstance(expr, relax.Var):
        return values[expr.name]
    if isinstance(expr, GenericConst):
        return expr.value.numpy()
    if isinstance(expr, relax.Tuple):
        return tuple(evaluate_call(module, item, values) for item in expr.fields)
    if isinstance(expr, TupleGetItem):
        return evaluate_call(module, expr.tuple_value, values)[expr.index]
    if not isinstance(expr, Call):
        return expr
    if op_name(expr) == "call_tir":
        args = evaluate_call(module, expr.args[1], values)
        return _call_tir(module[expr.args[0]], args, expr)
    args = [evaluate_call(module, arg, values) for arg in expr.args]
    if has_workload(expr):
        return compute(workload_of(expr), args)
    function = OPERATORS.get(op_name(expr))
    return function(expr, *args) if function else _by_tvm(expr, args)


def _by_tvm(call: Call, args: Sequence[np.ndarray]) -> np.ndarray:
    """An operator that has no definition here, by TVM's own; NotImplementedError where it has none either."""
    if not all(isinstance(arg, np.ndarray) for arg in args):
        raise NotImplementedError(op_name(call))
    params = [relax.Var(f"x{i}", relax.TensorType(arg.shape, str(arg.dtype))) for i, arg in enumerate(args)]
    builder = relax.BlockBuilder()
    with builder.function("main", params):
        with builder.dataflow():
            result = builder.emit_output(builder.emit(Call(call.op, params, call.attrs, call.ty_args)))
        builder.emit_func_output(result)
    try:
        machine = relax.VirtualMachine(tvm.compile(builder.finalize(), target="llvm"), tvm.cpu())
        result = machine["main"](*map(_tensor, args))
    except (ValueError, tvm.error.InternalError):
        raise NotImplementedError(op_name(call)) from None
    return result.numpy() if isinstance(result, tvm.runtime.Tensor) else tuple(item.numpy() for item in result)


def _call_tir(func: tvm.tirx.PrimFunc, args: Sequence[np.ndarray], call: Call) -> np.ndarray:
    """Run a PrimFunc that an importer put into the graph; it has no other definition than its TIR."""
    library = tvm.compile(func.with_attr("global_symbol", "main"), target="llvm")
    out = call.ty_args[0]
    result = tvm.runtime.empty([int(size) for size in out.shape.values], str(out.dtype))
    library["main"](*map(_tensor, args), result)
    return result.numpy()


def _tensor(array: np.ndarray) -> tvm.runtime.Tensor:
    """A copy for TVM; tvm.runtime.tensor would make a vector of a scalar."""
    return tvm.runtime.empty(array.shape, str(array.dtype)).copyfrom(np.array(array, order="C"))


def _axes(call: Call, value: np.ndarray) -> tuple[int, ...]:
    axis = call.attrs["axis"]
    if axis is None:
        return tuple(range(value.ndim))
    return ints(axis) if not isinstance(axis, int) else (axis,)


def _conv2d(call: Call, x: np.ndarray, w: np.ndarray) -> np.ndarray:
    attrs = call.attrs
    x = _to(x, str(attrs["data_layout"]), "NHWC")
    w = _to(w, str(attrs["kernel_layout"]), "OHWI")
    y = convolve(x, w, ints(attrs["strides"]), ints(attrs["padding"]), ints(attrs["dilation"]), int(attrs["groups"]))
    return _to(y, "NHWC", str(attrs["out_layout"] or attrs["data_layout"]))


def _conv2d_transpose(call: Call, x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Every input pixel adds its weighted window to the output, which is then cropped by the padding."""
    attrs = call.attrs
    x, w = _to(x, str(attrs["data_layout"]), "NHWC"), _to(w, str(attrs["kernel_layout"]), "IOHW")
    (stride_y, stride_x), (step_y, step_x) = ints(attrs["strides"]), ints(attrs["dilation"])
    top, left, bottom, right = ints(attrs["padding"])
    extra_y, extra_x = ints(attrs["output_padding"])
    groups, (ins, outs, height, width) = int(attrs["groups"]), w.shape
    rows, columns = x.shape[1:3]
    size = [(rows - 1) * stride_y + (height - 1) * step_y + 1, (columns - 1) * stride_x + (width - 1) * step_x + 1]
    y = np.zeros((len(x), size[0] + extra_y, size[1] + extra_x, outs * groups), np.float32)
    for group in range(groups):
        data = x[..., group * ins // groups : (group + 1) * ins // groups]
        filters = w[group * ins // groups : (group + 1) * ins // groups]
        for ky in range(height):
            for kx in range(width):
                spread = y[:, ky * step_y :, kx * step_x :, group * outs : (group + 1) * outs]
                spread[:, : rows * stride_y : stride_y, : columns * stride_x : stride_x] += data @ filters[:, :, ky, kx]
    y = y[:, top : y.shape[1] - bottom, left : y.shape[2] - right]
    return _to(y, "NHWC", str(attrs["out_layout"] or attrs["data_layout"]))


def _to(value: np.ndarray, source: str, target: str) -> np.ndarray:
    return value.transpose([source.index(letter) for letter in target])


def _pool2d(kind: str) -> Callable[[Call, np.ndarray], np.ndarray]:
    def compute_pool(call: Call, x: np.ndarray) -> np.ndarray:
        attrs, layout = call.attrs, str(call.attrs["layout"])
        x = _to(x, layout, "NHWC")
        top, left, bottom, right = ints(attrs["padding"])
        kernel, strides, dilation = ints(attrs["pool_size"]), ints(attrs["strides"]), ints(attrs["dilation"])
        extra = [0, 0]
        if attrs["ceil_mode"]:
            for i, size in enumerate((x.shape[1] + top + bottom, x.shape[2] + left + right)):
                extra[i] = -(size - (kernel[i] - 1) * dilation[i] - 1) % strides[i]
        padding = (top, left, bottom + extra[0], right + extra[1])
        if kind == "max":
            taps = _windows(_pad(x, padding, np.finfo(np.float32).min), kernel, strides, dilation)
            return _to(taps.max(axis=(3, 4)), "NHWC", layout)
        taps = _windows(_pad(x, padding, 0), kernel, strides, dilation)
        inside = np.ones_like(x)
        if attrs["count_include_pad"]:
            inside = _pad(inside, (top, left, bottom, right), 1)
            inside = _pad(inside, (0, 0, *extra), 0)
        else:
            inside = _pad(inside, padding, 0)
        counts = _windows(inside, kernel, strides, dilation).sum(axis=(3, 4))
        return _to(taps.sum(axis=(3, 4)) / counts, "NHWC", layout)

    return compute_pool


def _adaptive_average(call: Call, x: np.ndarray) -> np.ndarray:
    layout = str(call.attrs["layout"])
    height, width = layout.index("H"), layout.index("W")
    if call.attrs["output_size"] is not None and ints(call.attrs["output_size"]) != (1, 1):
        raise NotImplementedError("adaptive_avg_pool2d to more than one pixel")
    return x.mean(axis=(height, width), keepdims=True)


def _batch_norm(call: Call, x: np.ndarray, *params: np.ndarray) -> tuple[np.ndarray, ...]:
    axis = int(call.attrs["axis"])
    shape = [-1 if i == axis % x.ndim else 1 for i in range(x.ndim)]
    gamma, beta, mean, variance = (param.reshape(shape) for param in params)
    scale = 1 / np.sqrt(variance + np.float32(call.attrs["epsilon"]))
    y = (x - mean) * scale
    y = y * gamma if call.attrs["scale"] else y
    y = y + beta if call.attrs["center"] else y
    return y.astype(np.float32), params[2], params[3]


def _relax_prelu(call: Call, x: np.ndarray, slope: np.ndarray) -> np.ndarray:
    axis = int(call.attrs["axis"]) % x.ndim
    slope = slope.reshape([-1 if i == axis else 1 for i in range(x.ndim)])
    return np.where(x > 0, x, x * slope)


def _softmax(call: Call, x: np.ndarray) -> np.ndarray:
    axis = int(call.attrs["axis"])
    e = np.exp(x - x.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


def _log_softmax(call: Call, x: np.ndarray) -> np.ndarray:
    axis = int(call.attrs["axis"])
    x = x - x.max(axis=axis, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=axis, keepdims=True))


def _nn_pad(call: Call, x: np.ndarray, *value: np.ndarray) -> np.ndarray:
    widths = np.reshape(ints(call.attrs["pad_width"]), (-1, 2))
    mode = str(call.attrs["pad_mode"])
    if mode != "constant":
        raise NotImplementedError(f"pad with mode {mode}")
    fill = value[0].item() if value else float(call.attrs["pad_value"])
    return np.pad(x, widths, constant_values=fill)


def _permute(call: Call, x: np.ndarray) -> np.ndarray:
    return x.transpose(ints(call.attrs["axes"])) if call.attrs["axes"] is not None else x.transpose()


def _strided_slice(call: Call, x: np.ndarray, axes: object, begin: object, end: object, *strides: object) -> np.ndarray:
    index = [slice(None)] * x.ndim
    steps = _plain(strides[0]) if strides else [1] * len(_plain(axes))
    for axis, first, last, step in zip(_plain(axes), _plain(begin), _plain(end), steps, strict=True):
        size = x.shape[axis]
        first, last = (max(i + size, 0) if i < 0 else min(i, size) for i in (first, last))
        index[axis] = slice(first, last, step)
    return x[tuple(index)]


def _plain(value: object) -> list[int]:
    """A Relax tuple of integers, already evaluated, as a list."""
    return [int(getattr(item, "value", item)) for item in value]


def _split(call: Call, x: np.ndarray) -> tuple[np.ndarray, ...]:
    where = call.attrs["indices_or_sections"]
    parts = int(where) if isinstance(where, int) or hasattr(where, "value") else list(ints(where))
    return tuple(np.split(x, parts, axis=int(call.attrs["axis"])))


def _resize2d(call: Call, x: np.ndarray, size: relax.ShapeExpr) -> np.ndarray:
    """Nearest and linear resizing with the coordinate rules of ONNX."""
    attrs, layout = call.attrs, str(call.attrs["layout"])
    x = _to(x, layout, "NHWC")
    method = str(attrs["method"])
    for axis, length in zip((1, 2), (int(value) for value in size.values), strict=True):
        at = _coordinates(x.shape[axis], length, str(attrs["coordinate_transformation_mode"]))
        if method == "nearest_neighbor":
            x = x.take(_nearest(at, str(attrs["rounding_method"]), x.shape[axis]), axis=axis)
        elif method == "linear":
            low = np.floor(at).astype(int)
            share = (at - low).astype(np.float32).reshape([-1 if i == axis else 1 for i in range(4)])
            first, second = (x.take(np.clip(low + i, 0, x.shape[axis] - 1), axis=axis) for i in (0, 1))
            x = first * (1 - share) + second * share
        else:
            raise NotImplementedError(f"resize2d with method {method}")
    return _to(x, "NHWC", layout).astype(np.float32)


def _coordinates(size: int, length: int, mode: str) -> np.ndarray:
    i = np.arange(length, dtype=np.float64)
    if mode == "half_pixel":
        return (i + 0.5) * size / length - 0.5
    if mode == "pytorch_half_pixel":
        return (i + 0.5) * size / length - 0.5 if length > 1 else i * 0
    if mode == "align_corners":
        return i * (size - 1) / max(length - 1, 1)
    return i * size / length


def _nearest(at: np.ndarray, rounding: str, size: int) -> np.ndarray:
    rounded = {
        "round": np.round,
        "floor": lambda v: np.floor(v + 1e-5),
        "ceil": lambda v: np.ceil(v - 1e-5),
        "round_prefer_floor": lambda v: np.ceil(v - 0.5),
        "round_prefer_ceil": lambda v: np.floor(v + 0.5),
        "": lambda v: np.ceil(v - 0.5),
    }[rounding](at)
    return np.clip(rounded.astype(int), 0, size - 1)


def _unary(function: Callable[[np.ndarray], np.ndarray]) -> Callable[..., np.ndarray]:
    def apply(_call: Call, x: np.ndarray) -> np.ndarray:
        with np.errstate(all="ignore"):
            return np.asarray(function(x))

    return apply


def _binary(function: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Callable[..., np.ndarray]:
    def apply(_call: Call, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        with np.errstate(all="ignore"):
            return np.asarray(function(x, y))

    return apply


def _reduction(function: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    def apply(call: Call, x: np.ndarray) -> np.ndarray:
        return np.asarray(function(x, axis=_axes(call, x), keepdims=bool(call.attrs["keepdims"])), dtype=x.dtype)

    return apply


def _shape(shape: relax.ShapeExpr) -> tuple[int, ...]:
    return tuple(int(size) for size in shape.values)


def _squeeze(call: Call, x: np.ndarray) -> np.ndarray:
    return np.squeeze(x, axis=ints(call.attrs["axis"]) if call.attrs["axis"] is not None else None)


def _layer_norm(call: Call, x: np.ndarray, gamma: np.ndarray, beta: np.ndarray) -> np.ndarray:
    axes = ints(call.attrs["axes"])
    centred = x - x.mean(axis=axes, keepdims=True)
    variance = (centred * centred).mean(axis=axes, keepdims=True)
    return centred / np.sqrt(variance + np.float32(call.attrs["epsilon"])) * gamma + beta


def _erf(x: np.ndarray) -> np.ndarray:
    from math import erf

    return np.vectorize(erf, otypes=[np.float32])(x)


#: What each Relax operator computes: the call (for its attributes) and its arguments -> the result.
OPERATORS: dict[str, Callable[..., Value]] = {
    "add": _binary(np.add),
    "subtract": _binary(np.subtract),
    "multiply": _binary(np.multiply),
    "divide": _binary(np.divide),
    "power": _binary(np.power),
    "maximum": _binary(np.maximum),
    "minimum": _binary(np.minimum),
    "mod": _binary(np.mod),
    "floor_divide": _binary(np.floor_divide),
    "less": _binary(np.less),
    "less_equal": _binary(np.less_equal),
    "greater": _binary(np.greater),
    "greater_equal": _binary(np.greater_equal),
    "equal": _binary(np.equal),
    "not_equal": _binary(np.not_equal),
    "logical_and": _binary(np.logical_and),
    "logical_or": _binary(np.logical_or),
    "logical_not": _unary(np.logical_not),
    "abs": _unary(np.abs),
    "ceil": _unary(np.ceil),
    "exp": _unary(np.exp),
    "floor": _unary(np.floor),
    "log": _unary(np.log),
    "negative": _unary(np.negative),
    "round": _unary(np.round),
    "rsqrt": _unary(lambda x: 1 / np.sqrt(x)),
    "sign": _unary(np.sign),
    "sin": _unary(np.sin),
    "cos": _unary(np.cos),
    "sqrt": _unary(np.sqrt),
    "square": _unary(np.square),
    "tanh": _unary(np.tanh),
    "sigmoid": _unary(_sigmoid),
    "erf": _unary(_erf),
    "isnan": _unary(np.isnan),
    "isinf": _unary(np.isinf),
    "isfinite": _unary(np.isfinite),
    "nn.relu": _unary(lambda x: np.maximum(x, np.float32(0))),
    "nn.relu6": _unary(lambda x: np.clip(x, np.float32(0), np.float32(6))),
    "nn.silu": _unary(lambda x: x * _sigmoid(x)),
    "nn.softplus": _unary(lambda x: np.log1p(np.exp(x))),
    "nn.gelu": _unary(lambda x: x * np.float32(0.5) * (1 + _erf(x / np.float32(np.sqrt(2))))),
    "nn.leakyrelu": lambda call, x: np.where(x > 0, x, x * np.float32(call.attrs["alpha"])),
    "nn.prelu": _relax_prelu,
    "bitkiln.hardswish": lambda _, x: _step(Step("hardswish"), x, None),
    "bitkiln.from_words": evaluate_words,
    "bitkiln.to_words": evaluate_words,
    "bitkiln.unpack": evaluate_words,
    "bitkiln.prelu": lambda _, x, slope: np.where(x > 0, x, x * slope),
    "nn.softmax": _softmax,
    "nn.log_softmax": _log_softmax,
    "nn.conv2d": _conv2d,
    "nn.conv2d_transpose": _conv2d_transpose,
    "nn.max_pool2d": _pool2d("max"),
    "nn.avg_pool2d": _pool2d("avg"),
    "nn.adaptive_avg_pool2d": _adaptive_average,
    "nn.batch_norm": _batch_norm,
    "nn.layer_norm": _layer_norm,
    "nn.pad": _nn_pad,
    "nn.dropout": lambda _, x: (x, np.ones_like(x)),
    "nn.batch_flatten": lambda _, x: x.reshape(x.shape[0], -1),
    "matmul": lambda _, x, y: np.matmul(x, y),
    "clip": lambda _, x, *bounds: np.clip(x, *(np.float32(getattr(bound, "value", bound)) for bound in bounds)),
    "where": lambda _, condition, x, y: np.where(condition, x, y),
    "astype": lambda call, x: x.astype(str(call.attrs["dtype"])),
    "reshape": lambda _, x, shape: x.reshape(_shape(shape)),
    "broadcast_to": lambda _, x, shape: np.broadcast_to(x, _shape(shape)),
    "flatten": lambda _, x: x.reshape(-1),
    "permute_dims": _permute,
    "expand_dims": lambda call, x: np.expand_dims(x, ints(call.attrs["axis"])),
    "squeeze": _squeeze,
    "concat": lambda call, parts: np.concatenate(parts, axis=int(call.attrs["axis"])),
    "split": _split,
    "strided_slice": _strided_slice,
    "take": lambda call, x, indices: np.take(x, indices, axis=int(call.attrs["axis"])),
    "tile": lambda call, x: np.tile(x, ints(call.attrs["repeats"])),
    "image.resize2d": _resize2d,
    "mean": _reduction(np.mean),
    "sum": _reduction(np.sum),
    "max": _reduction(np.max),
    "min": _reduction(np.min),
    "prod": _reduction(np.prod),
    "variance": _reduction(np.var),
    "std": _reduction(np.std),
    "full": lambda call, shape, value: np.full(_shape(shape), value, dtype=str(call.attrs["dtype"])),
    "zeros": lambda call, shape: np.zeros(_shape(shape), str(call.attrs["dtype"])),
    "ones": lambda call, shape: np.ones(_shape(shape), str(call.attrs["dtype"])),
}
