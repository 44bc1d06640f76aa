"""Containers of the images that deploy/docker-compose.yml names, on the local Docker engine."""

import functools
import shutil
import subprocess
from pathlib import Path
from typing import Any, Final

import yaml

COMPOSE: Final = Path(__file__).parents[2] / "deploy/docker-compose.yml"
OPEN_FILES: Final = 20_000
"""Aerospike ends if it may open fewer files than `proto-fd-max` and some more; the engine's default is often 1,024."""


def deployed_image(service: str) -> str:
    """Return the image of a service in the compose file."""
    image: str = yaml.safe_load(COMPOSE.read_text())["services"][service]["image"]
    return image


@functools.cache
def docker_has(image: str) -> bool:
    """Return whether a Docker engine answers and has the image or can pull it."""
    return _succeeds("info", seconds=10) and (
        _succeeds("image", "inspect", image, seconds=10) or _succeeds("pull", "--quiet", image, seconds=300)
    )


def new_container(image: str, ports: dict[int, int]) -> Any:
    """Return a container that is not started yet.

    Args:
        image: an image that the engine has.
        ports: port of the container to port of this host's loopback interface.
    """
    from testcontainers.core.config import testcontainers_config
    from testcontainers.core.container import DockerContainer

    # Ryuk removes the containers of tests that were killed. Without its image, only tests that end remove theirs.
    testcontainers_config.ryuk_disabled |= not docker_has(testcontainers_config.ryuk_image)
    container: Any = DockerContainer(image)
    container.with_kwargs(ulimits=[{"name": "nofile", "soft": OPEN_FILES, "hard": OPEN_FILES}])
    container.ports = {inner: ("127.0.0.1", outer) for inner, outer in ports.items()}
    return container


def _succeeds(*arguments: str, seconds: float) -> bool:
    if shutil.which("docker") is None:
        return False
    try:
        return subprocess.run(["docker", *arguments], capture_output=True, timeout=seconds, check=False).returncode == 0
    except subprocess.TimeoutExpired:
        return False
