"""What stays out of the artifact, and why the service can do without.

``tests/test_artifact.py`` runs the whole contract on what is left, in Lambda's own runtime, and
fails when anything asks for a module that was cut. A pattern is a path below the artifact; ``*``
stands for anything, slashes too.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from infra.build.descriptions import SERVICES

__all__ = ["CUTS", "Cut", "is_cut"]


@dataclass(frozen=True, slots=True)
class Cut:
    """Everything that matches one of ``patterns`` and none of ``kept``."""

    why: str
    patterns: tuple[str, ...]
    kept: tuple[str, ...] = ()

    def takes(self, path: str) -> bool:
        """Whether the file at ``path`` stays out."""
        return _matches(path, self.patterns) and not _matches(path, self.kept)


def _metadata(*packages: str) -> tuple[str, ...]:
    """What says that the packages are there, for packages that aren't."""
    return tuple(f"{package}-*.dist-info/*" for package in packages)


CUTS = (
    Cut(
        "google-auth signs with them for service accounts; Gemini is called with an API key",
        (
            "cryptography/*",
            "_cffi_backend.*",
            "cffi/*",
            "pycparser/*",
            "pyasn1/*",
            "pyasn1_modules/*",
            "google/oauth2/*",
            *_metadata("cryptography", "cffi", "pycparser", "pyasn1", "pyasn1_modules"),
        ),
    ),
    Cut(
        "google-auth's own HTTP client; ours is httpx2",
        (
            "requests/*",
            "charset_normalizer/*",
            "*__mypyc*.so",
            *_metadata("requests", "charset_normalizer"),
        ),
    ),
    Cut(
        "google-genai's parts for agents and interactions tell Linuxes apart with it",
        ("distro/*", *_metadata("distro")),
    ),
    Cut(
        "google-genai's agents and interactions, loaded when a client is asked for them",
        ("google/genai/_gaos/*", "google/genai/_interactions/*"),
    ),
    Cut(
        "Powertools beyond the logger and the metrics, loaded when they are imported",
        ("aws_lambda_powertools/event_handler/*", "aws_lambda_powertools/utilities/*"),
        kept=(
            "aws_lambda_powertools/utilities/__init__.py",
            "aws_lambda_powertools/utilities/jmespath_utils/*",
        ),
    ),
    Cut(
        "boto3 reads the descriptions of the services that a client is made for, and of no other;"
        " botocore/data's own files say where services are",
        ("botocore/data/*/*",),
        kept=tuple(f"botocore/data/{service}/*" for service in SERVICES),
    ),
    Cut(
        "what boto3's resources and its documentation are made of; the service uses clients",
        ("boto3/data/*", "boto3/examples/*", "botocore/data/*/examples-1.json"),
    ),
    Cut(
        "Pillow's AVIF, fonts, colour profiles and Tk windows: pictures come as PNG, JPEG or WebP",
        (
            "PIL/_avif.*",
            "PIL/_imagingcms.*",
            "PIL/_imagingft.*",
            "PIL/_imagingtk.*",
            "pillow.libs/libavif-*",
            "pillow.libs/libbrotli*",
            "pillow.libs/libfreetype-*",
            "pillow.libs/libharfbuzz-*",
            "pillow.libs/liblcms2-*",
            "pillow.libs/libpng16-*",
        ),
    ),
    Cut("tests of packages", ("certifi/tests/*", "google/genai/tests/*")),
    Cut("what type checkers and compilers read", ("*.pyi", "*/py.typed", "*.c")),
    Cut(
        "what installers read; METADATA says which version it is, to vulnerability scanners and to"
        " httpx2, httpcore2 and google-genai",
        ("*.dist-info/*",),
        kept=("*.dist-info/METADATA",),
    ),
)


def is_cut(path: str, cuts: Iterable[Cut] = CUTS) -> bool:
    """Whether the file at ``path``, relative to the artifact, stays out."""
    return any(cut.takes(path) for cut in cuts)


def _matches(path: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(path, pattern) for pattern in patterns)
