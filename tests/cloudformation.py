"""The template as CloudFormation would take it, for parameters of choice: nothing is left to guess.

A reference to something that is absent, or kept out by its condition, is an error here as it is
there, and so is an attribute that the resource doesn't have.
"""

import copy
import re
from collections.abc import Callable, Mapping
from typing import Any

from infra.local.aws import REGION

__all__ = ["ACCOUNT", "STACK", "Unresolvable", "Variant", "cycle_in", "references_in"]

ACCOUNT = "123456789012"
STACK = "pictures"
_ABSENT = object()
_VARIABLE = re.compile(r"\$\{(!?)([^}]+)\}")
# What `!GetAtt` can ask of a resource, by the resource's type, and what it answers.
_ATTRIBUTES = {
    ("AWS::ApiGatewayV2::DomainName", "RegionalDomainName"): "{name}.execute-api.example",
    ("AWS::CloudFront::Distribution", "DomainName"): "d111111abcdef8.cloudfront.net",
    ("AWS::CloudFront::OriginAccessControl", "Id"): "E1{name}",
    ("AWS::DynamoDB::Table", "Arn"): "arn:aws:dynamodb:{region}:{account}:table/{name}",
    ("AWS::IAM::Role", "Arn"): "arn:aws:iam::{account}:role/{name}",
    ("AWS::Logs::LogGroup", "Arn"): "arn:aws:logs:{region}:{account}:log-group:{name}:*",
    ("AWS::S3::Bucket", "Arn"): "arn:aws:s3:::{name}",
    ("AWS::S3::Bucket", "RegionalDomainName"): "{name}.s3.{region}.amazonaws.com",
    ("AWS::SQS::Queue", "Arn"): "arn:aws:sqs:{region}:{account}:{name}",
    ("AWS::SQS::Queue", "QueueName"): "{name}",
}
# The property with a resource's name, where the operator or the template chooses one.
_NAMED = {
    "AWS::ApiGatewayV2::DomainName": "DomainName",
    "AWS::CloudWatch::Dashboard": "DashboardName",
    "AWS::Logs::LogGroup": "LogGroupName",
}


class Unresolvable(Exception):
    """CloudFormation would refuse the template; the sentence says why."""


class Variant:
    """One template with one choice of parameters.

    ``names`` gives a resource another physical name than the one that is made up from the stack's
    and its own; ``account`` is the AWS account.
    """

    def __init__(
        self,
        document: Mapping[str, Any],
        parameters: Mapping[str, object] | None = None,
        *,
        names: Mapping[str, str] | None = None,
        account: str = ACCOUNT,
    ) -> None:
        defaults = {name: each.get("Default") for name, each in document["Parameters"].items()}
        chosen = parameters or {}
        if not chosen.keys() <= defaults.keys():
            raise Unresolvable(f"no such parameters: {chosen.keys() - defaults.keys()}")
        # To CloudFormation every parameter is text.
        self._values = {name: str(value) for name, value in (defaults | dict(chosen)).items()}
        self._pseudo = {
            "AWS::AccountId": account,
            "AWS::NoValue": _ABSENT,
            "AWS::Partition": "aws",
            "AWS::Region": REGION,
            "AWS::StackName": STACK,
            "AWS::URLSuffix": "amazonaws.com",
        }
        self._document = document
        self._names = names or {}

    def condition(self, name: str) -> bool:
        """Whether the template's condition holds."""
        if name not in self._document.get("Conditions", {}):
            raise Unresolvable(f"no condition {name}")
        return self._holds(self._document["Conditions"][name])

    def refused(self) -> list[str]:
        """Why the template's rules refuse these parameters; nothing when they are accepted."""
        return [
            assertion["AssertDescription"]
            for rule in self._document.get("Rules", {}).values()
            if "RuleCondition" not in rule or self._holds(rule["RuleCondition"])
            for assertion in rule["Assertions"]
            if not self._holds(assertion["Assert"])
        ]

    def environment(self) -> dict[str, str]:
        """The variables that all functions have in common."""
        found: dict[str, str] = self.resolved(self._document["Globals"]["Function"])["Environment"][
            "Variables"
        ]
        return found

    def resources(self, kind: str | None = None) -> dict[str, dict[str, Any]]:
        """The resources that are made, all or of one type, without any intrinsic function."""
        return {
            name: self.resolved(resource)
            for name, resource in self._document["Resources"].items()
            if kind in (None, resource["Type"]) and self._is_made(resource)
        }

    def outputs(self) -> dict[str, str]:
        """What the stack tells."""
        outputs = self._document.get("Outputs", {}).items()
        return {name: self.resolved(each["Value"]) for name, each in outputs if self._is_made(each)}

    def name_of(self, logical: str) -> str:
        """The physical name of a resource: what `!Ref` answers."""
        resource = self._made(logical)
        if logical in self._names:
            return self._names[logical]
        chosen = _NAMED.get(resource["Type"])
        if chosen is not None:
            return str(self.resolved(resource["Properties"][chosen]))
        if resource["Type"] == "AWS::SecretsManager::Secret":
            account = self._pseudo["AWS::AccountId"]
            return f"arn:aws:secretsmanager:{REGION}:{account}:secret:{STACK}-{logical}-a1B2c3"
        name = f"{STACK}-{logical}"
        if resource["Type"] == "AWS::SQS::Queue":
            return f"https://sqs.{REGION}.amazonaws.com/{self._pseudo['AWS::AccountId']}/{name}"
        return name.lower() if resource["Type"] == "AWS::S3::Bucket" else name

    def resolved(self, value: Any) -> Any:
        """``value`` without intrinsic functions."""
        if isinstance(value, Mapping):
            function = _INTRINSIC.get(next(iter(value))) if len(value) == 1 else None
            if function is not None:
                return function(self, next(iter(value.values())))
            if any(key.startswith("Fn::") for key in value):
                raise Unresolvable(f"not understood: {list(value)}")
            pairs = {key: self.resolved(each) for key, each in value.items()}
            return {key: each for key, each in pairs.items() if each is not _ABSENT}
        if isinstance(value, list):
            return [each for each in map(self.resolved, value) if each is not _ABSENT]
        return copy.copy(value)

    def _is_made(self, resource: Mapping[str, Any]) -> bool:
        return "Condition" not in resource or self.condition(resource["Condition"])

    def _made(self, logical: str) -> Mapping[str, Any]:
        resource = self._document["Resources"].get(logical)
        if resource is None:
            raise Unresolvable(f"nothing is called {logical}")
        if not self._is_made(resource):
            raise Unresolvable(f"{logical} is kept out by its condition")
        found: Mapping[str, Any] = resource
        return found

    def _ref(self, name: str) -> object:
        if name in self._pseudo:
            return self._pseudo[name]
        if name in self._values:
            return self._values[name]
        api, _, generated = name.partition(".")
        if generated == "Stage" and self._made(api)["Type"] == "AWS::Serverless::HttpApi":
            return "$default"
        return self.name_of(name)

    def _get_att(self, path: list[str]) -> str:
        logical, attribute = path
        kind = self._made(logical)["Type"]
        if (kind, attribute) not in _ATTRIBUTES:
            raise Unresolvable(f"{logical} ({kind}) has no {attribute}")
        account = self._pseudo["AWS::AccountId"]
        return _ATTRIBUTES[kind, attribute].format(
            name=self.name_of(logical).rpartition("/")[2]
            if "SQS" in kind
            else self.name_of(logical),
            region=REGION,
            account=account,
        )

    def _sub(self, text: str) -> str:
        def found(match: re.Match[str]) -> str:
            literal, name = match.groups()
            if literal:
                return f"${{{name}}}"
            logical, _, attribute = name.partition(".")
            return str(self._get_att([logical, attribute]) if attribute else self._ref(name))

        return _VARIABLE.sub(found, text)

    def _if(self, choice: list[Any]) -> Any:
        condition, then, otherwise = choice
        return self.resolved(then if self.condition(condition) else otherwise)

    def _holds(self, expression: Mapping[str, Any]) -> bool:
        ((operator, value),) = expression.items()
        if operator == "Condition":
            return self.condition(value)
        if operator == "Fn::Equals":
            left, right = (str(self.resolved(each)) for each in value)
            return left == right
        if operator == "Fn::Not":
            return not self._holds(value[0])
        if operator in {"Fn::And", "Fn::Or"}:
            return (all if operator == "Fn::And" else any)(map(self._holds, value))
        raise Unresolvable(f"not understood: {operator}")


# What `Ref`, `Fn::GetAtt`, `Fn::Sub` and `Fn::If` come to.
_INTRINSIC: dict[str, Callable[[Variant, Any], Any]] = {
    "Ref": Variant._ref,  # noqa: SLF001 - the class's own
    "Fn::GetAtt": Variant._get_att,  # noqa: SLF001 - the class's own
    "Fn::Sub": Variant._sub,  # noqa: SLF001 - the class's own
    "Fn::If": Variant._if,  # noqa: SLF001 - the class's own
}


def references_in(value: Any) -> set[str]:
    """The names of everything that ``value`` refers to: resources, parameters, AWS's own."""
    if isinstance(value, list):
        return set().union(*map(references_in, value))
    if not isinstance(value, Mapping):
        return set()
    found = set()
    for key, each in value.items():
        if key == "Ref":
            found.add(each)
        elif key == "Fn::GetAtt":
            found.add(each[0] if isinstance(each, list) else each.partition(".")[0])
        elif key == "Fn::Sub":
            text, own = (each, {}) if isinstance(each, str) else each
            names = {name.partition(".")[0] for mark, name in _VARIABLE.findall(text) if not mark}
            found |= (names - own.keys()) | references_in(own)
        else:
            found |= references_in(each)
    return found


def cycle_in(resources: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The resources that wait for each other to be made, in order; nothing when there are none.

    A resource waits for what its properties refer to, for ``DependsOn``, and for what its
    ``UpdatePolicy`` refers to.
    """
    waits_for = {}
    for name, resource in resources.items():
        explicit = resource.get("DependsOn", [])
        named = {explicit} if isinstance(explicit, str) else set(explicit)
        waiting = [resource.get("Properties", {}), resource.get("UpdatePolicy", {})]
        waits_for[name] = (named | references_in(waiting)) & resources.keys()
    made: set[str] = set()
    while ready := {name for name in waits_for if name not in made and waits_for[name] <= made}:
        made |= ready
    left = {name: waits_for[name] - made for name in waits_for.keys() - made}
    if not left:
        return []
    path = [min(left)]
    while path.count(path[-1]) == 1:
        path.append(min(left[path[-1]]))
    return path[path.index(path[-1]) :]
