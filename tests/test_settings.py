"""The settings that the service reads from its environment."""

import pytest

from infra.template import Template
from lib.deadline import FUNCTION_TIMEOUT_S, LEASE_S
from lib.settings import DEFAULT_MODEL, MissingSettingError, Settings

ENVIRONMENT = {
    "CREDITS_TABLE": "credits",
    "IMAGE_BUCKET": "images",
    "IMAGE_BASE_URL": "https://images.example/",
    "ORG_SECRET_PREFIX": "orgs/",
    "GEMINI_API_KEY_SECRET": "gemini-key",
}


def test_optional_settings_have_defaults() -> None:
    settings = Settings.from_environment(ENVIRONMENT)
    assert settings.image_base_url == "https://images.example"
    assert settings.gemini_model == DEFAULT_MODEL == "gemini-3.1-flash-lite-image"
    assert settings.storage_endpoint_url is None


@pytest.mark.parametrize("name", ENVIRONMENT)
def test_a_missing_variable_is_named(name: str) -> None:
    with pytest.raises(MissingSettingError, match=name):
        Settings.from_environment({**ENVIRONMENT, name: " "})


def test_a_lease_outlives_the_function_by_thirty_seconds() -> None:
    (generate,) = (
        function
        for function in Template.from_file().functions()
        if function.handler == "handlers.generate.handler"
    )
    assert generate.timeout_s == FUNCTION_TIMEOUT_S
    assert generate.timeout_s + 30 == LEASE_S
