"""Binary layers in every dialect, from the import to thresholds: not a bit may differ from what the file's operators give.

Between whole sums and the next sign each operator rounds to float32 as it stands in the file; numbers are small multiples of
1/8, so that sums of exactly zero are frequent.
"""

from __future__ import annotations

import numpy as np
import tvm
from hypothesis import given, settings
from tvm import relax

from bitkiln import targets
from bitkiln.pipeline.ir.graph import bindings, op_name
from bitkiln.pipeline.model import Model, TensorSpec
from bitkiln.pipeline.passes.pipeline import lower
from tests.property import plain
from tests.property.draws import Draw, draws
from tests.property.networks import batch_norm, channel_axis, constant, elementwise, pooling, shape, size_of, start

op, nn = relax.op, relax.op.nn

ZERO, ONE = constant(np.float32(0)), constant(np.float32(1))
#: Steps between the sums and the sign.
BETWEEN = ["add", "multiply", "subtract", "subtract from", "negative", "relu", "clip", "leaky", "our prelu", "tanh"]

#: How files spell signs, and the sign of zero.
DIALECTS = {
    "sign": (lambda net, x: op.sign(x), 0),
    "sign, tenth, sign": (
        lambda net, x: op.sign(net.add(op.add(net.add(op.sign(x)), constant(np.float32(0.1))))),
        1,
    ),
    "greater": (lambda net, x: choice(net, op.greater(x, ZERO), 1, -1), -1),
    "greater or equal": (lambda net, x: choice(net, op.greater_equal(x, ZERO), 1, -1), 1),
    "less": (lambda net, x: choice(net, op.less(x, ZERO), -1, 1), 1),
    "less or equal": (lambda net, x: choice(net, op.less_equal(x, ZERO), -1, 1), -1),
    "turned": (lambda net, x: choice(net, op.less(ZERO, x), 1, -1), -1),
    "cast": (lambda net, x: twice_less_one(net, op.greater_equal(x, ZERO)), 1),
}


def nonzero(array):
    return np.where(array == 0, np.float32(1), array)


def choice(net, condition, yes, no):
    return op.where(net.add(condition), constant(np.float32(yes)), constant(np.float32(no)))


def twice_less_one(net, condition):
    number = net.add(op.astype(net.add(condition), "float32"))
    return op.subtract(net.add(op.multiply(number, constant(np.float32(2)))), ONE)


def signs(net, d, x, dialect):
    return net.add(DIALECTS[dialect][0](net, x))


def binary_layer(net, d, x, dialect, most):
    """Signs, padding and a convolution with +-s."""
    axis = channel_axis(net)
    channels, own = shape(x)[axis], True
    padded = signs(net, d, x, dialect)
    if d.chance():
        value = d.pick([1.0, -1.0, 0.0])
        widths = {"N": [0, 0], "C": [0, 0], "H": [d.whole(0, 2), d.whole(0, 1)], "W": [1, d.whole(0, 2)]}
        padded = net.add(nn.pad(padded, [w for letter in net.layout for w in widths[letter]], "constant", value))
        own = value == 0
    how = d.window(size_of(net, padded), pads=own)
    groups = d.pick([1, 1, 1, *[g for g in (2, 3) if channels % g == 0]])
    outs = d.whole(1, most) * groups
    kernel = how.pop("kernel")
    weight = d.signs(outs, channels // groups, *kernel)
    if d.chance():
        weight = weight * np.exp2(d.rng.integers(-3, 3, (outs, 1, 1, 1))).astype("float32")
    conv = nn.conv2d(
        padded,
        constant(weight),
        **{name: list(values) for name, values in how.items()},
        groups=groups,
        data_layout=net.layout,
        kernel_layout="OIHW",
    )
    return net.add(conv)


def network(d: Draw, dialect: str):
    net = start(d)
    x = binary_layer(net, d, net.x, dialect, 9)
    pools = 0
    for _ in range(d.whole(0, 4)):
        match d.pick(["elementwise", "elementwise", "divide", "batch norm", "pool"]):
            case "elementwise":
                x = elementwise(net, d, x, d.numbers, BETWEEN)
            case "divide":
                x = elementwise(net, d, x, lambda *size: nonzero(d.numbers(*size)), ["divide"])
            case "batch norm":
                x = batch_norm(net, d, x, d.numbers)
            case "pool" if not pools:
                before = x
                x = pooling(net, d, x)
                pools += x is not before
    return net, net.module(binary_layer(net, d, x, dialect, 4))


def lowered(module):
    params = module["main"].params
    specs = tuple(TensorSpec(param.name, tuple(map(int, param.ty.shape.values))) for param in params)
    return lower(Model("test", module, specs, (), "0" * 64), targets.load("rasp3b"))


def operators(module):
    return [op_name(value) for _, value in bindings(module["main"]) if op_name(value)]


def image_of(net, d, dialect):
    """Small numbers, zeros where the dialect knows their sign, infinities; no NaN, which ``binarize`` takes for -1."""
    x = d.numbers(*net.shape, odd=np.float32([np.inf, -np.inf, 0.0, -0.0, 1e-45, -1e-45]))
    return nonzero(x) if DIALECTS[dialect][1] == 0 else x


@settings(max_examples=100)
@given(draws())
def test_networks_of_two_binary_layers(d: Draw):
    dialect = d.pick([name for name in DIALECTS if name != "sign"])
    net, before = network(d, dialect)
    found = lowered(before)
    # Of a ReLU the sign may be constant, which is none.
    assert "bitkiln.bconv2d" in operators(found.phases["binary"])
    inputs = {"x": image_of(net, d, dialect)}
    (wanted,) = plain.run(before, inputs)
    for phase, module in found.phases.items():
        if phase in ("fold_steps", "legalize"):
            continue
        (actual,) = plain.run(module, inputs)
        np.testing.assert_array_equal(actual, wanted, err_msg=phase)
    if not found.notes:
        (actual,) = plain.run(found.phases["fold_steps"], inputs)
        np.testing.assert_allclose(actual, wanted, rtol=1e-6)


@settings(max_examples=30)
@given(draws())
def test_sign_of_numbers_that_are_not_zero(d: Draw):
    net = start(d)
    before = net.module(binary_layer(net, d, net.x, "sign", 9))
    found = lowered(before)
    assert "bitkiln.bconv2d" in operators(found.phases["binary"])
    inputs = {"x": image_of(net, d, "sign")}
    (wanted,), (actual,) = plain.run(before, inputs), plain.run(found.phases["fold_steps"], inputs)
    np.testing.assert_array_equal(actual, wanted)


@settings(max_examples=30)
@given(draws())
def test_what_is_not_a_number_counts_as_minus_one(d: Draw):
    dialect = d.pick(list(DIALECTS))
    net = start(d)
    before = net.module(binary_layer(net, d, net.x, dialect, 9))
    x = image_of(net, d, dialect)
    lost = d.rng.random(x.shape) < 0.3
    (wanted,) = plain.run(before, {"x": np.where(lost, np.float32(-1), x)})
    (actual,) = plain.run(lowered(before).phases["fold_steps"], {"x": np.where(lost, np.float32(np.nan), x)})
    np.testing.assert_array_equal(actual, wanted)


@settings(max_examples=12)
@given(draws())
def test_functions_of_the_lowered_network(d: Draw):
    """What ``legalize`` makes, compiled by TVM for this machine."""
    dialect = d.pick(["greater", "greater or equal"])
    net, before = network(d, dialect)
    found = lowered(before)
    inputs = {"x": image_of(net, d, dialect)}
    (wanted,) = plain.run(found.phases["fold_steps"], inputs)
    machine = relax.VirtualMachine(tvm.compile(found.module, target="llvm"), tvm.cpu())
    actual = machine["main"](tvm.runtime.tensor(inputs["x"])).numpy()
    assert actual.shape == wanted.shape
    if not found.notes:  # Else compilers may join a product and a sum, and a sign beside zero come out differently.
        np.testing.assert_allclose(actual, wanted, rtol=1e-6)
