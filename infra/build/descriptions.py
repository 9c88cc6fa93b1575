"""What packages say about services and about themselves, as far as it is read.

A client of botocore's parses all of its service's description, its endpoint rules and the list of
endpoints when it is made, which is at every cold start. Nearly all of that is documentation,
operations that the functions never call, and other services' endpoints. Of a package's METADATA,
scanners read the fields, and the text below them is its README.
"""

import gzip
import json
import re
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

from infra.build.faults import BuildError

__all__ = ["OPERATIONS", "SERVICES", "slimmed"]

OPERATIONS: Mapping[str, tuple[str, ...]] = {
    "dynamodb": ("GetItem", "PutItem", "Query", "TransactWriteItems", "UpdateItem"),
    "kms": ("GetPublicKey", "Sign"),
    # botocore calls HeadBucket itself when a bucket turns out to be in another region.
    "s3": ("DeleteObject", "GetObject", "HeadBucket", "HeadObject", "ListObjectsV2", "PutObject"),
    "secretsmanager": ("GetSecretValue",),
    "sqs": ("SendMessage",),
}
"""What the functions call. In the artifact, a client has no method for any other operation."""

SERVICES = tuple(OPERATIONS)
"""As boto3 names them; ``infra.build.cuts`` keeps the descriptions of these."""

_ENDPOINTS = "botocore/data/endpoints.json"
_DATA = "botocore/data/"
_DESCRIPTION = "/service-2.json.gz"
_RULES = "/endpoint-rule-set-1.json.gz"
_METADATA = ".dist-info/METADATA"
_BLANK_LINE = re.compile(rb"\r?\n\r?\n")
_OTHER_FORM = (ValueError, OSError, EOFError, zlib.error, LookupError, TypeError, AttributeError)


def slimmed(name: str, content: bytes) -> tuple[str, bytes]:
    """A file of a package, and its name; a description comes out smaller and not compressed.

    botocore looks for the uncompressed one first, and Lambda's zip file compresses it again.

    Raises:
        BuildError: botocore has changed how it describes services.
    """
    try:
        if name == _ENDPOINTS:
            return name, _written(_endpoints(json.loads(content)))
        if name.startswith(_DATA) and name.endswith((_DESCRIPTION, _RULES)):
            document = json.loads(gzip.decompress(content))
            if name.endswith(_DESCRIPTION):
                document = _called(document, OPERATIONS[name.split("/")[2]])
            return name.removesuffix(".gz"), _written(_without_documentation(document))
        if name.endswith(_METADATA):
            return name, _BLANK_LINE.split(content, 1)[0] + b"\n"
    except _OTHER_FORM as fault:
        raise BuildError(f"{name} is not what botocore's descriptions were so far") from fault
    return name, content


def _endpoints(document: dict[str, Any]) -> dict[str, Any]:
    """Every partition and region, and of the services ours."""
    partitions = [
        partition
        | {"services": {each: partition["services"][each] for each in _ours(partition["services"])}}
        for partition in document["partitions"]
    ]
    return document | {"partitions": partitions}


def _ours(services: dict[str, Any]) -> list[str]:
    """Those of our services that a partition lists: a young one lists few."""
    return [each for each in SERVICES if each in services]


def _called(description: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """The description of the operations ``names``, and of the shapes of which theirs are made."""
    operations = {name: description["operations"][name] for name in names}
    shapes: dict[str, Any] = {}
    missing = set(_shapes_in(operations))
    while missing:
        found = {name: description["shapes"][name] for name in sorted(missing)}
        shapes |= found
        missing = set(_shapes_in(found)) - shapes.keys()
    return description | {"operations": operations, "shapes": shapes}


def _shapes_in(part: Any) -> Iterator[str]:
    """The names of shapes that a part refers to. A member of the name ``shape`` is no reference."""
    if isinstance(part, list):
        for each in part:
            yield from _shapes_in(each)
    elif isinstance(part, dict):
        for name, value in part.items():
            if name == "shape" and isinstance(value, str):
                yield value
            else:
                yield from _shapes_in(value)


def _without_documentation(part: Any) -> Any:
    """The texts are empty then: botocore appends to some. A member of that name is no text."""
    if isinstance(part, list):
        return [_without_documentation(each) for each in part]
    if not isinstance(part, dict):
        return part
    return {
        name: ""
        if name == "documentation" and isinstance(value, str)
        else _without_documentation(value)
        for name, value in part.items()
    }


def _written(document: Any) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()
