"""Damage to ONNX models that a parser lets through: fields of any message, names, graphs, and bombs."""

from __future__ import annotations

import lzma
from collections.abc import Callable, Iterator
from functools import cache
from random import Random
from typing import Any

import numpy as np
import onnx
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from onnx import TensorProto, helper, numpy_helper

from fuzzing import onnx_seeds
from fuzzing.bytes_mutation import FLOATS, NUMBERS, TEXTS, damage
from fuzzing.case import Case

_INTEGERS = (
    FieldDescriptor.TYPE_INT64,
    FieldDescriptor.TYPE_INT32,
    FieldDescriptor.TYPE_UINT64,
    FieldDescriptor.TYPE_ENUM,
)
_LIMITS = {
    FieldDescriptor.TYPE_INT64: (-(1 << 63), (1 << 63) - 1),
    FieldDescriptor.TYPE_UINT64: (0, (1 << 64) - 1),
    FieldDescriptor.TYPE_INT32: (-(1 << 31), (1 << 31) - 1),
}


def case(random: Random, index: int) -> Case:
    """A damaged network, or a single node of any operator, possibly damaged as well."""
    kind = index % 8
    if kind in (0, 1):
        proto = onnx_seeds.any_operator(random)
        how = f"node of {proto.graph.node[0].op_type}"
        return Case({"m.onnx": proto.SerializeToString(deterministic=True)}, how)
    if kind == 2:
        return _bomb(random)
    proto = onnx.ModelProto()
    proto.CopyFrom(random.choice(_seeds()) if random.random() < 0.7 else onnx_seeds.any_operator(random))
    if kind == 3:
        content, how = damage(random, proto.SerializeToString(deterministic=True))
        return _packed(random, content, how)
    done = [_mutate(random, proto) for _ in range(random.choice((1, 1, 1, 2, 3)))]
    return _packed(random, proto.SerializeToString(deterministic=True), "; ".join(done))


def damaged_file(random: Random, content: bytes) -> tuple[bytes, str]:
    """A user's file, damaged as bytes or field by field."""
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(content)
    except Exception:  # not a model as it stands
        return damage(random, content)
    if random.random() < 0.3:
        return damage(random, content)
    how = _mutate(random, proto)
    return proto.SerializeToString(deterministic=True), how


@cache
def _seeds() -> list[onnx.ModelProto]:
    return onnx_seeds.seeds()


def _packed(random: Random, content: bytes, how: str) -> Case:
    """As a plain file, or now and then as xz, itself damaged at times."""
    if random.random() < 0.9:
        return Case({"m.onnx": content}, how)
    packed = lzma.compress(content)
    if random.random() < 0.5:
        packed, again = damage(random, packed)
        how = f"{how}; xz {again}"
    return Case({"m.onnx.xz": packed}, how)


def _mutate(random: Random, proto: onnx.ModelProto) -> str:
    mutation = random.choice(_MUTATIONS)
    try:
        return f"{mutation.__name__.strip('_')} {mutation(random, proto) or ''}".strip()
    except (IndexError, ValueError, TypeError) as error:  # there was nothing to damage in that way
        return f"{mutation.__name__.strip('_')} did nothing ({type(error).__name__})"


def _messages(message: Message) -> Iterator[Message]:
    yield message
    for field, value in message.ListFields():
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            for each in value if field.is_repeated else (value,):
                yield from _messages(each)


def _any_field(random: Random, proto: onnx.ModelProto) -> str:
    """A field of a message somewhere in the model takes another value."""
    message = random.choice(list(_messages(proto)))
    field = random.choice(message.DESCRIPTOR.fields)
    if field.is_repeated:
        _change_list(random, field, getattr(message, field.name), proto)
    elif field.type == FieldDescriptor.TYPE_MESSAGE:
        if message.HasField(field.name) and random.random() < 0.7:
            message.ClearField(field.name)
        else:
            getattr(message, field.name).SetInParent()
    else:
        setattr(message, field.name, _value(random, field, getattr(message, field.name)))
    return f"{message.DESCRIPTOR.name}.{field.name}"


def _set_field(random: Random, proto: onnx.ModelProto) -> str:
    """As ``_any_field``, of fields that are set."""
    message = random.choice([each for each in _messages(proto) if each.ListFields()])
    field, value = random.choice(message.ListFields())
    if field.is_repeated:
        _change_list(random, field, value, proto)
    elif field.type == FieldDescriptor.TYPE_MESSAGE or random.random() < 0.2:
        message.ClearField(field.name)
    else:
        setattr(message, field.name, _value(random, field, value))
    return f"{message.DESCRIPTOR.name}.{field.name}"


def _change_list(random: Random, field: FieldDescriptor, values: Any, proto: onnx.ModelProto) -> None:
    action = random.randrange(5)
    if field.type == FieldDescriptor.TYPE_MESSAGE:
        if action == 0 and values:
            del values[random.randrange(len(values))]
        elif action == 1:
            values.add()
        elif values:
            others = [each for each in _messages(proto) if each.DESCRIPTOR is field.message_type]
            values.add().CopyFrom(random.choice(others))
            if action == 2:
                moved = [random.choice(values) for _ in values]
                copies = [type(each).FromString(each.SerializeToString()) for each in moved]
                del values[:]
                values.extend(copies)
    elif action == 0 or not values:
        values.extend(_value(random, field, None) for _ in range(random.choice((1, 2, 4, 300))))
    elif action == 1:
        del values[random.randrange(len(values)) :]
    else:
        at = random.randrange(len(values))
        values[at] = _value(random, field, values[at])


def _value(random: Random, field: FieldDescriptor, old: Any) -> Any:
    if field.type in _INTEGERS:
        if field.type == FieldDescriptor.TYPE_ENUM:
            return random.choice(range(24))
        low, high = _LIMITS[field.type]
        near = (int(old or 0) + 1, int(old or 0) - 1, -int(old or 0))
        return min(max(random.choice(NUMBERS + near), low), high)
    if field.type in (FieldDescriptor.TYPE_FLOAT, FieldDescriptor.TYPE_DOUBLE):
        return random.choice(FLOATS)
    if field.type == FieldDescriptor.TYPE_BYTES:
        return damage(random, old)[0] if old and random.random() < 0.7 else random.choice(TEXTS).encode()
    return random.choice(TEXTS)


def _nodes(proto: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [message for message in _messages(proto) if isinstance(message, onnx.NodeProto)]


def _rewire(random: Random, proto: onnx.ModelProto) -> str:
    """An input becomes any other tensor: cycles, wrong ranks, constants for data and data for constants."""
    nodes = _nodes(proto)
    names = [name for each in nodes for name in (*each.input, *each.output)] + ["x", "", "nowhere"]
    target = random.choice([each for each in nodes if each.input])
    at = random.randrange(len(target.input))
    target.input[at] = random.choice(names)
    return f"{target.op_type} input {at} <- {target.input[at]}"


def _drop_or_add_operands(random: Random, proto: onnx.ModelProto) -> str:
    target = random.choice(_nodes(proto))
    names = target.input if random.random() < 0.7 else target.output
    if random.random() < 0.6:
        del names[random.randrange(len(names)) :]
    else:
        names.extend([random.choice(["x", "", "y", *names])] * random.choice((1, 1, 3, 50)))
    return target.op_type


def _other_operator(random: Random, proto: onnx.ModelProto) -> str:
    target = random.choice(_nodes(proto))
    old, target.op_type = target.op_type, random.choice(onnx_seeds.OPERATORS)
    return f"{old} -> {target.op_type}"


def _shuffle(random: Random, proto: onnx.ModelProto) -> None:
    nodes = [onnx.NodeProto.FromString(each.SerializeToString()) for each in proto.graph.node]
    random.shuffle(nodes)
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)


def _rename(random: Random, proto: onnx.ModelProto) -> str:
    """A tensor's name, everywhere, becomes hostile or that of another."""
    names = sorted({name for each in _nodes(proto) for name in (*each.input, *each.output) if name})
    old = random.choice(names)
    new = random.choice([*names, *TEXTS])
    for message in _messages(proto):
        for field in ("input", "output") if isinstance(message, onnx.NodeProto) else ():
            values = getattr(message, field)
            values[:] = [new if value == old else value for value in values]
        if isinstance(message, onnx.TensorProto | onnx.ValueInfoProto) and message.name == old:
            message.name = new
    return f"{old!r} -> {new[:20]!r}"


def _replace_constant(random: Random, proto: onnx.ModelProto) -> str:
    """A constant takes other values, another type or another shape."""
    tensors = [each for each in _messages(proto) if isinstance(each, onnx.TensorProto)]
    tensor = random.choice(tensors)
    array = numpy_helper.to_array(tensor)
    match random.randrange(4):
        case 0:
            array = array.astype(random.choice(("f", "d", "e", "int64", "int32", "int8", "uint8", "?")))
        case 1:
            array = np.full(array.shape, random.choice(NUMBERS if array.dtype.kind in "iu" else FLOATS)).astype(
                array.dtype
            )
        case 2:
            array = array.reshape(random.choice(([-1], [1, -1], [*array.shape, 1], [1, *array.shape])))
        case 3:
            array = random.choice((array[:0] if array.ndim else array, np.tile(array, 3), array.ravel()[:1], array.T))
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), tensor.name))
    return f"{tensor.name}: {array.dtype}{list(array.shape)}"


def _absurd_attribute(random: Random, proto: onnx.ModelProto) -> str:
    """Attributes with absurd numbers, of another type, or that the operator does not have."""
    target = random.choice(_nodes(proto))
    known = ("pads", "strides", "dilations", "kernel_shape", "group", "axis", "axes", "perm", "split", "size", "to")
    name = random.choice([*known, "auto_pad", "mode", "epsilon", *(each.name for each in target.attribute)])
    number = random.choice(NUMBERS)
    values = ([number] * random.choice((1, 2, 4)), [1, number], number, random.choice(FLOATS), random.choice(TEXTS))
    value = random.choice((*values, [1.5, 2.5], ["a"]))
    value = numpy_helper.from_array(np.array([1], np.float32)) if random.random() < 0.1 else value
    for at in [index for index, each in enumerate(target.attribute) if each.name == name][::-1]:
        del target.attribute[at]
    target.attribute.append(helper.make_attribute(name, value))
    return f"{target.op_type}.{name} = {str(value)[:40]}"


def _absurd_input(random: Random, proto: onnx.ModelProto) -> str:
    """The network's input gets other extents, another rank or another type."""
    tensor = random.choice(proto.graph.input).type.tensor_type
    if random.random() < 0.1:
        tensor.elem_type = random.randrange(20)
        return f"type {tensor.elem_type}"
    count = random.choice((0, 1, 2, 3, 4, 4, 4, 5, 40))
    extents = [random.choice((1, 1, 3, 8, *NUMBERS)) for _ in range(count)]
    del tensor.shape.dim[:]
    for extent in extents:
        tensor.shape.dim.add().dim_value = extent
    return str(extents)[:60]


def _insert(random: Random, proto: onnx.ModelProto) -> str:
    """An operator that makes its input absurdly large, small or otherwise shaped, before a node."""
    target = random.choice([each for each in proto.graph.node if each.input])
    kind = random.choice(("Reshape", "Expand", "Tile", "Resize", "Pad", "Unsqueeze", "Transpose", "Concat", "Cast"))
    numbers = [random.choice((1, 1, 2, *NUMBERS)) for _ in range(random.choice((1, 2, 4, 4, 8)))]
    operand = np.array(numbers, np.int64)
    if kind in ("Transpose", "Concat", "Cast"):
        attributes: dict[str, dict[str, Any]] = {
            "Transpose": {"perm": numbers},
            "Concat": {"axis": numbers[0]},
            "Cast": {"to": numbers[0] % 20},
        }
        made = helper.make_node(kind, [target.input[0]] * (1 + (kind == "Concat")), ["inserted"], **attributes[kind])
    else:
        inputs = ["inserted_0"] if kind != "Resize" else ["", "", "inserted_0"]
        made = helper.make_node(kind, [target.input[0], *inputs], ["inserted"])
        proto.graph.initializer.append(numpy_helper.from_array(operand, "inserted_0"))
    target.input[0] = "inserted"
    at = list(proto.graph.node).index(target)
    proto.graph.node.insert(at, made)
    return f"{kind} {numbers}"


def _opset(random: Random, proto: onnx.ModelProto) -> str:
    proto.opset_import[0].version = random.choice((0, 1, 6, 8, 9, 10, 11, 12, 13, 15, 18, 21, 23, 26, 1000, 1 << 62))
    return str(proto.opset_import[0].version)


def _outputs(random: Random, proto: onnx.ModelProto) -> str:
    """Other outputs: inputs, constants, inner tensors, doubles."""
    names = [name for each in proto.graph.node for name in (*each.input, *each.output)]
    chosen = [random.choice(["x", "nowhere", "", *names]) for _ in range(random.choice((1, 2, 3)))]
    del proto.graph.output[: random.choice((0, 1))]
    proto.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in chosen)
    return str(chosen)


_MUTATIONS: tuple[Callable[[Random, onnx.ModelProto], str | None], ...] = (
    _any_field,
    _set_field,
    _set_field,
    _rewire,
    _drop_or_add_operands,
    _other_operator,
    _shuffle,
    _rename,
    _replace_constant,
    _absurd_attribute,
    _absurd_attribute,
    _absurd_input,
    _insert,
    _insert,
    _opset,
    _outputs,
)


def _bomb(random: Random) -> Case:
    """A small file that asks for a great deal of memory, time or stack."""
    build = random.choice(_BOMBS)
    how = build.__name__.strip("_")
    made = build(random)
    if isinstance(made, Case):
        return made
    return Case({"m.onnx": made.SerializeToString(deterministic=True)}, how)


def _doubling_constants(random: Random) -> onnx.ModelProto:
    count = random.choice((20, 30, 40, 60))
    kind = random.choice(("Concat", "Tile"))
    nodes = [
        onnx_seeds.node("Concat", f"k{i} k{i}", f"k{i + 1}", axis=0)
        if kind == "Concat"
        else onnx_seeds.node("Tile", f"k{i} two", f"k{i + 1}")
        for i in range(count)
    ]
    nodes += [onnx_seeds.node("ReduceSum", f"k{count}", "s", keepdims=0), onnx_seeds.node("Add", "x s", "y")]
    return onnx_seeds.model(nodes, {"k0": np.ones(64, "f"), "two": np.array([2], np.int64)}, {"x": [1, 4]})


def _doubling_data(random: Random) -> onnx.ModelProto:
    count = random.choice((10, 20, 40, 60))
    nodes = [onnx_seeds.node("Concat", f"k{i} k{i}", f"k{i + 1}", axis=1) for i in range(count)]
    nodes += [onnx_seeds.node("Relu", f"k{count}", "y")]
    return onnx_seeds.model(nodes, {}, {"k0": [1, 64, 4, 4]})


def _huge_constant(random: Random) -> onnx.ModelProto:
    size = random.choice(([1 << 31], [1 << 16, 1 << 16], [1 << 40], [1 << 62, 4], [1 << 28], [1] * 60 + [1 << 30]))
    kind = random.choice(("ConstantOfShape", "Expand", "Tile", "Range", "OneHot", "Pad", "EyeLike", "Resize"))
    extents: dict[str, np.ndarray] = {
        "size": np.array(size, np.int64),
        "one": np.array([1], np.float32),
        "many": np.array(size[-1], np.int64),
        "zero": np.array(0, np.int64),
    }
    ones = np.array([1] * (2 * len(size)), np.int64)
    ones[-1] = size[-1]
    extents |= {
        "unit": np.array(1, np.int64),
        "onoff": np.array([0, 1], np.float32),
        "line": np.ones([1] * len(size), "f"),
        "pads": ones,
    }
    inputs = {
        "ConstantOfShape": "size",
        "Expand": "one size",
        "Tile": "line size",
        "Range": "zero many unit",
        "OneHot": "size many onoff",
        "Pad": "line pads",
        "EyeLike": "line",
        "Resize": "line  scales",
    }[kind]
    extents["scales"] = np.array(size, np.float32)
    nodes = [onnx_seeds.node(kind, inputs, "k"), onnx_seeds.node("ReduceSum", "k", "s", keepdims=0)]
    nodes += [onnx_seeds.node("Add", "x s", "y")]
    return onnx_seeds.model(nodes, extents, {"x": [1, 4]})


def _huge_data(random: Random) -> onnx.ModelProto:
    """Tensors on the way that no board could hold."""
    extent = random.choice((1 << 14, 1 << 20, (1 << 31) - 1, 1 << 31, 1 << 40, (1 << 62)))
    nodes = [
        onnx_seeds.node("Expand", "x size", "a"),
        random.choice((onnx_seeds.node("Relu", "a"), onnx_seeds.node("Conv", "a w"), onnx_seeds.node("MatMul", "a m"))),
    ]
    weights = {
        "size": np.array([1, 2, extent, extent], np.int64),
        "w": np.ones((2, 2, 3, 3), "f"),
        "m": np.ones((4, 4), "f"),
    }
    return onnx_seeds.model(nodes, weights, {"x": [1, 2, 1, 1]})


def _long_chain(random: Random) -> onnx.ModelProto:
    count = random.choice((300, 1000, 3000))
    kind = random.choice(("Relu", "Identity", "Neg", "Add"))
    operands = (lambda i: f"k{i} k{i}") if kind == "Add" else (lambda i: f"k{i}")
    nodes = [onnx_seeds.node(kind, operands(i), f"k{i + 1}" if i + 1 < count else "y") for i in range(count)]
    return onnx_seeds.model(nodes, {}, {"k0": [1, 4]})


def _identity_cycle(random: Random) -> onnx.ModelProto:
    nodes = [onnx_seeds.node("Identity", "a", "b"), onnx_seeds.node("Identity", "b", "a")]
    nodes += [onnx_seeds.node("Add", random.choice(("a x", "x a")), random.choice(("y", "a")))]
    return onnx_seeds.model(nodes, {}, {"x": [1, 4], "a": [1, 4]}, outputs=[random.choice("yba")])


def _many_things(random: Random) -> onnx.ModelProto:
    """Thousands of inputs, outputs, operands or weights."""
    count = random.choice((1000, 5000))
    names = [f"k{i}" for i in range(count)]
    if random.random() < 0.5:
        return onnx_seeds.model([onnx_seeds.node("Sum", " ".join(names))], {}, {key: [1, 4] for key in names})
    nodes = [onnx_seeds.node("Split", "x", " ".join(names), axis=1)]
    return onnx_seeds.model(nodes, {}, {"x": [1, count]}, outputs=names)


def _deep_branches(random: Random) -> onnx.ModelProto:
    info = helper.make_tensor_value_info("r", TensorProto.FLOAT, None)
    branch = helper.make_graph([onnx_seeds.node("Relu", "x", "r")], "leaf", [], [info])
    for _ in range(random.choice((3, 15, 30, 45))):
        inner = helper.make_node("If", ["condition"], ["r"], then_branch=branch, else_branch=branch)
        if inner.ByteSize() > 1 << 20:
            break
        branch = helper.make_graph([inner], "branch", [], [info])
    nodes = [*branch.node, onnx_seeds.node("Neg", "r", "y")]
    return onnx_seeds.model(nodes, {"condition": np.array(random.random() < 0.5)}, {"x": [1, 4]})


def _recursive_functions(random: Random) -> onnx.ModelProto:
    """Functions that call themselves or each other, or double the work at every level."""
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    count = random.choice((1, 2, 25, 60))
    loops = random.random() < 0.5
    functions = []
    for level in range(count):
        callee = f"F{(level + 1) % count if loops else level + 1}"
        last = not loops and level == count - 1
        calls = [
            helper.make_node("Relu" if last else callee, [a], [b], domain="" if last else "local")
            for a, b in ("ab", "bc")
        ]
        functions.append(helper.make_function("local", f"F{level}", ["a"], ["c"], calls, imports))
    nodes = [helper.make_node("F0", ["x"], ["y"], domain="local")]
    return onnx_seeds.model(nodes, {}, {"x": [1, 4]}, functions=functions)


def _xz_bomb(random: Random) -> Case:
    size = random.choice((1 << 24, 1 << 28, (1 << 30) - 1))
    content = lzma.compress(bytes(size), preset=0)
    for _ in range(random.choice((0, 1))):
        content = lzma.compress(content)
    return Case({"m.onnx.xz": content}, f"xz bomb of {size} bytes")


def _external_data(random: Random) -> Case:
    """Weights in another file: outside of the folder, missing, short, a link, of a huge claimed length."""
    proto = onnx_seeds.seeds()[0]
    tensor = proto.graph.initializer[0]
    data, tensor.data_location = tensor.raw_data, TensorProto.EXTERNAL
    tensor.ClearField("raw_data")
    places = (
        "w.bin",
        "w.bin",
        "w.bin",
        "../w.bin",
        "/etc/passwd",
        "/dev/zero",
        ".",
        "",
        "sub/../w.bin",
        "link",
        "m.onnx",
    )
    entries = {"location": random.choice(places)}
    if random.random() < 0.6:
        entries["offset"] = str(random.choice((0, 1, *NUMBERS)))
    if random.random() < 0.6:
        entries["length"] = str(random.choice((len(data), *NUMBERS, "x", "1e3", "")))
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    if random.random() < 0.3:
        tensor.dims[random.randrange(len(tensor.dims))] = random.choice(NUMBERS)
    if random.random() < 0.2:
        tensor.data_type = random.randrange(24)
    files = {"m.onnx": proto.SerializeToString(deterministic=True), "w.bin": data[: random.choice((None, 5, -1))]}
    return Case(files, f"external data {entries}", links={"link": "/dev/zero"})


_BOMBS: tuple[Callable[[Random], onnx.ModelProto | Case], ...] = (
    _doubling_constants,
    _doubling_data,
    _huge_constant,
    _huge_constant,
    _huge_data,
    _long_chain,
    _identity_cycle,
    _many_things,
    _deep_branches,
    _recursive_functions,
    _xz_bomb,
    _external_data,
    _external_data,
)
