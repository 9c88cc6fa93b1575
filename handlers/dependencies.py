"""The composition root: settings in, dependencies out.

Each dependency is built on first use and then kept; building one makes no network call. A function
builds only what it uses, so the account function never loads google-genai.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache, cached_property, partial
from typing import TYPE_CHECKING

from lib.clients import (
    SecretUnreadable,
    dynamodb,
    kms,
    read_secret,
    secrets_manager,
    sqs,
)
from lib.deadline import Deadline
from lib.errors import ModelUnavailable
from lib.keys.verification import KeyVerifier
from lib.ledger.ledger import Ledger
from lib.ledger.table import Table
from lib.ledger.usage import Usage, usage_of_month
from lib.limits import OrganisationLimit, read_limit, unpaid_limit
from lib.observability import Telemetry
from lib.picture.storage import Images, ObjectStore, public_url
from lib.receipts.signer import Signer
from lib.settings import Settings

if TYPE_CHECKING:
    from mypy_boto3_secretsmanager import SecretsManagerClient

    from lib.generation import Generations
    from lib.jobs import Jobs
    from lib.ledger.accounts import Accounts
    from lib.ledger.deletion import Deletions
    from lib.ledger.reconciliation import Reconciler
    from lib.picture.gemini import Gemini

__all__ = ["Dependencies", "dependencies"]


class Dependencies:
    """Everything that the handlers call."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    @cached_property
    def telemetry(self) -> Telemetry:
        """The logger and the metrics."""
        return Telemetry(self.settings)

    @cached_property
    def key_verifier(self) -> KeyVerifier:
        """Verifies customers' API keys."""
        return KeyVerifier(self._secrets, self.settings.org_secret_prefix)

    @cached_property
    def read_limit(self) -> OrganisationLimit:
        """The limit on an organisation's reads."""
        return read_limit()

    @cached_property
    def unpaid_limit(self) -> OrganisationLimit:
        """The limit on a key's generate requests that buy nothing."""
        return unpaid_limit()

    @cached_property
    def ledger(self) -> Ledger:
        """The credits table, as requests see it."""
        return Ledger(self._table)

    def usage(self, organisation: str, month: str, deadline: Deadline) -> Iterator[Usage]:
        """What the organisation's API keys spent in a month such as ``2026-11``."""
        return usage_of_month(self._table, organisation, month, deadline)

    @cached_property
    def accounts(self) -> "Accounts":
        """The credits table, as the audit sees it."""
        from lib.ledger.accounts import Accounts  # noqa: PLC0415 - only the audit has a use for it

        return Accounts(self._table)

    @cached_property
    def image_url(self) -> Callable[[str], str]:
        """Maps an object's key to its public URL, without a client for the bucket."""
        return partial(public_url, self.settings.image_base_url)

    @cached_property
    def images(self) -> Images:
        """The bucket."""
        store = ObjectStore(self.settings, self._secrets, self._warn)
        return Images(store, self.settings.image_bucket, self.settings.image_base_url)

    @cached_property
    def model(self) -> "Gemini":
        """Google's image model."""
        from lib.picture.gemini import Gemini  # noqa: PLC0415 - it takes most of a cold start

        return Gemini(self._gemini_api_key, self.settings.gemini_model)

    @cached_property
    def generations(self) -> "Generations":
        """The use case: reserve, generate, store, settle or refund."""
        from lib.generation import Generations  # noqa: PLC0415 - it loads the PNG encoder
        from lib.ledger.refusals import Refusals  # noqa: PLC0415 - as above

        limit = self.settings.refused_prompts_per_day
        refusals = Refusals(self._table, limit) if limit else None
        return Generations(self.ledger, self.model, self.images, refusals)

    @cached_property
    def jobs(self) -> "Jobs":
        """Asynchronous generations; without a queue where none is deployed."""
        from lib.jobs import JobQueue, Jobs  # noqa: PLC0415 - as above

        queue_url = self.settings.jobs_queue_url
        queue = JobQueue(sqs(self.settings.aws_region), queue_url) if queue_url else None
        return Jobs(self.generations, self.ledger, self.images, queue)

    @cached_property
    def deletions(self) -> "Deletions":
        """Deletes images and prompts."""
        from lib.ledger.deletion import Deletions  # noqa: PLC0415 - only one function needs it

        return Deletions(self._table, self.ledger, self.images)

    @cached_property
    def reconciler(self) -> "Reconciler":
        """Ends abandoned reservations, several at a time."""
        from lib.ledger.reconciliation import (  # noqa: PLC0415 - as above
            ROWS_IN_PARALLEL,
            Reconciler,
        )

        pool = ThreadPoolExecutor(ROWS_IN_PARALLEL, thread_name_prefix="reconcile")
        return Reconciler(self.ledger, self.images, run_all=pool.map)

    @cached_property
    def _table(self) -> Table:
        return Table(dynamodb(self.settings.aws_region), self.settings.credits_table)

    @cached_property
    def signer(self) -> Signer | None:
        """Signs receipts; None where none are issued. The client is built with the first one."""
        key_id = self.settings.receipt_key
        if key_id is None:
            return None
        client = kms(self.settings.aws_region)
        return Signer(client, key_id, self.settings.retired_receipt_keys)

    @cached_property
    def _secrets(self) -> "SecretsManagerClient":
        return secrets_manager(self.settings.aws_region)

    def _gemini_api_key(self) -> str:
        from lib.picture.gemini_key import (  # noqa: PLC0415 - as above
            UnusableKeyError,
            key_in,
        )

        try:
            return key_in(read_secret(self._secrets, self.settings.gemini_api_key_secret))
        except UnusableKeyError as fault:
            self._warn("the Gemini secret holds no usable key")
            raise ModelUnavailable(reason="secret_unusable") from fault
        except SecretUnreadable as fault:
            self._warn("the Gemini secret cannot be read", fault)
            raise ModelUnavailable(reason="secret_unreadable") from fault

    def _warn(self, message: str, fault: Exception | None = None) -> None:
        """Logs what an operator has to mend, outside of any one request."""
        with self.telemetry.observe("") as observation:
            observation.warning(message, fault)


@cache
def dependencies() -> Dependencies:
    """The dependencies of this process."""
    return Dependencies(Settings.from_environment())
