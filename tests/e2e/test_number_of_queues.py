"""The number of queues of the shim, as an operator changes it."""

from pathlib import Path

from tests.e2e.processes import run_ingest
from tests.servers import RabbitServer


def test_operator_adds_and_removes_queues(rabbitmq: RabbitServer, rabbitmq_url: str, tmp_path: Path) -> None:
    env = {
        "INGEST_BROKER_URL": rabbitmq_url,
        "INGEST_MANAGEMENT_URL": rabbitmq.management_url.replace("//", "//guest:guest@"),
    }
    larger = env | {"INGEST_HTTP_QUEUES": "3"}

    def ingest(*arguments: str, env: dict[str, str] = env) -> tuple[int, str]:
        done = run_ingest(*arguments, env=env, directory=tmp_path)
        return done.returncode, done.stdout + done.stderr

    assert ingest("topology", "apply", env=larger)[0] == 0
    assert ingest("topology", "check", env=larger) == (0, "the broker matches the topology\n")
    surplus = "queue ingest.http.2 is surplus: its number is not below INGEST_HTTP_QUEUES or INGEST_HEAVY_QUEUES\n"
    assert ingest("topology", "check") == (1, surplus)
    code, output = ingest("topology", "apply")
    assert (code, "surplus queues: ingest.http.2: see --remove-surplus" in output) == (0, True), output
    assert ingest("topology", "check")[0] == 1, "nothing was removed"
    code, output = ingest("topology", "apply", "--remove-surplus")
    assert (code, "ingest.http.2 deleted" in output) == (0, True), output
    assert ingest("topology", "check")[0] == 0
    assert ingest("topology", "apply", env=env | {"INGEST_HTTP_QUEUES": "17"})[0] == 2
