"""What a network consists of: a row for each layer, for each convolution whether it is binary or why not, totals and bounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tvm import relax

from bitkiln.pipeline.compile.plan import activation_bytes, read_network
from bitkiln.pipeline.errors import BitkilnError
from bitkiln.pipeline.inspect.operators import QCONV2D, constant_args, constant_nbytes, is_layer
from bitkiln.pipeline.inspect.reader import Reader
from bitkiln.pipeline.inspect.result import Bound, Inspection, Row, Totals
from bitkiln.pipeline.ir.graph import bindings, op_name, value_of
from bitkiln.pipeline.model import Model
from bitkiln.pipeline.passes.costs import hidden_costs
from bitkiln.pipeline.passes.pipeline import Lowered, Survey, finish, origin, survey
from bitkiln.targets import Target


def inspect_model(model: Model, targets: Sequence[Target]) -> Inspection:
    """Look at ``model`` without compiling it: what compiling would refuse is a problem in the answer, not an error."""
    found = survey(model.module)
    lowered, refused = _lowered(found, targets) if targets and not found.problem else (None, found.problem)
    reader = Reader(model, found, _in_eight_bits(found, lowered))
    rows = _with_costs(reader.rows(), found, targets)
    memory = activation_bytes(read_network(lowered.module)) if lowered else None
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


def _with_costs(rows: Sequence[Row], found: Survey, targets: Sequence[Target]) -> list[Row]:
    """The rows with warnings of what their layers cost beyond what one would think, on the first of ``targets``."""
    if not targets:
        return list(rows)
    texts: dict[str, tuple[str, ...]] = {}
    imported, names = found.defined("imported"), {row.name for row in rows}
    for cost in hidden_costs(found):
        name = cost.name
        while name not in names and isinstance(imported.get(name), relax.Var):  # an output's name for it
            name = imported[name].name
        texts[name] = (*texts.get(name, ()), cost.priced(targets[0]))
    return [replace(row, warnings=(*row.warnings, *texts.get(row.name, ()))) for row in rows]


def layer_table(model: Model) -> list[Row]:
    """One row for each operation of ``model``, in execution order."""
    return Reader(model, survey(model.module)).rows()


def _lowered(found: Survey, targets: Sequence[Target]) -> tuple[Lowered | None, str]:
    """The network as it is compiled for the first of ``targets``, or why it cannot be."""
    try:
        return finish(found, targets[0]), ""
    except BitkilnError as error:
        return None, str(error)


def _in_eight_bits(found: Survey, lowered: Lowered | None) -> set[str]:
    """The convolutions and dense layers of the imported network that are compiled as ``qconv2d``, by their variables."""
    if lowered is None:
        return set()
    before = found.defined("binary")
    layers = {name for name, value in before.items() if is_layer(value)}
    made = [name for name, value in bindings(lowered.phases["quantized"]["main"]) if op_name(value) == QCONV2D]
    return {origin(name.rpartition(".")[0], before, layers) for name in made} & layers


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
    if "fold_threshold" not in found.phases:
        return 0
    values = [arg for _, value in bindings(found.phases["fold_threshold"]["main"]) for arg in constant_args(value)]
    # As in a bundle, where constants with the same bytes are kept once.
    distinct = {value_of(value).tobytes(): value for value in dict.fromkeys(values)}
    return sum(map(constant_nbytes, distinct.values()))
