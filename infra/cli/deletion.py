"""``generations delete`` and ``org erase``: take pictures down, forget an organisation.

Both keep the money's rows, and both may be repeated.
"""

import re
import sys
import uuid
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime
from typing import Annotated
from urllib.parse import urlsplit

import boto3
import typer
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from infra.cli.errors import CommandFailed, explain_aws
from infra.cli.options import Organisation, Yes
from infra.cli.output import timestamp
from infra.cli.session import CALL_WITHIN_S, Command, Session
from lib.deadline import Deadline
from lib.errors import GenerationReserved, NotFound
from lib.keys.key_ring import UnknownOrganisation
from lib.ledger.deletion import Deletions
from lib.ledger.rows import Generation
from lib.ledger.table import LedgerUnreachable
from lib.picture.storage import StorageUnreachable

__all__ = ["of_generations", "of_organisations"]

of_generations = typer.Typer()
of_organisations = typer.Typer()

AT_ONCE = 8
PAGE = 500
PAGE_WITHIN_S = 60.0
ONE_WITHIN_S = 30.0
_CONFIG = Config(
    connect_timeout=2,
    read_timeout=10,
    retries={"mode": "standard", "total_max_attempts": 3},
)
_ID = re.compile("[0-9]{13}")
_IMAGE_PATH = re.compile(r".*/(generated/gemini/([a-z0-9_-]+)/([0-9]{13})[A-Za-z0-9_-]*\.png)")
_COPIES = (
    "no CloudFront distribution is known here: a CDN may serve copies for up to a day; see the "
    'runbook, "Take a picture down"'
)
Image = Annotated[
    str, typer.Argument(metavar="ID|URL", help="A generation's id, or the URL of its image.")
]
Confirmation = Annotated[
    str | None, typer.Option("--confirm", metavar="ORG", help="The name again, for scripts.")
]


@of_generations.command(
    "delete",
    cls=Command,
    epilog="--json: organisation, id, imageKey, deletedAt, invalidated: whether CloudFront forgets "
    "its copies",
)
def delete(session: Session, organisation: Organisation, image: Image, *, yes: Yes = False) -> None:
    """Delete the image and the prompt of a generation. Asks for confirmation.

    Its credits stay as they are. With --stack-name, CloudFront is told to forget its copies.
    Repeating this is safe.
    """
    found = _generation(session, organisation, image)
    action = f"Delete the image and the prompt of generation {found.id} of {organisation} for good"
    session.output.confirm(action, yes=yes)
    try:
        deleted = _deletions(session).delete(organisation, found.created_ms, Deadline(ONE_WITHIN_S))
    except (GenerationReserved, NotFound) as fault:
        raise CommandFailed(
            f"generation {found.id} is still in progress; repeat the command when it has ended"
        ) from fault
    except StorageUnreachable as fault:
        raise CommandFailed(
            f"the prompt of {found.id} is deleted, but the store failed: repeat the command, or "
            "let the reconciler delete the image, which it tries every minute"
        ) from fault
    invalidated = _invalidate(session, f"/{deleted.image_key}")
    session.output.result(
        {
            "organisation": organisation,
            "id": deleted.id,
            "imageKey": deleted.image_key,
            "deletedAt": timestamp(deleted.deleted_at),
            "invalidated": invalidated,
        },
        f"{deleted.id} of {organisation}: deleted {timestamp(deleted.deleted_at)}",
    )


@of_organisations.command(
    "erase",
    cls=Command,
    epilog="--json: organisation, keysRevoked, deleted, inProgress, failed: numbers; invalidated: "
    "whether CloudFront forgets its copies",
)
def erase(session: Session, organisation: Organisation, confirm: Confirmation = None) -> None:
    """Delete an organisation's images and prompts, and revoke its keys. Asks for its name.

    Its money stays: balance, grants and what each generation cost. It is suspended first. Exits
    with 1 if generations are in progress or could not be deleted: repeat the command, which goes on
    where it stopped.
    """
    session.account(organisation)
    _confirm_by_name(organisation, confirm)
    session.accounts.suspend(organisation, "erased", session.actor, Deadline(CALL_WITHIN_S))
    revoked = _revoke_keys(session, organisation)
    counts: Counter[str] = Counter()
    deletions = _deletions(session)

    def one(generation: Generation) -> str:
        try:
            deletions.delete(organisation, generation.created_ms, Deadline(ONE_WITHIN_S))
        except GenerationReserved:
            return "inProgress"
        except (LedgerUnreachable, StorageUnreachable):
            return "failed"
        return "deleted"

    with (
        ThreadPoolExecutor(AT_ONCE) as pool,
        session.output.progress(f"Erasing {organisation}") as update,
    ):
        for page in _pages(session, organisation):
            counts.update(pool.map(one, filter(_is_left, page)))
            update(f"{counts['deleted']} generations")
    invalidated = _invalidate(session, f"/generated/gemini/{organisation}/*")
    tally = {name: counts[name] for name in ("deleted", "inProgress", "failed")}
    session.output.result(
        {"organisation": organisation, "keysRevoked": revoked, **tally, "invalidated": invalidated},
        f"{organisation}: {revoked} keys revoked, {tally['deleted']} generations deleted, "
        f"{tally['inProgress']} in progress, {tally['failed']} failed",
    )
    if tally["inProgress"] or tally["failed"]:
        session.output.note("not everything is erased: repeat the command in some minutes")
        raise typer.Exit(1)


def _deletions(session: Session) -> Deletions:
    return Deletions(session.table, session.ledger, session.images)


def _generation(session: Session, organisation: str, image: str) -> Generation:
    """The generation with this id, or whose image has this URL."""
    session.account(organisation)
    image_key = None
    generation_id = image
    if not _ID.fullmatch(image):
        named = _IMAGE_PATH.fullmatch(urlsplit(image).path)
        if named is None:
            raise CommandFailed(
                f"{image!r} is neither a generation's id of 13 digits nor the URL of an image"
            )
        image_key, owner, generation_id = named.groups()
        if owner != organisation:
            raise CommandFailed(f"that image belongs to {owner}, not to {organisation}")
    found = session.ledger.generation(organisation, int(generation_id), Deadline(CALL_WITHIN_S))
    if found is None or image_key not in {None, found.image_key}:
        raise CommandFailed(f"{organisation} has no such generation; see `generations list`")
    return found


def _pages(session: Session, organisation: str) -> Iterator[list[Generation]]:
    """All generations, newest first."""
    before_ms: int | None = None
    while page := session.ledger.history(organisation, PAGE, before_ms, Deadline(PAGE_WITHIN_S)):
        yield page
        before_ms = page[-1].created_ms


def _is_left(generation: Generation) -> bool:
    """Whether a run before this one has not deleted it, or not to the end."""
    return generation.deleted_at is None or generation.due_at is not None


def _revoke_keys(session: Session, organisation: str) -> int:
    now = datetime.now(UTC)
    try:
        live = [each for each in session.keys.list(organisation) if each.is_live(now)]
    except UnknownOrganisation:
        return 0
    for record in live:
        session.keys.revoke(organisation, record.id)
    return len(live)


def _confirm_by_name(organisation: str, given: str | None) -> None:
    if given is None and sys.stdin.isatty():
        print(
            f"Erase all images, prompts and keys of {organisation} for good? Type its name: ",
            end="",
            file=sys.stderr,
            flush=True,
        )
        given = sys.stdin.readline(100).strip()
    if given != organisation:
        raise CommandFailed(
            f"nothing was done; type the organisation's name, or pass --confirm {organisation}"
        )


def _invalidate(session: Session, path: str) -> bool:
    """Tells CloudFront to forget its copies, if the target's distribution is known."""
    distribution = session.variables.get("IMAGE_DISTRIBUTION_ID")
    if not distribution:
        session.output.note(_COPIES)
        return False
    batch = {"Paths": {"Quantity": 1, "Items": [path]}, "CallerReference": str(uuid.uuid4())}
    try:
        with closing(boto3.client("cloudfront", config=_CONFIG)) as client:
            client.create_invalidation(DistributionId=distribution, InvalidationBatch=batch)
    except (ClientError, BotoCoreError) as fault:
        reason = explain_aws(fault) or f"CloudFront failed ({type(fault).__name__})"
        raise CommandFailed(
            f"deleted, but copies may be served for a day: {reason}; repeat the command"
        ) from fault
    return True
