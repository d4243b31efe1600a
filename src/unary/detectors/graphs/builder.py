"""Writing an ONNX graph as one writes numpy: values with operators, constants where they stand, loops over pieces.

What is written is checked by onnx itself. A body of a loop or a branch sees the values of the graph around it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from unary.errors import require

OPSET = 20
IR_VERSION = 10


@dataclass(frozen=True, eq=False)
class Value:
    """A tensor of a graph, by its name; operators add nodes to the graph that is being written."""

    graph: Graph
    name: str
    __array_ufunc__ = None  # so that an array on the left leaves the operator to this class

    def __add__(self, other: Operand) -> Value:
        return self.graph.op("Add", self, other)

    def __radd__(self, other: Operand) -> Value:
        return self.graph.op("Add", other, self)

    def __sub__(self, other: Operand) -> Value:
        return self.graph.op("Sub", self, other)

    def __rsub__(self, other: Operand) -> Value:
        return self.graph.op("Sub", other, self)

    def __mul__(self, other: Operand) -> Value:
        return self.graph.op("Mul", self, other)

    def __rmul__(self, other: Operand) -> Value:
        return self.graph.op("Mul", other, self)

    def __truediv__(self, other: Operand) -> Value:
        return self.graph.op("Div", self, other)

    def __floordiv__(self, other: Operand) -> Value:
        return self.graph.op("Div", self, other)  # of whole numbers that are not negative

    def __gt__(self, other: Operand) -> Value:
        return self.graph.op("Greater", self, other)

    def __lt__(self, other: Operand) -> Value:
        return self.graph.op("Less", self, other)

    def __ge__(self, other: Operand) -> Value:
        return self.graph.op("GreaterOrEqual", self, other)

    def __le__(self, other: Operand) -> Value:
        return self.graph.op("LessOrEqual", self, other)

    def __and__(self, other: Operand) -> Value:
        return self.graph.op("And", self, other)

    def __or__(self, other: Operand) -> Value:
        return self.graph.op("Or", self, other)

    def __invert__(self) -> Value:
        return self.graph.op("Not", self)


Operand: TypeAlias = Value | NDArray[Any] | np.generic


@dataclass(eq=False)
class _Scope:
    """What is written of one graph, of a loop's body, or of a branch."""

    nodes: list[Any] = field(default_factory=list)
    constants: dict[tuple[str, tuple[int, ...], bytes], Any] = field(default_factory=dict)
    known: dict[tuple[str, ...], tuple[str, ...]] = field(default_factory=dict)


class Graph:
    """A graph while it is written; nodes go to the innermost body or branch that is being written."""

    def __init__(self) -> None:
        self._onnx = require("onnx", extra="onnx")
        self._scopes = [_Scope()]
        self._count = 0

    def new_name(self, kind: str) -> str:
        """Return a name that no other value has."""
        self._count += 1
        return f"{kind}_{self._count}"

    def constant(self, value: NDArray[Any] | np.generic) -> Value:
        """Return a tensor that is always the same."""
        array = np.ascontiguousarray(value).reshape(np.shape(value))
        key = (array.dtype.str, array.shape, array.tobytes())
        known = self._scopes[-1].constants
        if key not in known:
            known[key] = self._onnx.numpy_helper.from_array(array, self.new_name("constant"))
        return Value(self, known[key].name)

    def ops(self, kind: str, *inputs: Operand | None, outputs: int = 1, **attributes: Any) -> tuple[Value, ...]:
        """Add a node, or find the one that does the same; return its outputs. None is an input that is left out."""
        values = [None if each is None else each if isinstance(each, Value) else self.constant(each) for each in inputs]
        taken = ["" if value is None else value.name for value in values]
        key = (kind, *taken, repr(sorted(attributes.items())))  # names of bodies differ, so that loops do too
        known = next((scope.known[key] for scope in self._scopes if key in scope.known), None)
        if known is None:
            known = tuple(self.new_name(kind) for _ in range(outputs))
            self._scopes[-1].nodes.append(self._onnx.helper.make_node(kind, taken, known, **attributes))
            self._scopes[-1].known[key] = known
        return tuple(Value(self, name) for name in known)

    def op(self, kind: str, *inputs: Operand | None, **attributes: Any) -> Value:
        """Add a node with one output; return it."""
        return self.ops(kind, *inputs, **attributes)[0]

    # Shapes and types.

    def cast(self, value: Operand, dtype: type[np.generic]) -> Value:
        """Return a value as another type."""
        return self.op("Cast", value, to=self._kind(dtype))

    def length(self, value: Value, axis: int) -> Value:
        """Return the length of an axis, shape (1,), int64."""
        return self.op("Shape", value, start=axis, end=axis + 1)

    def reshape(self, value: Value, *shape: int | Value) -> Value:
        """Return a value in another shape of numbers and of lengths, each (1,)."""
        return self.op("Reshape", value, self.join(*shape))

    def join(self, *lengths: int | Value) -> Value:
        """Return lengths as one vector, int64."""
        if all(isinstance(each, int) for each in lengths):
            return self.constant(np.asarray(lengths, np.int64))
        parts = [each if isinstance(each, Value) else np.asarray([each], np.int64) for each in lengths]
        return self.op("Concat", *parts, axis=0) if len(parts) > 1 else self.op("Identity", parts[0])

    def cut(self, value: Value, axis: int, start: int | Value, stop: int | Value, step: int | Value = 1) -> Value:
        """Return the places from ``start`` up to ``stop`` of an axis, as far as there are any."""
        ends = [self.join(each) for each in (start, stop)]
        return self.op("Slice", value, *ends, np.asarray([axis], np.int64), self.join(step))

    def pad(self, value: Value, before: Sequence[int | Value], after: Sequence[int | Value], fill: Operand) -> Value:
        """Return a value with so much more before and after each axis."""
        return self.op("Pad", value, self.join(*before, *after), fill)

    def planes(self, value: Value) -> Value:
        """Return (rows, cols) as (1, 1, rows, cols)."""
        return self.op("Unsqueeze", value, np.asarray([0, 1], np.int64))

    def plane(self, value: Value) -> Value:
        """Return (1, 1, rows, cols) as (rows, cols)."""
        return self.op("Squeeze", value, np.asarray([0, 1], np.int64))

    def where(self, condition: Operand, chosen: Operand, other: Operand) -> Value:
        """Return one or the other, element by element."""
        return self.op("Where", condition, chosen, other)

    def count_up(self, stop: Value | int) -> Value:
        """Return 0, 1, ... below ``stop``, a number or shape (1,), int64."""
        last = np.asarray(stop, np.int64) if isinstance(stop, int) else self.scalar(stop)
        return self.op("Range", np.asarray(0, np.int64), last, np.asarray(1, np.int64))

    def scalar(self, value: Value) -> Value:
        """Return shape (1,) as a scalar."""
        return self.op("Squeeze", value, np.asarray([0], np.int64))

    def largest(self, value: Value) -> Value:
        """Return the largest of all, a scalar."""
        return self.op("ReduceMax", value, keepdims=0)

    def mean(self, value: Value, *axes: int) -> Value:
        """Return the mean over axes, which vanish; over all of them without any."""
        over = () if not axes else (np.asarray(axes, np.int64),)
        return self.op("ReduceMean", value, *over, keepdims=0)

    # Pieces.

    def loop(
        self, times: Value, write: Callable[[Value], Sequence[Value]], kinds: Sequence[type[np.generic]]
    ) -> tuple[Value, ...]:
        """Write a body that is done ``times``, shape (1,), times; return what it yields each time, stacked.

        ``write`` takes the number of the time, a scalar, and returns values of the types ``kinds``.
        """
        self._scopes.append(_Scope())
        number, go_on = self.new_name("number"), self.new_name("go_on")
        found = write(Value(self, number))
        condition = self.op("Identity", Value(self, go_on))
        body = self._close([(number, np.int64, []), (go_on, np.bool_, [])], [condition, *found], [np.bool_, *kinds])
        return self.ops("Loop", self.scalar(times), np.asarray(True), outputs=len(found), body=body)

    def choose(
        self,
        condition: Value,
        one: Callable[[], Sequence[Value]],
        other: Callable[[], Sequence[Value]],
        kinds: Sequence[type[np.generic]],
    ) -> tuple[Value, ...]:
        """Return what ``one`` writes where a scalar condition holds, else what ``other`` does; that alone is done."""
        branches = []
        for write in (one, other):
            self._scopes.append(_Scope())
            branches.append(self._close([], [self.op("Identity", value) for value in write()], kinds))
        return self.ops("If", condition, outputs=len(kinds), then_branch=branches[0], else_branch=branches[1])

    def _close(self, inputs: Sequence[tuple[str, Any, Any]], outputs: Sequence[Value], kinds: Sequence[Any]) -> Any:
        """The innermost graph as onnx has it, which is left."""
        helper, scope = self._onnx.helper, self._scopes.pop()
        given = [helper.make_tensor_value_info(name, self._kind(kind), shape) for name, kind, shape in inputs]
        found = [
            helper.make_tensor_value_info(value.name, self._kind(kind), None)
            for value, kind in zip(outputs, kinds, strict=True)
        ]
        return helper.make_graph(scope.nodes, self.new_name("graph"), given, found, list(scope.constants.values()))

    def _kind(self, dtype: type[np.generic]) -> int:
        return int(self._onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def build_model(
        self,
        inputs: Mapping[str, tuple[type[np.generic], Sequence[str | int]]],
        outputs: Mapping[str, tuple[Value, type[np.generic], Sequence[str | int]]],
    ) -> Any:
        """Return the model, checked: names, types and axes of inputs, and of outputs with their values."""
        helper, (scope,) = self._onnx.helper, self._scopes
        given = [helper.make_tensor_value_info(name, self._kind(kind), axes) for name, (kind, axes) in inputs.items()]
        found = []
        for name, (value, kind, axes) in outputs.items():
            scope.nodes.append(helper.make_node("Identity", [value.name], [name]))
            found.append(helper.make_tensor_value_info(name, self._kind(kind), axes))
        graph = helper.make_graph(scope.nodes, "unary", given, found, list(scope.constants.values()))
        opsets = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="unary")
        self._onnx.checker.check_model(model)
        return model
