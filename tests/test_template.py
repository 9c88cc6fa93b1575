"""What ``infra`` reads from ``template.yaml``, and what the template promises."""

import dataclasses
import importlib.util
import json
import tomllib
from collections.abc import Mapping
from itertools import product
from typing import Any

import pytest

from infra.local.aws import REGION
from infra.template import PROJECT_ROOT, Cors, Route, Template, TemplateError, parse
from lib.deadline import (
    AFTER_MODEL_S,
    FUNCTION_TIMEOUT_S,
    LAST_ROWS_TAKE_S,
    LEASE_S,
    RESPONSE_TAKES_S,
)
from lib.http.openapi import openapi
from lib.settings import Settings
from tests.cloudformation import (
    CERTIFICATE,
    DOCUMENT,
    ON_R2,
    STACK,
    Unresolvable,
    Variant,
    only,
    properties_of,
    references_in,
)

TEMPLATE = Template.from_file()
FUNCTIONS = {each.handler.split(".")[1]: each for each in TEMPLATE.functions()}
CONFIGURATION: Mapping[str, Any] = {
    name: each
    for name, each in tomllib.loads(
        (PROJECT_ROOT / "samconfig.toml").read_text(encoding="utf-8")
    ).items()
    if name != "version"
}
# A quota of HTTP APIs that can't be raised.
GATEWAY_TIMEOUT_S = 30
# Every choice that a condition of the template asks for.
CHOICES: list[dict[str, object]] = [
    ON_R2,
    {"ImageDomainName": "images.example", "ImageCertificateArn": CERTIFICATE},
    {"ImageRetentionDays": 30},
    {"ApiDomainName": "api.example", "ApiCertificateArn": CERTIFICATE},
    {"AlarmEmail": "pager@example.com", "NoticeEmail": "operator@example.com"},
    {"ReservedConcurrency": 20},
    {"SnapStart": "On"},
]
VARIANTS = [
    {
        name: value
        for choice, made in zip(CHOICES, chosen, strict=True)
        if made
        for name, value in choice.items()
    }
    for chosen in product([False, True], repeat=len(CHOICES))
]
VARIANTS += [{"ReceiptKey": "B"}, {"ReceiptKey": "Off"}, {**ON_R2, "ReceiptKey": "Off"}]
# What the access log may contain: nothing that a customer sent.
LOGGED = (
    "identity.sourceIp identity.userAgent integrationErrorMessage integrationLatency requestId "
    "requestTime responseLatency responseLength routeKey status"
)


@pytest.fixture(params=["in S3", "in R2"])
def variant(request: pytest.FixtureRequest) -> Variant:
    return Variant(DOCUMENT, ON_R2 if request.param == "in R2" else {})


@pytest.fixture
def in_s3() -> Variant:
    return Variant(DOCUMENT)


@pytest.mark.parametrize(
    "text",
    [
        "Resources: [unclosed",
        "- a list",
        "",
        "Resources: nothing",
        "Resources: {A: !!python/object/apply:os.getcwd []}",
    ],
)
def test_a_text_that_is_not_a_template_is_refused(text: str) -> None:
    with pytest.raises(TemplateError):
        parse(text)


# The functions and their times


def test_the_table_has_the_index_of_due_rows() -> None:
    def keys(partition: str, sort: str) -> list[dict[str, str]]:
        both = [(partition, "HASH"), (sort, "RANGE")]
        return [{"AttributeName": name, "KeyType": kind} for name, kind in both]

    definition = TEMPLATE.table_definition("credits")
    (index,) = definition["GlobalSecondaryIndexes"]

    assert (definition["TableName"], definition["BillingMode"]) == ("credits", "PAY_PER_REQUEST")
    assert definition["KeySchema"] == keys("pk", "sk")
    assert (index["IndexName"], index["KeySchema"]) == ("Due", keys("dueShard", "dueAt"))
    assert TEMPLATE.expiry_attribute() == "expiresAt"


def test_every_function_has_a_handler_and_every_route_one_function() -> None:
    routes = [route for function in FUNCTIONS.values() for route in function.routes]

    for function in FUNCTIONS.values():
        module, _, attribute = function.handler.rpartition(".")
        assert importlib.util.find_spec(module) is not None, function.handler
        assert attribute == "handler"
    assert len(routes) == len(set(routes))
    assert {
        Route("POST", "/api/v1/models/gemini/generate"),
        Route("GET", "/api/v1/billing/credits"),
        Route("GET", "/healthz"),
        Route("GET", "/llms.txt"),
    } <= set(routes)


def test_each_timeout_is_shorter_than_that_of_its_caller() -> None:
    generate, reconcile = FUNCTIONS["generate"], FUNCTIONS["reconcile"]
    model_has_s = generate.timeout_s - RESPONSE_TAKES_S - AFTER_MODEL_S

    assert generate.timeout_s == FUNCTION_TIMEOUT_S == 29
    assert 20 < model_has_s < generate.timeout_s < LEASE_S
    for function in FUNCTIONS.values():
        if function.routes:
            assert 0 < function.timeout_s < GATEWAY_TIMEOUT_S, function.name
    # Two runs of the reconciler at once would only get in each other's way.
    assert reconcile.schedules_s == (60,)
    assert LAST_ROWS_TAKE_S < reconcile.timeout_s <= 60


def test_a_job_is_redelivered_only_after_its_worker_has_ended(in_s3: Variant) -> None:
    jobs, dead = (
        properties_of(in_s3, "AWS::SQS::Queue")[name] for name in ("JobsQueue", "DeadJobs")
    )

    assert FUNCTIONS["worker"].timeout_s < jobs["VisibilityTimeout"]
    assert jobs["RedrivePolicy"]["maxReceiveCount"] == 3
    assert jobs["RedrivePolicy"]["deadLetterTargetArn"].endswith(":pictures-DeadJobs")
    assert jobs["MessageRetentionPeriod"] < dead["MessageRetentionPeriod"]
    assert jobs["SqsManagedSseEnabled"] is dead["SqsManagedSseEnabled"] is True


def test_the_template_sets_exactly_the_settings_that_are_read() -> None:
    settings = {field.name.upper() for field in dataclasses.fields(Settings)} - {"AWS_REGION"}
    of_powertools = {"SERVICE_NAME", "METRICS_NAMESPACE"}
    wanted = settings - of_powertools | {f"POWERTOOLS_{name}" for name in of_powertools}

    assert [set(each.environment) for each in FUNCTIONS.values()] == [wanted] * len(FUNCTIONS)


def test_browsers_anywhere_may_call_and_read_the_headers_of_the_contract() -> None:
    cors = TEMPLATE.cors()

    assert cors == Cors(
        origins=("*",),
        methods=("DELETE", "GET", "POST"),
        headers=cors.headers,
        expose=cors.expose,
        max_age_s=cors.max_age_s,
    )
    assert {"authorization", "content-type", "idempotency-key", "prefer"} <= set(cors.headers)
    assert {"x-request-id", "x-error-code", "x-credits-charged", "retry-after"} <= set(cors.expose)


def test_the_routes_without_a_key_have_throttles_of_their_own(in_s3: Variant) -> None:
    """A stranger uses up these, and not the limit of the customers."""
    (properties,) = properties_of(in_s3, "AWS::Serverless::HttpApi").values()
    without_key = {
        f"{method.upper()} {path}"
        for path, operations in openapi("https://here")["paths"].items()
        for method, operation in operations.items()
        if operation.get("security") == []
    }
    open_routes = without_key | {"$default"}
    throttles = TEMPLATE.throttles()

    assert set(properties["RouteSettings"]) == open_routes
    assert set(throttles) == open_routes | {None}
    assert open_routes < {route.key for each in FUNCTIONS.values() for route in each.routes}
    for route in open_routes:
        assert 0 < throttles[route].per_s <= throttles[None].per_s / 10
        assert 0 < throttles[route].burst <= throttles[None].burst / 10


@pytest.mark.parametrize("domain", ["", "api.example"])
def test_a_domain_closes_the_way_around_it_and_is_the_public_url(domain: str) -> None:
    variant = Variant(DOCUMENT, {"ApiDomainName": domain, "ApiCertificateArn": CERTIFICATE})
    (api,) = properties_of(variant, "AWS::Serverless::HttpApi").values()
    functions = properties_of(variant, "AWS::Serverless::Function").values()

    assert api["DisableExecuteApiEndpoint"] is bool(domain)
    for function in functions:
        public_url = function["Environment"]["Variables"]["PUBLIC_URL"]
        assert public_url == (f"https://{domain}" if domain else "")


# Every combination of parameters


@pytest.mark.parametrize("parameters", VARIANTS, ids=lambda chosen: "+".join(chosen) or "defaults")
def test_everything_resolves_for_every_choice(parameters: dict[str, object]) -> None:
    variant = Variant(DOCUMENT, parameters)
    outputs = {"ApiUrl", "ImageBase", "TableName", "OrgSecretPrefix", "DashboardUrl"}

    assert variant.refused() == []
    assert variant.resources()
    assert outputs <= set(variant.outputs())


def test_every_condition_is_used_and_can_be_true_or_false() -> None:
    conditions = set(DOCUMENT["Conditions"])
    outcomes = {
        (name, Variant(DOCUMENT, parameters).condition(name))
        for parameters in VARIANTS
        for name in conditions
    }
    text = json.dumps([DOCUMENT["Resources"], DOCUMENT["Outputs"]])

    assert outcomes == set(product(conditions, [False, True]))
    for name in conditions:
        assert f'"Condition": "{name}"' in text or f'"Fn::If": ["{name}"' in text, name


def test_every_parameter_is_used_grouped_and_described_and_has_a_default() -> None:
    used = references_in([DOCUMENT[part] for part in ("Conditions", "Globals", "Resources")])
    groups = DOCUMENT["Metadata"]["AWS::CloudFormation::Interface"]["ParameterGroups"]
    shown = [name for group in groups for name in group["Parameters"]]

    assert sorted(shown) == sorted(DOCUMENT["Parameters"])
    assert set(DOCUMENT["Parameters"]) <= used
    # The first deployment asks for nothing but a name.
    assert all(
        each["Description"] and "Default" in each for each in DOCUMENT["Parameters"].values()
    )


@pytest.mark.parametrize(
    "written",
    [
        {"Ref": "Nothing"},
        {"Fn::Sub": "${Nothing}-x"},
        {"Fn::GetAtt": ["CreditsTable", "Arm"]},
        {"Fn::Sub": "${CreditsTable.Arm}"},
        {"Fn::GetAtt": ["ImageBucket", "Arn"]},
        {"Fn::If": ["NoSuchCondition", 1, 2]},
    ],
)
def test_a_reference_to_something_missing_does_not_resolve(written: Mapping[str, object]) -> None:
    with pytest.raises(Unresolvable):
        Variant({**DOCUMENT, "Outputs": {"Wrong": {"Value": written}}}, ON_R2).outputs()


def test_with_r2_there_is_no_bucket_and_no_distribution() -> None:
    kinds = {each["Type"] for each in Variant(DOCUMENT, ON_R2).resources().values()}

    assert not [kind for kind in kinds if kind.startswith(("AWS::S3::", "AWS::CloudFront::"))]


@pytest.mark.parametrize(
    "parameters",
    [
        *({name: ON_R2[name] for name in ON_R2.keys() - {left_out}} for left_out in ON_R2),
        {"ApiDomainName": "own.example"},
        {"ImageDomainName": "own.example"},
    ],
)
def test_half_a_configuration_is_refused(parameters: dict[str, object]) -> None:
    assert Variant(DOCUMENT, parameters).refused()


@pytest.mark.parametrize(
    ("parameter", "wrong"),
    [
        ("AlarmEmail", "operator"),
        ("NoticeEmail", "a@example.com, b@example.com"),
        ("ApiDomainName", "https://api.example.com"),
        ("ImageDomainName", "images.example.com/"),
        ("ApiCertificateArn", "EXAMPLE"),
        # CloudFront looks for certificates in one region.
        ("ImageCertificateArn", CERTIFICATE.replace("us-east-1", "eu-central-1")),
        ("DeploymentAlarms", "no"),
        ("R2Bucket", "https://pictures"),
    ],
)
def test_a_value_of_the_wrong_form_is_rejected(parameter: str, wrong: str) -> None:
    with pytest.raises(Unresolvable):
        Variant(DOCUMENT, {parameter: wrong})


# The configuration of a deployment, which an operator edits


@pytest.mark.parametrize("environment", CONFIGURATION)
def test_the_configuration_gives_every_parameter_a_value_that_is_accepted(environment: str) -> None:
    """Without one, the stack would keep the value of an earlier deployment."""
    chosen = CONFIGURATION[environment]["global"]["parameters"]["parameter_overrides"]

    assert chosen.keys() == DOCUMENT["Parameters"].keys()
    assert Variant(DOCUMENT, chosen).refused() == []


@pytest.mark.parametrize("environment", CONFIGURATION)
def test_a_deployment_needs_no_option_and_no_answer(environment: str) -> None:
    build_and_deploy, deploy = (
        CONFIGURATION[environment][command]["parameters"] for command in ("global", "deploy")
    )

    assert {"stack_name", "region"} < build_and_deploy.keys()
    assert deploy["resolve_s3"] is True
    assert set(deploy["capabilities"]) == {"CAPABILITY_IAM", "CAPABILITY_AUTO_EXPAND"}


# Protection of data


def test_the_ledger_survives_the_deletion_of_the_stack(in_s3: Variant) -> None:
    table = in_s3.resources("AWS::DynamoDB::Table")["CreditsTable"]
    wanted = {
        "DeletionProtectionEnabled": True,
        "PointInTimeRecoverySpecification": {"PointInTimeRecoveryEnabled": True},
        "SSESpecification": {"SSEEnabled": True},
        "TimeToLiveSpecification": {"AttributeName": "expiresAt", "Enabled": True},
    }

    assert (table["DeletionPolicy"], table["UpdateReplacePolicy"]) == ("Retain", "Retain")
    assert wanted.items() <= table["Properties"].items()


def test_the_bucket_is_retained_private_and_encrypted(in_s3: Variant) -> None:
    (bucket,) = in_s3.resources("AWS::S3::Bucket").values()
    block = ("BlockPublicAcls", "BlockPublicPolicy", "IgnorePublicAcls", "RestrictPublicBuckets")

    policies = (bucket["DeletionPolicy"], bucket["UpdateReplacePolicy"])
    assert policies == ("RetainExceptOnCreate", "Retain")
    # Any other property could open the bucket to the world, or store objects under other rules.
    encryption = {"SSEAlgorithm": "AES256"}
    assert bucket["Properties"] == {
        "PublicAccessBlockConfiguration": dict.fromkeys(block, True),
        "OwnershipControls": {"Rules": [{"ObjectOwnership": "BucketOwnerEnforced"}]},
        "BucketEncryption": {
            "ServerSideEncryptionConfiguration": [{"ServerSideEncryptionByDefault": encryption}]
        },
    }


def test_images_are_kept_unless_a_number_of_days_is_chosen(in_s3: Variant) -> None:
    chosen = Variant(DOCUMENT, {"ImageRetentionDays": "30"})
    (rule,) = only(chosen, "AWS::S3::Bucket")["LifecycleConfiguration"]["Rules"]

    assert "LifecycleConfiguration" not in only(in_s3, "AWS::S3::Bucket")
    assert (rule["Status"], rule["Prefix"], rule["ExpirationInDays"]) == (
        "Enabled",
        "generated/",
        "30",
    )


def test_a_deleted_image_leaves_the_cache_within_a_day(in_s3: Variant) -> None:
    distribution = only(in_s3, "AWS::CloudFront::Distribution")["DistributionConfig"]
    cache = only(in_s3, "AWS::CloudFront::CachePolicy")["CachePolicyConfig"]

    assert distribution["DefaultCacheBehavior"]["CachePolicyId"] == in_s3.name_of("ImageCache")
    assert (cache["MinTTL"], cache["MaxTTL"]) == (0, 86400)
    assert in_s3.outputs()["ImageDistributionId"] == in_s3.name_of("ImageDistribution")


def test_only_the_distribution_reads_the_bucket_and_only_with_tls(in_s3: Variant) -> None:
    policy = only(in_s3, "AWS::S3::BucketPolicy")
    (distribution,) = in_s3.resources("AWS::CloudFront::Distribution")
    bucket = f"arn:aws:s3:::{in_s3.name_of('ImageBucket')}"
    arn = f"arn:aws:cloudfront::123456789012:distribution/{in_s3.name_of(distribution)}"
    allows, denies = policy["PolicyDocument"]["Statement"]

    assert policy["Bucket"] == in_s3.name_of("ImageBucket")
    assert allows | {"Sid": ""} == {
        "Sid": "",
        "Effect": "Allow",
        "Principal": {"Service": "cloudfront.amazonaws.com"},
        "Action": "s3:GetObject",
        "Resource": f"{bucket}/generated/*",
        "Condition": {"StringEquals": {"AWS:SourceArn": arn}},
    }
    assert denies | {"Sid": ""} == {
        "Sid": "",
        "Effect": "Deny",
        "Principal": "*",
        "Action": "s3:*",
        "Resource": [bucket, f"{bucket}/*"],
        "Condition": {"Bool": {"aws:SecureTransport": "false"}},
    }


def test_the_distribution_signs_its_reads_and_serves_only_https(in_s3: Variant) -> None:
    configuration = only(in_s3, "AWS::CloudFront::Distribution")["DistributionConfig"]
    control = only(in_s3, "AWS::CloudFront::OriginAccessControl")["OriginAccessControlConfig"]
    (origin,) = configuration["Origins"]

    assert origin["OriginAccessControlId"]
    assert origin["DomainName"].startswith(in_s3.name_of("ImageBucket"))
    assert (control["SigningBehavior"], control["SigningProtocol"]) == ("always", "sigv4")
    assert configuration["DefaultCacheBehavior"]["ViewerProtocolPolicy"] == "redirect-to-https"
    assert configuration["DefaultCacheBehavior"]["AllowedMethods"] == ["GET", "HEAD"]
    assert "CacheBehaviors" not in configuration


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        ("Api", '"SecurityPolicy": "TLS_1_2"'),
        ("Image", '"MinimumProtocolVersion": "TLSv1.2_2021"'),
    ],
)
def test_a_custom_domain_requires_tls_1_2(kind: str, wanted: str) -> None:
    own = {f"{kind}DomainName": "own.example", f"{kind}CertificateArn": CERTIFICATE}
    text = json.dumps(Variant(DOCUMENT, own).resources())

    assert wanted in text
    assert "own.example" in text


def test_the_api_is_throttled_and_logs_the_caller_but_nothing_that_they_sent(
    variant: Variant,
) -> None:
    api = only(variant, "AWS::Serverless::HttpApi")
    written = json.loads(api["AccessLogSettings"]["Format"])

    assert int(api["DefaultRouteSettings"]["ThrottlingRateLimit"]) > 0
    assert int(api["DefaultRouteSettings"]["ThrottlingBurstLimit"]) > 0
    assert api["AccessLogSettings"]["DestinationArn"].endswith("/access:*")
    assert set(written.values()) <= {f"$context.{name}" for name in LOGGED.split()}


def test_every_log_expires_and_every_function_has_its_own(variant: Variant) -> None:
    groups = properties_of(variant, "AWS::Logs::LogGroup")
    functions = properties_of(variant, "AWS::Serverless::Function").values()
    written_to = [each["LoggingConfig"]["LogGroup"] for each in functions]

    assert all(int(each["RetentionInDays"]) > 0 for each in groups.values())
    assert len(set(written_to)) == len(written_to)
    assert {variant.name_of(name) for name in groups} >= set(written_to)
    # The name of the group contains the stack's, so two stacks never share one.
    assert all(STACK in variant.name_of(name) for name in groups)


def test_no_secret_is_a_parameter_or_in_the_environment(variant: Variant) -> None:
    text = json.dumps(DOCUMENT)

    assert '"NoEcho"' not in text
    assert '"SecretString"' not in text
    assert variant.environment()["GEMINI_API_KEY_SECRET"].startswith("arn:aws:secretsmanager:")


def test_jobs_leave_room_for_requests_and_the_reconciler_in_a_new_account(in_s3: Variant) -> None:
    executions_of_a_new_account = 10
    worker = properties_of(in_s3, "AWS::Serverless::Function")["WorkerFunction"]
    jobs = int(worker["Events"]["Jobs"]["Properties"]["ScalingConfig"]["MaximumConcurrency"])

    assert jobs <= executions_of_a_new_account / 2


def test_names_that_all_regions_of_an_account_share_contain_the_region(in_s3: Variant) -> None:
    of_cloudfront = [
        configuration["Name"]
        for each in in_s3.resources().values()
        if each["Type"].startswith("AWS::CloudFront::")
        for configuration in each["Properties"].values()
        if "Name" in configuration
    ]
    names = [*of_cloudfront, only(in_s3, "AWS::CloudWatch::Dashboard")["DashboardName"]]

    assert len(of_cloudfront) == 3
    assert all(STACK in name and REGION in name for name in names)
    # IAM chooses the roles' names.
    assert not [
        each for each in properties_of(in_s3, "AWS::IAM::Role").values() if "RoleName" in each
    ]


def test_concurrency_and_snapstart_are_off_unless_chosen() -> None:
    plain = properties_of(Variant(DOCUMENT), "AWS::Serverless::Function")
    parameters = {"ReservedConcurrency": 20, "SnapStart": "On"}
    chosen = properties_of(Variant(DOCUMENT, parameters), "AWS::Serverless::Function")

    assert not [each for each in plain.values() if "ReservedConcurrentExecutions" in each]
    assert chosen["GenerateFunction"]["ReservedConcurrentExecutions"] == "20"
    # Two runs of the reconciler may overlap.
    assert chosen["ReconcileFunction"]["ReservedConcurrentExecutions"] == 2
    for name in ("GenerateFunction", "AccountFunction"):
        assert plain[name]["SnapStart"] == {"ApplyOn": "None"}
        assert chosen[name]["SnapStart"] == {"ApplyOn": "PublishedVersions"}
