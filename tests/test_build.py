"""What ships, and what doesn't: the artifact that ``make build`` and ``sam build`` make."""

import gzip
import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import botocore.session
import pytest
import yaml
from botocore import xform_name
from botocore.loaders import Loader
from packaging.markers import Marker
from packaging.utils import canonicalize_name

from infra.build import wheels
from infra.build.artifact import OURS, build, copy_sources
from infra.build.cuts import CUTS, is_cut
from infra.build.descriptions import OPERATIONS, SERVICES, slimmed
from infra.build.faults import BuildError
from infra.build.reuse import build_once
from infra.build.sizes import report, unzipped_bytes, zipped_bytes
from infra.template import PROJECT_ROOT, TEMPLATE_PATH, Template, parse
from infra.verify import tools

REQUIREMENTS = Path("infra/requirements/runtime.txt")
WHEELS = Path(".build/wheels")
MACHINES = {"x86_64": 62, "arm64": 183}
"""ELF's numbers of the two architectures (e_machine)."""

Tree = dict[str, tuple[int, int, bytes]]


def tree(directory: Path) -> Tree:
    """Mode, time and content of everything below a directory."""
    found = {}
    for path in [directory, *directory.rglob("*")]:
        about = path.stat()
        content = path.read_bytes() if path.is_file() else b""
        mode, modified_at = stat.S_IMODE(about.st_mode), about.st_mtime_ns
        found[path.relative_to(directory).as_posix()] = (mode, modified_at, content)
    return found


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, "utf-8")
    return root


# A made-up project with one package, which pip finds in a directory instead of on the network.

PACKAGE = {
    "acorn/__init__.py": "SIZE = 1\n",
    "acorn/__init__.pyi": "SIZE: int\n",
    "acorn/py.typed": "",
    "acorn/data.txt": "brown\n",
    "acorn-1.0.data/purelib/acorn_more.py": "SIZE = 2\n",
    "acorn-1.0.data/scripts/acorn": "#!python\n",
    "acorn-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: acorn\nVersion: 1.0\n",
    "acorn-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    "acorn-1.0.dist-info/RECORD": "",
    "cryptography/__init__.py": "",
}
SERVICE = {
    "handlers/__init__.py": "",
    "handlers/generate.py": "import acorn\n",
    "lib/__init__.py": "",
    "lib/pages/docs.html": "<title>Docs</title>\n",
}
SHIPPED = {
    "acorn-1.0.dist-info/METADATA",
    "acorn/__init__.py",
    "acorn/data.txt",
    "acorn_more.py",
    "handlers/__init__.py",
    "handlers/generate.py",
    "lib/__init__.py",
    "lib/pages/docs.html",
}


def wheel_in(shelf: Path) -> Path:
    shelf.mkdir(parents=True, exist_ok=True)
    path = shelf / "acorn-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in PACKAGE.items():
            archive.writestr(zipfile.ZipInfo(name), text)
    return path


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wheel_in(tmp_path_factory.mktemp("shelf"))


@pytest.fixture
def wheel(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The package of ``new_project``, and the only one that pip finds."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf.parent))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return shelf


def new_project(root: Path, wheel: Path, pinned: str | None = None) -> Path:
    digest = pinned or hashlib.sha256(wheel.read_bytes()).hexdigest()
    pin = f"acorn==1.0 \\\n    --hash=sha256:{digest}\n"
    return write(root, {**SERVICE, str(REQUIREMENTS): pin})


@pytest.fixture
def project(tmp_path: Path, wheel: Path) -> Path:
    return new_project(tmp_path / "project", wheel)


def files(directory: Path) -> set[str]:
    paths = [path for path in directory.rglob("*") if path.is_file()]
    return {path.relative_to(directory).as_posix() for path in paths}


def test_an_artifact_is_our_sources_and_what_they_import(project: Path, tmp_path: Path) -> None:
    build(project, "arm64", tmp_path / "artifact", python=None)

    assert files(tmp_path / "artifact") == SHIPPED


@pytest.mark.real
def test_two_builds_at_different_places_and_times_are_the_same_bytes(
    tmp_path: Path, wheel: Path
) -> None:
    trees = []
    for name, umask in (("a", 0o022), ("another place", 0o077)):
        before = os.umask(umask)
        try:
            root = new_project(tmp_path / name, wheel)
            build(root, "x86_64", root / "artifact", python=None)
        finally:
            os.umask(before)
        trees.append(tree(root / "artifact"))

    assert trees[0] == trees[1]


@pytest.mark.real
def test_a_second_build_needs_neither_pip_nor_a_network(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(project, "arm64", tmp_path / "first", python=None)
    monkeypatch.delenv("PIP_FIND_LINKS")

    build(project, "arm64", tmp_path / "second", python=None)

    assert tree(tmp_path / "second") == tree(tmp_path / "first")


@pytest.mark.real
def test_functions_share_a_build_until_a_source_changes(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_once(project, "arm64", tmp_path / "first", python=None)
    shutil.rmtree(project / WHEELS)
    monkeypatch.delenv("PIP_FIND_LINKS")

    build_once(project, "arm64", tmp_path / "second", python=None)

    assert tree(tmp_path / "second") == tree(tmp_path / "first")
    write(project, {"lib/more.py": "SIZE = 3\n"})
    with pytest.raises(BuildError):
        # It builds anew, and needs the wheels.
        build_once(project, "arm64", tmp_path / "third", python=None)


def test_without_a_python_3_13_the_build_says_what_it_left_out_and_what_that_costs(
    project: Path, tmp_path: Path
) -> None:
    (remark,) = build(project, "arm64", tmp_path / "artifact", python=None)

    assert re.search(r"No Python 3\.13 .* no bytecode .* cold start .* PYTHON313=", remark)


@pytest.mark.real
def test_a_file_that_was_changed_after_its_download_fails_the_build(
    project: Path, tmp_path: Path
) -> None:
    build(project, "arm64", tmp_path / "first", python=None)
    (kept,) = project.rglob("acorn-1.0-py3-none-any.whl")
    kept.write_bytes(kept.read_bytes() + b"more")

    with pytest.raises(BuildError, match="not the file that is pinned"):
        build(project, "arm64", tmp_path / "second", python=None)


@pytest.mark.real
def test_a_file_that_is_not_the_one_that_is_pinned_fails_the_build(
    tmp_path: Path, wheel: Path
) -> None:
    project = new_project(tmp_path / "project", wheel, pinned="0" * 64)

    with pytest.raises(BuildError, match="THESE PACKAGES DO NOT MATCH THE HASHES"):
        build(project, "arm64", tmp_path / "artifact", python=None)


def test_a_directory_with_something_in_it_is_left_alone(project: Path, tmp_path: Path) -> None:
    write(tmp_path / "mine", {"letter.txt": "Dear ..."})

    with pytest.raises(BuildError, match="not empty"):
        build(project, "arm64", tmp_path / "mine", python=None)
    assert files(tmp_path / "mine") == {"letter.txt"}


def test_what_editors_and_python_leave_behind_does_not_ship(tmp_path: Path) -> None:
    package = write(
        tmp_path / "lib",
        {
            "png.py": "",
            ".env": "GEMINI_API_KEY=secret",
            ".hidden/key.py": "KEY = 1",
            "__pycache__/png.cpython-311.pyc": "",
        },
    )

    copy_sources(package, tmp_path / "into")

    assert files(tmp_path / "into") == {"png.py"}


@pytest.mark.parametrize("name", ["notes.bak", "key.pem", "data.sqlite", "pages/readme.md", "x"])
def test_a_file_that_nobody_meant_to_ship_fails_the_build(tmp_path: Path, name: str) -> None:
    package = write(tmp_path / "lib", {"png.py": "", name: ""})

    with pytest.raises(BuildError, match=f"{re.escape(name)} is no source file"):
        copy_sources(package, tmp_path / "into")


def test_a_link_fails_the_build(tmp_path: Path) -> None:
    package = write(tmp_path / "lib", {"png.py": ""})
    (package / "passwords.py").symlink_to("/etc/passwd")

    with pytest.raises(BuildError, match="is a link"):
        copy_sources(package, tmp_path / "into")


def test_a_wheel_can_not_write_outside_the_artifact(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bad.whl", "w") as archive:
        archive.writestr("../../evil.py", "")

    with pytest.raises(BuildError, match="would leave the artifact"):
        list(wheels.contents(tmp_path / "bad.whl"))


@pytest.mark.parametrize(
    "name",
    [
        "cryptography/x509/__init__.py",
        "botocore/data/ec2/2016-11-15/service-2.json.gz",
        "botocore/data/s3/2006-03-01/examples-1.json",
        "boto3/data/s3/2006-03-01/resources-1.json",
        "google/genai/tests/client/test_client.py",
        "pydantic/main.pyi",
        "boto3-1.44.5.dist-info/RECORD",
        "cryptography-50.0.2.dist-info/METADATA",
    ],
)
def test_what_the_service_never_reads_is_cut(name: str) -> None:
    assert is_cut(name)


@pytest.mark.parametrize(
    "name",
    [
        "botocore/data/endpoints.json",
        "botocore/data/partitions.json",
        "botocore/data/_retry.json",
        "botocore/data/sdk-default-configuration.json",
        "botocore/data/sqs/2012-11-05/service-2.json.gz",
        "google/genai/types.py",
        "httpx2-2.16.2.dist-info/METADATA",
        "boto3-1.44.5.dist-info/METADATA",
    ],
)
def test_what_the_service_reads_is_not(name: str) -> None:
    assert not is_cut(name)


def test_every_cut_has_its_reason() -> None:
    assert all(len(cut.why.split()) >= 2 for cut in CUTS)


def test_a_description_keeps_what_the_functions_call_without_its_documentation() -> None:
    texts = {"documentation": "<p>Sends.</p>"}
    sends = {"name": "SendMessage", "input": {"shape": "Sent"}, "errors": [{"shape": "Bad"}]}
    shape: dict[str, Any] = {"type": "string"}
    tree = {"type": "list", "member": {"shape": "Tree"}}
    members = {"documentation": {"shape": "Tree", **texts}, "shape": {"shape": "Text"}}
    sent = {"type": "structure", "members": members}
    kept = {"Sent": sent, "Bad": shape, "Tree": tree, "Text": shape}
    operations = {"SendMessage": sends, "DeleteQueue": {"input": {"shape": "Other"}}}
    described = {"operations": operations, "shapes": {**kept, "Other": shape}, **texts}
    packed = gzip.compress(json.dumps(described).encode())

    name, content = slimmed("botocore/data/sqs/2012-11-05/service-2.json.gz", packed)

    assert name == "botocore/data/sqs/2012-11-05/service-2.json"
    members["documentation"]["documentation"] = ""
    assert json.loads(content) == {
        "documentation": "",
        "operations": {"SendMessage": sends},
        "shapes": kept,
    }


def test_the_artifact_describes_the_operations_that_the_functions_call() -> None:
    sources = [path for name in OURS for path in (PROJECT_ROOT / name).rglob("*.py")]
    text = "".join(path.read_text("utf-8") for path in sources)
    called = set(re.findall(r"client(?:\(\))?\.(\w+)", text))
    described = {xform_name(each) for names in OPERATIONS.values() for each in names}
    loader = Loader()
    known = {
        xform_name(name)
        for service in SERVICES
        for name in loader.load_service_model(service, "service-2")["operations"]
    }

    by_botocore = {"head_bucket"}
    by_operators = {"create_secret", "put_secret_value"}
    assert described - by_botocore == (called & known) - by_operators


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_a_package_keeps_the_fields_of_its_metadata_and_loses_its_readme(end: bytes) -> None:
    lines = (
        b"Metadata-Version: 2.4",
        b"Name: acorn",
        b"Version: 1.0",
        b"",
        b"# Acorn",
        b"",
        b"Oak",
    )
    whole = end.join(lines)

    name, content = slimmed("acorn-1.0.dist-info/METADATA", whole)

    assert name == "acorn-1.0.dist-info/METADATA"
    assert content.splitlines() == [*lines[:3]]


def test_a_file_that_describes_nothing_stays_as_it_is() -> None:
    assert slimmed("boto3/session.py", b"x = 1") == ("boto3/session.py", b"x = 1")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("botocore/data/endpoints.json", b'{"partitions": [{"regions": {}}]}'),
        ("botocore/data/s3/2006-03-01/service-2.json.gz", b"no gzip"),
    ],
)
def test_a_description_of_another_form_ends_the_build(name: str, content: bytes) -> None:
    with pytest.raises(BuildError, match="not what botocore's descriptions were"):
        slimmed(name, content)


@pytest.mark.real
@pytest.mark.parametrize("region", ["us-east-1", "eu-central-2", "cn-north-1", "us-gov-west-1"])
def test_clients_find_their_services_as_before(tmp_path: Path, region: str) -> None:
    data = Path(botocore.__file__).with_name("data")
    rules = data.glob("*/*/endpoint-rule-set-1.json.gz")
    for path in (data / "endpoints.json", *data.glob("*/*/service-2.json.gz"), *rules):
        if path.parent == data or path.parts[-3] in SERVICES:
            name, content = slimmed(path.relative_to(data.parents[1]).as_posix(), path.read_bytes())
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(content)
    slim = botocore.session.Session()
    # What is found first counts, and here the whole ones are not looked for.
    loader = slim.get_component("data_loader")
    loader.search_paths[:] = [str(tmp_path / "botocore" / "data"), str(data)]
    whole = botocore.session.Session()

    for service in SERVICES:
        ours, theirs = (
            session.create_client(service, region_name=region) for session in (slim, whole)
        )
        assert ours.meta.endpoint_url == theirs.meta.endpoint_url
        described = ours.meta.service_model
        assert {*described.operation_names} == {*OPERATIONS[service]}
        for name in described.operation_names:
            before: Any = theirs.meta.service_model.operation_model(name)
            after: Any = described.operation_model(name)
            assert after.input_shape.members.keys() == before.input_shape.members.keys()
        assert not described.documentation
        for client in (ours, theirs):
            client.close()


@pytest.mark.real
@pytest.mark.parametrize(
    ("module", "foreign"),
    [
        ("handlers.account", {"PIL", "deflate", "google", "httpx2", "pydantic"}),
        ("handlers.delete", {"PIL", "deflate", "google", "httpx2", "pydantic"}),
        ("handlers.reconcile", {"google", "httpx2", "pydantic"}),
        ("handlers.audit", {"PIL", "deflate", "google", "httpx2", "pydantic"}),
    ],
)
def test_a_cold_start_loads_no_package_that_the_function_has_no_use_for(
    module: str, foreign: set[str]
) -> None:
    told = f"import {module}, sys; print(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run(  # noqa: S603 - our own command
        [sys.executable, "-c", told], cwd=PROJECT_ROOT, capture_output=True, text=True, check=True
    )

    loaded = set(done.stdout.split())
    assert "boto3" in loaded
    assert not loaded & foreign


def test_the_report_names_both_sizes_and_the_largest_part(tmp_path: Path) -> None:
    write(tmp_path, {"small.py": "x", "large/data.txt": "x" * 2_000_000})

    text = report(tmp_path)

    assert text.startswith("2.0 MB unzipped, 0.0 MB zipped")
    assert text.splitlines()[1].split() == ["2.00", "MB", "large"]


def test_no_pin_depends_on_the_python_or_the_machine_that_builds() -> None:
    """pip judges markers by the Python that runs it, and never by the one that it installs for."""
    lines = (PROJECT_ROOT / REQUIREMENTS).read_text("utf-8").splitlines()
    markers = [Marker(line.split(";")[1].rstrip(" \\")) for line in lines if " ; " in line]
    assert markers
    for marker in markers:
        verdicts = {
            marker.evaluate(
                {
                    "python_version": version,
                    "python_full_version": f"{version}.1",
                    "sys_platform": platform,
                    "platform_machine": machine,
                    "platform_python_implementation": "CPython",
                    "implementation_name": "cpython",
                }
            )
            for version in ("3.11", "3.12", "3.13", "3.14")
            for platform in ("linux", "darwin")
            for machine in ("x86_64", "aarch64", "arm64")
        }
        assert len(verdicts) == 1, marker


def test_sam_builds_every_function_with_make_for_the_architecture_of_the_stack() -> None:
    resources = parse(TEMPLATE_PATH.read_text("utf-8"))["Resources"]
    functions = [each for each in resources.values() if each["Type"] == "AWS::Serverless::Function"]
    assert functions
    for function in functions:
        assert function.get("Metadata") == {
            "BuildMethod": "makefile",
            "ContextPath": {"Fn::Sub": "infra/build/${Architecture}"},
            "WorkingDirectory": ".",
        }, function["Properties"]["Handler"]


# The real project, with the real packages.


def copy_of_the_project(into: Path) -> Path:
    """What a clone has; and the downloads, so that one test needs them no more than once."""
    kept_out = shutil.ignore_patterns(".*", "__pycache__")
    shutil.copytree(PROJECT_ROOT, into, ignore=kept_out)
    if (PROJECT_ROOT / WHEELS).exists():
        shutil.copytree(PROJECT_ROOT / WHEELS, into / WHEELS)
    return into


def run(*command: str, cwd: Path, umask: int = 0o022) -> str:
    done = subprocess.run(  # noqa: S603 - our own commands
        command,
        cwd=cwd,
        umask=umask,
        env={**os.environ, "SAM_CLI_TELEMETRY": "0", "PYTHON": sys.executable},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project in which ``make build`` was run for x86-64."""
    root = copy_of_the_project(tmp_path_factory.mktemp("one") / "project")
    printed = run("make", "build", "ARCHITECTURE=x86_64", cwd=root)
    assert re.search(r"x86_64, [\d.]+ MB unzipped, [\d.]+ MB zipped", printed)
    assert "bytecode" not in printed
    return root


@pytest.fixture(scope="module")
def x86_64(built: Path) -> Path:
    return built / ".build" / "artifact" / "x86_64"


@pytest.mark.real
def test_another_clone_elsewhere_builds_the_same_bytes(
    x86_64: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = copy_of_the_project(tmp_path_factory.mktemp("two") / "a longer way down" / "project")

    run("make", "build", "ARCHITECTURE=x86_64", cwd=root, umask=0o077)

    assert tree(root / ".build" / "artifact" / "x86_64") == tree(x86_64)


@pytest.mark.real
def test_sam_builds_the_same_bytes_for_the_architecture_of_its_configuration(
    built: Path, x86_64: Path
) -> None:
    sam = str(tools.sam())
    configure(built, "x86_64")
    run(sam, "build", "GenerateFunction", cwd=built)
    by_sam = tree(built / ".aws-sam" / "build" / "GenerateFunction")
    configure(built, "arm64")
    run(sam, "build", "AccountFunction", cwd=built)

    assert by_sam == tree(x86_64)
    assert machines(built / ".aws-sam" / "build" / "AccountFunction") == {MACHINES["arm64"]}


def configure(root: Path, architecture: str) -> None:
    """Chooses the architecture as an operator does."""
    path = root / "samconfig.toml"
    line = re.compile(r"^Architecture = .*$", re.MULTILINE)
    text, count = line.subn(f'Architecture = "{architecture}"', path.read_text("utf-8"))
    assert count == 1
    path.write_text(text, "utf-8")


@pytest.mark.real
def test_the_template_that_sam_builds_is_yaml_that_cloudformation_reads(built: Path) -> None:
    """CloudFormation reads no aliases: https://docs.aws.amazon.com/AWSCloudFormation/latest/UserGuide/template-formats.html"""
    run(str(tools.sam()), "build", "AccountFunction", cwd=built)
    made = (built / ".aws-sam" / "build" / "template.yaml").read_text("utf-8")

    assert not [each for each in yaml.scan(made) if isinstance(each, yaml.AliasToken)]
    functions = Template(parse(made)).functions()
    assert functions[0].environment
    assert all(each.environment == functions[0].environment for each in functions)


@pytest.mark.real
def test_nothing_ships_that_should_not(x86_64: Path) -> None:
    names = files(x86_64)
    top = {name.split("/")[0] for name in names}
    services = {name.split("/")[2] for name in names if re.match(r"botocore/data/\w+/", name)}

    assert set(OURS) < top
    for foreign in ("tests", "infra", "docs", "bin", "template.yaml", "README.md", "cryptography"):
        assert foreign not in top
    assert services == {"dynamodb", "kms", "s3", "secretsmanager", "sqs"}
    for name in names:
        assert "/tests/" not in name, name
        assert not re.search(r"(^|/)\.|\.(pyi|md|txt|toml|yaml|yml|sh|c|h|whl)$", name), name
        assert name.split("/")[0] in OURS or not name.endswith(".py"), name
        assert not is_cut(re.sub(r"\.pyc$", ".py", name)), name


@pytest.mark.real
def test_scanners_find_every_package_that_ships_in_its_version_and_no_other(x86_64: Path) -> None:
    """As Amazon Inspector and others do: by the METADATA of each package."""
    found = {
        canonicalize_name(each.name): each.version
        for each in importlib.metadata.distributions(path=[str(x86_64)])
    }
    text = (PROJECT_ROOT / REQUIREMENTS).read_text("utf-8")
    pinned = dict(re.findall(r"^([\w.-]+)==([^\s;]+)", text, re.MULTILINE))
    shipped = {
        package
        for wheel in wheels.fetch(PROJECT_ROOT / REQUIREMENTS, "x86_64", PROJECT_ROOT / WHEELS)
        for package in [canonicalize_name(wheel.name.split("-")[0])]
        if any(
            name.endswith((".py", ".so")) and not is_cut(name) for name, _ in wheels.contents(wheel)
        )
    }

    assert shipped == found.keys()
    assert found.items() <= pinned.items()
    assert len(found) > 20


@pytest.mark.real
def test_all_that_is_ours_has_its_source_and_everything_its_bytecode(x86_64: Path) -> None:
    for package in OURS:
        ours = {path.name for path in (PROJECT_ROOT / package).glob("*.py")}
        assert {path.name for path in (x86_64 / package).glob("*.py")} == ours
        compiled = {path.name for path in (x86_64 / package / "__pycache__").iterdir()}
        assert compiled == {name.replace(".py", ".cpython-313.pyc") for name in ours}
    assert (x86_64 / "boto3" / "session.pyc").exists()


@pytest.mark.real
def test_bytecode_names_the_place_where_lambda_has_it_and_no_place_here(
    built: Path, x86_64: Path
) -> None:
    for path in x86_64.rglob("*.pyc"):
        content = path.read_bytes()
        # PEP 552: flags 1 is a hash that is never compared with the source.
        assert content[4:8] == b"\x01\x00\x00\x00", path
        assert str(built).encode() not in content, path
    assert b"/var/task/boto3/session.py" in (x86_64 / "boto3" / "session.pyc").read_bytes()


@pytest.mark.real
@pytest.mark.parametrize("architecture", MACHINES)
def test_every_native_library_finds_those_that_it_links(architecture: str) -> None:
    """A cut library's name, which has a hash in it, stands in no file that is kept."""
    kept, cut = {}, set()
    found = wheels.fetch(PROJECT_ROOT / REQUIREMENTS, architecture, PROJECT_ROOT / WHEELS)
    for wheel in found:
        for name, content in wheels.contents(wheel):
            if is_cut(name):
                cut.add(Path(name).name.encode())
            elif ".so" in name:
                kept[name] = content
    libraries = {name for name in cut if name.startswith(b"lib") and b".so" in name}

    assert any(name.startswith(b"libavif-") for name in libraries)
    for name, content in kept.items():
        assert not [library for library in libraries if library in content], name


@pytest.mark.real
def test_an_artifact_is_at_most_half_of_a_plain_install(x86_64: Path) -> None:
    """Plain: all files of the packages, even without the repository that would ship with them."""
    found = wheels.fetch(PROJECT_ROOT / REQUIREMENTS, "x86_64", PROJECT_ROOT / WHEELS)
    plain = sum(len(content) for wheel in found for _, content in wheels.contents(wheel))

    assert unzipped_bytes(x86_64) <= 0.5 * plain
    assert zipped_bytes(x86_64) <= 0.5 * sum(wheel.stat().st_size for wheel in found)


def machines(directory: Path) -> set[int]:
    """For which architectures the native code in a directory is."""
    headers = [path.read_bytes()[:20] for path in directory.rglob("*.so*")]
    return {int.from_bytes(header[18:20], "little") for header in headers}
