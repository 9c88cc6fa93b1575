"""``generations``: an organisation's generations and their outcomes."""

from functools import partial

import typer

from infra.cli.errors import CommandFailed
from infra.cli.options import Before, GenerationId, Limit, Organisation
from infra.cli.output import Column, Row, escaped, timestamp
from infra.cli.session import CALL_WITHIN_S, Command, Session
from lib.deadline import Deadline
from lib.ledger.rows import Generation, Status
from lib.picture.storage import public_url

__all__ = ["app", "summary"]

app = typer.Typer(help="Show generations and their outcomes, delete their images.")
PROMPT_CHARACTERS = 60
_FIELDS = (
    "id, status, createdAt, aspectRatio, prompt, credits, imageKey, imageUrl, durationMs, "
    "failureCode, asynchronous, idempotencyKey, keyId, settledAt, refundedAt, deletedAt, dueAt; "
    "null where it does not apply"
)


@app.command(
    "list",
    cls=Command,
    epilog="--json: organisation, generations: a list of the fields of `generations show`, next: "
    "the id to pass as --before for older ones, or null",
)
def list_(
    session: Session, organisation: Organisation, limit: Limit = 20, before: Before = None
) -> None:
    """List an organisation's generations, newest first.

    Prompts are customers' private data: be careful where you show or store them.
    """
    session.account(organisation)
    before_ms = None if before is None else int(before)
    # One more than is shown tells whether there are older ones.
    found = session.ledger.history(organisation, limit + 1, before_ms, Deadline(CALL_WITHIN_S))
    shown = found[:limit]
    last = shown[-1].id if len(found) > limit else None
    columns = [
        Column("GENERATION", "id"),
        Column("WHEN", "createdAt"),
        Column("STATUS", _status),
        Column("RATIO", "aspectRatio", right=True),
        Column("KEY", "keyId"),
        Column("MS", "durationMs", right=True),
        Column("PROMPT", lambda row: _shortened(str(row["prompt"] or "(deleted)"))),
    ]
    rows = map(partial(_document, session), shown)
    more = {"organisation": organisation, "next": last}
    if not session.output.listing("generations", rows, columns, more=lambda: more):
        older = "" if before is None else " older than that"
        session.output.note(f"{organisation} has no generations{older}")
    if last is not None:
        session.output.note(f"for older ones, pass --before {last}")


@app.command("show", cls=Command, epilog=f"--json: organisation, {_FIELDS}")
def show(session: Session, organisation: Organisation, generation_id: GenerationId) -> None:
    """Show everything that is stored about a generation, with the customer's prompt."""
    session.account(organisation)
    found = session.ledger.generation(organisation, int(generation_id), Deadline(CALL_WITHIN_S))
    if found is None:
        raise CommandFailed(
            f"{organisation} has no generation {generation_id}; see `generations list`"
        )
    row = _document(session, found)
    facts = {
        "Generation": found.id,
        "Created": row["createdAt"],
        "Status": _status(row),
        "Credits": row["credits"],
        "Ended": row["settledAt"] or row["refundedAt"],
        "Deleted": row["deletedAt"],
        "Due": row["dueAt"],
        "Duration": None if found.duration_ms is None else f"{found.duration_ms} ms",
        "Aspect ratio": row["aspectRatio"],
        "Image": row["imageUrl"] or row["imageKey"],
        "Idempotency key": row["idempotencyKey"],
        "API key": row["keyId"],
        "Asynchronous": "yes" if found.asynchronous else "no",
        "Prompt": row["prompt"],
    }
    known = {name: str(value) for name, value in facts.items() if value is not None}
    session.output.details({"organisation": organisation, **row}, known)


def summary(generation: Generation) -> Row:
    """A generation without the customer's data."""
    return {
        "id": generation.id,
        "status": generation.status.value,
        "createdAt": timestamp(generation.created_ms / 1000),
    }


def _document(session: Session, generation: Generation) -> Row:
    base = session.variables.get("IMAGE_BASE_URL", "").rstrip("/")
    is_deleted = generation.deleted_at is not None
    has_image = base and generation.status is not Status.REFUNDED and not is_deleted
    return {
        **summary(generation),
        "aspectRatio": generation.aspect_ratio,
        "prompt": None if is_deleted else generation.prompt,
        "credits": generation.credits,
        "imageKey": generation.image_key,
        "imageUrl": public_url(base, generation.image_key) if has_image else None,
        "durationMs": generation.duration_ms,
        "failureCode": generation.failure_code,
        "asynchronous": generation.asynchronous,
        "idempotencyKey": generation.idempotency_key,
        "keyId": generation.key_id,
        "settledAt": timestamp(generation.settled_at),
        "refundedAt": timestamp(generation.refunded_at),
        "deletedAt": timestamp(generation.deleted_at),
        "dueAt": timestamp(generation.due_at),
    }


def _status(row: Row) -> str:
    failure = row["failureCode"]
    return f"{row['status']} ({failure})" if failure else str(row["status"])


def _shortened(prompt: str) -> str:
    text = escaped(prompt)
    return text if len(text) <= PROMPT_CHARACTERS else text[: PROMPT_CHARACTERS - 1] + "…"
