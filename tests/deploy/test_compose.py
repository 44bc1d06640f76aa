"""docker-compose.yml."""

import re
from typing import Any

import compose_spec
import pytest
import yaml

from ingest import settings
from tests.deploy.files import DEPLOY, load_yaml

TEXT = (DEPLOY / "docker-compose.yml").read_text()
SERVICES: dict[str, Any] = load_yaml(DEPLOY / "docker-compose.yml")["services"]
INGEST_SERVICES = ("topology", "shim", "worker", "trim", "operator", "console")


def test_compose_file_is_valid_and_validation_refuses_an_unknown_key() -> None:
    document = load_yaml(DEPLOY / "docker-compose.yml")  # resolves YAML merge keys, which the specification lacks
    compose_spec.PyCompose.from_yaml(yaml.safe_dump(document))
    document["services"]["shim"]["bogus"] = 1
    with pytest.raises(ValueError, match="bogus"):
        compose_spec.PyCompose.from_yaml(yaml.safe_dump(document))


def test_files_volumes_secrets_services_and_settings_of_every_service_exist() -> None:
    document = load_yaml(DEPLOY / "docker-compose.yml")
    known_settings = {setting.variable for setting in settings.described()}
    for service in SERVICES.values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert (DEPLOY / source).exists() if source.startswith(".") else source in document["volumes"]
        assert set(service.get("secrets", [])) <= set(document["secrets"])
        assert set(service.get("depends_on", [])) <= set(SERVICES)
        assert {name for name in service.get("environment", {}) if name.startswith("INGEST_")} <= known_settings


def test_every_variable_is_a_password_without_a_default() -> None:
    """`:?` makes Compose stop with a message if the password is not set."""
    variables = re.findall(r"\$\{(\w+)(\S*)", TEXT)
    assert variables
    assert {name for name, _ in variables if not name.endswith("_PASSWORD")} == {"INGEST_CONSOLE_TOKEN"}
    assert all(operator.startswith(":?") for _, operator in variables)


def test_services_have_no_privileges_and_enough_time_to_stop() -> None:
    for name in INGEST_SERVICES:
        service = SERVICES[name]
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        if name != "topology":
            assert service["read_only"]
        if name in ("shim", "worker", "trim", "console"):
            assert int(service["stop_grace_period"].removesuffix("s")) > settings.load().shutdown_deadline + 5


def test_only_the_operator_has_credentials_for_the_management_api() -> None:
    """A shim or worker that is taken over cannot change policies."""
    holders = {name for name, service in SERVICES.items() if "RABBITMQ_OPERATOR_PASSWORD" in yaml.safe_dump(service)}
    assert holders == {"operator"}
    operator = SERVICES["operator"]
    assert operator["environment"]["INGEST_MANAGEMENT_URL"].startswith("http://operator:")
    assert operator["profiles"] == ["operator"]
    assert not {"ports", "depends_on", "restart", "deploy"} & set(operator)
    assert operator["healthcheck"] == {"disable": True}


def test_trim_sees_the_management_api_as_the_user_that_can_change_nothing() -> None:
    """On RabbitMQ 4, the policy of ingest.dead must be known before it is read."""
    service = SERVICES["trim"]
    assert service["command"][:2] == ["dlq", "trim"]
    assert "--every" in service["command"]
    assert set(service["environment"]) == {"INGEST_BROKER_URL", "INGEST_MANAGEMENT_URL"}
    assert service["environment"]["INGEST_MANAGEMENT_URL"].startswith("http://monitoring:")
    assert service["restart"] == "unless-stopped"
    assert service["healthcheck"] == {"disable": True}


def test_every_user_except_producers_gets_a_password() -> None:
    """Producers differ from one installation to the next: deploy/README.md says how to add one."""
    users = {user["name"] for user in load_yaml(DEPLOY / "rabbitmq/users.json")["users"]}
    secrets = load_yaml(DEPLOY / "docker-compose.yml")["secrets"]
    assert users - set(secrets) == {"acme"}
    assert set(SERVICES["topology"]["secrets"]) == set(secrets)


def test_tls_file_is_valid_and_replaces_the_broker_url_of_every_service_that_has_it() -> None:
    document = load_yaml(DEPLOY / "docker-compose.tls.yml")
    compose_spec.PyCompose.from_yaml(yaml.safe_dump(document))
    users = {name for name, service in SERVICES.items() if "INGEST_BROKER_URL" in service.get("environment", {})}
    assert set(document["services"]) == users | {"rabbitmq"}
    for name in users:
        environment = document["services"][name]["environment"]
        assert environment["INGEST_BROKER_URL"].startswith("amqps://ingest:")
        (mount,) = document["services"][name]["volumes"]
        assert mount.split(":")[1] == environment["INGEST_BROKER_CAFILE"]
    sources = {volume.split(":")[0] for volume in document["services"]["rabbitmq"]["volumes"]}
    assert sources == {"./rabbitmq/tls.conf", "./certificates"}


def test_own_image_is_built_and_never_pulled() -> None:
    """A registry may have an image of the same name."""
    own = {name: service for name, service in SERVICES.items() if service["image"] == "asg-ingest"}
    assert set(own) == set(INGEST_SERVICES)
    for name, service in own.items():
        assert service["pull_policy"] == "never", name
    assert [name for name, service in own.items() if "build" in service] == ["topology"]


def test_logs_are_rotated() -> None:
    for service in SERVICES.values():
        assert service["logging"]["options"] == {"max-size": "50m", "max-file": "5"}


def test_servers_may_open_as_many_files_as_they_need() -> None:
    """RabbitMQ and Aerospike do not raise the engine's soft limit, which is often 1,024."""
    configuration = (DEPLOY / "aerospike/aerospike.conf").read_text()
    (connections,) = map(int, re.findall(r"proto-fd-max (\d+)", configuration))
    for name, needed in (("aerospike", connections + 1000), ("rabbitmq", 16384)):
        limit = SERVICES[name]["ulimits"]["nofile"]
        assert limit["soft"] == limit["hard"] >= needed


def test_commands_that_end_run_under_an_init() -> None:
    """As process 1, a command without a handler would ignore SIGTERM."""
    assert {name for name, service in SERVICES.items() if service.get("init")} == {"topology", "operator"}


def test_every_port_is_published_on_this_host_only() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert {port.split(":")[-1] for port in ports} == {"8080", "15672", "9090", "3000", "8090"}
    assert [port for port in ports if not port.startswith("127.0.0.1:")] == []


def test_networks_let_only_those_reach_a_server_that_use_it() -> None:
    members: dict[str, set[str]] = {}
    for name, service in SERVICES.items():
        for network in service["networks"]:
            members.setdefault(network, set()).add(name)
    assert members == {
        "store": {"aerospike", "shim", "worker", "operator", "console"},
        "broker": {"rabbitmq", "topology", "shim", "worker", "trim", "operator", "console", "prometheus"},
        "dashboards": {"prometheus", "grafana"},
    }
    networks = load_yaml(DEPLOY / "docker-compose.yml")["networks"]
    assert set(networks) == set(members)
    assert networks["store"] == {"internal": True}, "Aerospike has no authentication"


def test_grafana_has_no_administrator_with_a_known_password() -> None:
    environment = SERVICES["grafana"]["environment"]
    assert environment["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"] == "true"
    assert environment["GF_AUTH_DISABLE_LOGIN_FORM"] == "true"
    assert environment["GF_AUTH_BASIC_ENABLED"] == "false"
    assert environment["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"


def test_prometheus_scrapes_services_by_their_names_in_the_compose_file() -> None:
    jobs = load_yaml(DEPLOY / "prometheus/prometheus.yml")["scrape_configs"]
    hosts = {name for job in jobs for config in job.get("dns_sd_configs", []) for name in config["names"]}
    hosts |= {
        target.split(":")[0] for job in jobs for config in job.get("static_configs", []) for target in config["targets"]
    }
    assert hosts == {"shim", "worker", "rabbitmq"}
    assert hosts <= set(SERVICES)


def test_grafana_provisions_the_dashboard_and_the_datasource_that_it_uses() -> None:
    (source,) = load_yaml(DEPLOY / "grafana/provisioning/datasources/prometheus.yml")["datasources"]
    assert source["url"] == "http://prometheus:9090"
    (provider,) = load_yaml(DEPLOY / "grafana/provisioning/dashboards/ingest.yml")["providers"]
    assert f"./grafana/dashboards:{provider['options']['path']}:ro" in SERVICES["grafana"]["volumes"]
    variable = load_yaml(DEPLOY / "grafana/dashboards/ingest.json")["templating"]["list"][0]
    assert variable["current"]["value"] == source["uid"]
