"""Each role permits exactly what its function does, judged by IAM's rules.

The calls that the functions make in every outcome (``tests.operation``) are compared with the
statements of their roles, in both directions.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import pytest

from tests.cloudformation import DOCUMENT, ON_R2, Variant
from tests.operation import R2_KEY_ID, Need, Recording, recorded

# The functions run through every outcome first, which takes a while.
pytestmark = pytest.mark.real

FUNCTIONS = (
    "GenerateFunction",
    "AccountFunction",
    "DeleteFunction",
    "WorkerFunction",
    "ReconcileFunction",
    "AuditFunction",
)
# What Lambda itself does with a function's role.
OF_LAMBDA = {
    "logs:CreateLogStream",
    "logs:PutLogEvents",
    "xray:PutTelemetryRecords",
    "xray:PutTraceSegments",
}
# What Lambda does with the worker's role to deliver its jobs.
OF_THE_QUEUE = {"sqs:DeleteMessage", "sqs:GetQueueAttributes", "sqs:ReceiveMessage"}
READS = {"dynamodb:GetItem", "dynamodb:Query", "secretsmanager:GetSecretValue"}
SIGNS = {"kms:GetPublicKey", "kms:Sign"}
SECRETS = "arn:aws:secretsmanager:us-east-1:123456789012:secret:"


@dataclass(frozen=True)
class PolicyStatement:
    """One statement of a policy, without conditions."""

    name: str
    allows: bool
    actions: tuple[str, ...]
    resources: tuple[str, ...]

    @classmethod
    def of(cls, written: Mapping[str, Any]) -> "PolicyStatement":
        unknown = written.keys() - {"Sid", "Effect", "Action", "Resource"}
        assert not unknown, f"not supported: {unknown}"
        assert written["Effect"] in {"Allow", "Deny"}
        return cls(
            name=written["Sid"],
            allows=written["Effect"] == "Allow",
            actions=tuple(listed(written["Action"])),
            resources=tuple(listed(written["Resource"])),
        )

    def covers(self, action: str, resource: str) -> bool:
        return any(matches(pattern.lower(), action.lower()) for pattern in self.actions) and any(
            matches(pattern, resource) for pattern in self.resources
        )


def listed(value: Any) -> list[Any]:
    """IAM accepts a single value for a list of one."""
    return value if isinstance(value, list) else [value]


def matches(pattern: str, text: str) -> bool:
    """IAM's wildcards: ``*`` for any characters, ``?`` for one."""
    parts = ({"*": ".*", "?": "."}.get(character, re.escape(character)) for character in pattern)
    return re.fullmatch("".join(parts), text, re.DOTALL) is not None


def allowed(statements: list[PolicyStatement], action: str, resource: str) -> bool:
    """IAM's decision: denied unless a statement allows it, and a Deny is final."""
    covering = [each for each in statements if each.covers(action, resource)]
    return bool(covering) and all(each.allows for each in covering)


def statements_of(variant: Variant, function: str) -> list[PolicyStatement]:
    role = role_of(variant, function)
    assert role.keys() <= {"AssumeRolePolicyDocument", "Policies"}, "a policy from elsewhere"
    return [
        PolicyStatement.of(written)
        for policy in role["Policies"]
        for written in policy["PolicyDocument"]["Statement"]
    ]


def role_of(variant: Variant, function: str) -> dict[str, Any]:
    properties = variant.resources("AWS::Serverless::Function")[function]["Properties"]
    # With these SAM would add statements to a role that it makes itself.
    assert not properties.keys() & {"Policies", "ManagedPolicyArns", "PermissionsBoundary"}
    name = properties["Role"].rpartition("/")[2]
    (role,) = (
        each["Properties"]
        for logical, each in variant.resources("AWS::IAM::Role").items()
        if variant.name_of(logical) == name
    )
    assert isinstance(role, dict)
    return role


def refused(recording: Recording, without: str = "") -> set[Need]:
    """The calls that the roles would deny, with the statement ``without`` removed."""
    return {
        need
        for need in in_aws(recording)
        if not allowed(
            [
                statement
                for statement in statements_of(recording.variant, need.function)
                if statement.name != without
            ],
            need.action,
            need.resource,
        )
    }


def in_aws(recording: Recording) -> set[Need]:
    """The calls that a role governs: R2 has no roles."""
    on_r2 = recording.variant.condition("UseR2")
    return {need for need in recording.needs if not (on_r2 and need.action.startswith("s3:"))}


def unused(recording: Recording) -> set[tuple[str, str, str]]:
    """Function, action and resource of each permission that no call needed."""
    return {
        (function, action, resource)
        for function in FUNCTIONS
        for statement in statements_of(recording.variant, function)
        for action in statement.actions
        for resource in statement.resources
        if action not in OF_LAMBDA | OF_THE_QUEUE
        and not any(
            need.function == function and need.action == action and matches(resource, need.resource)
            for need in in_aws(recording)
        )
    }


@pytest.fixture(scope="module")
def in_s3() -> Iterator[Recording]:
    with recorded() as done:
        yield done


@pytest.fixture(scope="module")
def in_r2() -> Iterator[Recording]:
    with recorded(on_r2=True) as done:
        yield done


@pytest.fixture(params=["in_s3", "in_r2"])
def recording(request: pytest.FixtureRequest) -> Recording:
    done: Recording = request.getfixturevalue(request.param)
    return done


@pytest.fixture(params=["in S3", "in R2"])
def variant(request: pytest.FixtureRequest) -> Variant:
    return Variant(DOCUMENT, ON_R2 if request.param == "in R2" else {})


# Calls against permissions


def test_every_call_that_a_function_makes_is_allowed_by_its_role(recording: Recording) -> None:
    assert {need.function for need in recording.needs} == set(FUNCTIONS)
    assert not refused(recording)


def test_every_permission_is_needed_by_some_call(recording: Recording) -> None:
    assert not unused(recording)


def test_each_function_may_write_its_own_log_and_traces_and_no_other_log(
    variant: Variant,
) -> None:
    groups = {
        name: properties["Properties"]["LoggingConfig"]["LogGroup"]
        for name, properties in variant.resources("AWS::Serverless::Function").items()
    }
    logs = "arn:aws:logs:us-east-1:123456789012:log-group:"

    assert len(set(groups.values())) == len(FUNCTIONS)
    for name in FUNCTIONS:
        statements = statements_of(variant, name)
        for other in FUNCTIONS:
            stream = f"{logs}{groups[other]}:log-stream:2026/11/23/[1]0123"
            own = other == name
            assert allowed(statements, "logs:CreateLogStream", stream) is own
            assert allowed(statements, "logs:PutLogEvents", stream) is own
        assert allowed(statements, "xray:PutTraceSegments", "*")
        assert allowed(statements, "xray:PutTelemetryRecords", "*")


def test_images_in_r2_are_stored_with_r2s_key_and_without_permission_for_s3(
    in_s3: Recording, in_r2: Recording
) -> None:
    assert in_r2.credentials == {R2_KEY_ID}
    assert R2_KEY_ID not in in_s3.credentials
    for name in FUNCTIONS:
        for statement in statements_of(in_r2.variant, name):
            assert not [action for action in statement.actions if action.startswith("s3:")]


def test_a_role_without_one_of_its_statements_would_deny_a_call(recording: Recording) -> None:
    for function in FUNCTIONS:
        for statement in statements_of(recording.variant, function):
            if not set(statement.actions) <= OF_LAMBDA | OF_THE_QUEUE:
                denied = refused(recording, without=statement.name)
                assert function in {need.function for need in denied}, statement.name


def test_wildcards_and_denies_work_as_in_iam() -> None:
    both = PolicyStatement("a", allows=True, actions=("s3:Get*",), resources=("arn:b/*",))
    deny = PolicyStatement("b", allows=False, actions=("*",), resources=("arn:b/secret-??",))

    assert allowed([both], "s3:GetObject", "arn:b/x/y")
    assert allowed([both], "S3:GETOBJECT", "arn:b/")
    assert not allowed([both], "s3:GetObject", "arn:B/x")
    assert not allowed([both], "s3:PutObject", "arn:b/x")
    assert not allowed([both], "s3:GetObject", "arn:bb/x")
    assert not allowed([both, deny], "s3:GetObject", "arn:b/secret-01")
    assert allowed([both, deny], "s3:GetObject", "arn:b/secret-1")
    assert not allowed([], "s3:GetObject", "arn:b/x")


# Least privilege


def test_each_function_has_its_own_role_that_only_lambda_may_assume(variant: Variant) -> None:
    functions = variant.resources("AWS::Serverless::Function")
    assert set(functions) == set(FUNCTIONS)
    assert len({each["Properties"]["Role"] for each in functions.values()}) == len(FUNCTIONS)
    assert len(variant.resources("AWS::IAM::Role")) == len(FUNCTIONS)
    for name in FUNCTIONS:
        (trust,) = role_of(variant, name)["AssumeRolePolicyDocument"]["Statement"]
        assert trust == {
            "Effect": "Allow",
            "Principal": {"Service": "lambda.amazonaws.com"},
            "Action": "sts:AssumeRole",
        }


def test_no_permission_is_for_any_action_or_for_any_resource_that_has_a_name(
    variant: Variant,
) -> None:
    for name in FUNCTIONS:
        for statement in statements_of(variant, name):
            assert not [action for action in statement.actions if set(action) & set("*?")]
            if "*" in statement.resources:
                # X-Ray's segments have no ARN.
                assert {action.partition(":")[0] for action in statement.actions} == {"xray"}
            else:
                for resource in statement.resources:
                    fixed = re.split(r"[*?]", resource)[0]
                    assert re.match(r"arn:aws:[a-z0-9]+:([a-z0-9-]*):(\d*):.{5,}", fixed), resource


@pytest.mark.parametrize(
    ("function", "does"),
    [
        ("AccountFunction", READS | SIGNS),
        ("AuditFunction", {"dynamodb:GetItem", "dynamodb:Query"}),
    ],
)
def test_a_function_that_only_reads_can_change_nothing(
    variant: Variant, function: str, does: set[str]
) -> None:
    actions = {each for s in statements_of(variant, function) for each in s.actions}

    assert actions - OF_LAMBDA == does


def test_only_the_account_function_signs_and_only_with_the_key_in_use() -> None:
    arn = "arn:aws:kms:us-east-1:123456789012:key/pictures-ReceiptKey"
    for choice in ("A", "B", "Off"):
        deployed = Variant(DOCUMENT, {"ReceiptKey": choice})
        assert len(deployed.resources("AWS::KMS::Key")) == (choice != "Off")
        for name, key in product(FUNCTIONS, "AB"):
            signs = name == "AccountFunction" and key == choice
            for action in SIGNS:
                assert allowed(statements_of(deployed, name), action, f"{arn}{key}") is signs


@pytest.mark.parametrize(
    ("secret", "readers"),
    [
        ("gemini-generate/orgs/acme", {"GenerateFunction", "AccountFunction", "DeleteFunction"}),
        ("pictures-GeminiApiKey", {"GenerateFunction", "WorkerFunction"}),
        ("another-stack/orgs/acme", set()),
        ("gemini-generate/orgs-of-another/acme", set()),
        ("another-stack-GeminiApiKey", set()),
        ("database/password", set()),
        ("r2/credentials-of-others", set()),
    ],
)
def test_a_function_reads_only_the_secrets_that_it_needs(
    variant: Variant, secret: str, readers: set[str]
) -> None:
    assert readers_of(variant, secret) == readers


def readers_of(variant: Variant, secret: str) -> set[str]:
    read, arn = "secretsmanager:GetSecretValue", f"{SECRETS}{secret}-a1B2c3"
    return {name for name in FUNCTIONS if allowed(statements_of(variant, name), read, arn)}


def test_r2s_credentials_are_readable_only_with_r2(variant: Variant) -> None:
    need_storage = set(FUNCTIONS) - {"AccountFunction", "AuditFunction"}

    expected = need_storage if variant.condition("UseR2") else set()
    assert readers_of(variant, "r2/credentials") == expected


@pytest.mark.parametrize(
    ("parameter", "values"),
    [
        ("OrgSecretPrefix", ["*/", "a/*/", "a?/", "no-slash", "/", "", "a b/", "${AWS::Region}/"]),
        ("StorageCredentialsSecret", ["*", "r2*", "r?", "a b", "${R2Bucket}"]),
    ],
)
def test_no_parameter_can_add_a_wildcard_to_a_policy(parameter: str, values: list[str]) -> None:
    pattern = DOCUMENT["Parameters"][parameter]["AllowedPattern"]

    assert not [value for value in values if re.fullmatch(pattern, value)]


def test_only_the_worker_receives_jobs_and_only_requests_queue_them(
    variant: Variant,
) -> None:
    queue = "arn:aws:sqs:us-east-1:123456789012:pictures-JobsQueue"
    for name in FUNCTIONS:
        statements = statements_of(variant, name)
        for action in OF_THE_QUEUE:
            assert allowed(statements, action, queue) is (name == "WorkerFunction")
        assert allowed(statements, "sqs:SendMessage", queue) is (name == "GenerateFunction")


def test_no_function_touches_objects_outside_the_prefix_of_the_images(variant: Variant) -> None:
    for name in FUNCTIONS:
        statements = statements_of(variant, name)
        for action in ("s3:PutObject", "s3:GetObject", "s3:DeleteObject"):
            for elsewhere in (
                "pictures-imagebucket/index.html",
                "another-bucket/generated/gemini/a",
            ):
                assert not allowed(statements, action, f"arn:aws:s3:::{elsewhere}")
