"""CloudWatch's alarms, evaluated on the metrics that the functions emit.

Sources, of the Amazon CloudWatch User Guide: "Using metric math", "Configuring how CloudWatch
alarms treat missing data", "Alarm evaluation window".
"""

import ast
import operator
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

__all__ = ["Metric", "Minute", "metrics_in", "metrics_of", "rings", "values_in"]

Metric = tuple[str, str, frozenset[tuple[str, str]]]
"""Namespace, name and dimensions."""
Minute = Mapping[Metric, list[float]]
"""What was reported in one minute; a metric without a value reported nothing."""

_STATISTICS: Mapping[str, Callable[[list[float]], float]] = {
    "Sum": sum,
    "Maximum": max,
    "Average": lambda values: sum(values) / len(values),
    # Of fewer than a hundred values.
    "p99": max,
}
_OPERATORS: Mapping[type[ast.AST], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_COMPARISONS: Mapping[str, Callable[[float, float], bool]] = {
    "GreaterThanThreshold": operator.gt,
    "GreaterThanOrEqualToThreshold": operator.ge,
    "LessThanThreshold": operator.lt,
}


def values_in(records: Iterable[Mapping[str, Any]]) -> dict[Metric, list[float]]:
    """What CloudWatch extracts from records in its embedded metric format."""
    found: dict[Metric, list[float]] = defaultdict(list)
    for record in records:
        for group in record["_aws"]["CloudWatchMetrics"]:
            for names in group["Dimensions"]:
                dimensions = frozenset((name, record[name]) for name in names)
                for metric in group["Metrics"]:
                    key = (group["Namespace"], metric["Name"], dimensions)
                    found[key].extend(record[metric["Name"]])
    return dict(found)


def metrics_in(records: Iterable[Mapping[str, Any]]) -> set[Metric]:
    """The metrics of records in CloudWatch's embedded metric format."""
    return set(values_in(records))


def metrics_of(alarm: Mapping[str, Any]) -> Iterator[Metric]:
    """The metrics that an alarm watches: one, or those of its expression."""
    stats = [
        each["MetricStat"]["Metric"] for each in alarm.get("Metrics", []) if "MetricStat" in each
    ]
    yield from map(_key, stats or [alarm])


def rings(alarm: Mapping[str, Any], minutes: list[Minute], *, rang: bool = False) -> bool:
    """Whether an alarm rings at the end of these minutes. ``rang`` is its state before them."""
    stats = [each["MetricStat"] for each in alarm.get("Metrics", []) if "MetricStat" in each]
    (period_s,) = {each["Period"] for each in stats or [alarm]}
    periods = int(alarm["EvaluationPeriods"])
    ends = [len(minutes) - number * period_s // 60 for number in range(periods)]
    points = [_point(alarm, minutes[max(0, end - period_s // 60) : max(0, end)]) for end in ends]
    missing: str = alarm["TreatMissingData"]
    if missing == "ignore" and set(points) == {None}:
        return rang
    exceeds = _COMPARISONS[alarm["ComparisonOperator"]]
    breaching = [
        missing == "breaching" if point is None else exceeds(point, float(alarm["Threshold"]))
        for point in points
    ]
    needed: int = alarm.get("DatapointsToAlarm", periods)
    return sum(breaching) >= needed


def _key(metric: Mapping[str, Any]) -> Metric:
    dimensions = frozenset((each["Name"], each["Value"]) for each in metric["Dimensions"])
    return metric["Namespace"], metric["MetricName"], dimensions


def _point(alarm: Mapping[str, Any], minutes: list[Minute]) -> float | None:
    """The alarm's value for one period, or None if it has none."""
    if "Metrics" not in alarm:
        statistic = alarm.get("Statistic") or alarm["ExtendedStatistic"]
        return _statistic(_key(alarm), statistic, minutes)
    queries = {each["Id"]: each for each in alarm["Metrics"]}
    (returned,) = (each["Id"] for each in alarm["Metrics"] if each["ReturnData"])

    def value_of(name: str) -> float | None:
        query = queries[name]
        if "Expression" in query:
            return _evaluate(ast.parse(query["Expression"], mode="eval").body, value_of)
        stat = query["MetricStat"]
        return _statistic(_key(stat["Metric"]), stat["Stat"], minutes)

    return value_of(returned)


def _statistic(metric: Metric, statistic: str, minutes: list[Minute]) -> float | None:
    values = [value for minute in minutes for value in minute.get(metric, [])]
    return _STATISTICS[statistic](values) if values else None


def _evaluate(node: ast.expr, value_of: Callable[[str], float | None]) -> float | None:
    """An expression of metric math. What is computed from a missing value is missing too."""

    def of(node: ast.expr) -> float | None:
        return _evaluate(node, value_of)

    def computed(kind: ast.AST, left: float | None, right: float | None) -> float | None:
        if left is None or right is None or (isinstance(kind, ast.Div) and not right):
            return None
        return float(_OPERATORS[type(kind)](left, right))

    match node:
        case ast.Constant(int() | float() as value):
            return float(value)
        case ast.Name(name):
            return value_of(name)
        case ast.BinOp(left, kind, right):
            return computed(kind, of(left), of(right))
        case ast.Compare(left, [kind], [right]):
            return computed(kind, of(left), of(right))
        case ast.Call(ast.Name("FILL"), [each, filler]):
            found = of(each)
            return of(filler) if found is None else found
        case ast.Call(ast.Name("IF"), [condition, then, otherwise]):
            chosen = of(condition)
            return None if chosen is None else of(then if chosen else otherwise)
    raise AssertionError(f"no known meaning for {ast.unparse(node)}")
