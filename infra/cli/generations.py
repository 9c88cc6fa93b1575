"""``generations``: what an organisation asked for, and what became of it."""

from functools import partial

import typer

from infra.cli.desk import CALL_TAKES_S, Desk
from infra.cli.faults import NotDoneError
from infra.cli.screen import Column, Row, moment, visible
from infra.cli.words import Before, GenerationId, Limit, Organisation, command
from lib.deadline import Deadline
from lib.ledger.rows import Generation, Status
from lib.picture.storage import public_url

__all__ = ["app", "brief"]

app = typer.Typer(help="Generations: what was asked for, and what became of it.")
PROMPT_CHARACTERS = 60
_FIELDS = (
    "id, status, createdAt, aspectRatio, prompt, credits, imageKey, imageUrl, durationMs, "
    "failureCode, asynchronous, idempotencyKey, settledAt, refundedAt, dueAt; "
    "null where it does not apply"
)


@command(
    app,
    "list",
    "organisation, generations: a list of what `generations show` gives, next: "
    "the id to give as --before for what is older, or null",
)
def list_(desk: Desk, organisation: Organisation, limit: Limit = 20, before: Before = None) -> None:
    """Show an organisation's generations, newest first. Prompts are customers' words.

    They are nobody else's business: mind who reads your screen and where the output goes.
    """
    desk.account(organisation)
    before_ms = None if before is None else int(before)
    # One more than is shown tells whether there are older ones.
    found = desk.ledger.history(organisation, limit + 1, before_ms, Deadline(CALL_TAKES_S))
    shown = found[:limit]
    after = shown[-1].id if len(found) > limit else None
    columns = [
        Column.of("GENERATION", "id"),
        Column.of("WHEN", "createdAt"),
        Column("STATUS", _status),
        Column.of("RATIO", "aspectRatio", right=True),
        Column.of("MS", "durationMs", right=True),
        Column("PROMPT", lambda row: _shortened(str(row["prompt"]))),
    ]
    rows = map(partial(_document, desk), shown)
    more = {"organisation": organisation, "next": after}
    if not desk.screen.listing("generations", rows, columns, more=lambda: more):
        desk.screen.tell(f"{organisation} has no generations{'' if before is None else ' before'}")
    if after is not None:
        desk.screen.tell(f"there are older ones; see them with --before {after}")


@command(app, "show", f"organisation, {_FIELDS}")
def show(desk: Desk, organisation: Organisation, generation_id: GenerationId) -> None:
    """Show one generation with all that is stored of it. The prompt is a customer's words."""
    desk.account(organisation)
    found = desk.ledger.generation(organisation, int(generation_id), Deadline(CALL_TAKES_S))
    if found is None:
        raise NotDoneError(
            f"{organisation} has no generation {generation_id}; see `generations list`"
        )
    row = _document(desk, found)
    facts = {
        "Generation": found.id,
        "Created": row["createdAt"],
        "Status": _status(row),
        "Credits": row["credits"],
        "Ended": row["settledAt"] or row["refundedAt"],
        "Lease ends": row["dueAt"],
        "Took": None if found.duration_ms is None else f"{found.duration_ms} ms",
        "Aspect ratio": row["aspectRatio"],
        "Image": row["imageUrl"] or row["imageKey"],
        "Idempotency key": row["idempotencyKey"],
        "Asynchronous": "yes" if found.asynchronous else "no",
        "Prompt": row["prompt"],
    }
    known = {name: visible(str(value)) for name, value in facts.items() if value is not None}
    desk.screen.details({"organisation": organisation, **row}, known)


def brief(generation: Generation) -> Row:
    """A generation without what the customer wrote."""
    return {
        "id": generation.id,
        "status": generation.status.value,
        "createdAt": moment(generation.created_ms / 1000),
    }


def _document(desk: Desk, generation: Generation) -> Row:
    base = desk.variables.get("IMAGE_BASE_URL", "").rstrip("/")
    has_image = base and generation.status is not Status.REFUNDED
    return {
        **brief(generation),
        "aspectRatio": generation.aspect_ratio,
        "prompt": generation.prompt,
        "credits": generation.credits,
        "imageKey": generation.image_key,
        "imageUrl": public_url(base, generation.image_key) if has_image else None,
        "durationMs": generation.duration_ms,
        "failureCode": generation.failure_code,
        "asynchronous": generation.asynchronous,
        "idempotencyKey": generation.idempotency_key,
        "settledAt": moment(generation.settled_at),
        "refundedAt": moment(generation.refunded_at),
        "dueAt": moment(generation.due_at),
    }


def _status(row: Row) -> str:
    failure = row["failureCode"]
    return f"{row['status']} ({failure})" if failure else str(row["status"])


def _shortened(prompt: str) -> str:
    text = visible(prompt)
    return text if len(text) <= PROMPT_CHARACTERS else text[: PROMPT_CHARACTERS - 1] + "…"
