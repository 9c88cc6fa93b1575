"""Failures, each explained in one sentence that says what to do next.

No sentence quotes AWS's messages: they may name accounts, roles and addresses. AWS's error codes
and the SDK's exception types are enough to choose the advice.
"""

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConfigNotFound,
    ConfigParseError,
    CredentialRetrievalError,
    HTTPClientError,
    LoginError,
    NoAuthTokenError,
    NoCredentialsError,
    NoRegionError,
    PartialCredentialsError,
    ProfileNotFound,
    SSOError,
    TokenRetrievalError,
)
from botocore.exceptions import ConnectionError as BotoConnectionError

from lib.clients import error_code
from lib.keys.key_ring import KeyRingError, SecretsManagerFailed
from lib.ledger.table import LedgerUnreachable

__all__ = ["CommandFailed", "explain", "explain_aws", "explain_client"]

_NO_RESPONSE = (BotoConnectionError, HTTPClientError)
# A sentence, and the exception types and error codes that it explains.
_REFUSALS: dict[str, tuple[type[BaseException] | str, ...]] = {
    "your AWS credentials have expired ({}); sign in again, then repeat the command": (
        *(SSOError, LoginError, TokenRetrievalError, NoAuthTokenError, CredentialRetrievalError),
        *("ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired"),
    ),
    "there are no AWS credentials; sign in or set AWS_PROFILE, then repeat the command": (
        *(NoCredentialsError, PartialCredentialsError),
    ),
    "AWS rejects your credentials ({}); check AWS_PROFILE and the credentials themselves": (
        *("IncompleteSignature", "IncompleteSignatureException", "InvalidAccessKeyId"),
        *("InvalidClientTokenId", "InvalidSignatureException", "SignatureDoesNotMatch"),
        "UnrecognizedClientException",
    ),
    "AWS denies access ({}); check AWS_PROFILE, the region and the permissions of your role": (
        *("AccessDenied", "AccessDeniedException", "AuthorizationError", "NotAuthorized"),
        *("OptInRequired", "UnauthorizedOperation"),
    ),
    "AWS does not respond ({}); check the network and the region, then repeat the command": (
        *_NO_RESPONSE,
    ),
}


class CommandFailed(Exception):
    """A command that fails; the message is one sentence without a full stop."""


def explain(fault: LedgerUnreachable | KeyRingError) -> str:
    """Why the ledger or the keys are not accessible."""
    known = explain_aws(fault.__cause__)
    if isinstance(fault, KeyRingError):
        # A change whose response was lost may have been made; the key ring's sentence says so.
        surely_not_done = isinstance(fault, SecretsManagerFailed) and not isinstance(
            fault.__cause__, _NO_RESPONSE
        )
        return known if known and surely_not_done else str(fault)
    if not fault.hopeless:
        return (
            "DynamoDB gave no result in time; check the network and the region, then repeat the "
            "command, which is safe"
        )
    refused = f"DynamoDB refuses the call ({_kind(fault.__cause__)})"
    return known or f"{refused}; check the table, the region and your permissions"


def explain_aws(cause: BaseException | None) -> str | None:
    """Why AWS accepts no call at all; None for any other cause."""
    kind = _kind(cause)
    for sentence, causes in _REFUSALS.items():
        types = tuple(each for each in causes if isinstance(each, type))
        if isinstance(cause, types) or kind in causes:
            return sentence.format(kind)
    return None


def explain_client(fault: BotoCoreError | ValueError) -> str:
    """Why a client could not be built."""
    if isinstance(fault, NoRegionError):
        return "no AWS region is set; set AWS_REGION or pass --region"
    kind = _kind(fault)
    if isinstance(fault, (ConfigNotFound, ConfigParseError, ProfileNotFound)):
        return f"the AWS configuration is unusable ({kind}); check AWS_PROFILE and ~/.aws"
    known = explain_aws(fault)
    return known or f"the AWS SDK cannot start ({kind}); check AWS_REGION, AWS_PROFILE and the like"


def _kind(cause: BaseException | None) -> str:
    if isinstance(cause, ClientError):
        return error_code(cause) or "no code"
    return type(cause).__name__
