"""Which Relax operators work element by element, with numpy's broadcasting between their arguments."""

UNARY = frozenset(
    {
        "abs",
        "astype",
        "bitkiln.hardswish",
        "ceil",
        "clip",
        "cos",
        "erf",
        "exp",
        "floor",
        "isfinite",
        "isinf",
        "isnan",
        "log",
        "logical_not",
        "negative",
        "nn.gelu",
        "nn.gelu_tanh",
        "nn.leakyrelu",
        "nn.relu",
        "nn.relu6",
        "nn.silu",
        "nn.softplus",
        "round",
        "rsqrt",
        "sigmoid",
        "sign",
        "sin",
        "sqrt",
        "square",
        "tanh",
    }
)

#: Of two or three tensors.
BROADCASTING = frozenset(
    {
        "add",
        "bitkiln.prelu",
        "divide",
        "equal",
        "floor_divide",
        "greater",
        "greater_equal",
        "less",
        "less_equal",
        "logical_and",
        "logical_or",
        "maximum",
        "minimum",
        "mod",
        "multiply",
        "not_equal",
        "power",
        "subtract",
        "where",
    }
)

ELEMENTWISE = UNARY | BROADCASTING
