"""What packages say about services and about themselves, as far as it is read.

A client of botocore's parses all of its service's description and of the list of endpoints when it
is made, which is at every cold start. Nine tenths of that are documentation and other services'
endpoints. Of a package's METADATA, scanners read the fields, and the text below them is its README.
"""

import gzip
import json
import re
import zlib
from typing import Any

from infra.build.faults import BuildError

__all__ = ["SERVICES", "slimmed"]

SERVICES = ("dynamodb", "kms", "s3", "secretsmanager", "sqs")
"""As boto3 names them; ``infra.build.cuts`` keeps the descriptions of these."""

_ENDPOINTS = "botocore/data/endpoints.json"
_DESCRIPTION = "/service-2.json.gz"
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
        if name.startswith("botocore/data/") and name.endswith(_DESCRIPTION):
            description = _without_documentation(json.loads(gzip.decompress(content)))
            return name.removesuffix(".gz"), _written(description)
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
