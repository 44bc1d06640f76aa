"""TLS to RabbitMQ: the certificates of the settings are used for AMQP and for the management API, or refused."""

import contextlib
import json
import ssl
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import trustme

from ingest import settings
from ingest.backends import require_rabbitmq
from ingest.broker.rabbitmq.management import Management
from ingest.domain.errors import BrokerUnavailable, ConfigurationError
from tests.support.served import served


class _Overview(BaseHTTPRequestHandler):
    """Answers with the path and the subject of the client's certificate."""

    connection: ssl.SSLSocket

    def do_GET(self) -> None:
        certificate = self.connection.getpeercert() or {}
        body = json.dumps({"path": self.path, "subject": certificate.get("subject")}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Print nothing."""


class Api:
    """An https server with a certificate of a private authority, whose files are in a directory."""

    def __init__(self, directory: Path) -> None:
        self.authority = trustme.CA()
        self.ca = directory / "ca.pem"
        self.authority.cert_pem.write_to_path(str(self.ca))
        client = self.authority.issue_cert("ingest.example", common_name="ingest")
        self.certificate, self.key = directory / "client.pem", directory / "client.key"
        client.cert_chain_pems[0].write_to_path(str(self.certificate))
        client.private_key_pem.write_to_path(str(self.key))

    @contextlib.contextmanager
    def running(self, *, client_certificate: bool = False) -> Iterator[str]:
        """Serve in a thread; yield the URL."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.authority.issue_cert("127.0.0.1").configure_cert(context)
        if client_certificate:
            context.verify_mode = ssl.CERT_REQUIRED
            self.authority.configure_trust(context)
        server = ThreadingHTTPServer(("127.0.0.1", 0), _Overview)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        server.handle_error = lambda *_: None  # type: ignore[method-assign]  # refused handshakes
        with served(server):
            yield f"https://user:S3cretPw@127.0.0.1:{server.server_port}"


@pytest.fixture
def api(tmp_path: Path) -> Api:
    return Api(tmp_path)


def management(url: str, broker_url: str = "amqps://h/", **files: Path) -> Management:
    """Return the client that every command uses."""
    current = settings.load(broker_url=broker_url, management_url=url, **files)
    client = require_rabbitmq(current, "test").management
    assert client is not None
    return client


@pytest.mark.parametrize("broker_url", ["amqps://h/", "amqp://h/"])
def test_management_api_is_trusted_with_the_authority_of_the_settings(api: Api, broker_url: str) -> None:
    with api.running() as url:
        assert management(url, broker_url, broker_cafile=api.ca).get("overview")["path"] == "/api/overview"


def test_management_api_gets_the_client_certificate_of_the_settings(api: Api) -> None:
    with api.running(client_certificate=True) as url:
        client = management(url, broker_cafile=api.ca, broker_certfile=api.certificate, broker_keyfile=api.key)
        assert ["commonName", "ingest"] in [pair for part in client.get("overview")["subject"] for pair in part]
        with pytest.raises(BrokerUnavailable):
            management(url, broker_cafile=api.ca).get("overview")


def test_unknown_authority_of_the_management_api_names_the_setting_to_use(api: Api) -> None:
    with api.running() as url, pytest.raises(BrokerUnavailable) as caught:
        management(url).get("overview")
    assert "CERTIFICATE_VERIFY_FAILED" in str(caught.value)
    assert "set INGEST_BROKER_CAFILE" in str(caught.value)
    assert "S3cretPw" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("http://h", "http://h:15672/api"),
        ("https://h", "https://h:15671/api"),
        ("https://h:443/", "https://h:443/api"),
        ("http://u:p@[::1]:1", "http://[::1]:1/api"),
    ],
)
def test_address_of_the_management_api_has_the_port_of_its_scheme(url: str, base: str) -> None:
    assert Management(url, "/").base == base


@pytest.mark.parametrize("end", ["?verify=false", "/prefix", "#part"])
def test_management_url_with_more_than_host_and_port_is_refused(end: str) -> None:
    """It was ignored."""
    with pytest.raises(ConfigurationError, match="INGEST_MANAGEMENT_URL") as caught:
        Management(f"https://user:S3cretPw@h:15671{end}", "/")
    assert "S3cretPw" not in str(caught.value)


@pytest.mark.parametrize("name", ["cafile", "certfile", "keyfile"])
@pytest.mark.parametrize("management_url", ["", "http://h:15672"])
def test_certificate_without_tls_is_refused(api: Api, name: str, management_url: str) -> None:
    """Otherwise it would look as if the connection were encrypted."""
    current = settings.load(broker_url="amqp://h/", management_url=management_url, **{f"broker_{name}": api.ca})
    with pytest.raises(ConfigurationError, match=f"INGEST_BROKER_{name.upper()} .*amqps://"):
        require_rabbitmq(current, "test")


def test_key_without_its_certificate_is_refused(api: Api) -> None:
    current = settings.load(broker_url="amqps://h/", broker_keyfile=api.key)
    with pytest.raises(ConfigurationError, match="INGEST_BROKER_KEYFILE needs INGEST_BROKER_CERTFILE"):
        require_rabbitmq(current, "test")


@pytest.mark.parametrize(
    ("query", "problem"),
    [
        ("no_verify_ssl=1", "no_verify_ssl"),
        ("cafile=/ca.pem", "cafile.*INGEST_BROKER_CAFILE"),
        ("heartbeat=1", "heartbeat"),
        ("AUTH=external", "AUTH"),
        ("auth=extrenal", "auth must be"),
        ("auth=", "auth must be"),
        ("auth=plain&auth=plain", "twice"),
    ],
)
async def test_option_of_the_broker_url_that_is_not_understood_is_refused(query: str, problem: str) -> None:
    backend = require_rabbitmq(settings.load(broker_url=f"amqps://user:S3cretPw@h/v?{query}"), "test")
    with pytest.raises(ConfigurationError, match=f"INGEST_BROKER_URL.*{problem}") as caught:
        await backend.open("test")
    assert "S3cretPw" not in str(caught.value)
