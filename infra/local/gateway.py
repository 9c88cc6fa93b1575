"""A local API Gateway (HTTP API) in front of the real handlers.

It turns a request into an event of payload format 2.0 and the handler's result into a response: see
"Working with AWS Lambda proxy integrations for HTTP APIs" of the API Gateway guide.
The bodies of its own errors, the 30 s timeout, the 10 MB body and the 10,240 bytes of headers are
the documented quotas. It also serves the stored images under ``/images/``, as the CDN does in
production.

It throttles as the template says. Routes without a throttle of their own share one, which is the
strictest reading of API Gateway's documentation.
"""

import base64
import binascii
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from urllib.parse import parse_qsl, unquote

from infra.local.functions import ACCOUNT_ID, FunctionCrashed, FunctionTimedOut, LocalFunction
from infra.local.http_server import Request, Response, json_response
from infra.template import DEFAULT_ROUTE, Cors, Route, Throttle
from lib.deadline import GATEWAY_TIMEOUT_S
from lib.limits import TokenBuckets

__all__ = ["GIVE_UP_S", "IMAGES_PATH", "Gateway", "ImageSource"]

GIVE_UP_S = float(GATEWAY_TIMEOUT_S)
IMAGES_PATH = "/images/"
_LOGGED_PATH_CHARACTERS = 200
_TEXT_TYPES = ("text/", "application/json", "application/javascript", "application/xml")
# Between the client and the gateway only: handlers neither see nor set them.
_HOP_BY_HOP = frozenset(
    {"connection", "expect", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"}
)

ImageSource = Callable[[str], Response | None]
"""The image stored under a key as a response, or None if there is none."""


class _MalformedResult(Exception):
    """The handler's result is not a response of payload format 2.0."""


class Gateway:
    """Responds to requests, from any number of threads."""

    def __init__(
        self,
        routes: Sequence[tuple[Route, LocalFunction]],
        cors: Cors | None = None,
        images: ImageSource | None = None,
        throttles: Mapping[str | None, Throttle] | None = None,
        log: Callable[[str], None] = lambda _line: None,
        give_up_s: float = GIVE_UP_S,
    ) -> None:
        """``log`` gets one line per request: method, path without the query, status, time."""
        # A route without parameters wins over one with them.
        self._routes = sorted(routes, key=lambda pair: "{" in pair[0].path)
        self._cors = cors
        self._images = images
        self._throttles = {
            route: TokenBuckets(each.per_s, each.burst, time.monotonic)
            for route, each in (throttles or {}).items()
        }
        self._log = log
        self._give_up_s = give_up_s

    def respond(self, request: Request) -> Response:
        """The response to ``request``; never raises because of a client or a handler."""
        started_at = time.monotonic()
        path, _, query = request.target.partition("?")
        response = self._dispatch(request, path, query)
        took_ms = (time.monotonic() - started_at) * 1000
        shown = path[:_LOGGED_PATH_CHARACTERS]
        self._log(f"{request.method} {shown} {response.status} {took_ms:.0f} ms")
        return response

    def _dispatch(self, request: Request, raw_path: str, query: str) -> Response:
        # API Gateway matches and passes on the decoded path: %2F is a slash like any other.
        path = unquote(raw_path)
        if self._images is not None and path.startswith(IMAGES_PATH):
            return self._image(request.method, path.removeprefix(IMAGES_PATH), self._images)
        request_id = str(uuid.uuid4())
        if self._cors is not None and request.method == "OPTIONS":
            return _with_request_id(_preflight(request, self._cors), request_id)
        response = self._from_function(request, path, query, request_id)
        if self._cors is not None:
            response = _cross_origin(request, response, self._cors)
        return _with_request_id(response, request_id)

    def _image(self, method: str, key: str, images: ImageSource) -> Response:
        if method not in {"GET", "HEAD"}:
            return json_response(405, "Method Not Allowed")
        return images(key) or json_response(404, "Not Found")

    def _from_function(self, request: Request, path: str, query: str, request_id: str) -> Response:
        found = self._find(request.method, path)
        if found is None:
            return json_response(404, "Not Found")
        route, function, parameters = found
        throttle = self._throttles.get(route.key) or self._throttles.get(None)
        if throttle is not None and not throttle.take(""):
            return json_response(429, "Too Many Requests")
        event = _event(request, route, path, query, request_id)
        if parameters:
            event["pathParameters"] = parameters
        try:
            return _response(function.invoke(event, self._give_up_s))
        except (FunctionCrashed, _MalformedResult):
            return json_response(500, "Internal Server Error")
        except FunctionTimedOut:
            if function.timeout_s > self._give_up_s:
                return json_response(503, "Service Unavailable")
            return json_response(500, "Internal Server Error")

    def _find(self, method: str, path: str) -> tuple[Route, LocalFunction, dict[str, str]] | None:
        for route, function in self._routes:
            parameters = _match(route, method, path)
            if parameters is not None:
                return route, function, parameters
        for route, function in self._routes:
            if route == DEFAULT_ROUTE:
                return route, function, {}
        return None


def _match(route: Route, method: str, path: str) -> dict[str, str] | None:
    """The values of the path's ``{parameters}``, or None if the route does not match."""
    if route.method not in {method, "ANY"}:
        return None
    wanted, given = route.path.split("/"), path.split("/")
    if len(wanted) != len(given):
        return None
    parameters: dict[str, str] = {}
    for pattern, segment in zip(wanted, given, strict=True):
        if pattern.startswith("{") and pattern.endswith("}") and segment:
            parameters[pattern[1:-1]] = segment
        elif pattern != segment:
            return None
    return parameters


def _event(
    request: Request, route: Route, path: str, query: str, request_id: str
) -> dict[str, object]:
    now = datetime.now(UTC)
    host = request.header("host") or ""
    route_key = route.key
    event: dict[str, object] = {
        "version": "2.0",
        "routeKey": route_key,
        "rawPath": path,
        "rawQueryString": query,
        "headers": _headers(request, host),
        "requestContext": {
            "accountId": ACCOUNT_ID,
            "apiId": "local",
            "domainName": host,
            "domainPrefix": host.split(".", 1)[0],
            "http": {
                "method": request.method,
                "path": path,
                "protocol": "HTTP/1.1",
                "sourceIp": request.source_ip,
                "userAgent": request.header("user-agent") or "",
            },
            "requestId": request_id,
            "routeKey": route_key,
            "stage": "$default",
            "time": now.strftime("%d/%b/%Y:%H:%M:%S +0000"),
            "timeEpoch": int(now.timestamp() * 1000),
        },
        "isBase64Encoded": False,
    }
    if cookies := request.header("cookie"):
        event["cookies"] = [cookie.strip() for cookie in cookies.split(";")]
    if query:
        event["queryStringParameters"] = _query_parameters(query)
    if request.body:
        event["body"], event["isBase64Encoded"] = _encoded_body(request)
    return event


def _headers(request: Request, host: str) -> dict[str, str]:
    joined: dict[str, str] = {}
    for name, value in request.headers:
        if name in _HOP_BY_HOP or name == "cookie":
            continue
        joined[name] = f"{joined[name]},{value}" if name in joined else value
    joined["x-forwarded-for"] = request.source_ip
    joined["x-forwarded-port"] = host.rpartition(":")[2]
    joined["x-forwarded-proto"] = "http"
    return joined


def _query_parameters(query: str) -> dict[str, str]:
    joined: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        joined[name] = f"{joined[name]},{value}" if name in joined else value
    return joined


def _encoded_body(request: Request) -> tuple[str, bool]:
    """The body as text if it is declared as text and decodes; else as base64."""
    kind = (request.header("content-type") or "").lower()
    if kind.startswith(_TEXT_TYPES) or "+json" in kind:
        try:
            return request.body.decode("utf-8"), False
        except UnicodeDecodeError:
            # Passed on as bytes, so that the handler can report what is wrong with them.
            return base64.b64encode(request.body).decode("ascii"), True
    return base64.b64encode(request.body).decode("ascii"), True


def _response(result: object) -> Response:
    if not isinstance(result, dict) or not isinstance(result.get("statusCode"), int):
        raise _MalformedResult
    headers = {
        str(name).lower(): str(value) for name, value in (result.get("headers") or {}).items()
    }
    headers.setdefault("content-type", "text/plain;charset=utf-8")
    kept = [(name, value) for name, value in headers.items() if name not in _HOP_BY_HOP]
    kept += [("set-cookie", str(cookie)) for cookie in result.get("cookies") or ()]
    body = str(result.get("body") or "")
    if not result.get("isBase64Encoded"):
        return Response(result["statusCode"], tuple(kept), body.encode("utf-8"))
    try:
        return Response(result["statusCode"], tuple(kept), base64.b64decode(body, validate=True))
    except binascii.Error as fault:
        raise _MalformedResult from fault


def _preflight(request: Request, cors: Cors) -> Response:
    origin = request.header("origin")
    method = request.header("access-control-request-method")
    asked = (request.header("access-control-request-headers") or "").lower()
    names = {name.strip() for name in asked.split(",") if name.strip()}
    allowed = (
        origin is not None
        and _allows(cors.origins, origin)
        and (method is None or _allows(cors.methods, method))
        and all(_allows(cors.headers, name) for name in names)
    )
    if origin is None or not allowed:
        return Response(204)
    headers = {
        "access-control-allow-origin": _allowed_origin(cors, origin),
        "access-control-allow-methods": ",".join(cors.methods),
        "access-control-allow-headers": ",".join(cors.headers),
        "access-control-max-age": str(cors.max_age_s),
    }
    return Response(204, tuple(headers.items()))


def _cross_origin(request: Request, response: Response, cors: Cors) -> Response:
    """Replaces the handler's CORS headers by the configured ones, as API Gateway does."""
    headers = [pair for pair in response.headers if not pair[0].startswith("access-control-")]
    origin = request.header("origin")
    if origin is not None and _allows(cors.origins, origin):
        headers.append(("access-control-allow-origin", _allowed_origin(cors, origin)))
        if cors.expose:
            headers.append(("access-control-expose-headers", ",".join(cors.expose)))
    return Response(response.status, tuple(headers), response.body)


def _allows(allowed: Sequence[str], wanted: str) -> bool:
    return "*" in allowed or wanted in allowed


def _allowed_origin(cors: Cors, origin: str) -> str:
    return "*" if "*" in cors.origins else origin


def _with_request_id(response: Response, request_id: str) -> Response:
    headers = (*response.headers, ("apigw-requestid", request_id))
    return Response(response.status, headers, response.body)
