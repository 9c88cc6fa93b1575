"""What ``infra`` reads from ``template.yaml``, and what the template promises."""

import dataclasses
import importlib.util

import pytest

from infra.template import Cors, Route, Template, TemplateError, parse
from lib.deadline import FUNCTION_TIMEOUT_S
from lib.settings import Settings


@pytest.fixture(scope="module")
def template() -> Template:
    return Template.from_file()


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
    assert index["IndexName"] == "OpenHolds"
    assert index["KeySchema"] == [
        {"AttributeName": "openHold", "KeyType": "HASH"},
        {"AttributeName": "leaseExpiresAt", "KeyType": "RANGE"},
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
