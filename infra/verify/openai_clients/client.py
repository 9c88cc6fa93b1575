"""One client of OpenAI's Images API for Python: JSON lines in, what it got as lines out.

    python client.py KIND

It runs in an environment of the client's own, so it imports nothing of this project.
"""

import contextlib
import importlib
import json
import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

Asked = dict[str, Any]


def _openai0() -> Callable[[Asked], Any]:
    openai = importlib.import_module("openai")

    def generate(asked: Asked) -> Any:
        # For images it has neither a timeout nor headers as arguments.
        openai.api_requestor.TIMEOUT_SECS = asked["timeoutS"]
        return openai.Image.create(
            api_key=asked["apiKey"], api_base=asked["baseUrl"], **asked["body"]
        ).data[0]

    return generate


def _openai() -> Callable[[Asked], Any]:
    openai = importlib.import_module("openai")

    def generate(asked: Asked) -> Any:
        client = openai.OpenAI(
            api_key=asked["apiKey"],
            base_url=asked["baseUrl"],
            max_retries=asked["retries"],
            timeout=asked["timeoutS"],
        )
        return client.images.generate(**asked["body"], extra_headers=asked["headers"]).data[0]

    return generate


def _langchain() -> Callable[[Asked], Any]:
    module = importlib.import_module("langchain_community.utilities.dalle_image_generator")

    def generate(asked: Asked) -> Any:
        body = asked["body"]
        tool = module.DallEAPIWrapper(
            api_key=asked["apiKey"],
            base_url=asked["baseUrl"],
            max_retries=asked["retries"],
            timeout=asked["timeoutS"],
            default_headers=asked["headers"],
            model=body["model"],
            size=body["size"],
        )
        return {"url": tool.run(body["prompt"])}

    return generate


def _litellm() -> Callable[[Asked], Any]:
    litellm = importlib.import_module("litellm")

    def generate(asked: Asked) -> Any:
        body = dict(asked["body"])
        return litellm.image_generation(
            model=f"openai/{body.pop('model')}",
            api_key=asked["apiKey"],
            api_base=asked["baseUrl"],
            timeout=asked["timeoutS"],
            max_retries=asked["retries"],
            # It would also put ``extra_headers`` into the body.
            headers=asked["headers"],
            **body,
        ).data[0]

    return generate


def _open_webui() -> Callable[[Asked], Any]:
    """The request of Open WebUI's ``routers/images.py``: aiohttp, with neither a retry nor a key.

    Source: github.com/open-webui/open-webui, ``image_generations``, at 02530d50.
    """
    aiohttp = importlib.import_module("aiohttp")
    asyncio = importlib.import_module("asyncio")

    async def send(asked: Asked) -> Any:
        headers = {
            "Authorization": f"Bearer {asked['apiKey']}",
            "Content-Type": "application/json",
        }
        timeout = aiohttp.ClientTimeout(total=asked["timeoutS"])
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.post(
                url=f"{asked['baseUrl']}/images/generations", json=asked["body"], headers=headers
            ) as response,
        ):
            response.raise_for_status()
            return (await response.json(content_type=None))["data"][0]

    return lambda asked: asyncio.run(send(asked))


CLIENTS = {
    "openai0": ("openai", _openai0),
    "openai": ("openai", _openai),
    "langchain": ("langchain-community", _langchain),
    "litellm": ("litellm", _litellm),
    "open-webui": ("aiohttp", _open_webui),
}


# What the clients call the status in their errors.
STATUS = ("status_code", "http_status", "status")


def _told(answer: Any) -> dict[str, Any]:
    found = answer if isinstance(answer, dict) else answer.model_dump()
    return {name: text for name, text in found.items() if text is not None}


def _failure(error: Exception) -> dict[str, Any]:
    return {
        "error": type(error).__name__,
        "status": next(filter(None, (getattr(error, name, None) for name in STATUS)), None),
        "code": getattr(error, "code", None),
        "message": str(error),
    }


def main() -> None:
    """Says its version, and then one line for each request."""
    package, make = CLIENTS[sys.argv[1]]
    told = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):  # LiteLLM prints advice.
        generate = make()
        print(json.dumps({"version": version(package)}), file=told, flush=True)
        for line in sys.stdin:
            try:
                answer = _told(generate(json.loads(line)))
            except Exception as error:  # noqa: BLE001 - whatever the client raises is the result
                answer = _failure(error)
            print(json.dumps(answer), file=told, flush=True)


if __name__ == "__main__":
    main()
