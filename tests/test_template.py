"""What ``infra`` reads from ``template.yaml``, and what the template promises."""

import dataclasses
import importlib.util
import json
import re
from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest

from infra.template import TEMPLATE_PATH, Cors, Route, Template, TemplateError, parse
from lib.deadline import (
    AFTER_MODEL_S,
    FUNCTION_TIMEOUT_S,
    LAST_ROWS_TAKE_S,
    LEASE_S,
    RESPONSE_TAKES_S,
)
from lib.errors import ServiceError
from lib.settings import DEFAULT_NAMESPACE, Settings
from tests.cloudformation import STACK, Unresolvable, Variant, references_in
from tests.operation import Operation, operated

DOCUMENT = parse(TEMPLATE_PATH.read_text(encoding="utf-8"))
# Neither can be raised. Source: the quotas of HTTP APIs.
GATEWAY_GIVES_UP_S = 30
ON_R2: dict[str, object] = {
    "StorageEndpointUrl": "https://account.r2.cloudflarestorage.com",
    "R2Bucket": "pictures",
    "ImageBaseUrl": "https://images.example",
    "StorageCredentialsSecret": "r2/credentials",
}
# Every choice that a condition of the template asks for.
CHOICES: list[dict[str, object]] = [
    ON_R2,
    {"ImageDomainName": "images.example", "ImageCertificateArn": "arn:aws:acm:::one"},
    {"ApiDomainName": "api.example", "ApiCertificateArn": "arn:aws:acm:::two"},
    {"AlarmEmail": "operator@example.com"},
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
# AWS's own metrics of a function, a queue and an HTTP API, by the dimensions that they come with.
# Sources: "Types of metrics for Lambda functions", "Monitor CloudWatch metrics for HTTP APIs",
# "Available CloudWatch metrics for Amazon SQS".
OF_AWS: dict[tuple[str, tuple[str, ...]], set[str]] = {
    ("AWS/Lambda", ("FunctionName",)): {
        "ConcurrentExecutions",
        "Duration",
        "Errors",
        "Invocations",
        "Throttles",
    },
    ("AWS/SQS", ("QueueName",)): {
        "ApproximateAgeOfOldestMessage",
        "ApproximateNumberOfMessagesVisible",
    },
    ("AWS/ApiGateway", ("ApiId",)): {
        "4xx",
        "5xx",
        "Count",
        "DataProcessed",
        "IntegrationLatency",
        "Latency",
    },
}
# What one request or another leaves in the log of accesses, and nothing that a customer sent.
LOGGED = {
    "$context.identity.sourceIp",
    "$context.identity.userAgent",
    "$context.integrationErrorMessage",
    "$context.integrationLatency",
    "$context.requestId",
    "$context.requestTime",
    "$context.responseLatency",
    "$context.responseLength",
    "$context.routeKey",
    "$context.status",
}

# Namespace, name and dimensions.
Metric = tuple[str, str, frozenset[tuple[str, str]]]


@pytest.fixture(scope="module")
def template() -> Template:
    return Template.from_file()


@pytest.fixture(params=["in S3", "in R2"])
def variant(request: pytest.FixtureRequest) -> Variant:
    return Variant(DOCUMENT, ON_R2 if request.param == "in R2" else {})


@pytest.fixture
def in_s3() -> Variant:
    return Variant(DOCUMENT)


@pytest.fixture(scope="module")
def operation() -> Iterator[Operation]:
    with operated(DOCUMENT) as done:
        yield done


def alarms(variant: Variant) -> dict[str, dict[str, Any]]:
    found = variant.resources("AWS::CloudWatch::Alarm")
    return {name: alarm["Properties"] for name, alarm in found.items()}


def metrics_of(alarm: dict[str, Any]) -> Iterator[Metric]:
    """The metrics that an alarm looks at, be it one or a sum of several."""
    stats = [
        each["MetricStat"]["Metric"] for each in alarm.get("Metrics", []) if "MetricStat" in each
    ]
    for metric in stats or [alarm]:
        dimensions = frozenset((each["Name"], each["Value"]) for each in metric["Dimensions"])
        yield metric["Namespace"], metric["MetricName"], dimensions


def metrics_shown(dashboard: dict[str, Any]) -> Iterator[Metric]:
    """The metrics of a dashboard's widgets, searches apart."""
    for widget in dashboard["widgets"]:
        for row in widget["properties"].get("metrics", []):
            # "..." is the metric of the row before, in another statistic.
            if isinstance(row[0], str) and row[0] != "...":
                namespace, name, *rest = [each for each in row if isinstance(each, str)]
                yield namespace, name, frozenset(zip(rest[::2], rest[1::2], strict=True))


def emitted(operation: Operation) -> set[Metric]:
    """The metrics that CloudWatch makes of the functions' logs."""
    return {
        (group["Namespace"], metric["Name"], frozenset((name, record[name]) for name in names))
        for record in operation.emitted
        for group in record["_aws"]["CloudWatchMetrics"]
        for names in group["Dimensions"]
        for metric in group["Metrics"]
    }


def nobodys(metrics: set[Metric], operation: Operation) -> set[Metric]:
    """Those of ``metrics`` that neither the service nor AWS ever reports."""
    variant = operation.variant
    functions = {variant.name_of(name) for name in variant.resources("AWS::Serverless::Function")}
    apis = {variant.name_of(name) for name in variant.resources("AWS::Serverless::HttpApi")}
    queues = {
        variant.name_of(name).rpartition("/")[2] for name in variant.resources("AWS::SQS::Queue")
    }
    there_is = {
        *(("FunctionName", name) for name in functions),
        *(("ApiId", name) for name in apis),
        *(("QueueName", name) for name in queues),
    }

    def is_of_aws(metric: Metric) -> bool:
        namespace, name, dimensions = metric
        known = OF_AWS.get((namespace, tuple(sorted(key for key, _ in dimensions))), set())
        return name in known and dimensions <= there_is

    return {metric for metric in metrics - emitted(operation) if not is_of_aws(metric)}


def template_of(text: str) -> Template:
    return Template(parse(text))


A_FUNCTION = """
Globals:
  Function:
    Timeout: 7
    Environment: {Variables: {SHARED: both, OWN: of all}}
Resources:
  Plain:
    Type: AWS::Serverless::Function
    Properties:
      Handler: some.module.handler
  Busy:
    Type: AWS::Serverless::Function
    Properties:
      Handler: other.handler
      Timeout: 20
      MemorySize: 512
      Environment: {Variables: {OWN: of one, BUCKET: !Ref Pictures}}
      Events:
        One: {Type: HttpApi, Properties: {Method: get, Path: "/things/{id}"}}
        Two: {Type: Schedule, Properties: {Schedule: rate(5 minutes)}}
        Three: {Type: SQS, Properties: {Queue: !GetAtt Jobs.Arn}}
"""


def test_short_forms_of_intrinsic_functions_become_their_long_forms() -> None:
    document = parse(
        """
        Resources:
          A: !Ref B
          C: !GetAtt D.Stream.Arn
          E: !Sub "${F}-x"
          G: !If [H, !Ref I, {J: !Condition K}]
          L: !FindInMap [M, N, O]
        """
    )

    assert document["Resources"] == {
        "A": {"Ref": "B"},
        "C": {"Fn::GetAtt": ["D", "Stream.Arn"]},
        "E": {"Fn::Sub": "${F}-x"},
        "G": {"Fn::If": ["H", {"Ref": "I"}, {"J": {"Condition": "K"}}]},
        "L": {"Fn::FindInMap": ["M", "N", "O"]},
    }


def test_a_date_stays_the_text_that_it_is_for_cloudformation() -> None:
    document = parse("{AWSTemplateFormatVersion: 2010-09-09, Resources: {}}")

    assert document["AWSTemplateFormatVersion"] == "2010-09-09"


@pytest.mark.parametrize("text", ["Resources: [unclosed", "- a list", "", "Resources: nothing"])
def test_what_is_no_template_is_refused(text: str) -> None:
    with pytest.raises(TemplateError):
        parse(text)


def test_yaml_that_would_run_code_is_refused() -> None:
    with pytest.raises(TemplateError):
        parse("Resources: {A: !!python/object/apply:os.getcwd []}")


def test_a_functions_own_properties_win_over_the_shared_ones() -> None:
    plain, busy = template_of(A_FUNCTION).functions()

    assert (plain.name, plain.handler, plain.timeout_s, plain.memory_mb) == (
        "Plain",
        "some.module.handler",
        7,
        128,
    )
    assert plain.environment == {"SHARED": "both", "OWN": "of all"}
    assert (busy.timeout_s, busy.memory_mb) == (20, 512)
    assert busy.environment == {"SHARED": "both", "OWN": "of one", "BUCKET": {"Ref": "Pictures"}}


def test_only_http_and_schedule_events_become_routes_and_schedules() -> None:
    plain, busy = template_of(A_FUNCTION).functions()

    assert (plain.routes, plain.schedules_s) == ((), ())
    assert busy.routes == (Route("GET", "/things/{id}"),)
    assert busy.schedules_s == (300,)


def test_a_schedule_or_a_timeout_that_is_not_understood_is_refused() -> None:
    for before, after in [("rate(5 minutes)", "cron(0 * * * ? *)"), ("20", "!Ref Patience")]:
        with pytest.raises(TemplateError):
            template_of(A_FUNCTION.replace(before, after)).functions()


def test_a_value_is_known_when_it_is_text_or_a_parameter_with_a_default() -> None:
    template = template_of("{Parameters: {A: {Default: 5}, B: {Type: String}}, Resources: {}}")

    assert template.literal("as it is") == "as it is"
    assert template.literal({"Ref": "A"}) == "5"
    assert template.literal({"Ref": "B"}) is None
    assert template.literal({"Fn::Sub": "${A}"}) is None


def test_asking_for_a_table_or_an_api_that_is_not_there_says_so() -> None:
    empty = template_of("{Resources: {}}")

    with pytest.raises(TemplateError, match="no AWS::DynamoDB::Table called CreditsTable"):
        empty.table_definition("credits")
    with pytest.raises(TemplateError, match="no AWS::Serverless::HttpApi called HttpApi"):
        empty.cors()


def test_the_table_has_the_index_of_open_holds(template: Template) -> None:
    definition = template.table_definition("credits")

    assert definition["TableName"] == "credits"
    assert definition["BillingMode"] == "PAY_PER_REQUEST"
    assert definition["KeySchema"] == [
        {"AttributeName": "pk", "KeyType": "HASH"},
        {"AttributeName": "sk", "KeyType": "RANGE"},
    ]
    (index,) = definition["GlobalSecondaryIndexes"]
    assert index["IndexName"] == "Due"
    assert index["KeySchema"] == [
        {"AttributeName": "dueShard", "KeyType": "HASH"},
        {"AttributeName": "dueAt", "KeyType": "RANGE"},
    ]
    assert template.expiry_attribute() == "expiresAt"


def test_every_function_has_a_handler_module_and_every_route_one_function(
    template: Template,
) -> None:
    functions = template.functions()
    routes = [route for function in functions for route in function.routes]

    for function in functions:
        module, _, attribute = function.handler.rpartition(".")
        assert importlib.util.find_spec(module) is not None, function.handler
        assert attribute == "handler"
    assert len(routes) == len(set(routes))
    assert {
        Route("POST", "/api/v1/models/gemini/generate"),
        Route("GET", "/api/v1/billing/credits"),
        Route("GET", "/healthz"),
    } <= set(routes)


def test_the_function_that_takes_money_ends_before_the_gateway_gives_up(
    template: Template,
) -> None:
    generate = next(f for f in template.functions() if f.handler == "handlers.generate.handler")

    assert generate.timeout_s == FUNCTION_TIMEOUT_S == 29
    assert generate.timeout_s < GATEWAY_GIVES_UP_S


def test_the_model_ends_before_its_function_and_every_function_before_who_waits_for_it(
    template: Template,
) -> None:
    generate = next(f for f in template.functions() if f.handler == "handlers.generate.handler")
    model_has_s = generate.timeout_s - RESPONSE_TAKES_S - AFTER_MODEL_S

    assert 20 < model_has_s < generate.timeout_s < LEASE_S
    for function in template.functions():
        if function.routes:
            assert 0 < function.timeout_s < GATEWAY_GIVES_UP_S, function.name
        for period_s in function.schedules_s:
            # Two runs of the reconciler at once would only get in each other's way.
            assert LAST_ROWS_TAKE_S < function.timeout_s <= period_s, function.name


def test_a_job_comes_again_only_when_its_worker_has_surely_ended(
    template: Template, in_s3: Variant
) -> None:
    worker = next(f for f in template.functions() if f.handler == "handlers.worker.handler")
    jobs = in_s3.resources("AWS::SQS::Queue")["JobsQueue"]["Properties"]
    dead = in_s3.resources("AWS::SQS::Queue")["DeadJobs"]["Properties"]

    assert worker.timeout_s < jobs["VisibilityTimeout"]
    assert jobs["RedrivePolicy"]["maxReceiveCount"] == 3
    assert jobs["RedrivePolicy"]["deadLetterTargetArn"].endswith(":pictures-DeadJobs")
    assert jobs["MessageRetentionPeriod"] < dead["MessageRetentionPeriod"]
    assert jobs["SqsManagedSseEnabled"] is dead["SqsManagedSseEnabled"] is True


def test_reservations_are_reconciled_every_minute(template: Template) -> None:
    reconcile = next(f for f in template.functions() if f.handler == "handlers.reconcile.handler")

    assert reconcile.schedules_s == (60,)


def test_the_template_sets_every_setting_and_nothing_that_is_not_read(template: Template) -> None:
    of_lambda = {"AWS_REGION"}
    settings = {field.name.upper() for field in dataclasses.fields(Settings)} - of_lambda
    of_powertools = {"SERVICE_NAME", "METRICS_NAMESPACE"}

    for function in template.functions():
        assert set(function.environment) == settings - of_powertools | {
            f"POWERTOOLS_{name}" for name in of_powertools
        }


def test_browsers_anywhere_may_call_and_read_the_headers_of_the_contract(
    template: Template,
) -> None:
    cors = template.cors()

    assert cors == Cors(
        origins=("*",),
        methods=("GET", "POST"),
        headers=("authorization", "content-type", "idempotency-key", "prefer"),
        expose=cors.expose,
        max_age_s=cors.max_age_s,
    )
    assert {"x-request-id", "x-error-code", "x-credits-charged", "retry-after"} <= set(cors.expose)


# The whole of it, for every choice of an operator's.


@pytest.mark.parametrize("parameters", VARIANTS, ids=lambda chosen: "+".join(chosen) or "defaults")
def test_everything_resolves_whatever_is_chosen(parameters: dict[str, object]) -> None:
    variant = Variant(DOCUMENT, parameters)

    assert variant.refused() == []
    assert variant.resources()
    assert {"ApiUrl", "ImageBase", "TableName", "OrgSecretPrefix", "DashboardUrl"} <= set(
        variant.outputs()
    )


def test_every_condition_is_asked_for_and_comes_out_either_way() -> None:
    conditions = set(DOCUMENT["Conditions"])
    outcomes = {
        (name, Variant(DOCUMENT, parameters).condition(name))
        for parameters in VARIANTS
        for name in conditions
    }
    text = json.dumps([DOCUMENT["Globals"], DOCUMENT["Resources"], DOCUMENT["Outputs"]])

    assert outcomes == set(product(conditions, [False, True]))
    for name in conditions:
        assert f'"Condition": "{name}"' in text or f'"Fn::If": ["{name}"' in text, name


def test_every_parameter_is_used_shown_and_explained() -> None:
    used = references_in([DOCUMENT[part] for part in ("Conditions", "Globals", "Resources")])
    shown = [
        name
        for group in DOCUMENT["Metadata"]["AWS::CloudFormation::Interface"]["ParameterGroups"]
        for name in group["Parameters"]
    ]

    assert sorted(shown) == sorted(DOCUMENT["Parameters"])
    assert set(DOCUMENT["Parameters"]) <= used
    for name, parameter in DOCUMENT["Parameters"].items():
        assert parameter["Description"], name
        # Every one has a default, so that the first deployment asks for nothing but a name.
        assert "Default" in parameter, name


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
def test_a_reference_to_what_is_not_there_does_not_resolve(written: dict[str, object]) -> None:
    document = parse(TEMPLATE_PATH.read_text(encoding="utf-8"))
    document["Outputs"] = {"Wrong": {"Value": written}}

    with pytest.raises(Unresolvable):
        Variant(document, ON_R2).outputs()


def test_in_r2_there_is_no_bucket_and_no_distribution() -> None:
    kinds = {each["Type"] for each in Variant(DOCUMENT, ON_R2).resources().values()}

    assert not [kind for kind in kinds if kind.startswith(("AWS::S3::", "AWS::CloudFront::"))]


@pytest.mark.parametrize("left_out", sorted(ON_R2))
def test_half_a_configuration_of_r2_is_refused(left_out: str) -> None:
    half = {name: value for name, value in ON_R2.items() if name != left_out}

    assert Variant(DOCUMENT, half).refused()
    assert not Variant(DOCUMENT, ON_R2).refused()
    assert not Variant(DOCUMENT).refused()


@pytest.mark.parametrize("domain", ["Api", "Image"])
def test_a_domain_without_a_certificate_is_refused(domain: str) -> None:
    assert Variant(DOCUMENT, {f"{domain}DomainName": "own.example"}).refused()


# Watching it.


def test_every_alarm_looks_at_metrics_that_are_really_reported(operation: Operation) -> None:
    looked_at = {
        metric for alarm in alarms(operation.variant).values() for metric in metrics_of(alarm)
    }

    assert {DEFAULT_NAMESPACE, "AWS/Lambda", "AWS/ApiGateway"} <= {each[0] for each in looked_at}
    assert not nobodys(looked_at, operation)


def test_every_metric_on_the_dashboard_is_really_reported(operation: Operation) -> None:
    (dashboard,) = operation.variant.resources("AWS::CloudWatch::Dashboard").values()
    shown = set(metrics_shown(json.loads(dashboard["Properties"]["DashboardBody"])))

    assert len(shown) > 20
    assert not nobodys(shown, operation)


def test_the_search_on_the_dashboard_finds_the_failures_by_code(operation: Operation) -> None:
    (dashboard,) = operation.variant.resources("AWS::CloudWatch::Dashboard").values()
    (schema, name, service) = re.findall(
        r"""SEARCH\('\{(.+?)\} MetricName=\\"(\w+)\\" service=\\"(\w+)\\"', 'Sum', 60\)""",
        dashboard["Properties"]["DashboardBody"],
    )[0]
    namespace, *dimensions = schema.split(",")

    found = [
        metric
        for metric in emitted(operation)
        if metric[:2] == (namespace, name) and {key for key, _ in metric[2]} == set(dimensions)
    ]
    assert service == STACK
    assert len(found) >= 4


def test_a_metric_that_nobody_reports_would_be_noticed(operation: Operation) -> None:
    service = frozenset({("service", STACK)})
    of_function = frozenset({("FunctionName", operation.variant.name_of("GenerateFunction"))})
    wrong = {
        (DEFAULT_NAMESPACE, "RefundFailure", service),
        (DEFAULT_NAMESPACE, "RefundFailures", frozenset({("service", "gemini-generate")})),
        (DEFAULT_NAMESPACE, "RefundFailures", frozenset()),
        (DEFAULT_NAMESPACE, "FailuresByCode", service),
        ("AWS/Lambda", "Error", of_function),
        ("AWS/Lambda", "Errors", frozenset({("FunctionName", "another")})),
        (
            "AWS/ApiGateway",
            "5XXError",
            frozenset({("ApiId", operation.variant.name_of("HttpApi"))}),
        ),
    }

    assert nobodys(wrong, operation) == wrong


def test_every_failure_code_of_an_alarm_is_one_of_the_services(in_s3: Variant) -> None:
    def codes(kind: type[ServiceError]) -> set[str]:
        return {kind.code}.union(*map(codes, kind.__subclasses__()))

    named = {
        value
        for alarm in alarms(in_s3).values()
        for _, _, dimensions in metrics_of(alarm)
        for key, value in dimensions
        if key == "code"
    }
    assert named
    assert named <= codes(ServiceError)


def test_every_alarm_tells_the_topic_when_it_begins_and_when_it_ends(variant: Variant) -> None:
    topic = variant.name_of("AlarmTopic")

    for name, alarm in alarms(variant).items():
        assert alarm["AlarmActions"] == alarm["OKActions"] == [topic], name
        assert alarm["AlarmDescription"], name
        assert alarm.get("ActionsEnabled", True), name


def test_what_must_wake_somebody_has_an_alarm(in_s3: Variant) -> None:
    looked_at = {
        (name, dict(dimensions).get("code"), dict(dimensions).get("FunctionName"))
        for alarm in alarms(in_s3).values()
        for _, name, dimensions in metrics_of(alarm)
    }

    assert {
        ("5xx", None, None),
        ("Throttles", None, in_s3.name_of("GenerateFunction")),
        ("Duration", None, in_s3.name_of("GenerateFunction")),
        ("RefundFailures", None, None),
        ("ReservationsExpired", None, None),
        ("FailuresByCode", "model_unavailable", None),
        ("Errors", None, in_s3.name_of("ReconcileFunction")),
        # A reconciler that never runs reports no errors.
        ("Invocations", None, in_s3.name_of("ReconcileFunction")),
    } <= looked_at
    (slow,) = (each for each in alarms(in_s3).values() if each.get("MetricName") == "Duration")
    assert slow["ExtendedStatistic"] == "p99"
    assert slow["Threshold"] < FUNCTION_TIMEOUT_S * 1000
    (silent,) = (each for each in alarms(in_s3).values() if each.get("MetricName") == "Invocations")
    assert silent["TreatMissingData"] == "breaching"


def test_an_address_given_for_alarms_is_subscribed_to_the_topic() -> None:
    variant = Variant(DOCUMENT, {"AlarmEmail": "operator@example.com"})

    (subscription,) = variant.resources("AWS::SNS::Subscription").values()
    assert subscription["Properties"] == {
        "TopicArn": variant.name_of("AlarmTopic"),
        "Protocol": "email",
        "Endpoint": "operator@example.com",
    }
    assert not Variant(DOCUMENT).resources("AWS::SNS::Subscription")


def test_the_dashboard_of_the_template_is_the_file_beside_it() -> None:
    written = TEMPLATE_PATH.read_text(encoding="utf-8")

    assert embedded(written, SOURCE.read_text(encoding="utf-8")) == written, "run make dashboard"


# What a reviewer looks for.


def test_the_money_is_kept_whatever_happens_to_the_stack(in_s3: Variant) -> None:
    table = in_s3.resources("AWS::DynamoDB::Table")["CreditsTable"]

    assert (table["DeletionPolicy"], table["UpdateReplacePolicy"]) == ("Retain", "Retain")
    assert table["Properties"]["DeletionProtectionEnabled"] is True
    assert table["Properties"]["PointInTimeRecoverySpecification"] == {
        "PointInTimeRecoveryEnabled": True
    }
    assert table["Properties"]["SSESpecification"] == {"SSEEnabled": True}
    assert table["Properties"]["TimeToLiveSpecification"] == {
        "AttributeName": "expiresAt",
        "Enabled": True,
    }


def test_the_bucket_is_kept_private_and_encrypted(in_s3: Variant) -> None:
    (bucket,) = in_s3.resources("AWS::S3::Bucket").values()
    properties = bucket["Properties"]

    assert (bucket["DeletionPolicy"], bucket["UpdateReplacePolicy"]) == ("Retain", "Retain")
    assert properties["PublicAccessBlockConfiguration"] == {
        "BlockPublicAcls": True,
        "BlockPublicPolicy": True,
        "IgnorePublicAcls": True,
        "RestrictPublicBuckets": True,
    }
    assert properties["OwnershipControls"] == {
        "Rules": [{"ObjectOwnership": "BucketOwnerEnforced"}]
    }
    assert properties["BucketEncryption"]["ServerSideEncryptionConfiguration"]
    # Each opens a bucket to the world, or leaves objects in it under other rules.
    assert not properties.keys() & {"AccessControl", "WebsiteConfiguration", "CorsConfiguration"}


def test_only_the_distribution_reads_the_bucket_and_nobody_without_tls(in_s3: Variant) -> None:
    (policy,) = in_s3.resources("AWS::S3::BucketPolicy").values()
    (distribution,) = in_s3.resources("AWS::CloudFront::Distribution")
    bucket = f"arn:aws:s3:::{in_s3.name_of('ImageBucket')}"
    allows, denies = policy["Properties"]["PolicyDocument"]["Statement"]

    assert policy["Properties"]["Bucket"] == in_s3.name_of("ImageBucket")
    arn = f"arn:aws:cloudfront::123456789012:distribution/{in_s3.name_of(distribution)}"
    del allows["Sid"], denies["Sid"]
    assert allows == {
        "Effect": "Allow",
        "Principal": {"Service": "cloudfront.amazonaws.com"},
        "Action": "s3:GetObject",
        "Resource": f"{bucket}/generated/*",
        "Condition": {"StringEquals": {"AWS:SourceArn": arn}},
    }
    assert denies == {
        "Effect": "Deny",
        "Principal": "*",
        "Action": "s3:*",
        "Resource": [bucket, f"{bucket}/*"],
        "Condition": {"Bool": {"aws:SecureTransport": "false"}},
    }


def test_the_distribution_signs_its_reads_and_takes_nothing_but_https(in_s3: Variant) -> None:
    (distribution,) = in_s3.resources("AWS::CloudFront::Distribution").values()
    (access,) = in_s3.resources("AWS::CloudFront::OriginAccessControl").values()
    configuration = distribution["Properties"]["DistributionConfig"]
    (origin,) = configuration["Origins"]
    control = access["Properties"]["OriginAccessControlConfig"]

    assert origin["OriginAccessControlId"]
    assert origin["DomainName"].startswith(in_s3.name_of("ImageBucket"))
    assert (control["SigningBehavior"], control["SigningProtocol"]) == ("always", "sigv4")
    assert configuration["DefaultCacheBehavior"]["ViewerProtocolPolicy"] == "redirect-to-https"
    assert configuration["DefaultCacheBehavior"]["AllowedMethods"] == ["GET", "HEAD"]
    assert "CacheBehaviors" not in configuration


@pytest.mark.parametrize("kind", ["Api", "Image"])
def test_a_domain_of_ones_own_demands_tls_1_2(kind: str) -> None:
    own = {f"{kind}DomainName": "own.example", f"{kind}CertificateArn": "arn:aws:acm:::own"}
    text = json.dumps(Variant(DOCUMENT, own).resources())

    wanted = {
        "Api": '"SecurityPolicy": "TLS_1_2"',
        "Image": '"MinimumProtocolVersion": "TLSv1.2_2021"',
    }
    assert wanted[kind] in text
    assert "own.example" in text


def test_the_api_is_throttled_and_logs_who_called_but_nothing_that_they_sent(
    variant: Variant,
) -> None:
    (api,) = variant.resources("AWS::Serverless::HttpApi").values()
    properties = api["Properties"]
    written = json.loads(properties["AccessLogSettings"]["Format"])

    assert int(properties["DefaultRouteSettings"]["ThrottlingRateLimit"]) > 0
    assert int(properties["DefaultRouteSettings"]["ThrottlingBurstLimit"]) > 0
    assert properties["AccessLogSettings"]["DestinationArn"].endswith("/access:*")
    assert set(written.values()) <= LOGGED


def test_every_log_ends_some_day_and_every_function_has_one_of_its_own(variant: Variant) -> None:
    groups = variant.resources("AWS::Logs::LogGroup")
    functions = variant.resources("AWS::Serverless::Function").values()
    written_to = [each["Properties"]["LoggingConfig"]["LogGroup"] for each in functions]

    assert all(int(each["Properties"]["RetentionInDays"]) > 0 for each in groups.values())
    assert len(set(written_to)) == len(written_to)
    assert {variant.name_of(name) for name in groups} >= set(written_to)
    # The stack's name is in the group's, so that two stacks don't write to one.
    assert all(STACK in variant.name_of(name) for name in groups)


def test_what_is_secret_is_neither_a_parameter_nor_in_the_environment(variant: Variant) -> None:
    secret = {"NoEcho", "SecretString"}
    text = json.dumps(DOCUMENT)

    assert not [word for word in secret if f'"{word}"' in text]
    assert variant.environment()["GEMINI_API_KEY_SECRET"].startswith("arn:aws:secretsmanager:")
    for function in variant.resources("AWS::Serverless::Function").values():
        assert "Environment" not in function["Properties"]


def test_a_function_runs_on_what_is_chosen_and_sets_concurrency_aside_only_when_told_to() -> None:
    plain = Variant(DOCUMENT).resources("AWS::Serverless::Function")
    chosen = Variant(DOCUMENT, {"ReservedConcurrency": 20, "SnapStart": "On"})
    functions = chosen.resources("AWS::Serverless::Function")

    assert not [
        each for each in plain.values() if "ReservedConcurrentExecutions" in each["Properties"]
    ]
    assert functions["GenerateFunction"]["Properties"]["ReservedConcurrentExecutions"] == "20"
    for name in ("GenerateFunction", "AccountFunction"):
        assert plain[name]["Properties"]["SnapStart"] == {"ApplyOn": "None"}
        assert functions[name]["Properties"]["SnapStart"] == {"ApplyOn": "PublishedVersions"}
