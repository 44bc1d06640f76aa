"""A private Prometheus server: `prometheus` on PATH."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.servers.process import PrivateServer, Server, Unavailable, free_ports, wait_until


class PrometheusServer(Server):
    """Runs a configuration with other targets. Raises Unavailable.

    Args:
        config: a prometheus.yml; its rule files are loaded from its directory.
        targets: job to addresses; they replace the targets of the file.
    """

    def __init__(self, config: Path, targets: Mapping[str, list[str]]) -> None:
        super().__init__()
        if not shutil.which("prometheus"):
            raise Unavailable("prometheus is not on PATH (install Debian's package `prometheus`)")
        self._process = process = PrivateServer("prometheus")
        (port,) = free_ports(1)
        self.url, self.origin = f"http://127.0.0.1:{port}", "prometheus on PATH"
        document = yaml.safe_load(config.read_text())
        document["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        document["rule_files"] = [str(config.parent / name) for name in document["rule_files"]]
        for job in document["scrape_configs"]:
            job.pop("dns_sd_configs", None)
            job["static_configs"] = [{"targets": targets[job["job_name"]]}]
        (process.directory / "prometheus.yml").write_text(yaml.safe_dump(document))
        directory = process.directory
        process.launch(
            [
                "prometheus",
                f"--config.file={directory}/prometheus.yml",
                f"--storage.tsdb.path={directory}/data",
                f"--web.listen-address=127.0.0.1:{port}",
            ]
        )
        wait_until(lambda: httpx.get(f"{self.url}/-/ready").status_code == 200, "prometheus", 30)

    def api(self, path: str, **parameters: str) -> Any:
        """Return the `data` of an answer of the HTTP API. Raises httpx.HTTPStatusError."""
        response = httpx.get(f"{self.url}/api/v1/{path}", params=parameters, timeout=30)
        response.raise_for_status()
        return response.json()["data"]

    def query(self, promql: str) -> list[Any]:
        """Return the series of an instant query."""
        return list(self.api("query", query=promql)["result"])
