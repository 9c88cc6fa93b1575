"""What others' tools make of the OpenAPI document: linters find nothing, and clients work.

Four generators make a client each, which is compiled, calls every route of a running service, and
in Python survives every answer of API Gateway.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from infra.local.stack import LocalStack
from infra.verify import tools
from lib.http.contract import OPERATIONS
from lib.http.gateway import GATEWAY_ANSWERS
from lib.http.openapi import openapi
from lib.http.request import VISIBLE_PATTERN
from lib.http.spec import Operation
from tests.customer import GENERATE, GENERATIONS, fetch

pytestmark = pytest.mark.real

RUN_S = 120
JSON = "application/json"
# A deletion ends what the others read.
LAST_IS_THE_DELETION = sorted(OPERATIONS, key=lambda each: each.method == "DELETE")
NAMES = {each.name for each in OPERATIONS}


@pytest.fixture(scope="module")
def stack() -> Iterator[LocalStack]:
    with LocalStack(latency_s=0, throttled=False) as running:
        yield running


def run(command: list[str], folder: Path, **environment: str) -> str:
    """What the command prints; it must succeed."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    quiet = {"NO_PROXY": "127.0.0.1", "REDOCLY_TELEMETRY": "off", "CI": "1", "NO_COLOR": "1"}
    done = subprocess.run(  # noqa: S603 - our own commands
        command,
        cwd=folder,
        env=kept | quiet | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=RUN_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


def node_tool(name: str) -> str:
    return str(tools.openapi_tools() / ".bin" / name)


def describe(folder: Path, url: str = "https://api.acme.example") -> Path:
    path = folder / "openapi.json"
    path.write_text(json.dumps(openapi(url, "https://acme.example/help")), encoding="utf-8")
    return path


def test_redocly_finds_nothing(tmp_path: Path) -> None:
    report = run([node_tool("redocly"), "lint", str(describe(tmp_path))], tmp_path)
    assert "Your API description is valid" in report
    assert not re.search(r"^\[\d+\]|You have", report, re.MULTILINE), report


def test_spectral_finds_nothing(tmp_path: Path) -> None:
    (tmp_path / ".spectral.yaml").write_text('extends: ["spectral:oas"]\n', encoding="utf-8")
    command = [node_tool("spectral"), "lint", str(describe(tmp_path))]
    run([*command, "--fail-severity", "hint"], tmp_path)


def test_the_pattern_of_a_prompt_means_the_same_in_javascript_with_and_without_its_flag(
    tmp_path: Path,
) -> None:
    program = """
        const blank = (flags) => {
          const visible = new RegExp(process.argv[1], flags), found = [];
          for (let each = 0; each < 0x10000; each++)
            if (!visible.test(String.fromCharCode(each))) found.push(each);
          return found;
        };
        console.log(JSON.stringify([blank(""), blank("u")]));
    """
    node = shutil.which("node")
    assert node is not None
    without, with_flag = json.loads(run([node, "-e", program, VISIBLE_PATTERN], tmp_path))

    in_python = [n for n in range(0x10000) if not re.search(VISIBLE_PATTERN, chr(n))]
    assert without == with_flag == in_python
    assert set(range(0x21)) <= set(in_python)


# Clients in TypeScript: each program calls every operation, and prints its name and its status.

CALL_OF: dict[str, str] = {
    "openapi-fetch": 'report("{name}", await client.{method}("{path}", {options}));',
    "hey-api": 'report("{name}", await sdk.{name}({options}));',
    "orval": 'report("{name}", {{ response: await sdk.{name}({options}) }});',
}
# orval's functions read every body as JSON; beside each they offer the address.
BY_ADDRESS = (
    'report("{name}", {{ response: await fetch(sdk.{address}({arguments}), {{ headers }}) }});'
)
PROGRAM_OF = {
    "openapi-fetch": """
        import createClient from "openapi-fetch";
        import type { components, paths } from "./generated";
        const client = createClient<paths>({ baseUrl: process.env.URL, headers });
        // All that is required is the prompt.
        const least: components["schemas"]["GenerateRequest"] = { prompt: "A fox" };
    """,
    "hey-api": """
        import { client } from "./generated/client.gen";
        import * as sdk from "./generated/sdk.gen";
        client.setConfig({ baseUrl: process.env.URL, headers });
        const least: Parameters<typeof sdk.generateImage>[0] = { body: { prompt: "A fox" } };
    """,
    "orval": """
        import * as sdk from "./generated";
        const least: Parameters<typeof sdk.generateImage>[0] = { prompt: "A fox" };
    """,
}
MAIN = """
const headers = { Authorization: `Bearer ${process.env.API_KEY}` };
const id = process.env.ID!;
const report = (name: string, answer: { response?: { status: number } }) =>
  console.log(name, answer.response?.status);
PROGRAM
async function main() {
  void least;
  CALLS
}
main();
"""
TSCONFIG = {
    "compilerOptions": {
        "strict": True,
        "module": "nodenext",
        "target": "es2022",
        "outDir": "js",
        "lib": ["es2022", "dom", "dom.iterable"],
        "skipLibCheck": True,
        "types": [],
    },
    "include": ["main.ts"],
}


def call_of(operation: Operation, client: str) -> str:
    """The statement that calls the operation."""
    form = CALL_OF[client]
    if client == "orval" and operation.responses[0].media_type not in {JSON, None}:
        form = BY_ADDRESS
    return form.format(
        name=operation.name,
        address=f"get{operation.name[0].upper()}{operation.name[1:]}Url",
        arguments=path_id(operation) if "{id}" in operation.path else "",
        method=operation.method,
        path=operation.path,
        options=options_of(operation, client),
    )


def path_id(operation: Operation) -> str:
    """What stands for ``{id}``: a generation, or the example of anything else."""
    if operation.path.startswith(GENERATIONS):
        return "id"
    (example,) = (each["example"] for each in operation.parameters if each["in"] == "path")
    return json.dumps(example)


def query_of(operation: Operation) -> dict[str, object] | None:
    """What the operation needs in its query; None if it has no parameter there."""
    found = [each for each in operation.parameters if each["in"] == "query"]
    needed = {str(each["name"]): each["example"] for each in found if each["required"]}
    return needed if found else None


def options_of(operation: Operation, client: str) -> str:
    """What the client's function takes for this operation."""
    query = query_of(operation)
    given = {
        "path": f"{{ id: {path_id(operation)} }}" if "{id}" in operation.path else None,
        "query": None if query is None else json.dumps(query),
        "body": json.dumps(operation.example) if operation.body else None,
        "parseAs": None if operation.responses[0].media_type == JSON else '"text"',
    }
    if client == "orval":
        first = path_id(operation) if given["path"] else None
        needed = (first, given["body"], given["query"], "{ headers }")
        return ", ".join(each for each in needed if each is not None)
    named = {name: text for name, text in given.items() if text is not None}
    if client == "openapi-fetch":
        parameters = [f"{name}: {named.pop(name)}" for name in ("path", "query") if name in named]
        named["params"] = f"{{ {', '.join(parameters)} }}"
    return f"{{ {', '.join(f'{name}: {text}' for name, text in named.items())} }}"


def generate(client: str, folder: Path, url: str) -> None:
    document = str(describe(folder, url))
    if client == "openapi-fetch":
        run([node_tool("openapi-typescript"), document, "-o", "generated.ts"], folder)
    elif client == "hey-api":
        run([node_tool("openapi-ts"), "-i", document, "-o", "generated"], folder)
    else:
        output = {"target": "generated.ts", "client": "fetch", "baseUrl": url, "mode": "single"}
        settings = json.dumps({"api": {"input": document, "output": output}})
        (folder / "orval.config.cjs").write_text(f"module.exports = {settings}", encoding="utf-8")
        run([node_tool("orval"), "--config", "orval.config.cjs"], folder)


@pytest.mark.parametrize("client", PROGRAM_OF)
def test_a_client_in_typescript_compiles_and_calls_every_route(
    client: str, stack: LocalStack, tmp_path: Path
) -> None:
    (tmp_path / "node_modules").symlink_to(tools.openapi_tools())
    (tmp_path / "package.json").write_text('{"type": "commonjs"}', encoding="utf-8")
    (tmp_path / "tsconfig.json").write_text(json.dumps(TSCONFIG), encoding="utf-8")
    declared = "declare const process: { env: Record<string, string> };"
    generate(client, tmp_path, stack.url)
    calls = [call_of(each, client) for each in LAST_IS_THE_DELETION]
    program = MAIN.replace("PROGRAM", PROGRAM_OF[client]).replace("CALLS", "\n  ".join(calls))
    (tmp_path / "main.ts").write_text(f"{program}\n{declared}\n", encoding="utf-8")

    run([node_tool("tsc")], tmp_path)
    key, one = a_generation(stack, client)
    printed = run(["node", "js/main.js"], tmp_path, API_KEY=key, URL=stack.url, ID=one)

    statuses = dict(line.split(" ") for line in printed.splitlines())
    assert set(statuses) == NAMES
    assert set(statuses.values()) <= {"200", "202", "204"}, statuses


def a_generation(stack: LocalStack, organisation: str) -> tuple[str, str]:
    """A key, and the id of a generation of its organisation."""
    key = stack.open_account(organisation, 100)
    headers = {"Authorization": f"Bearer {key}"}
    made = fetch(stack.url + GENERATE, "POST", json.dumps(OPERATIONS[0].example).encode(), headers)
    assert made.status == 200, made
    (found,) = fetch(stack.url + GENERATIONS, headers=headers).json()["generations"]
    return key, found["id"]


# The client in Python

IN_PYTHON = """
import importlib, json, os, pkgutil, re, sys
import httpx
from client import AuthenticatedClient, api, models

TASKS = json.load(open("tasks.json"))
FUNCTIONS = {
    found.name.rpartition(".")[2]: importlib.import_module(found.name)
    for found in pkgutil.walk_packages(api.__path__, "client.api.") if not found.ispkg
}
def snake(name):
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()
def call(task, **options):
    client = AuthenticatedClient(os.environ["URL"], os.environ["API_KEY"], **options)
    arguments = {}
    if task["body"]:
        arguments["body"] = getattr(models, task["body"]).from_dict(task["example"])
    if task["id"]:
        arguments["id"] = os.environ["ID"] if task["id"] == "id" else json.loads(task["id"])
    arguments |= task["query"] or {}
    return FUNCTIONS[snake(task["name"])].sync_detailed(client=client, **arguments)
def answering(status, body):
    return {"transport": httpx.MockTransport(lambda _: httpx.Response(status, json=body))}
for task in TASKS:
    print(task["name"], call(task).status_code.value)
    for status, body in task["gateway"]:
        answer = call(task, httpx_args=answering(status, body))
        assert answer.parsed is None or answer.parsed.to_dict() == body, (task, status, answer)
    for status, body in task["later"]:
        answer = call(task, httpx_args=answering(status, body))
        assert answer.parsed.to_dict() == body, (task, status, answer)
"""


def later(value: Any) -> Any:
    """An answer as a later version might send it: other values, and one field more."""
    if isinstance(value, dict):
        return {name: later(each) for name, each in value.items()} | {"addedLater": [1]}
    if isinstance(value, list):
        return [later(each) for each in value]
    if isinstance(value, str):
        return f"another {value}"
    return value if value is None else value + 1


def test_a_client_in_python_calls_every_route_and_survives_every_answer(
    stack: LocalStack, tmp_path: Path
) -> None:
    command = tools.client_generator()
    document = json.loads(describe(tmp_path, stack.url).read_text(encoding="utf-8"))
    made = run(
        [
            *(str(command / "openapi-python-client"), "generate", "--path", "openapi.json"),
            *("--output-path", "client", "--meta", "none"),
        ],
        tmp_path,
        PATH=f"{command}:{os.environ['PATH']}",
    )
    # A receipt is no JSON: it is in the response's content.
    assert made.count("WARNING") == made.count("application/jose") // 2, made
    tasks = [
        {
            "name": each.name,
            "path": each.path,
            "example": each.example,
            "id": path_id(each) if "{id}" in each.path else None,
            "body": each.body and each.body.__name__,
            "query": query_of(each),
            "gateway": [(own.status, {"message": own.message}) for own in GATEWAY_ANSWERS],
            "later": [
                (int(status), later(example["value"]))
                for status, response in document["paths"][each.path][each.method.lower()][
                    "responses"
                ].items()
                for media_type, content in response.get("content", {}).items()
                for example in content.get("examples", {}).values()
                if media_type == JSON
            ],
        }
        for each in LAST_IS_THE_DELETION
    ]
    (tmp_path / "tasks.json").write_text(json.dumps(tasks), encoding="utf-8")
    (tmp_path / "main.py").write_text(IN_PYTHON, encoding="utf-8")
    key, one = a_generation(stack, "python")

    run([sys.executable, "-m", "compileall", "-q", "client"], tmp_path)
    printed = run(
        [str(command / "python"), "main.py"], tmp_path, API_KEY=key, URL=stack.url, ID=one
    )

    statuses = dict(line.split(" ") for line in printed.splitlines())
    assert set(statuses) == NAMES
    assert set(statuses.values()) <= {"200", "202", "204"}, statuses
