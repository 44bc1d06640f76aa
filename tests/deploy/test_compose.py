"""docker-compose.yml."""

import re
from typing import Any

import compose_spec
import pytest
import yaml

from ingest import settings
from tests.deploy.files import DEPLOY, load

TEXT = (DEPLOY / "docker-compose.yml").read_text()
SERVICES: dict[str, Any] = load(DEPLOY / "docker-compose.yml")["services"]
OURS = ("topology", "shim", "worker")


def test_it_follows_the_compose_specification() -> None:
    """Unknown keys and wrong types are refused."""
    document = load(DEPLOY / "docker-compose.yml")  # merge keys are YAML's, not the specification's
    compose_spec.PyCompose.from_yaml(yaml.safe_dump(document))
    document["services"]["shim"]["bogus"] = 1
    with pytest.raises(ValueError, match="bogus"):
        compose_spec.PyCompose.from_yaml(yaml.safe_dump(document))


def test_what_it_names_exists() -> None:
    """Files mounted, volumes, secrets, services waited for, and settings."""
    document = load(DEPLOY / "docker-compose.yml")
    known = {name for name, _, _ in settings.described()}
    for service in SERVICES.values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert (DEPLOY / source).exists() if source.startswith(".") else source in document["volumes"]
        assert set(service.get("secrets", [])) <= set(document["secrets"])
        assert set(service.get("depends_on", [])) <= set(SERVICES)
        assert {name for name in service.get("environment", {}) if name.startswith("INGEST_")} <= known


def test_no_password_has_a_default() -> None:
    """Compose stops with a message where one is not given."""
    passwords = re.findall(r"\$\{(\w+)(\S*)", TEXT)
    assert passwords
    assert all(name.endswith("_PASSWORD") and rest.startswith(":?") for name, rest in passwords)


def test_ours_have_no_rights_and_time_to_stop() -> None:
    """Read-only, no capabilities, no new privileges; longer to stop than the service takes."""
    for name in OURS:
        service = SERVICES[name]
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        if name != "topology":
            assert service["read_only"]
            assert int(service["stop_grace_period"].removesuffix("s")) > settings.load().shutdown_deadline + 5


def test_what_is_scraped_is_a_service() -> None:
    """Prometheus finds shim, workers and RabbitMQ under the names that they have here."""
    jobs = {job["job_name"]: job for job in load(DEPLOY / "prometheus/prometheus.yml")["scrape_configs"]}
    named = {name for job in jobs.values() for each in job.get("dns_sd_configs", []) for name in each["names"]}
    named |= {
        target.split(":")[0]
        for job in jobs.values()
        for each in job.get("static_configs", [])
        for target in each["targets"]
    }
    assert named == {"shim", "worker", "rabbitmq"}
    assert named <= set(SERVICES)


def test_grafana_finds_datasource_and_dashboard() -> None:
    """The provisioned datasource is the one that the dashboard's variable has, at the service's address."""
    (source,) = load(DEPLOY / "grafana/provisioning/datasources/prometheus.yml")["datasources"]
    assert source["url"] == "http://prometheus:9090"
    (provider,) = load(DEPLOY / "grafana/provisioning/dashboards/ingest.yml")["providers"]
    assert f"./grafana/dashboards:{provider['options']['path']}:ro" in SERVICES["grafana"]["volumes"]
    variable = load(DEPLOY / "grafana/dashboards/ingest.json")["templating"]["list"][0]
    assert variable["current"]["value"] == source["uid"]
