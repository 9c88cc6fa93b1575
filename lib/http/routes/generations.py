"""The routes that read and delete generations."""

from lib.errors import GenerationReserved, NotFound
from lib.http.described import ErrorResponse
from lib.http.models import (
    DEFAULT_PAGE,
    MAX_PAGE,
    MAX_PAGE_BYTES,
    GenerationResponse,
    HistoryResponse,
    parse_history_request,
)
from lib.http.routes.common import (
    EXAMPLE_ID,
    REFUNDED,
    SETTLED,
    TOO_MANY_READS,
    UNAUTHORIZED,
    UNAVAILABLE,
    refusal,
)
from lib.http.spec import Operation, ResponseSpec, error_response

__all__ = ["DELETE", "GENERATION", "HISTORY", "RECEIPT"]

EXAMPLE_RECEIPT = (
    "eyJhbGciOiJFUzI1NiIsImtpZCI6IjEyMzRhYmNkLTEyYWItMzRjZC01NmVmLTEyMzQ1Njc4OTBhYiIsInR5cCI6InJl"
    "Y2VpcHQrandzIn0.eyJpc3MiOiJnZW1pbmktZ2VuZXJhdGUiLCJvcmdhbmlzYXRpb24iOiJhY21lIiwiZ2VuZXJhdGlv"
    "biI6IjE3OTUzOTAzNTYyNTQiLCJrZXkiOiJrMSIsImNyZWF0ZWRBdCI6IjIwMjYtMTEtMjNUMDY6MTI6MzYuMjU0WiIs"
    "ImVuZGVkQXQiOiIyMDI2LTExLTIzVDA2OjEyOjM5WiIsInJlcXVlc3RTaGEyNTYiOiJjZGM1MTMyZGY4MGE1NWRmNjVi"
    "NTk1YzE3NzA0NTRiOWY3MTdmOWUxYzRjZWU0ZDlkZTRiMGQ0ODQ3ZTA3YzljIiwiaW1hZ2VTaGEyNTYiOiI3MzMwMDg3"
    "MWY0NGMxNjhlN2M5NDlkZTJjNzUwZTYwYzJjOWJiOGZmNTMwMDE3YzVhMjY3MjM0ZTljYjRkYjhlIiwiYXNwZWN0UmF0"
    "aW8iOiIxNjo5IiwibW9kZWwiOiJnZW1pbmktMy4xLWZsYXNoLWxpdGUtaW1hZ2UiLCJvdXRjb21lIjoic2V0dGxlZCIs"
    "Im1lc3NhZ2UiOm51bGwsImNyZWRpdHNDaGFyZ2VkIjo1LCJjcmVkaXRzUmVmdW5kZWQiOjB9.0SzZ1u7gzhi9t5f9m-t"
    "dUNrvQLiF5M_ME6o_XDr0IwPDOkHh9eshaxvafmOLCgITRtvG8O_dcPxIkDv0Nr1fTQ"
)
"""Signed with the key of RFC 7517, appendix A, whose public half is the example of the JWK Set."""

HISTORY = Operation(
    tag="Generations",
    method="GET",
    path="/api/v1/generations",
    name="listGenerations",
    summary="List generations",
    description=(
        "Lists the organisation's generations, newest first, one page at a time. Long prompts make "
        f"a page end at {MAX_PAGE_BYTES // 1024} KiB: `nextCursor` continues it."
    ),
    parameters=(
        {
            "name": "limit",
            "in": "query",
            "required": False,
            "description": "Maximum number of generations per page",
            "schema": {
                "type": "integer",
                "minimum": 1,
                "maximum": MAX_PAGE,
                "default": DEFAULT_PAGE,
            },
        },
        {
            "name": "cursor",
            "in": "query",
            "required": False,
            "description": "`nextCursor` of the previous page, unchanged",
            "schema": {"type": "string"},
        },
    ),
    responses=(
        ResponseSpec(
            200,
            "A page of generations",
            HistoryResponse,
            {"page": {"generations": [SETTLED, REFUNDED], "nextCursor": None}},
        ),
        error_response(
            "The limit or the cursor is invalid",
            (
                refusal(lambda: parse_history_request({"limit": "0"})),
                refusal(lambda: parse_history_request({"cursor": "made up"})),
            ),
            ErrorResponse,
        ),
        error_response(*UNAUTHORIZED),
        error_response(*TOO_MANY_READS),
        error_response(*UNAVAILABLE),
    ),
)

_ID_IN_PATH = {
    "name": "id",
    "in": "path",
    "required": True,
    "description": "`id` from a 202 response or from the list",
    "schema": {"type": "string"},
    "example": EXAMPLE_ID,
}
_NOT_FOUND = ("The organisation has no generation with this id", (NotFound(),), ErrorResponse)

GENERATION = Operation(
    tag="Generations",
    method="GET",
    path="/api/v1/generations/{id}",
    name="getGeneration",
    summary="Get a generation",
    description=(
        "A generation is `reserved` (in progress) until it becomes `settled` (succeeded) or "
        "`refunded` (failed). Both are final."
    ),
    parameters=(_ID_IN_PATH,),
    responses=(
        ResponseSpec(
            200,
            "The generation in its current state",
            GenerationResponse,
            {
                "reserved": {name: SETTLED[name] for name in list(SETTLED)[:5]}
                | {"status": "reserved"},
                "settled": SETTLED,
                "refunded": REFUNDED,
                "deleted": {
                    name: value
                    for name, value in SETTLED.items()
                    if name not in {"prompt", "imageUrl"}
                }
                | {"deletedAt": "2026-11-24T08:30:00Z"},
            },
        ),
        error_response(*UNAUTHORIZED),
        error_response(*_NOT_FOUND),
        error_response(*TOO_MANY_READS),
        error_response(*UNAVAILABLE),
    ),
)

DELETE = Operation(
    tag="Generations",
    method="DELETE",
    path="/api/v1/generations/{id}",
    name="deleteGeneration",
    summary="Delete the image and the prompt of a generation",
    description=(
        "The generation stays in the history with `deletedAt`, and so do its credits. Repeating "
        "the request is safe. Caches may keep the image for a day; after a 500 so may the store."
    ),
    parameters=(_ID_IN_PATH,),
    responses=(
        ResponseSpec(204, "The image and the prompt are deleted", None, {}, media_type=None),
        error_response(*UNAUTHORIZED),
        error_response(*_NOT_FOUND),
        error_response(
            "The generation is still in progress", (GenerationReserved(3),), ErrorResponse
        ),
        error_response(*TOO_MANY_READS),
        error_response(*UNAVAILABLE),
    ),
)

RECEIPT = Operation(
    tag="Receipts",
    method="GET",
    path="/api/v1/generations/{id}/receipt",
    name="getReceipt",
    summary="Get a signed receipt",
    description=(
        "A receipt states what a generation cost, also if it was refunded. It is a JWS (RFC 7515, "
        "compact, ES256), signed with a key at `/.well-known/jwks.json`."
    ),
    parameters=GENERATION.parameters,
    responses=(
        ResponseSpec(
            200,
            "The receipt, as a compact JWS",
            None,
            {"receipt": EXAMPLE_RECEIPT},
            media_type="application/jose",
        ),
        error_response(*UNAUTHORIZED),
        error_response(
            "The organisation has no generation with this id, or receipts are off",
            (NotFound(),),
            ErrorResponse,
        ),
        error_response("The generation has not ended", (GenerationReserved(3),), ErrorResponse),
        error_response(*TOO_MANY_READS),
        error_response(*UNAVAILABLE),
    ),
)
