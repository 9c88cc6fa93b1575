"""Each function may do what it does, and nothing else: its role, read by AWS's own rules.

The functions go through everything that may happen to them (``tests.operation``); what they ask of
AWS on the way is held against the statements of their roles, in both directions.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from infra.template import TEMPLATE_PATH, parse
from tests.cloudformation import Variant
from tests.operation import R2_KEY_ID, Need, Operation, operated

# The whole service is put to work for it, which takes its time.
pytestmark = pytest.mark.real

FUNCTIONS = ("GenerateFunction", "AccountFunction", "WorkerFunction", "ReconcileFunction")
# What Lambda itself does with a function's role, which no call of ours shows.
OF_LAMBDA = {
    "logs:CreateLogStream",
    "logs:PutLogEvents",
    "xray:PutTelemetryRecords",
    "xray:PutTraceSegments",
}
# What it does on the worker's behalf to bring it its jobs.
OF_THE_QUEUE = {"sqs:DeleteMessage", "sqs:GetQueueAttributes", "sqs:ReceiveMessage"}
ON_R2 = {
    "StorageEndpointUrl": "https://account.r2.cloudflarestorage.com",
    "R2Bucket": "pictures",
    "ImageBaseUrl": "https://images.example",
    "StorageCredentialsSecret": "r2/credentials",
}
READS = {"dynamodb:GetItem", "dynamodb:Query", "secretsmanager:GetSecretValue"}
SECRETS = "arn:aws:secretsmanager:us-east-1:123456789012:secret:"


@dataclass(frozen=True)
class Statement:
    """One statement of a policy, without conditions."""

    name: str
    allows: bool
    actions: tuple[str, ...]
    resources: tuple[str, ...]

    @classmethod
    def of(cls, written: Mapping[str, Any]) -> "Statement":
        unknown = written.keys() - {"Sid", "Effect", "Action", "Resource"}
        assert not unknown, f"not understood: {unknown}"
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
    """IAM takes one of a thing for a list of it."""
    return value if isinstance(value, list) else [value]


def matches(pattern: str, text: str) -> bool:
    """IAM's wildcards: ``*`` for any characters, ``?`` for one."""
    parts = ({"*": ".*", "?": "."}.get(character, re.escape(character)) for character in pattern)
    return re.fullmatch("".join(parts), text, re.DOTALL) is not None


def allowed(statements: list[Statement], action: str, resource: str) -> bool:
    """IAM's verdict: what nothing allows is refused, and a Deny is final."""
    covering = [each for each in statements if each.covers(action, resource)]
    return bool(covering) and all(each.allows for each in covering)


def statements_of(variant: Variant, function: str) -> list[Statement]:
    role = role_of(variant, function)
    assert role.keys() <= {"AssumeRolePolicyDocument", "Policies"}, "a policy from elsewhere"
    return [
        Statement.of(written)
        for policy in role["Policies"]
        for written in policy["PolicyDocument"]["Statement"]
    ]


def role_of(variant: Variant, function: str) -> dict[str, Any]:
    properties = variant.resources("AWS::Serverless::Function")[function]["Properties"]
    # SAM would add statements to a role of its own making.
    assert not properties.keys() & {"Policies", "ManagedPolicyArns", "PermissionsBoundary"}
    name = properties["Role"].rpartition("/")[2]
    (role,) = (
        each["Properties"]
        for logical, each in variant.resources("AWS::IAM::Role").items()
        if variant.name_of(logical) == name
    )
    assert isinstance(role, dict)
    return role


def refused(operation: Operation, without: str = "") -> set[Need]:
    """The calls that the roles would prevent, or would without their statement of that name."""
    return {
        need
        for need in in_aws(operation)
        if not allowed(
            [
                statement
                for statement in statements_of(operation.variant, need.function)
                if statement.name != without
            ],
            need.action,
            need.resource,
        )
    }


def in_aws(operation: Operation) -> set[Need]:
    """The calls for which a role speaks: R2 knows nothing of roles."""
    on_r2 = operation.variant.condition("UseR2")
    return {need for need in operation.needs if not (on_r2 and need.action.startswith("s3:"))}


def unused(operation: Operation) -> set[tuple[str, str, str]]:
    """Function, action and resource of each permission that no call needed."""
    return {
        (function, action, resource)
        for function in FUNCTIONS
        for statement in statements_of(operation.variant, function)
        for action in statement.actions
        for resource in statement.resources
        if action not in OF_LAMBDA | OF_THE_QUEUE
        and not any(
            need.function == function and need.action == action and matches(resource, need.resource)
            for need in in_aws(operation)
        )
    }


DOCUMENT = parse(TEMPLATE_PATH.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def in_s3() -> Iterator[Operation]:
    with operated(DOCUMENT) as done:
        yield done


@pytest.fixture(scope="module")
def in_r2() -> Iterator[Operation]:
    with operated(DOCUMENT, on_r2=True) as done:
        yield done


@pytest.fixture(params=["in_s3", pytest.param("in_r2", marks=pytest.mark.real)])
def operation(request: pytest.FixtureRequest) -> Operation:
    done: Operation = request.getfixturevalue(request.param)
    return done


@pytest.fixture(params=["in S3", "in R2"])
def variant(request: pytest.FixtureRequest) -> Variant:
    return Variant(DOCUMENT, ON_R2 if request.param == "in R2" else {})


# What the functions do, and what they may do.


def test_every_call_that_a_function_makes_is_allowed_by_its_role(operation: Operation) -> None:
    assert {need.function for need in operation.needs} == set(FUNCTIONS)
    assert not refused(operation)


def test_every_permission_is_needed_by_some_call(operation: Operation) -> None:
    assert not unused(operation)


def test_lambda_may_write_each_functions_log_and_traces_and_nothing_of_another(
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


def test_the_reconciler_may_list_the_bucket_or_a_missing_image_would_be_a_403_and_never_refunded(
    in_s3: Operation,
) -> None:
    bucket = f"arn:aws:s3:::{in_s3.variant.environment()['IMAGE_BUCKET']}"

    assert Need("ReconcileFunction", "s3:ListBucket", bucket) in in_s3.needs
    may_list = {
        name: allowed(statements_of(in_s3.variant, name), "s3:ListBucket", bucket)
        for name in FUNCTIONS
    }
    assert may_list == {
        "GenerateFunction": False,
        "AccountFunction": False,
        "WorkerFunction": False,
        "ReconcileFunction": True,
    }


def test_images_in_r2_are_stored_with_r2s_own_key_and_by_no_permission_in_s3(
    in_s3: Operation, in_r2: Operation
) -> None:
    assert in_r2.credentials == {R2_KEY_ID}
    assert R2_KEY_ID not in in_s3.credentials
    for name in FUNCTIONS:
        for statement in statements_of(in_r2.variant, name):
            assert not [action for action in statement.actions if action.startswith("s3:")]


# That the tests above can fail.


@pytest.mark.parametrize(
    ("name", "action"),
    [
        ("ReserveSettleRefund", "dynamodb:PutItem"),
        ("StoreAndDeleteImages", "s3:PutObject"),
        ("ReadApiKeysAndModelKey", "secretsmanager:GetSecretValue"),
        ("ReadAccounts", "dynamodb:GetItem"),
        ("ReadApiKeys", "secretsmanager:GetSecretValue"),
        ("FindDueRows", "dynamodb:Query"),
        ("SettleOrRefund", "dynamodb:UpdateItem"),
        ("QueueJobs", "sqs:SendMessage"),
        ("ExtendSettleRefund", "dynamodb:UpdateItem"),
        ("ReadModelKey", "secretsmanager:GetSecretValue"),
        ("CheckAndDeleteImages", "s3:DeleteObject"),
        ("DetectMissingImages", "s3:ListBucket"),
    ],
)
def test_a_role_without_one_of_its_statements_would_refuse_a_call(
    in_s3: Operation, name: str, action: str
) -> None:
    assert action in {need.action for need in refused(in_s3, without=name)}


def test_wildcards_and_a_deny_mean_what_they_mean_to_iam() -> None:
    both = Statement("a", allows=True, actions=("s3:Get*",), resources=("arn:b/*",))
    deny = Statement("b", allows=False, actions=("*",), resources=("arn:b/secret-??",))

    assert allowed([both], "s3:GetObject", "arn:b/x/y")
    assert allowed([both], "S3:GETOBJECT", "arn:b/")
    assert not allowed([both], "s3:GetObject", "arn:B/x")
    assert not allowed([both], "s3:PutObject", "arn:b/x")
    assert not allowed([both], "s3:GetObject", "arn:bb/x")
    assert not allowed([both, deny], "s3:GetObject", "arn:b/secret-01")
    assert allowed([both, deny], "s3:GetObject", "arn:b/secret-1")
    assert not allowed([], "s3:GetObject", "arn:b/x")


# What a reviewer looks for.


def test_each_function_has_a_role_of_its_own_that_only_lambda_may_take(variant: Variant) -> None:
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


def test_the_account_function_can_change_nothing(variant: Variant) -> None:
    actions = {each for s in statements_of(variant, "AccountFunction") for each in s.actions}

    assert actions - OF_LAMBDA == READS


@pytest.mark.parametrize("function", FUNCTIONS)
def test_nobody_can_list_secrets_or_change_one(variant: Variant, function: str) -> None:
    statements = statements_of(variant, function)
    for action in (
        "BatchGetSecretValue",
        "CreateSecret",
        "DeleteSecret",
        "DescribeSecret",
        "ListSecrets",
        "ListSecretVersionIds",
        "PutSecretValue",
        "UpdateSecret",
    ):
        for resource in ("*", f"{SECRETS}gemini-generate/orgs/acme-a1B2c3"):
            assert not allowed(statements, f"secretsmanager:{action}", resource)


@pytest.mark.parametrize(
    ("function", "secret", "may"),
    [
        ("GenerateFunction", "gemini-generate/orgs/acme-a1B2c3", True),
        ("AccountFunction", "gemini-generate/orgs/acme-a1B2c3", True),
        ("ReconcileFunction", "gemini-generate/orgs/acme-a1B2c3", False),
        ("GenerateFunction", "another-stack/orgs/acme-a1B2c3", False),
        ("AccountFunction", "another-stack/orgs/acme-a1B2c3", False),
        ("GenerateFunction", "gemini-generate/orgs-of-another/acme-a1B2c3", False),
        ("AccountFunction", "gemini-generate/orgs-of-another/acme-a1B2c3", False),
        ("GenerateFunction", "database/password-a1B2c3", False),
        ("GenerateFunction", "pictures-GeminiApiKey-a1B2c3", True),
        ("AccountFunction", "pictures-GeminiApiKey-a1B2c3", False),
        ("ReconcileFunction", "pictures-GeminiApiKey-a1B2c3", False),
        ("GenerateFunction", "another-stack-GeminiApiKey-a1B2c3", False),
        ("WorkerFunction", "gemini-generate/orgs/acme-a1B2c3", False),
        ("WorkerFunction", "pictures-GeminiApiKey-a1B2c3", True),
        ("AccountFunction", "r2/credentials-a1B2c3", False),
        ("GenerateFunction", "r2/credentials-of-others-a1B2c3", False),
        ("ReconcileFunction", "r2/credentials-of-others-a1B2c3", False),
    ],
)
def test_a_function_reads_the_secrets_of_its_work_alone(
    variant: Variant, function: str, secret: str, *, may: bool
) -> None:
    statements = statements_of(variant, function)

    assert allowed(statements, "secretsmanager:GetSecretValue", SECRETS + secret) is may


@pytest.mark.parametrize("function", ["GenerateFunction", "WorkerFunction", "ReconcileFunction"])
def test_r2s_credentials_are_read_only_where_the_images_are_in_r2(
    variant: Variant, function: str
) -> None:
    secret = f"{SECRETS}r2/credentials-a1B2c3"
    may = allowed(statements_of(variant, function), "secretsmanager:GetSecretValue", secret)

    assert may is variant.condition("UseR2")


@pytest.mark.parametrize(
    ("parameter", "values"),
    [
        (
            "OrgSecretPrefix",
            ["*/", "a/*/", "a?/", "no-slash", "/", "", "a b/", "${AWS::StackName}/"],
        ),
        ("StorageCredentialsSecret", ["*", "r2*", "r?", "a b", "${R2Bucket}"]),
    ],
)
def test_no_parameter_can_bring_a_wildcard_into_a_policy(parameter: str, values: list[str]) -> None:
    pattern = DOCUMENT["Parameters"][parameter]["AllowedPattern"]

    assert not [value for value in values if re.fullmatch(pattern, value)]


def test_lambda_takes_jobs_for_the_worker_alone_and_only_requests_queue_them(
    variant: Variant,
) -> None:
    queue = "arn:aws:sqs:us-east-1:123456789012:pictures-JobsQueue"
    for name in FUNCTIONS:
        statements = statements_of(variant, name)
        for action in OF_THE_QUEUE:
            assert allowed(statements, action, queue) is (name == "WorkerFunction")
        assert allowed(statements, "sqs:SendMessage", queue) is (name == "GenerateFunction")


def test_images_are_put_and_deleted_only_where_images_belong(variant: Variant) -> None:
    for name in FUNCTIONS:
        statements = statements_of(variant, name)
        for action in ("s3:PutObject", "s3:GetObject", "s3:DeleteObject"):
            for elsewhere in (
                "pictures-imagebucket/index.html",
                "another-bucket/generated/gemini/a",
            ):
                assert not allowed(statements, action, f"arn:aws:s3:::{elsewhere}")
