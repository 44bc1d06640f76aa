"""aerospike.conf on a real server."""

import resource
import shutil

import aerospike
import pytest

from tests.deploy.files import DEPLOY
from tests.servers.aerospike import launch
from tests.servers.process import PrivateServer, free_ports, wait_until


@pytest.mark.skipif(not shutil.which("asd"), reason="no asd is on PATH")
def test_asd_starts_with_the_configuration_and_stores_records_with_a_ttl() -> None:
    service, heartbeat, fabric, admin = free_ports(4)
    hosts = {"hosts": [("127.0.0.1", service)]}
    process = PrivateServer("aerospike")
    home = process.directory
    for name in ("state/smd", "state/lua", "data"):
        (home / name).mkdir(parents=True)
    text = (DEPLOY / "aerospike/aerospike.conf").read_text()
    # A private node needs directories, free ports and little memory; all other lines stay as they are.
    replacements = {
        "cluster-name ingest": f"cluster-name ingest\nwork-directory {home}/state\npidfile {home}/pid",
        "network {": f"mod-lua {{\nuser-path {home}/state/lua\n}}\nnetwork {{\nadmin {{\naddress any\nport {admin}\n}}",
        "nsup-period 120": "nsup-period 120\nindex-stage-size 128M\nsindex-stage-size 128M",
        "port 3000": f"port {service}",
        "port 3001": f"port {fabric}",
        "port 3002": f"port {heartbeat}",
        "address any": "address 127.0.0.1",
        "/opt/aerospike/data": f"{home}/data",
        "filesize 16G": "filesize 256M",
    }
    for old, new in replacements.items():
        assert old in text, old
        text = text.replace(old, new)
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < 15000:
        text = text.replace("proto-fd-max 15000", "proto-fd-max 1000")
    (home / "aerospike.conf").write_text(text)
    try:
        launch(process)

        def store_record() -> None:
            policy = {"ttl": 7 * 86_400}
            aerospike.client(hosts).put(("ingest", "ledger", "id"), {"phase": "queued"}, policy=policy)

        wait_until(store_record, "asd", 30)
        client = aerospike.client(hosts)
        info = client.info_random_node("namespace/ingest").split("\t")[-1]
        values = dict(pair.split("=", 1) for pair in info.strip().split(";") if "=" in pair)
        assert values["nsup-period"] == "120"
        assert values["storage-engine.flush-max-ms"] == "100"
        # Aerospike refuses writes instead of evicting records before their time.
        assert values["evict-indexes-memory-pct"] == values["storage-engine.evict-used-pct"] == "0"
        assert values["stop-writes-sys-memory-pct"] == "90"
        assert values["stop_writes"] == "false"
        assert 0 < client.exists(("ingest", "ledger", "id"))[1]["ttl"] <= 7 * 86_400
        client.close()
    finally:
        process.stop()
