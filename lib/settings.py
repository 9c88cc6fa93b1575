"""The environment, read once into one frozen object; nothing else of ours reads it.

The SDKs' own variables (``AWS_ENDPOINT_URL_DYNAMODB``, ``GOOGLE_GEMINI_BASE_URL``,
``POWERTOOLS_LOG_LEVEL`` and the like) stay the SDKs' business.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["DEFAULT_MODEL", "MissingSettingError", "Settings", "initialization_type"]

DEFAULT_MODEL = "gemini-3.1-flash-lite-image"
DEFAULT_SERVICE = "gemini-generate"
DEFAULT_NAMESPACE = "GeminiGenerate"
_TRUE = frozenset({"1", "true", "yes", "on"})


class MissingSettingError(Exception):
    """A variable that the function can't do without is not set: a fault of the deployment."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What an operator configures. ``template.yaml`` sets every one of these."""

    credits_table: str
    image_bucket: str
    image_base_url: str
    org_secret_prefix: str
    gemini_api_key_secret: str
    gemini_model: str = DEFAULT_MODEL
    image_key_suffix: bool = False
    storage_endpoint_url: str | None = None
    storage_credentials_secret: str | None = None
    jobs_queue_url: str | None = None
    aws_region: str | None = None
    service_name: str = DEFAULT_SERVICE
    metrics_namespace: str = DEFAULT_NAMESPACE

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "Settings":
        """Reads the variables of DESIGN's settings table.

        Raises:
            MissingSettingError: a required one is absent or empty.
        """

        def required(name: str) -> str:
            value = environment.get(name, "").strip()
            if not value:
                raise MissingSettingError(f"the environment variable {name} is not set")
            return value

        def optional(name: str) -> str | None:
            return environment.get(name, "").strip() or None

        return cls(
            credits_table=required("CREDITS_TABLE"),
            image_bucket=required("IMAGE_BUCKET"),
            image_base_url=required("IMAGE_BASE_URL").rstrip("/"),
            org_secret_prefix=required("ORG_SECRET_PREFIX"),
            gemini_api_key_secret=required("GEMINI_API_KEY_SECRET"),
            gemini_model=optional("GEMINI_MODEL") or DEFAULT_MODEL,
            image_key_suffix=environment.get("IMAGE_KEY_SUFFIX", "").strip().lower() in _TRUE,
            storage_endpoint_url=optional("STORAGE_ENDPOINT_URL"),
            storage_credentials_secret=optional("STORAGE_CREDENTIALS_SECRET"),
            jobs_queue_url=optional("JOBS_QUEUE_URL"),
            # boto3 reads AWS_DEFAULT_REGION alone; Lambda and everybody else set AWS_REGION.
            aws_region=optional("AWS_REGION"),
            service_name=optional("POWERTOOLS_SERVICE_NAME") or DEFAULT_SERVICE,
            metrics_namespace=optional("POWERTOOLS_METRICS_NAMESPACE") or DEFAULT_NAMESPACE,
        )


def initialization_type(environment: Mapping[str, str] = os.environ) -> str | None:
    """How Lambda starts this process, such as ``on-demand`` or ``snap-start``; None elsewhere.

    https://docs.aws.amazon.com/lambda/latest/dg/configuration-envvars.html
    """
    return environment.get("AWS_LAMBDA_INITIALIZATION_TYPE") or None
