"""The composition root: settings in, rooms out. Each is built once; nothing calls the network."""

from collections.abc import Callable
from functools import cached_property, partial
from typing import TYPE_CHECKING

from lib.api_keys import ApiKeys
from lib.clients import (
    ObjectStore,
    SecretUnreadable,
    dynamodb,
    read_secret,
    secrets_manager,
    sqs,
)
from lib.errors import ModelUnavailable
from lib.jobs import Jobs
from lib.ledger import Ledger
from lib.observability import Telemetry
from lib.settings import Settings
from lib.storage import Images, public_url
from lib.table import Table

if TYPE_CHECKING:
    from mypy_boto3_secretsmanager import SecretsManagerClient

__all__ = ["Rooms"]


class Rooms:
    """What the handlers are put together from; a function builds only the rooms that it names."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    @cached_property
    def telemetry(self) -> Telemetry:
        """Logger and metrics."""
        return Telemetry(self.settings)

    @cached_property
    def ledger(self) -> Ledger:
        """The credits table."""
        return Ledger(Table(dynamodb(self.settings.aws_region), self.settings.credits_table))

    @cached_property
    def api_keys(self) -> ApiKeys:
        """The organisations' keys."""
        return ApiKeys(self._secrets, self.settings.org_secret_prefix)

    @cached_property
    def images(self) -> Images:
        """The bucket."""
        store = ObjectStore(self.settings, self._secrets)
        return Images(store, self.settings.image_bucket, self.settings.image_base_url)

    @cached_property
    def image_url(self) -> Callable[[str], str]:
        """From an object's key to its public URL, without a client of the bucket."""
        return partial(public_url, self.settings.image_base_url)

    @cached_property
    def jobs(self) -> Jobs | None:
        """The queue of accepted generations; None where none is deployed."""
        queue_url = self.settings.jobs_queue_url
        return Jobs(sqs(self.settings.aws_region), queue_url) if queue_url else None

    @cached_property
    def gemini_api_key(self) -> Callable[[], str]:
        """Reads Google's key; raises ``ModelUnavailable`` when it can't be read."""

        def read() -> str:
            try:
                return read_secret(self._secrets, self.settings.gemini_api_key_secret).strip()
            except SecretUnreadable as fault:
                raise ModelUnavailable from fault

        return read

    @cached_property
    def _secrets(self) -> "SecretsManagerClient":
        return secrets_manager(self.settings.aws_region)
