"""TLS to RabbitMQ, for AMQP and for the management API."""

import ssl

from ingest.domain.errors import ConfigurationError
from ingest.settings import Settings


def check_certificates(settings: Settings) -> None:
    """Raise ConfigurationError for certificates that would not be used."""
    files = {
        "INGEST_BROKER_CAFILE": settings.broker_cafile,
        "INGEST_BROKER_CERTFILE": settings.broker_certfile,
        "INGEST_BROKER_KEYFILE": settings.broker_keyfile,
    }
    given = [name for name, file in files.items() if file is not None]
    encrypted = is_encrypted(settings.broker) or is_encrypted(settings.management_url.get_secret_value())
    if given and not encrypted:
        raise ConfigurationError(
            f"{given[0]} is set, but nothing is encrypted: use amqps:// in INGEST_BROKER_URL or https:// in "
            "INGEST_MANAGEMENT_URL, or unset it"
        )
    if settings.broker_keyfile and not settings.broker_certfile:
        raise ConfigurationError("INGEST_BROKER_KEYFILE needs INGEST_BROKER_CERTFILE, the certificate of the key")


def is_encrypted(url: str) -> bool:
    """Return whether a URL of the broker or the management API asks for TLS."""
    return url.startswith(("amqps:", "https:"))


def ssl_context(settings: Settings) -> ssl.SSLContext:
    """Return the context with the certificates of the settings. Raises ConfigurationError."""
    try:
        context = ssl.create_default_context(cafile=settings.broker_cafile)
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(f"INGEST_BROKER_CAFILE={settings.broker_cafile} cannot be used: {error}") from error
    if settings.broker_certfile:
        try:
            context.load_cert_chain(settings.broker_certfile, settings.broker_keyfile)
        except (OSError, ssl.SSLError) as error:
            # The error does not say which of the two files it is about.
            raise ConfigurationError(
                f"INGEST_BROKER_CERTFILE={settings.broker_certfile} or INGEST_BROKER_KEYFILE="
                f"{settings.broker_keyfile or ''} cannot be used: {error}"
            ) from error
    return context
