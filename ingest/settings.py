"""Settings from `INGEST_*` environment variables, validated once."""

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from ingest.domain import topology
from ingest.domain.errors import ConfigurationError
from ingest.urls import BROKER_EXAMPLE, MANAGEMENT_EXAMPLE, STORE_EXAMPLE, parse_multi_host_url

_URLS: Final = {
    "broker_url": (("amqp", "amqps"), BROKER_EXAMPLE),
    "store_url": (("aerospike",), STORE_EXAMPLE),
    "management_url": (("http", "https"), MANAGEMENT_EXAMPLE),
}
"""Schemes of servers, and what such a URL looks like. Other schemes are files, or the backends report them."""


_HOST: Final = r"(?:\[[0-9a-fA-F:.]*\]|[^:/?#,\[]*)(?::\d*)?"
_HOSTS: Final = re.compile(rf"{_HOST}(?:,{_HOST})*(?:[/?#]|$)")
"""Hosts with ports, and what may follow. A URL whose `@` was forgotten has a password in the place of a port."""


class Settings(BaseSettings):
    """Every setting, with its default. A field `x_y` is the variable `INGEST_X_Y`."""

    model_config = SettingsConfigDict(env_prefix="INGEST_", frozen=True, extra="ignore")

    data_dir: Path = Field(Path(".ingest"), description="directory of the embedded queue and store")
    broker_url: SecretStr = Field(
        SecretStr(""),
        description="amqp[s]://user:password@host:5672,host2:5672/vhost, or sqlite:///FILE; default: in "
        "INGEST_DATA_DIR",
    )
    store_url: SecretStr = Field(
        SecretStr(""),
        description="aerospike://user:password@host:3000,host2:3000/namespace, or sqlite:///FILE; default: in "
        "INGEST_DATA_DIR",
    )
    broker_cafile: Path | None = Field(
        None,
        description="CA certificates (PEM) for amqps:// and for a management API with https://; default: the system's",
    )
    broker_certfile: Path | None = Field(
        None, description="client certificate (PEM), shown to RabbitMQ and to its management API"
    )
    broker_keyfile: Path | None = Field(None, description="private key (PEM) of INGEST_BROKER_CERTFILE")
    broker_user: str | None = Field(
        None,
        description="the AMQP user of the client certificate, if the broker URL has `?auth=external`",
    )
    management_url: SecretStr = Field(
        SecretStr(""),
        description="RabbitMQ management API, http[s]://user:password@host:15672 (default port for https: 15671); "
        "needed for policies and status",
    )
    trusted_users: Annotated[frozenset[str], NoDecode] = Field(
        frozenset(),
        description="AMQP users that the service publishes as, a JSON list; default: the user of the broker URL or "
        "certificate",
    )
    heartbeat: int = Field(10, ge=1, le=60, description="AMQP heartbeat, seconds")
    confirm_timeout: float = Field(5.0, gt=0, le=60, description="timeout of a publisher confirm, seconds")
    store_timeout: float = Field(3.0, gt=0, le=60, description="timeout of a store call, seconds")
    lease: float = Field(30.0, ge=15, le=600, description="duration of a claim's lease, seconds")
    request_deadline: float = Field(
        10.0,
        gt=0,
        le=60,
        description="time to parse a large HTTP submission, and then to admit and publish it, seconds",
    )
    outage_hold: float = Field(
        600.0,
        gt=0,
        le=1500,
        description="how long to hold deliveries during an outage before they return to their queue, seconds; must be "
        "below RabbitMQ's consumer_timeout",
    )
    shutdown_deadline: float = Field(
        25.0, gt=0, le=600, description="time to finish the work in flight on SIGTERM, seconds"
    )
    dev_api_key: SecretStr = Field(
        SecretStr(""), description="the API key that `ingest dev` accepts; default: one is created and kept"
    )
    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8080, ge=0, le=65535, description="port to listen on")
    workers: int = Field(1, ge=1, le=256, description="number of HTTP processes of `serve`")
    processes: int = Field(1, ge=1, le=256, description="number of consumer processes of `work`")
    prefetch: int = Field(
        1000,
        ge=1,
        le=65535,
        description="messages in flight per process and queue, except ingest.batches and ingest.*.bulk; a message "
        "from the shim can have up to 64 submissions",
    )
    prefetch_batches: int = Field(
        16, ge=1, le=1000, description="submissions in flight per process in each of ingest.batches and ingest.*.bulk"
    )
    http_queues: int = Field(
        topology.DEFAULT.http,
        ge=1,
        le=topology.MAX_QUEUES,
        description="number of queues for ordinary submissions over HTTP, `ingest.http.<n>` (RabbitMQ only)",
    )
    heavy_queues: int = Field(
        topology.DEFAULT.heavy,
        ge=1,
        le=topology.MAX_QUEUES,
        description="number of queues for submissions of heavy customers over HTTP, `ingest.heavy.<n>` (RabbitMQ only)",
    )
    metrics_host: str = Field("127.0.0.1", description="address of the port for metrics and health")
    metrics_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="port that serves `/metrics`, `/healthz` and `/readyz`; 0: a free port; default: not served",
    )
    console_host: str = Field("127.0.0.1", description="address on which the console listens")
    console_port: int = Field(
        8090, ge=0, le=65535, description="port of the console; `ingest dev` takes a free one if it is taken"
    )
    console_token: SecretStr = Field(
        SecretStr(""),
        description="password of the console, at least 16 characters; needed if it listens on an address that is "
        "not loopback, unless INGEST_CONSOLE_USER_HEADER is set",
    )
    console_allow_actions: bool = Field(
        False, description="the console may redrive, export and delete dead letters; otherwise it only reads"
    )
    console_user_header: str = Field(
        "",
        description="header in which a proxy that authenticates users, such as oauth2-proxy, names the user to the "
        "console; let only the proxy reach the console",
    )
    watchdog: float = Field(
        60.0,
        gt=0,
        le=3600,
        description="report not ready if deliveries are held but none was settled for this time, seconds",
    )
    tracing: bool = Field(
        False, description="record traces with OpenTelemetry (extra `otel`); OTEL_* variables configure it"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="debug, info, warning, error")
    log_format: Literal["auto", "json", "console"] = Field(
        "auto", description="json, console (text), or auto: console on a terminal, else json"
    )

    @field_validator("trusted_users", mode="before")
    @classmethod
    def _decode_users(cls, value: Any) -> Any:
        try:
            decoded = json.loads(value or "[]") if isinstance(value, str) else value
        except ValueError:
            decoded = None
        if not isinstance(decoded, list | frozenset) or not all(isinstance(user, str) for user in decoded):
            raise ValueError('it must be a JSON list, such as ["shim", "worker"]')
        return decoded

    @field_validator("broker_url", "store_url", "management_url")
    @classmethod
    def _check_url(cls, value: SecretStr, info: ValidationInfo) -> SecretStr:
        name = str(info.field_name)
        schemes, example = _URLS[name]
        url = value.get_secret_value()
        if url.partition("://")[0] in schemes:
            hosts = parse_multi_host_url(url, _variable(name), example).hosts()
            if name == "management_url" and len(hosts) > 1:
                raise ConfigurationError(f"{_variable(name)}: it can have one host only; it must look like {example}")
        return value

    @model_validator(mode="after")
    def _check_lease(self) -> Self:
        # An admission must succeed or fail before its lease ends.
        if self.lease < self.request_deadline + self.confirm_timeout:
            raise ValueError("INGEST_LEASE must be at least INGEST_REQUEST_DEADLINE plus INGEST_CONFIRM_TIMEOUT")
        # A delivery may wait until the lease of another attempt ends; that is not a stall.
        if self.watchdog <= self.lease:
            raise ValueError("INGEST_WATCHDOG must be above INGEST_LEASE")
        return self

    @property
    def broker(self) -> str:
        """The broker's URL, with its password."""
        return self.broker_url.get_secret_value() or f"sqlite:///{self.data_dir}/queue.db"

    @property
    def store(self) -> str:
        """The store's URL, with its password."""
        return self.store_url.get_secret_value() or f"sqlite:///{self.data_dir}/store.db"

    @property
    def layout(self) -> topology.Layout:
        """The number of queues of the shim on RabbitMQ."""
        return topology.Layout(self.http_queues, self.heavy_queues)

    @property
    def dependencies(self) -> dict[str, dict[str, str]]:
        """Where broker and store are (hosts or a file, without passwords), and which setting says so."""
        return {
            "broker": {"setting": _named(self.broker_url, "BROKER_URL"), "at": _place(self.broker)},
            "store": {"setting": _named(self.store_url, "STORE_URL"), "at": _place(self.store)},
        }


def load(**overrides: object) -> Settings:
    """Read settings from the environment; overrides that are not None take precedence.

    Raises:
        ConfigurationError: a value is invalid; the message names the variable and the problem.
    """
    changes = {name: value for name, value in overrides.items() if value is not None}
    try:
        return Settings(**changes)  # type: ignore[arg-type]
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        name = f"{_variable(str(first['loc'][0]))}: " if first["loc"] else ""
        raise ConfigurationError(name + first["msg"].removeprefix("Value error, ")) from None


class Described(NamedTuple):
    """A setting: its variable, its default as text, what it means, and whether its value can contain a password."""

    variable: str
    default: str
    meaning: str
    secret: bool


def described() -> list[Described]:
    """Return all settings."""
    return [
        Described(
            _variable(name), _default(field.default), field.description or "", isinstance(field.default, SecretStr)
        )
        for name, field in Settings.model_fields.items()
    ]


def shown(setting: Described, environment: Mapping[str, str]) -> str | None:
    """Return the value of a setting in an environment as it may be shown; None if it is not set.

    It is the text of the variable, valid or not. Of a URL, whatever could be a password is left out.
    """
    by_name = {name.upper(): value for name, value in environment.items()}  # as they are read
    value = by_name.get(setting.variable)
    if value is None or not setting.secret:
        return value
    scheme, separator, rest = value.partition("://")
    if setting.variable not in map(_variable, _URLS):
        return "***" if value else ""
    credentials, at, place = rest.rpartition("@")
    if not separator or not (at or _HOSTS.match(place)):
        return "***" if value else ""
    user, colon, _ = credentials.partition(":")
    return f"{scheme}://{user}{':***' if colon else ''}{at}{place}"


def unknown_variables(names: Iterable[str]) -> dict[str, str]:
    """Return those variables that begin as settings do and are none, each with the closest setting or ""."""
    known = [setting.variable for setting in described()]
    return {
        name: next(iter(difflib.get_close_matches(name, known, 1, 0.8)), "")
        for name in sorted(names)
        if name.startswith("INGEST_") and name not in known and not name.startswith("INGEST_TEST_")
    }


def misspelt(name: str, closest: str) -> str:
    """Return a sentence about an unknown variable."""
    return f"{name} is not a setting" + (f": did you mean {closest}?" if closest else "")


def _named(url: SecretStr, name: str) -> str:
    return f"INGEST_{name if url.get_secret_value() else 'DATA_DIR'}"


def _place(url: str) -> str:
    """Return the hosts of a server's URL, or the path of a file's."""
    parts = urlsplit(url)
    return parts.path[1:] if parts.scheme == "sqlite" else parts.netloc.rpartition("@")[2]


def _variable(name: str) -> str:
    return f"INGEST_{name.upper()}"


def _default(value: object) -> str:
    if value is None or isinstance(value, (SecretStr, frozenset)):
        return ""
    return str(value)
