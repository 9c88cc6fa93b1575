"""What moto's CloudFormation doesn't know of a deployment, taught to it by way of moto's own API.

For each type there is a model of the kind that moto has for others. It hands the resource's
properties, which CloudFormation has resolved by then, to the service that they are for. A type
whose service moto doesn't have, or has in another form, is noted and not made.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import boto3
import moto.cloudformation.parsing  # noqa: F401 - of two models of a type the later one counts
from moto.core.common_models import CloudFormationModel

__all__ = ["ALREADY_KNOWN", "MAKERS", "Made"]

ALREADY_KNOWN = {
    "AWS::CloudWatch::Dashboard",
    "AWS::DynamoDB::Table",
    "AWS::Events::Rule",
    "AWS::IAM::Role",
    "AWS::Lambda::EventSourceMapping",
    "AWS::Lambda::Function",
    "AWS::Lambda::Permission",
    "AWS::Logs::LogGroup",
    "AWS::S3::Bucket",
    "AWS::SNS::Topic",
    "AWS::SQS::Queue",
}
"""The types that moto's CloudFormation makes by itself."""

NOT_MADE = {
    "AWS::CloudFront::Distribution": "moto has distributions, but in the API's form alone, which"
    " counts the members of each list",
    "AWS::CloudFront::ResponseHeadersPolicy": "moto has none",
    "AWS::SQS::QueuePolicy": "moto has none, and checks no policy",
    "AWS::CodeDeploy::Application": "nothing is deployed again here, so nothing is shifted",
    "AWS::CodeDeploy::DeploymentGroup": "nothing is deployed again here, so nothing is shifted",
}
"""The types that are only noted, and why."""


@dataclass
class Made:
    """What came of a resource: what ``Ref`` answers, and what ``Fn::GetAtt`` answers."""

    reference: str
    attributes: Mapping[str, str] = field(default_factory=dict)


Properties = dict[str, Any]


def _client(service: Any) -> Any:
    return boto3.client(service, region_name="us-east-1")


def _alarm(name: str, properties: Properties) -> Made:
    _client("cloudwatch").put_metric_alarm(AlarmName=name, **properties)
    return Made(name)


def _version(_name: str, properties: Properties) -> Made:
    found = _client("lambda").publish_version(**properties)
    return Made(found["FunctionArn"], {"Version": found["Version"]})


def _alias(_name: str, properties: Properties) -> Made:
    return Made(_client("lambda").create_alias(**properties)["AliasArn"])


def _event_invoke_config(name: str, properties: Properties) -> Made:
    _client("lambda").put_function_event_invoke_config(**properties)
    return Made(name)


def _secret(name: str, properties: Properties) -> Made:
    return Made(_client("secretsmanager").create_secret(Name=name, **properties)["ARN"])


def _bucket_policy(name: str, properties: Properties) -> Made:
    policy = json.dumps(properties["PolicyDocument"])
    _client("s3").put_bucket_policy(Bucket=properties["Bucket"], Policy=policy)
    return Made(name)


def _subscription(_name: str, properties: Properties) -> Made:
    return Made(_client("sns").subscribe(**properties)["SubscriptionArn"])


def _origin_access_control(_name: str, properties: Properties) -> Made:
    made = _client("cloudfront").create_origin_access_control(**properties)
    found = made["OriginAccessControl"]["Id"]
    return Made(found, {"Id": found})


def _api(name: str, properties: Properties) -> Made:
    """moto can't import an OpenAPI document: its routes are made one by one."""
    gateway = _client("apigatewayv2")
    api = gateway.create_api(Name=name, ProtocolType="HTTP")["ApiId"]
    for path, methods in properties["Body"]["paths"].items():
        for method, operation in methods.items():
            calls = operation["x-amazon-apigateway-integration"]
            integration = gateway.create_integration(
                ApiId=api,
                IntegrationType=calls["type"].upper(),
                IntegrationMethod=calls["httpMethod"],
                IntegrationUri=calls["uri"],
                PayloadFormatVersion=calls["payloadFormatVersion"],
            )
            gateway.create_route(
                ApiId=api,
                RouteKey=f"{method.upper()} {path}",
                Target=f"integrations/{integration['IntegrationId']}",
            )
    return Made(api)


def _stage(_name: str, properties: Properties) -> Made:
    settings = properties["DefaultRouteSettings"]
    limits = {
        # CloudFormation makes a number of a parameter where the service wants one.
        "ThrottlingRateLimit": float(settings["ThrottlingRateLimit"]),
        "ThrottlingBurstLimit": int(settings["ThrottlingBurstLimit"]),
    }
    stage = properties | {"DefaultRouteSettings": settings | limits}
    return Made(_client("apigatewayv2").create_stage(**stage)["StageName"])


def _noted(name: str, _properties: Properties) -> Made:
    return Made(name, {"DomainName": f"{name.lower()}.cloudfront.net"})


# Every other type that the template has, and what makes it.
MAKERS: dict[str, Callable[[str, Properties], Made]] = {
    "AWS::ApiGatewayV2::Api": _api,
    "AWS::ApiGatewayV2::Stage": _stage,
    "AWS::CloudFront::OriginAccessControl": _origin_access_control,
    "AWS::CloudWatch::Alarm": _alarm,
    "AWS::Lambda::Alias": _alias,
    "AWS::Lambda::EventInvokeConfig": _event_invoke_config,
    "AWS::Lambda::Version": _version,
    "AWS::S3::BucketPolicy": _bucket_policy,
    "AWS::SNS::Subscription": _subscription,
    "AWS::SecretsManager::Secret": _secret,
    **dict.fromkeys(NOT_MADE, _noted),
}


def _model(kind: str, make: Callable[[str, Properties], Made]) -> type[Any]:
    """A model of moto's for the type ``kind``; moto finds it among the subclasses of its base."""

    class Model(CloudFormationModel):
        def __init__(self, made: Made) -> None:
            self.physical_resource_id = made.reference
            self._attributes = made.attributes

        @staticmethod
        def cloudformation_name_type() -> str:
            return ""

        @staticmethod
        def cloudformation_type() -> str:
            return kind

        @classmethod
        def has_cfn_attr(cls, attr: str) -> bool:
            return attr in {"DomainName", "Id", "Version"}

        @classmethod
        def create_from_cloudformation_json(
            cls,
            resource_name: str,
            cloudformation_json: dict[str, Any],
            account_id: str,  # noqa: ARG003 - moto gives it
            region_name: str,  # noqa: ARG003 - moto gives it
            **kwargs: Any,  # noqa: ARG003 - moto gives it
        ) -> Any:
            return cls(make(resource_name, cloudformation_json["Properties"]))

        def get_cfn_attribute(self, attribute_name: str) -> str:
            return self._attributes[attribute_name]

        def is_created(self) -> bool:
            return True

    return Model


# moto holds its models by weak references only.
MODELS = [_model(kind, make) for kind, make in MAKERS.items()]
