"""A row for each layer of a network, by what surveying it found out."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Container, Mapping
from dataclasses import replace
from typing import TypeVar

from tvm import relax
from tvm.ir import Call, GenericConst

from bitkiln.pipeline.inspect.advice import advise
from bitkiln.pipeline.inspect.operators import (
    CONVOLUTIONS,
    constant_nbytes,
    is_convolution,
    macs_of,
    operations,
    packed_channels,
    shape_of_type,
    tensor_type,
    weight_count,
    why_unseen,
    window_of,
)
from bitkiln.pipeline.inspect.result import Row
from bitkiln.pipeline.ir.graph import file_names, op_name, shape_of, value_of, variables
from bitkiln.pipeline.model import Model
from bitkiln.pipeline.ops import has_workload, workload_of
from bitkiln.pipeline.passes.binary.verdict import BinaryFacts, Verdict
from bitkiln.pipeline.passes.pipeline import Survey, origin
from bitkiln.schedules.workload import Binarize, Conv2d, packed

_Known = TypeVar("_Known")

#: Bytes of a weight as engines without binary layers hold it.
FLOAT_BYTES = 4


class Reader:
    """Makes the rows of ``model`` with what a survey found out about it."""

    def __init__(self, model: Model, found: Survey, eight_bits: Container[str] = ()) -> None:
        """``eight_bits``: the variables of the layers that are compiled to compute with integers of 8 bits."""
        self.eight_bits = eight_bits
        self.main = model.module["main"]
        #: What the file calls the network's inputs, by their variables' names.
        self.inputs = {param.name: spec.name for param, spec in zip(self.main.params, model.inputs, strict=False)}
        self.names = file_names(self.main)
        self.found = found
        self.verdicts = {verdict.name: verdict for verdict in found.verdicts}
        self.advice = advise(found)
        self.operators = found.binary_operators()
        self.recognised = found.defined("binary") if "binary" in found.phases else {}
        #: For each binary convolution that keeps floats before the next sign, why it does.
        self.floats = {origin(note.name, self.recognised, self.verdicts): note.reason for note in found.notes}
        self.compiled = self._compiled()
        #: Other names by which passes may know an operation: those that the file's network only gives its result.
        self.aliases = {value.name: name for name, value in operations(self.main) if isinstance(value, relax.Var)}

    def rows(self) -> list[Row]:
        """One row for each operation, in execution order."""
        names = self._row_names()
        rows = [
            self._row(name, value, names)
            for name, value in operations(self.main)
            if isinstance(value, Call) and tensor_type(value) is not None
        ]
        return [replace(row, name=self._called(row.name), inputs=tuple(map(self._called, row.inputs))) for row in rows]

    def _called(self, name: str) -> str:
        """What the file calls an operation; inputs have their names already."""
        return name if name in self.inputs.values() else self.names.get(name, name)

    def results(self) -> tuple[str, ...]:
        """The names of the rows and inputs that the network's results are."""
        names = self._row_names()
        found = (name for var in variables(self.main.body.body) for name in names.get(var.name, ()))
        return tuple(map(self._called, found))

    def _of(self, known: Mapping[str, _Known], name: str) -> _Known | None:
        """What is known of the file's operation ``name``."""
        while name not in known and name in self.aliases:
            name = self.aliases[name]
        return known.get(name)

    def _row_names(self) -> dict[str, tuple[str, ...]]:
        """For each variable of the file's network the rows and inputs it stands for."""
        names: dict[str, tuple[str, ...]] = {
            param.name: (self.inputs.get(param.name, param.name),) for param in self.main.params
        }
        for name, value in operations(self.main):
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
            shape=shape_of_type(tensor_type(call)),
            macs=macs_of(call),
            input_shape=shape_of_type(read[0].ty) if read else (),
            inputs=tuple(dict.fromkeys(source for var in read for source in names.get(var.name, ()))),
            absorbed="binary" in self.found.phases and self._of(self.recognised, name) is None,
            warnings=tuple(self._of(self.advice.warnings, name) or ()),
            notes=tuple(self._of(self.advice.notes, name) or ()),
            **packed_channels(call),
            **window_of(call),
        )
        if kind in CONVOLUTIONS:
            return self._convolution(row, call)
        workload = workload_of(call) if has_workload(call) else None
        return replace(row, sign_zero=workload.sign_zero) if isinstance(workload, Binarize) else row

    def _convolution(self, row: Row, call: Call) -> Row:
        unseen = "not looked at, since the network cannot be compiled" if self.found.problem else why_unseen(call)
        verdict = self._of(self.verdicts, row.name) or Verdict(row.name, refusal=unseen)
        count = weight_count(call)
        row = replace(
            row,
            binary=verdict.binary,
            suspicious=verdict.suspicious,
            reason=verdict.reason,
            weight_bytes=count * FLOAT_BYTES,
            packed_bytes=count * FLOAT_BYTES,
        )
        own = self.aliases.get(row.name, row.name)
        if row.name in self.eight_bits or own in self.eight_bits:
            return replace(row, result="int8", packed_bytes=count)
        compiled = self._of(self.compiled, row.name)
        if compiled is not None:
            others = dict.fromkeys(arg for each in compiled for arg in each.args[2:] if isinstance(arg, GenericConst))
            row = replace(
                row, result=workload_of(compiled[-1], Conv2d).out, constant_bytes=sum(map(constant_nbytes, others))
            )
        return self._conventions(row, verdict.facts) if verdict.facts else row

    def _conventions(self, row: Row, facts: BinaryFacts) -> Row:
        """What a binary convolution takes the signs of zeros and of padding to be, and whether its result stays bits."""
        calls = [self.recognised[name] for name in self._of(self.operators, row.name) or ()]
        if not calls:
            return row
        call = calls[0]
        work = workload_of(call, Conv2d)
        out_channels, *kernel, _ = shape_of(call.args[1])
        bits = out_channels * math.prod(kernel) * packed(work.channels // work.groups)
        weights = {value_of(each.args[1]).tobytes() for each in calls}
        # Operators with the two signs of zero add up to a zero that counts as none.
        signs = {self._sign_zero(each.args[0]) for each in calls}
        sign_zero = signs.pop() if len(signs) == 1 else 0
        reason = row.reason
        if sign_zero and facts.zeros_count_as is None:
            reason = f"{reason}, sign(0) = {sign_zero:+d}"
        floats = self._of(self.floats, row.name)
        return replace(
            row,
            reason=f"{reason}; keeps floats: {floats}" if floats else reason,
            macs=len(calls) * row.macs,
            packed_bytes=len(weights) * bits,
            sign_zero=sign_zero,
            padding=work.padding,
            pad_value=work.pad_value if any(work.padding) else None,
        )

    def _sign_zero(self, bits: relax.Expr) -> int | None:
        """The sign of zero by which ``bits`` of the recognised network were made; None where sums were compared."""
        while isinstance(bits, relax.Var) and bits.name in self.recognised:
            call = self.recognised[bits.name]
            workload = workload_of(call) if has_workload(call) else None
            if isinstance(workload, Binarize):
                return workload.sign_zero
            if op_name(call) not in ("reshape", "bitkiln.bmaxpool2d"):
                return None
            bits = call.args[0]
        return None

    def _compiled(self) -> dict[str, list[Call]]:
        """The operators that each convolution is compiled as, with what was drawn into them; the last gives its result."""
        if "fold_threshold" not in self.found.phases:
            return {}
        # Passes rename operators as they draw others in; a float convolution's new name is behind the old one, a binary
        # one's is known, and from there on operators keep their weights until thresholds turn them around.
        owners = {operator: name for name, operators in self.operators.items() for operator in operators}
        weights = {
            value.args[1]: owners.get(name) or origin(_base(name, self.recognised), self.recognised, self.verdicts)
            for name, value in self.found.defined("to_operators").items()
            if is_convolution(value)
        }
        fused, compiled = self.found.defined("fuse_epilogue"), defaultdict(list)
        for name, value in self.found.defined("fold_threshold").items():
            before = fused.get(_base(name, fused))
            if isinstance(before, Call) and op_name(before) == "bitkiln.binarize":
                before = fused.get(before.args[0].name)
            if not isinstance(before, Call):
                continue
            if is_convolution(value) and is_convolution(before) and before.args[1] in weights:
                compiled[weights[before.args[1]]].append(value)
        return compiled


def _base(name: str, known: Container[str]) -> str:
    """The one of ``known`` that a pass made the operation ``name`` from: passes only append to names."""
    while name not in known and "." in name:
        name = name.rpartition(".")[0]
    return name
