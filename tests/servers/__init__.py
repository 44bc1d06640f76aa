"""Private servers for tests and benchmarks: on free ports, in temporary directories."""

from tests.servers.aerospike import AerospikeServer, until_ready
from tests.servers.aerospike_cluster import AerospikeCluster
from tests.servers.process import Unavailable
from tests.servers.prometheus import PrometheusServer
from tests.servers.rabbitmq import RabbitServer

__all__ = ["AerospikeCluster", "AerospikeServer", "PrometheusServer", "RabbitServer", "Unavailable", "until_ready"]
