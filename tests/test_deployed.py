"""The deploy guide, followed literally on an emulated account, from deployment to deletion.

Each test continues where the one before it ended. The functions' own code runs, with the
permissions of its role, against the Gemini stand-in. What the emulator lacks is in
``infra/verify/cloud_process.py``.
"""

import io
import json
import platform
import re
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from infra.local.gemini_stand_in import GeminiStandIn
from infra.verify.cloud import Cloud
from tests.deployed import (
    FUNCTIONS,
    GUIDE,
    Operator,
    Upstream,
    form,
    lost,
    now_ms,
    republished,
    ringing,
)
from tests.test_build import MACHINES, machines
from tests.test_gemini import self_signed_certificate

pytestmark = pytest.mark.real

HERE = {"aarch64": "arm64", "x86_64": "x86_64"}[platform.machine()]
# R2 is S3's protocol under another account, with keys of its own.
CLOUDFLARE = "111111111111"
SETTLES_WITHIN_S = 120
# A release on which every image fails after the model has drawn it.
BROKEN = (
    "lib/picture/png.py",
    "    picture = checked_picture(image, ratio)\n",
    '    raise RuntimeError("a release that fails every image")\n',
)
UNCOUNTED = '            observation.warning("unexpected'
COUNTED = '            observation.count("UnexpectedErrors")\n' + UNCOUNTED


@pytest.fixture(scope="module")
def gemini() -> Iterator[GeminiStandIn]:
    with GeminiStandIn(fixed_picture=True) as stand_in:
        yield stand_in


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Upstream:
    made = Upstream(tmp_path_factory.mktemp("upstream") / "project")
    made.release("v0.1.0")
    return made


@pytest.fixture(scope="module")
def operator(
    gemini: GeminiStandIn, upstream: Upstream, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Operator]:
    home = tmp_path_factory.mktemp("operator")
    with Cloud(self_signed_certificate(home / "certificate.pem"), gemini.url) as cloud:
        yield Operator.at(cloud, upstream, home)


def image(operator: Operator) -> str:
    """The URL of a picture that a customer generates now, and has paid for."""
    answer = json.loads(
        operator.run(
            'curl -sS "$API_URL/api/v1/models/gemini/generate" -H "Authorization: Bearer $API_KEY"'
            " -H 'Content-Type: application/json' -d '{\"prompt\": \"A red fox in the snow\"}'"
        )
    )
    assert answer.get("creditsCharged") == 5, (answer, operator.cloud.last_words())
    return str(answer["imageUrl"])


def job(operator: Operator) -> dict[str, Any]:
    """The generation that an asynchronous request made, once it has ended."""
    operator.run(
        'curl -sS "$API_URL/api/v1/models/gemini/generate" -H "Authorization: Bearer $API_KEY"'
        " -H 'Content-Type: application/json' -H 'Prefer: respond-async'"
        ' -d \'{"prompt": "A red fox in the rain"}\''
    )
    return newest_once_ended(operator)


def newest_once_ended(operator: Operator) -> dict[str, Any]:
    ends_at = time.monotonic() + SETTLES_WITHIN_S
    while True:
        listed = operator.run(
            'curl -sS "$API_URL/api/v1/generations" -H "Authorization: Bearer $API_KEY"'
        )
        newest: dict[str, Any] = json.loads(listed)["generations"][0]
        if newest["status"] != "reserved":
            return newest
        assert time.monotonic() < ends_at, (newest, operator.cloud.last_words())
        time.sleep(0.5)


def test_the_committed_configuration_is_deployed_without_an_answer_but_yes(
    operator: Operator,
) -> None:
    operator.configure(AlarmEmail="pager@example.com", NoticeEmail="operator@example.com")

    written = operator.follow("git commit -m 'Deploy gemini-generate'")

    assert "Successfully created/updated stack - gemini-generate in us-east-1" in written
    assert {each.action for each in operator.changes(written)} == {"Add"}
    assert operator.architectures() == {"arm64"}
    assert machines(operator.clone / ".aws-sam/build") == {MACHINES["arm64"]}
    assert set(operator.live().values()) == {"1"}


def test_another_architecture_and_own_domains_replace_nothing(operator: Operator) -> None:
    operator.follow("output() {")
    before = operator.live()
    arn = "arn:aws:acm:us-east-1:123456789012:certificate/EXAMPLE"
    requested = json.loads(
        operator.run("aws acm request-certificate --domain-name images.example.com")
    )["CertificateArn"]
    operator.follow("aws acm request-certificate --domain-name api.example.com", **{arn: requested})
    operator.follow("aws acm request-certificate --region us-east-1")
    operator.configure(
        Architecture="x86_64",
        ApiDomainName="api.example.com",
        ApiCertificateArn=requested,
        ImageDomainName="images.example.com",
        ImageCertificateArn=requested,
    )

    written = operator.follow("git commit -m 'Serve the API")

    assert lost(operator.changes(written)) == []
    assert republished(before, operator.live()) == FUNCTIONS
    assert operator.architectures() == {"x86_64"}
    assert machines(operator.clone / ".aws-sam/build") == {MACHINES["x86_64"]}


def test_a_template_that_forgets_the_architecture_ships_libraries_of_another_machine(
    operator: Operator,
) -> None:
    with operator.mutated("template.yaml", 'infra/build/${Architecture}"', 'infra/build/arm64"'):
        operator.run("sam build GenerateFunction --build-dir .aws-sam/mutant")

    assert machines(operator.clone / ".aws-sam/mutant") != {MACHINES["x86_64"]}
    if HERE != "x86_64":
        operator.configure(Architecture=HERE)
        operator.run("sam build && sam deploy")


def test_the_first_organisation_gets_the_images_that_it_pays_for(
    operator: Operator, gemini: GeminiStandIn
) -> None:
    operator.follow('"${EDITOR:-vi}" gemini-api-key.txt', typed="a-gemini-key\n")
    operator.follow("gemini-generate org create acme")

    checked = operator.follow('export API_URL="$(output ApiUrl)"')
    newest_once_ended(operator)

    assert re.findall(r"HTTP/\S+ (\d+)", checked) == ["200", "200", "202"]
    assert '{"credits":500,"creditsPerImage":5}' in checked
    assert gemini.requests[-1].headers["x-goog-api-key"] == "a-gemini-key"
    audit = operator.run(".venv/bin/gemini-generate audit")
    assert "acme: healthy" in audit
    assert "490" in audit
    operator.after_a_daily_audit()
    operator.follow("aws sns create-topic --region us-east-1")
    operator.run("aws lambda get-account-settings --query AccountLimit.ConcurrentExecutions")
    doctor = operator.run(".venv/bin/gemini-generate --stack-name gemini-generate doctor")
    assert "PROBLEM" not in doctor
    (path,) = re.findall(r'"imageUrl":"https://images.example.com/(\S+?)","mime', checked)
    served = operator.run("output ImageDistributionDomain").strip()
    operator.run(f"curl -sS -o picture.png https://{served}/{path}")
    with Image.open(operator.clone / "picture.png") as picture:
        picture.load()
        assert picture.format == "PNG"


def test_a_changed_model_publishes_a_version_and_live_moves_to_it(
    operator: Operator, gemini: GeminiStandIn
) -> None:
    before = operator.live()
    operator.configure(GeminiModel="gemini-3-pro-image")

    written = operator.follow("git commit -m 'Change the model'")

    assert lost(operator.changes(written)) == []
    assert republished(before, operator.live()) == FUNCTIONS
    variables = json.loads(operator.follow("aws lambda get-function-configuration"))
    assert variables["GEMINI_MODEL"] == "gemini-3-pro-image"
    image(operator)
    assert "gemini-3-pro-image" in gemini.requests[-1].path


def test_images_work_as_soon_as_they_go_to_r2(operator: Operator) -> None:
    keys = {"accessKeyId": CLOUDFLARE, "secretAccessKey": "test"}
    operator.client("s3", CLOUDFLARE).create_bucket(Bucket="gemini-images")
    operator.follow('"${EDITOR:-vi}" r2-credentials.json', typed=json.dumps(keys))
    operator.configure(
        StorageEndpointUrl=operator.cloud.tls_url,
        R2Bucket="gemini-images",
        ImageBaseUrl="https://images.example.com",
        StorageCredentialsSecret="gemini-generate/r2",
    )

    operator.follow("git commit -m 'Store images in R2'")
    synchronous, asynchronous = image(operator), job(operator)

    assert asynchronous["status"] == "settled", asynchronous
    stored = operator.client("s3", CLOUDFLARE).list_objects_v2(Bucket="gemini-images")["Contents"]
    assert {f"https://images.example.com/{each['Key']}" for each in stored} == {
        synchronous,
        asynchronous["imageUrl"],
    }


def test_an_upgrade_loses_nothing(operator: Operator, upstream: Upstream) -> None:
    parameters, before = operator.parameters(), operator.live()
    upstream.release("v0.2.0", "lib/picture/png.py", "    picture = ", "\n    picture = ")

    written = operator.follow("git pull --no-rebase")

    assert lost(operator.changes(written)) == []
    assert operator.parameters() == parameters
    assert republished(before, operator.live()) == FUNCTIONS
    assert "acme: healthy" in written
    assert "No changes to deploy" in operator.run("sam deploy")
    image(operator)


def test_a_configuration_that_lacks_parameters_shows_what_an_upgrade_would_lose(
    operator: Operator,
) -> None:
    forgotten = ("R2Bucket", "ImageBaseUrl", "StorageCredentialsSecret", "ApiDomainName")
    with operator.mutated(
        "samconfig.toml", 'StorageEndpointUrl = "https', 'StorageEndpointUrl = "" # "'
    ):
        operator.configure(**dict.fromkeys(forgotten, ""))
        shown = operator.changes(operator.run("sam deploy --no-execute-changeset"))

    assert {"ApiDomain", "ImageBucket", "ImageDistribution"} <= {each.name for each in lost(shown)}


def test_images_work_as_soon_as_they_go_back_to_s3(operator: Operator) -> None:
    operator.configure(
        StorageEndpointUrl="",
        R2Bucket="",
        ImageBaseUrl="",
        StorageCredentialsSecret="",
        Deployment="Canary10Percent5Minutes",
    )

    operator.run("sam build && sam deploy && git commit -m 'Back to S3' samconfig.toml")
    synchronous, asynchronous = image(operator), job(operator)

    assert asynchronous["status"] == "settled", asynchronous
    bucket = operator.run("output ImageBucketName").strip()
    stored = operator.client("s3").list_objects_v2(Bucket=bucket)["Contents"]
    assert {f"https://images.example.com/{each['Key']}" for each in stored} == {
        synchronous,
        asynchronous["imageUrl"],
    }


def test_a_canary_that_fails_every_image_rings_an_alarm_that_stops_it(
    operator: Operator, upstream: Upstream
) -> None:
    upstream.release("v0.3.0", *BROKEN)
    operator.follow("git pull --no-rebase")
    began_ms = now_ms()

    answered = operator.run(
        'curl -sS -i "$API_URL/api/v1/models/gemini/generate" -H "Authorization: Bearer $API_KEY"'
        " -H 'Content-Type: application/json' -d '{\"prompt\": \"A red fox in the snow\"}'"
    )
    refunded = job(operator)

    assert "500" in answered.splitlines()[0]
    assert refunded["status"] == "refunded"
    records = operator.emitted(began_ms)
    assert sum("UnexpectedErrors" in each for each in records) == 2
    assert ringing(operator.deployment_alarms(), records)


def test_a_release_that_does_not_count_unexpected_failures_rings_no_alarm(
    operator: Operator,
) -> None:
    began_ms = now_ms()
    function = operator.physical()["GenerateFunction"]
    functions = operator.client("lambda")
    artifact = operator.clone / ".aws-sam/build/GenerateFunction"
    functions.update_function_code(
        FunctionName=function,
        ZipFile=zipped(artifact, "lib/generation.py", COUNTED, UNCOUNTED),
        Architectures=[HERE],
    )
    key = (operator.clone / "acme.key").read_text().strip()
    event = {
        "version": "2.0",
        "routeKey": "POST /api/v1/models/gemini/generate",
        "headers": {"authorization": f"Bearer {key}"},
        "requestContext": {"requestId": "a-request"},
        "body": json.dumps({"prompt": "A red fox in the snow"}),
        "isBase64Encoded": False,
    }
    for _ in range(2):
        answer = json.load(
            functions.invoke(FunctionName=function, Payload=json.dumps(event))["Payload"]
        )
        assert answer["statusCode"] == 500, answer

    records = operator.emitted(began_ms)
    assert sum("Refunds" in each for each in records) == 2
    assert ringing(operator.deployment_alarms(), records) == set()


def zipped(artifact: Path, file: str, old: str, new: str) -> bytes:
    """The artifact as a ZIP file, with another text in one file, without its bytecode."""
    text = (artifact / file).read_text(encoding="utf-8")
    assert text.count(old) == 1
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for path in sorted(artifact.rglob("*")):
            name = str(path.relative_to(artifact))
            if path.is_file() and not name.startswith(f"lib/__pycache__/{Path(file).stem}."):
                data = text.replace(old, new).encode() if name == file else path.read_bytes()
                archive.writestr(name, data)
    return packed.getvalue()


def test_a_rollback_brings_images_back_and_leaves_the_money_alone(operator: Operator) -> None:
    broken = operator.live()
    listed = operator.run(
        'aws lambda list-versions-by-function --function-name "$(physical GenerateFunction)"'
        " --query 'Versions[].Version' --output text"
    )
    good = str(int(broken["GenerateFunction"]) - 1)
    assert good in listed.split()

    operator.follow("aws lambda list-versions-by-function", **{"version 41": f"version {good}"})
    image(operator)
    operator.follow("git checkout v0.1.0", **{"v0.1.0": "v0.2.0"})

    assert republished(broken, operator.live()) == FUNCTIONS
    assert image(operator)
    assert job(operator)["status"] == "settled"
    assert "acme: healthy" in operator.run(".venv/bin/gemini-generate audit")


def test_a_deletion_leaves_what_was_paid_for_and_the_stack_can_be_made_again(
    operator: Operator,
) -> None:
    names = operator.physical()

    operator.follow("aws dynamodb delete-table")

    assert names["CreditsTable"] not in operator.client("dynamodb").list_tables()["TableNames"]
    written = operator.run("sam deploy")
    assert "Successfully created/updated stack" in written
    assert operator.physical()["CreditsTable"] != ""
    assert "200" in operator.run('curl -sS -i "$(output ApiUrl)/healthz"').splitlines()[0]


# Last: what of the guide has run


def test_every_command_of_the_guide_ran_or_the_guide_says_why_not(operator: Operator) -> None:
    commands = {form(line) for fence in GUIDE.fences for line in fence.commands()}

    excused = {
        line for line in commands if "--config-env staging" in line or "service-quotas" in line
    }
    assert commands - operator.followed - excused == set()
