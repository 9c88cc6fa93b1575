"""The template as CloudFormation resolves it for chosen parameters.

As in CloudFormation, a reference to a missing resource, to one that its condition excludes, or to
an attribute that the resource doesn't have is an error.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from infra.local.aws import REGION
from infra.template import TEMPLATE_PATH, parse

__all__ = [
    "ACCOUNT",
    "CERTIFICATE",
    "DOCUMENT",
    "ON_R2",
    "STACK",
    "Unresolvable",
    "Variant",
    "only",
    "properties_of",
    "references_in",
]

DOCUMENT = parse(TEMPLATE_PATH.read_text(encoding="utf-8"))
ON_R2: dict[str, object] = {
    "StorageEndpointUrl": "https://account.r2.cloudflarestorage.com",
    "R2Bucket": "pictures",
    "ImageBaseUrl": "https://images.example",
    "StorageCredentialsSecret": "r2/credentials",
}

ACCOUNT = "123456789012"
CERTIFICATE = f"arn:aws:acm:us-east-1:{ACCOUNT}:certificate/0a1b"
STACK = "pictures"
_ABSENT = object()
_VARIABLE = re.compile(r"\$\{(!?)([^}]+)\}")
# The attributes that `!GetAtt` can read, by the type of the resource.
_ATTRIBUTES = {
    ("AWS::ApiGatewayV2::DomainName", "RegionalDomainName"): "{name}.execute-api.example",
    ("AWS::CloudFront::Distribution", "DomainName"): "d111111abcdef8.cloudfront.net",
    ("AWS::CloudFront::OriginAccessControl", "Id"): "E1{name}",
    ("AWS::DynamoDB::Table", "Arn"): "arn:aws:dynamodb:{region}:{account}:table/{name}",
    ("AWS::IAM::Role", "Arn"): "arn:aws:iam::{account}:role/{name}",
    ("AWS::KMS::Key", "Arn"): "arn:aws:kms:{region}:{account}:key/{name}",
    ("AWS::Logs::LogGroup", "Arn"): "arn:aws:logs:{region}:{account}:log-group:{name}:*",
    ("AWS::S3::Bucket", "Arn"): "arn:aws:s3:::{name}",
    ("AWS::S3::Bucket", "RegionalDomainName"): "{name}.s3.{region}.amazonaws.com",
    ("AWS::SQS::Queue", "Arn"): "arn:aws:sqs:{region}:{account}:{name}",
    ("AWS::SQS::Queue", "QueueName"): "{name}",
}
# The property that names a resource, where the template or the operator chooses the name.
_NAMED = {
    "AWS::ApiGatewayV2::DomainName": "DomainName",
    "AWS::CloudWatch::Dashboard": "DashboardName",
    "AWS::Logs::LogGroup": "LogGroupName",
}


class Unresolvable(Exception):
    """CloudFormation would reject the template."""


class Variant:
    """One template with one choice of parameters.

    ``names`` overrides the physical names of resources, by logical name; ``account`` is the AWS
    account, ``stack`` the name of the stack.
    """

    def __init__(
        self,
        document: Mapping[str, Any],
        parameters: Mapping[str, object] | None = None,
        *,
        names: Mapping[str, str] | None = None,
        account: str = ACCOUNT,
        stack: str = STACK,
    ) -> None:
        defaults = {name: each.get("Default") for name, each in document["Parameters"].items()}
        chosen = parameters or {}
        if not chosen.keys() <= defaults.keys():
            raise Unresolvable(f"no such parameters: {chosen.keys() - defaults.keys()}")
        # To CloudFormation every parameter is text.
        self._values = {name: str(value) for name, value in (defaults | dict(chosen)).items()}
        for name, value in self._values.items():
            allowed = document["Parameters"][name]
            is_listed = value in map(str, allowed.get("AllowedValues", [value]))
            if not is_listed or not re.fullmatch(allowed.get("AllowedPattern", ".*"), value):
                raise Unresolvable(f"{name} can't be {value!r}")
        self._pseudo = {
            "AWS::AccountId": account,
            "AWS::NoValue": _ABSENT,
            "AWS::Partition": "aws",
            "AWS::Region": REGION,
            "AWS::StackName": stack,
            "AWS::URLSuffix": "amazonaws.com",
        }
        self._document = document
        self._names = names or {}

    def condition(self, name: str) -> bool:
        """Whether the condition is true."""
        if name not in self._document.get("Conditions", {}):
            raise Unresolvable(f"no condition {name}")
        return self._holds(self._document["Conditions"][name])

    def refused(self) -> list[str]:
        """Why the template's rules reject these parameters; empty if they accept them."""
        return [
            assertion["AssertDescription"]
            for rule in self._document.get("Rules", {}).values()
            if "RuleCondition" not in rule or self._holds(rule["RuleCondition"])
            for assertion in rule["Assertions"]
            if not self._holds(assertion["Assert"])
        ]

    def environment(self) -> dict[str, str]:
        """The variables that all functions share.

        Raises:
            Unresolvable: they don't share them.
        """
        functions = self.resources("AWS::Serverless::Function").values()
        first, *others = (each["Properties"]["Environment"]["Variables"] for each in functions)
        if any(other != first for other in others):
            raise Unresolvable("the functions have different variables")
        found: dict[str, str] = first
        return found

    def resources(self, kind: str | None = None) -> dict[str, dict[str, Any]]:
        """The resources that are created, all or of one type, without intrinsic functions."""
        return {
            name: self.resolved(resource)
            for name, resource in self._document["Resources"].items()
            if kind in (None, resource["Type"]) and self._is_created(resource)
        }

    def outputs(self) -> dict[str, str]:
        """The outputs of the stack."""
        outputs = self._document.get("Outputs", {}).items()
        return {
            name: self.resolved(each["Value"]) for name, each in outputs if self._is_created(each)
        }

    def name_of(self, logical: str) -> str:
        """The physical name of a resource: the value of `!Ref`."""
        resource = self._created(logical)
        stack = self._pseudo["AWS::StackName"]
        if logical in self._names:
            return self._names[logical]
        chosen = _NAMED.get(resource["Type"])
        if chosen is not None:
            return str(self.resolved(resource["Properties"][chosen]))
        if resource["Type"] == "AWS::SecretsManager::Secret":
            account = self._pseudo["AWS::AccountId"]
            return f"arn:aws:secretsmanager:{REGION}:{account}:secret:{stack}-{logical}-a1B2c3"
        name = f"{stack}-{logical}"
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
                raise Unresolvable(f"not supported: {list(value)}")
            pairs = {key: self.resolved(each) for key, each in value.items()}
            return {key: each for key, each in pairs.items() if each is not _ABSENT}
        if isinstance(value, list):
            return [each for each in map(self.resolved, value) if each is not _ABSENT]
        return value

    def _is_created(self, resource: Mapping[str, Any]) -> bool:
        return "Condition" not in resource or self.condition(resource["Condition"])

    def _created(self, logical: str) -> Mapping[str, Any]:
        resource = self._document["Resources"].get(logical)
        if resource is None:
            raise Unresolvable(f"no resource {logical}")
        if not self._is_created(resource):
            raise Unresolvable(f"the condition of {logical} is false")
        found: Mapping[str, Any] = resource
        return found

    def _ref(self, name: str) -> object:
        if name in self._pseudo:
            return self._pseudo[name]
        if name in self._values:
            return self._values[name]
        api, _, generated = name.partition(".")
        if generated == "Stage" and self._created(api)["Type"] == "AWS::Serverless::HttpApi":
            return "$default"
        return self.name_of(name)

    def _get_att(self, path: list[str]) -> str:
        logical, attribute = path
        kind = self._created(logical)["Type"]
        if (kind, attribute) not in _ATTRIBUTES:
            raise Unresolvable(f"{logical} ({kind}) has no {attribute}")
        # The reference to a queue is its URL.
        name = self.name_of(logical).rpartition("/")[2] if "SQS" in kind else self.name_of(logical)
        account = self._pseudo["AWS::AccountId"]
        return _ATTRIBUTES[kind, attribute].format(name=name, region=REGION, account=account)

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
        raise Unresolvable(f"not supported: {operator}")


# The intrinsic functions that the template uses outside conditions.
_INTRINSIC: dict[str, Callable[[Variant, Any], Any]] = {
    "Ref": Variant._ref,  # noqa: SLF001 - the class's own
    "Fn::GetAtt": Variant._get_att,  # noqa: SLF001 - the class's own
    "Fn::Sub": Variant._sub,  # noqa: SLF001 - the class's own
    "Fn::If": Variant._if,  # noqa: SLF001 - the class's own
}


def references_in(value: Any) -> set[str]:
    """The logical names that ``value`` refers to: resources, parameters, pseudo parameters."""
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


def properties_of(variant: Variant, kind: str) -> dict[str, Any]:
    """The properties of the resources of one type, by logical name."""
    return {name: each["Properties"] for name, each in variant.resources(kind).items()}


def only(variant: Variant, kind: str) -> dict[str, Any]:
    """The properties of the only resource of its type."""
    (found,) = properties_of(variant, kind).values()
    assert isinstance(found, dict)
    return found
