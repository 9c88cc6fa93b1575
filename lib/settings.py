"""Settings from environment variables; no other module of the service reads the environment.

The SDKs read variables of their own, such as ``AWS_ENDPOINT_URL_DYNAMODB``,
``GOOGLE_GEMINI_BASE_URL`` and ``POWERTOOLS_LOG_LEVEL``.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["DEFAULT_MODEL", "MissingSettingError", "Settings", "initialization_type"]

DEFAULT_MODEL = "gemini-3.1-flash-lite-image"
DEFAULT_SERVICE = "gemini-generate"
DEFAULT_NAMESPACE = "GeminiGenerate"


class MissingSettingError(Exception):
    """A required environment variable is not set: the deployment is misconfigured."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The service's configuration, all of which ``template.yaml`` sets."""

    credits_table: str
    image_bucket: str
    image_base_url: str
    org_secret_prefix: str
    gemini_api_key_secret: str
    gemini_model: str = DEFAULT_MODEL
    storage_endpoint_url: str | None = None
    storage_credentials_secret: str | None = None
    jobs_queue_url: str | None = None
    public_url: str | None = None
    support_url: str | None = None
    receipt_key: str | None = None
    retired_receipt_keys: str | None = None
    refused_prompts_per_day: int = 0
    aws_region: str | None = None
    service_name: str = DEFAULT_SERVICE
    metrics_namespace: str = DEFAULT_NAMESPACE

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "Settings":
        """Reads the settings from ``environment``; an empty variable counts as absent.

        Raises:
            MissingSettingError: a required variable is absent.
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
            storage_endpoint_url=optional("STORAGE_ENDPOINT_URL"),
            storage_credentials_secret=optional("STORAGE_CREDENTIALS_SECRET"),
            jobs_queue_url=optional("JOBS_QUEUE_URL"),
            public_url=environment.get("PUBLIC_URL", "").strip().rstrip("/") or None,
            support_url=optional("SUPPORT_URL"),
            receipt_key=optional("RECEIPT_KEY"),
            retired_receipt_keys=optional("RETIRED_RECEIPT_KEYS"),
            refused_prompts_per_day=int(optional("REFUSED_PROMPTS_PER_DAY") or 0),
            # Lambda sets AWS_REGION, but boto3 reads AWS_DEFAULT_REGION only.
            aws_region=optional("AWS_REGION"),
            service_name=optional("POWERTOOLS_SERVICE_NAME") or DEFAULT_SERVICE,
            metrics_namespace=optional("POWERTOOLS_METRICS_NAMESPACE") or DEFAULT_NAMESPACE,
        )


def initialization_type(environment: Mapping[str, str] = os.environ) -> str | None:
    """How Lambda initializes this process, such as ``snap-start``; None outside Lambda.

    Source: https://docs.aws.amazon.com/lambda/latest/dg/configuration-envvars.html
    """
    return environment.get("AWS_LAMBDA_INITIALIZATION_TYPE") or None
