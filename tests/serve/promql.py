"""What a PromQL expression reads and what labels its result has, from the parser of GreptimeDB's `promql-parser`."""

from dataclasses import dataclass

import promql_parser as promql
from promql_parser import AggModifierType

# Grafana fills them in.
_VARIABLES = {"$__rate_interval": "5m", "$model": ".*", "$run": ".*"}


@dataclass(frozen=True)
class Reading:
    """One selector: the name of the series, its matchers, and the labels that aggregations above it keep."""

    name: str
    matchers: tuple[tuple[str, str, str], ...]  # label, operator, value
    kept: frozenset[str] | None  # None: all


def readings(expression):
    """Every selector of an expression. Raises `ValueError` if the expression is not PromQL."""
    for variable, value in _VARIABLES.items():
        expression = expression.replace(variable, value)
    assert "$" not in expression, expression
    return list(_walk(promql.parse(expression), None))


def _walk(node, kept):
    match node:
        case promql.AggregateExpr():
            labels = frozenset()
            if node.modifier is not None:
                assert node.modifier.type == AggModifierType.By, "this project writes by, not without"
                labels = frozenset(node.modifier.labels)
            yield from _walk(node.expr, labels)
        case promql.BinaryExpr():
            yield from _walk(node.lhs, kept)
            yield from _walk(node.rhs, kept)
        case promql.Call():
            for argument in node.args:
                yield from _walk(argument, kept)
        case promql.ParenExpr():
            yield from _walk(node.expr, kept)
        case promql.MatrixSelector():
            yield from _walk(node.vector_selector, kept)
        case promql.VectorSelector():
            matchers = tuple((m.name, str(m.op).removeprefix("MatchOp."), m.value) for m in node.matchers.matchers)
            yield Reading(node.name, matchers, kept)
        case promql.NumberLiteral():
            return
        case _:
            raise AssertionError(f"{type(node).__name__} is not read here")
