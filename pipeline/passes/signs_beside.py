"""Let what makes floats write their signs too, where a layer's result is needed as both.

A residual network adds a layer's floats to what comes later and gives their signs to the next binary convolution. Alone the
signs are a pass that reads the floats from memory again; what computes the floats has them in its cache.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace

import tvm
from tvm import relax
from tvm.ir import Call
from tvm.relax import TupleGetItem

from bitkiln.pipeline.ir.graph import (
    array_of,
    bindings,
    count_uses,
    make_function,
    op_name,
    result_of,
    substitute,
    with_main,
)
from bitkiln.pipeline.ops.register import call_of, has_workload, workload_of
from bitkiln.schedules.conv2d import packs_signs
from bitkiln.schedules.steps import straight
from bitkiln.schedules.workload import Binarize, Conv2d, Pool2d, Signs
from bitkiln.targets import Target


def signs_beside(module: tvm.IRModule, target: Target) -> tvm.IRModule:
    """``binarize`` of what a convolution or a pooling gives as further results of that operator.

    Of what something else gives, several are the results of one operator: they read the floats once.
    """
    main = module["main"]
    defined = dict(bindings(main))
    signs: dict[str, list[str]] = defaultdict(list)
    for name, value in defined.items():
        if op_name(value) == "bitkiln.binarize" and _rides(value):
            signs[_source(value)].append(name)
    hosts: dict[str, list[str]] = {}
    for source, names in signs.items():
        if _can_host(defined.get(source), target):
            hosts[source] = names
        elif source and len(names) > 1:
            hosts[names[0]] = names[1:]
    if not hosts:
        return module
    return _moved(module, defined, hosts)


def _moved(module: tvm.IRModule, defined: Mapping[str, relax.Expr], hosts: Mapping[str, list[str]]) -> tvm.IRModule:
    """``module`` with the signs that each of ``hosts`` gives beside its own result."""
    main = module["main"]
    uses, moved = count_uses(main), {name for names in hosts.values() for name in names}
    builder = relax.BlockBuilder()
    replaced: dict[str, relax.Expr] = {}
    values: list[tuple[str, relax.Expr]] = []

    def bind(name: str, value: relax.Expr) -> relax.Expr:
        value = builder.normalize(substitute(value, replaced))
        values.append((name, value))
        return relax.DataflowVar(name, value.ty)

    for name, value in defined.items():
        those = hosts.get(name, [])
        calls = [defined[bits] for bits in those]
        alone = _signs_alone(value, calls[0]) if those and uses[name] == 1 else None
        if alone is not None:
            replaced[those[0]] = bind(those[0], alone)
        elif those:
            both = bind(f"{name}.both", _with_signs(value, calls))
            for index, result in enumerate([name, *those]):
                replaced[result] = bind(result, TupleGetItem(both, index))
        elif name not in moved:
            replaced[name] = bind(name, value)
    return with_main(
        module, make_function(list(main.params), values, substitute(result_of(main), replaced), main.attrs)
    )


def _source(call: Call) -> str:
    """The tensor whose signs ``call`` gives; "" for a constant."""
    return call.args[0].name if isinstance(call.args[0], relax.Var) else ""


def _can_host(value: relax.Expr | None, target: Target) -> bool:
    """Whether the kernels of an operator can pack signs of what they compute."""
    if not has_workload(value):
        return False
    work = workload_of(value)
    if isinstance(work, Conv2d) and not work.binary:
        return packs_signs(work, target)
    return isinstance(work, Conv2d | Pool2d) and work.out == "float32"


def _rides(call: Call) -> bool:
    """Whether the steps before the sign keep or turn the order of numbers: then a comparison does for all of them."""
    epilogue = workload_of(call, Binarize).epilogue
    known = all(array_of(operand) is not None for operand in call.args[1:])
    return known and all(map(straight, epilogue))


def _signs_alone(host: Call, sign: Call) -> Call | None:
    """``host`` as a binary convolution that gives the bits of ``sign`` and no floats."""
    work, last = workload_of(host), workload_of(sign, Binarize)
    if not isinstance(work, Conv2d) or work.pool or not work.binary:
        return None
    epilogue = (*work.epilogue, *last.epilogue)
    return call_of(replace(work, epilogue=epilogue, out="bits", sign_zero=last.sign_zero), [*host.args, *sign.args[1:]])


def _with_signs(host: Call, signs: list[Call]) -> Call:
    """``host`` with ``signs`` of its result as further results."""
    works = [workload_of(call, Binarize) for call in signs]
    operands = [operand for call in signs for operand in call.args[1:]]
    given = list(host.args)
    work = workload_of(host)
    assert isinstance(work, Conv2d | Pool2d | Binarize), "nothing else gives signs beside its result"
    last = len(given) - bool(getattr(work, "shift", False))
    beside = tuple(Signs(each.epilogue, each.sign_zero) for each in works)
    return call_of(replace(work, signs=beside), [*given[:last], *operands, *given[last:]])
