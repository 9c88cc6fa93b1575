"""What rings, judged by the metrics that the functions emit; and what the dashboard shows."""

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from infra.template import PROJECT_ROOT
from lib.deadline import FUNCTION_TIMEOUT_S
from lib.errors import ServiceError
from lib.settings import DEFAULT_NAMESPACE
from tests.alarms import Metric, Minute, metrics_in, metrics_of, rings, values_in
from tests.cloudformation import DOCUMENT, ON_R2, STACK, Variant, only, properties_of
from tests.operation import Recording, recorded

# The functions run through every outcome first, which takes a while.
pytestmark = pytest.mark.real

# AWS's own metrics of a function, a queue, an HTTP API and a distribution, by dimension. Sources:
# "Types of metrics for Lambda functions", "Monitor CloudWatch metrics for HTTP APIs", "Available
# CloudWatch metrics for Amazon SQS", "View CloudFront and edge function metrics".
AWS_METRICS = {
    ("AWS/Lambda", "FunctionName"): "ConcurrentExecutions Duration Errors Invocations Throttles",
    ("AWS/SQS", "QueueName"): "ApproximateAgeOfOldestMessage ApproximateNumberOfMessagesVisible",
    ("AWS/ApiGateway", "ApiId"): "4xx 5xx Count DataProcessed IntegrationLatency Latency",
    ("AWS/CloudFront", "DistributionId"): "4xxErrorRate 5xxErrorRate Requests",
}
MEASURED = {
    "FunctionName": "AWS::Serverless::Function",
    "QueueName": "AWS::SQS::Queue",
    "ApiId": "AWS::Serverless::HttpApi",
    "DistributionId": "AWS::CloudFront::Distribution",
}
SERVICE = frozenset({("service", STACK)})
DRIFT = (DEFAULT_NAMESPACE, "AuditDrift", SERVICE)
AUDITS = (DEFAULT_NAMESPACE, "AuditsEnded", SERVICE)
# A handler and how its invocation ended.
Outcome = tuple[str, str]
IMAGE: Outcome = ("generate", "done")
JOB: Outcome = ("worker", "done")
REFUSED: Outcome = ("generate", "content_rejected")
JOB_REFUSED: Outcome = ("worker", "content_rejected")
REFUSED_AS_OPENAI: Outcome = ("generate", "content_rejected, in the form of OpenAI")
# API Gateway's own answer, when the function died or can't be invoked.
DIED: Outcome = ("gateway", "503")
BUG = "internal_error, a bug"
FAILURES_BY_PROMPT = {"content_rejected", "no_image"}
SHARES = {"FaultsAlarm", "SparseFaultsAlarm"}
DEPLOYMENT = {
    each["Ref"] for each in DOCUMENT["Globals"]["Function"]["DeploymentPreference"]["Alarms"]
}


@pytest.fixture(params=["in S3", "in R2"])
def variant(request: pytest.FixtureRequest) -> Variant:
    return Variant(DOCUMENT, ON_R2 if request.param == "in R2" else {})


@pytest.fixture(scope="module")
def recording() -> Iterator[Recording]:
    with recorded() as done:
        yield done


def alarms(variant: Variant) -> dict[str, dict[str, Any]]:
    return properties_of(variant, "AWS::CloudWatch::Alarm")


def pages(variant: Variant) -> set[str]:
    """The alarms that page; all others are notices."""
    topic = [variant.name_of("AlarmTopic")]
    return {name for name, each in alarms(variant).items() if each["AlarmActions"] == topic}


class Traffic:
    """Minutes of traffic, of which each invocation emits what the recorded one of its kind did."""

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        self._minutes: list[Minute] = []

    def minutes(self, number: int, counts: Mapping[Outcome, int] | None = None) -> "Traffic":
        """Adds minutes of this traffic, which the reconciler and the audits accompany."""
        minute: defaultdict[Metric, list[float]] = defaultdict(list)
        reconciler = self._recording.variant.name_of("ReconcileFunction")
        minute["AWS/Lambda", "Invocations", frozenset({("FunctionName", reconciler)})] = [1.0]
        minute[AUDITS] = [1.0]
        for outcome, times in (counts or {}).items():
            self._add(minute, outcome, times)
        self._minutes += [minute] * number
        return self

    def ringing(self) -> set[str]:
        """The alarms that ring at the end."""
        found = alarms(self._recording.variant).items()
        return {name for name, alarm in found if rings(alarm, self._minutes)}

    def paging(self) -> set[str]:
        """The alarms that page at the end."""
        return self.ringing() & pages(self._recording.variant)

    def _add(self, minute: dict[Metric, list[float]], outcome: Outcome, times: int) -> None:
        variant = self._recording.variant
        api = frozenset({("ApiId", variant.name_of("HttpApi"))})
        status = 503
        if outcome != DIED:
            made = self._recording.invocations[outcome]
            status = made.status
            function = frozenset({("FunctionName", variant.name_of(made.function))})
            minute["AWS/Lambda", "Invocations", function] += [1.0] * times
            minute["AWS/Lambda", "Errors", function] += [0.0] * times
            for metric, values in values_in(made.emitted).items():
                minute[metric] += values * times
        if status:
            minute["AWS/ApiGateway", "Count", api] += [1.0] * times
            minute["AWS/ApiGateway", "5xx", api] += [float(status >= 500)] * times


def faults(recording: Recording) -> list[Outcome]:
    """The recorded failures that are not the customer's, on both paths."""
    found = [
        (handler, code)
        for (handler, code), made in recording.invocations.items()
        if handler in {"generate", "worker"}
        and code not in {"done", *FAILURES_BY_PROMPT}
        and (handler == "worker" or made.status >= 500)
    ]
    for handler in ("generate", "worker"):
        assert {(handler, code) for code in ("storage_failed", BUG)} <= set(found)
    assert {
        ("generate", code)
        for code in ("queue_failed", "outcome_pending", "service_unavailable, a bug")
    } <= set(found)
    assert {("worker", f"{code}, redelivered") for code in ("done", "storage_failed")} <= set(found)
    assert ("worker", "crashed") in found
    return found


# The metrics


def metrics_shown(dashboard: dict[str, Any]) -> Iterator[Metric]:
    """The metrics of a dashboard's widgets, not counting searches."""
    for widget in dashboard["widgets"]:
        for row in widget["properties"].get("metrics", []):
            # "..." repeats the metric of the row before, in another statistic.
            if isinstance(row[0], str) and row[0] != "...":
                namespace, name, *rest = [each for each in row if isinstance(each, str)]
                yield namespace, name, frozenset(zip(rest[::2], rest[1::2], strict=True))


def never_reported(metrics: set[Metric], recording: Recording) -> set[Metric]:
    """Those of ``metrics`` that neither the service nor AWS reports."""
    variant = recording.variant
    of_aws = {
        (namespace, name, frozenset({(dimension, variant.name_of(logical).rpartition("/")[2])}))
        for (namespace, dimension), names in AWS_METRICS.items()
        for logical in variant.resources(MEASURED[dimension])
        for name in names.split()
    }
    reported = metrics_in(recording.emitted) | of_aws
    if not (PROJECT_ROOT / "handlers" / "audit.py").exists():
        reported |= {DRIFT, AUDITS}
    # Every metric of CloudFront has this dimension too.
    everywhere = ("Region", "Global")
    return {
        (namespace, name, dimensions)
        for namespace, name, dimensions in metrics
        if (namespace == "AWS/CloudFront") is not (everywhere in dimensions)
        or (namespace, name, dimensions - {everywhere}) not in reported
    }


def test_alarms_and_dashboard_show_only_metrics_that_are_reported(recording: Recording) -> None:
    watched = {
        metric for alarm in alarms(recording.variant).values() for metric in metrics_of(alarm)
    }
    dashboard = only(recording.variant, "AWS::CloudWatch::Dashboard")
    shown = set(metrics_shown(json.loads(dashboard["DashboardBody"])))

    assert {DEFAULT_NAMESPACE, "AWS/Lambda", "AWS/ApiGateway"} <= {each[0] for each in watched}
    assert len(shown) > 20
    assert not never_reported(watched | shown, recording)


def test_the_search_on_the_dashboard_finds_the_failures_by_code(recording: Recording) -> None:
    body = only(recording.variant, "AWS::CloudWatch::Dashboard")["DashboardBody"]
    pattern = r"""SEARCH\('\{(.+?)\} MetricName=\\"(\w+)\\" service=\\"(\w+)\\"', 'Sum', 60\)"""
    (schema, name, service) = re.findall(pattern, body)[0]
    namespace, *dimensions = schema.split(",")

    found = [
        metric
        for metric in metrics_in(recording.emitted)
        if metric[:2] == (namespace, name) and {key for key, _ in metric[2]} == set(dimensions)
    ]
    assert service == STACK
    assert len(found) >= 4


def test_a_metric_that_is_never_reported_is_noticed(recording: Recording) -> None:
    function = recording.variant.name_of("GenerateFunction")
    distribution = ("DistributionId", recording.variant.name_of("ImageDistribution"))
    wrong = {
        (DEFAULT_NAMESPACE, "RefundFailure", SERVICE),
        (DEFAULT_NAMESPACE, "RefundFailures", frozenset({("service", "gemini-generate")})),
        (DEFAULT_NAMESPACE, "RefundFailures", frozenset()),
        (DEFAULT_NAMESPACE, "FailuresByCode", SERVICE),
        ("AWS/Lambda", "Error", frozenset({("FunctionName", function)})),
        ("AWS/Lambda", "Errors", frozenset({("FunctionName", "another")})),
        (
            "AWS/ApiGateway",
            "5XXError",
            frozenset({("ApiId", recording.variant.name_of("HttpApi"))}),
        ),
        ("AWS/CloudFront", "5xxErrorRate", frozenset({distribution})),
    }

    assert never_reported(wrong, recording) == wrong


def test_the_filters_of_the_runbook_match_log_lines(recording: Recording) -> None:
    runbook = (PROJECT_ROOT / "infra" / "docs" / "RUNBOOK.md").read_text(encoding="utf-8")
    filters = re.findall(r"""'\{ \$\.(\w+) = "(.+?)" \}'""", runbook)

    assert {name for name, _ in filters} == {"level", "generation"}
    assert {value for name, value in filters if name == "level"} <= {
        line["level"] for line in recording.logged
    }
    assert {"request_id", "generation"} <= {name for line in recording.logged for name in line}


# The topics


def test_every_alarm_names_known_codes_and_notifies_one_topic_at_its_start_and_end(
    variant: Variant,
) -> None:
    def codes(kind: type[ServiceError]) -> set[str]:
        return {kind.code}.union(*map(codes, kind.__subclasses__()))

    topics = [[variant.name_of(topic)] for topic in ("AlarmTopic", "NoticeTopic")]
    for name, alarm in alarms(variant).items():
        assert alarm["AlarmActions"] == alarm["OKActions"], name
        assert alarm["AlarmActions"] in topics, name
        assert alarm["AlarmDescription"], name
        assert alarm.get("ActionsEnabled", True), name
        for _, _, dimensions in metrics_of(alarm):
            assert {value for key, value in dimensions if key == "code"} <= codes(ServiceError)


@pytest.mark.parametrize(
    ("parameter", "topic"), [("AlarmEmail", "AlarmTopic"), ("NoticeEmail", "NoticeTopic")]
)
def test_an_email_address_is_subscribed_to_its_topic(parameter: str, topic: str) -> None:
    variant = Variant(DOCUMENT, {parameter: "operator@example.com"})

    assert only(variant, "AWS::SNS::Subscription") == {
        "TopicArn": variant.name_of(topic),
        "Protocol": "email",
        "Endpoint": "operator@example.com",
    }
    assert not Variant(DOCUMENT).resources("AWS::SNS::Subscription")


def test_every_emergency_has_an_alarm_that_pages() -> None:
    in_s3 = Variant(DOCUMENT)
    watched = {
        (name, dict(dimensions).get("code"), dict(dimensions).get("FunctionName"))
        for alarm in pages(in_s3)
        for _, name, dimensions in metrics_of(alarms(in_s3)[alarm])
    }

    assert {
        ("5xx", None, None),
        ("Throttles", None, in_s3.name_of("GenerateFunction")),
        ("AuditDrift", None, None),
        ("FailuresByCode", "model_unavailable", None),
        ("Errors", None, in_s3.name_of("ReconcileFunction")),
        # A reconciler that never runs reports no errors.
        ("Invocations", None, in_s3.name_of("ReconcileFunction")),
    } <= watched
    by_metric = {each.get("MetricName"): each for each in alarms(in_s3).values()}
    assert by_metric["Duration"]["ExtendedStatistic"] == "p99"
    assert by_metric["Duration"]["Threshold"] < FUNCTION_TIMEOUT_S * 1000


# What rings


def test_what_fails_by_a_fault_of_the_service_pages_on_either_path(recording: Recording) -> None:
    for fault in faults(recording):
        paging = Traffic(recording).minutes(5, {fault: 2}).paging()

        assert paging >= SHARES, fault
        # The alarm that names the cause may ring beside it, and the gateway's.
        assert len(paging) <= 4, (fault, paging)


def test_healthy_traffic_and_refused_prompts_alone_never_page(recording: Recording) -> None:
    refused = {REFUSED: 60, REFUSED_AS_OPENAI: 60, JOB_REFUSED: 60}

    assert Traffic(recording).minutes(20, {IMAGE: 60, JOB: 60}).ringing() == set()
    assert Traffic(recording).minutes(20, refused).ringing() == set()


@pytest.mark.parametrize("refused", [JOB_REFUSED, REFUSED_AS_OPENAI])
def test_refused_prompts_do_not_hide_the_faults_of_the_gateway(
    recording: Recording, refused: Outcome
) -> None:
    traffic = Traffic(recording).minutes(5, {DIED: 5, refused: 50, REFUSED: 5})

    assert traffic.paging() == {"ApiFaultsAlarm"}


def test_a_failure_among_three_requests_of_a_day_does_not_page(recording: Recording) -> None:
    for fault in [*faults(recording), DIED]:
        traffic = Traffic(recording).minutes(1, {IMAGE: 1}).minutes(60).minutes(1, {fault: 1})

        assert traffic.paging() == set(), fault
        assert traffic.minutes(60).minutes(1, {JOB: 1}).paging() == set(), fault


def test_few_faults_among_many_images_do_not_page(recording: Recording) -> None:
    for fault in faults(recording):
        traffic = Traffic(recording).minutes(5, {fault: 1, IMAGE: 40, JOB: 40})

        # Neither a bad key nor a used-up budget at Google mends itself.
        own = {"model_unavailable": {"ModelUnavailableAlarm"}} | {
            "model_budget_exhausted": {"ModelBudgetExhaustedAlarm"}
        }
        assert traffic.paging() == own.get(fault[1], set()), fault
    # A job that is not queued is one of the jobs, whatever other requests there are.
    jobs = {("generate", "queue_failed"): 1, ("generate", "accepted"): 40, JOB: 40}
    assert Traffic(recording).minutes(5, jobs).paging() == set()


def test_a_quiet_service_of_which_nothing_works_pages(recording: Recording) -> None:
    for fault in faults(recording):
        traffic = Traffic(recording)
        for _ in range(3):
            traffic.minutes(1, {fault: 1}).minutes(90)

        assert traffic.paging() == {"SparseFaultsAlarm"}, fault


@pytest.mark.parametrize("code", ["storage_failed", BUG])
@pytest.mark.parametrize("path", ["generate", "worker"])
def test_a_canary_that_fails_every_image_of_one_path_rolls_the_deployment_back(
    recording: Recording, path: str, code: str
) -> None:
    """A tenth of the traffic of one path fails; the other, busier path works on both versions."""
    healthy, other = (JOB, IMAGE) if path == "worker" else (IMAGE, JOB)
    traffic = Traffic(recording).minutes(5, {healthy: 40, other: 80})
    assert not traffic.ringing() & DEPLOYMENT

    traffic.minutes(4, {(path, code): 4, healthy: 36, other: 80})
    assert "FaultsAlarm" in traffic.ringing() & DEPLOYMENT
    assert traffic.paging() <= {*SHARES, "ApiFaultsAlarm"}


def test_a_canary_that_can_use_no_picture_rolls_the_deployment_back(recording: Recording) -> None:
    shifted = {IMAGE: 18, ("generate", "no_image"): 2, JOB: 9, ("worker", "no_image"): 1}
    traffic = Traffic(recording).minutes(1, {IMAGE: 20, JOB: 10}).minutes(4, shifted)

    assert traffic.ringing() & DEPLOYMENT == {"NoImageAlarm"}
    assert traffic.paging() == set()


def test_an_audit_that_finds_drift_pages_until_one_finds_none(recording: Recording) -> None:
    alarm = alarms(recording.variant)["AuditDriftAlarm"]
    silence: list[Minute] = [{}] * 60

    assert rings(alarm, [*silence, {DRIFT: [2.0]}])
    assert rings(alarm, silence, rang=True)
    assert not rings(alarm, silence)
    assert not rings(alarm, [*silence, {DRIFT: [0.0]}], rang=True)


def test_a_day_without_an_audit_is_a_notice(recording: Recording) -> None:
    alarm = alarms(recording.variant)["AuditSilentAlarm"]
    late: list[Minute] = [{AUDITS: [1.0]}, *[{}] * (25 * 60)]

    assert not rings(alarm, late)
    assert rings(alarm, [*late, *[{}] * 120])
    assert "AuditSilentAlarm" not in pages(recording.variant)


def test_images_that_are_not_delivered_ring(recording: Recording) -> None:
    variant = recording.variant
    name = variant.name_of("ImageDistribution")
    dimensions = frozenset({("DistributionId", name), ("Region", "Global")})

    def ringing(errors: str, percent: float, requests: int) -> set[str]:
        minute: Minute = {
            ("AWS/CloudFront", errors, dimensions): [percent],
            ("AWS/CloudFront", "Requests", dimensions): [float(requests)],
        }
        found = alarms(variant).items()
        return {
            alarm for alarm, each in found if "Delivery" in alarm and rings(each, [minute] * 15)
        }

    assert ringing("5xxErrorRate", 10, 100) == {"DeliveryFaultsAlarm"} <= pages(variant)
    assert ringing("4xxErrorRate", 90, 100) == {"DeliveryRefusalsAlarm"}
    assert ringing("4xxErrorRate", 40, 100) == ringing("4xxErrorRate", 100, 1) == set()
