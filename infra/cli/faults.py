"""What went wrong, in one sentence that says what to do next. No sentence quotes AWS's own words.

What AWS says may name accounts, roles and addresses; its error codes and the SDK's exception types
are enough to know what to do.
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

__all__ = ["NotDoneError", "why", "why_no_start", "why_refused"]

_EXPIRED = frozenset(
    {"ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired"}
)
_UNKNOWN = frozenset(
    {
        "IncompleteSignature",
        "IncompleteSignatureException",
        "InvalidAccessKeyId",
        "InvalidClientTokenId",
        "InvalidSignatureException",
        "SignatureDoesNotMatch",
        "UnrecognizedClientException",
    }
)
_DENIED = frozenset(
    {
        "AccessDenied",
        "AccessDeniedException",
        "AuthorizationError",
        "NotAuthorized",
        "OptInRequired",
        "UnauthorizedOperation",
    }
)
_SIGN_IN = (
    SSOError,
    LoginError,
    TokenRetrievalError,
    NoAuthTokenError,
    CredentialRetrievalError,
)
_NO_CREDENTIALS = (NoCredentialsError, PartialCredentialsError)
_NO_ANSWER = (BotoConnectionError, HTTPClientError)
_BAD_CONFIGURATION = (ConfigNotFound, ConfigParseError, ProfileNotFound)


class NotDoneError(Exception):
    """Its message is one sentence for the operator, without a full stop."""


def why(fault: LedgerUnreachable | KeyRingError) -> str:
    """Why the table or the keys could not be worked on."""
    known = why_refused(fault.__cause__)
    if isinstance(fault, KeyRingError):
        # Without an answer a change may have been made, and its own sentence says so.
        surely_not = isinstance(fault, SecretsManagerFailed) and not isinstance(
            fault.__cause__, _NO_ANSWER
        )
        return known if known and surely_not else str(fault)
    if not fault.hopeless:
        return (
            "DynamoDB came to no decision in time; check the network and the region, then do it "
            "again, which is harmless"
        )
    if known:
        return known
    kind = _kind(fault.__cause__)
    return f"DynamoDB can't do it ({kind}); check the table, the region and your permissions"


def why_refused(cause: BaseException | None) -> str | None:
    """Why AWS answers no call at all; None when the cause is another."""
    kind = _kind(cause)
    if isinstance(cause, _SIGN_IN) or kind in _EXPIRED:
        return f"your AWS credentials have expired ({kind}); sign in again, then repeat this"
    if isinstance(cause, _NO_CREDENTIALS):
        return "there are no AWS credentials; sign in, or set AWS_PROFILE, then repeat this"
    if kind in _UNKNOWN:
        return f"AWS does not know your credentials ({kind}); check AWS_PROFILE and the like"
    if kind in _DENIED:
        return (
            f"AWS does not let you do that ({kind}); check AWS_PROFILE, the region and the "
            "permissions of your role"
        )
    if isinstance(cause, _NO_ANSWER):
        return f"AWS does not answer ({kind}); check the network and the region, then repeat this"
    return None


def why_no_start(fault: BotoCoreError | ValueError) -> str:
    """Why no client can be made."""
    if isinstance(fault, NoRegionError):
        return "no AWS region is set; set AWS_REGION or give --region"
    if isinstance(fault, _BAD_CONFIGURATION):
        return (
            f"the AWS configuration can't be read ({type(fault).__name__}); "
            "check AWS_PROFILE and the files in ~/.aws"
        )
    known = why_refused(fault)
    return known or (
        f"the AWS SDK can't start ({type(fault).__name__}); "
        "check AWS_REGION, AWS_PROFILE and the like"
    )


def _kind(cause: BaseException | None) -> str:
    if isinstance(cause, ClientError):
        return error_code(cause) or "no code"
    return type(cause).__name__
