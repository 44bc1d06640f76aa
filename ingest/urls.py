"""URLs with several hosts, as the settings for the broker and the store take them."""

from pydantic import ValidationError
from pydantic_core import MultiHostUrl

from ingest.domain.errors import ConfigurationError


def parse_multi_host_url(url: str, variable: str, example: str) -> MultiHostUrl:
    """Parse `scheme://user:password@host:port,host2:port2/path?query`.

    Args:
        url: the value of the setting.
        variable: the name of the setting, for the error.
        example: what the URL must look like, for the error.

    Raises:
        ConfigurationError: the URL is invalid. The message never contains the password.
    """
    try:
        return MultiHostUrl(url)
    except ValidationError as error:
        details = error.errors(include_url=False, include_input=False)[0].get("ctx", {})
        problem = details.get("error", "invalid URL")
    raise ConfigurationError(f"{variable}: {problem}; it must look like {example}")
