"""Private servers for tests and benchmarks: on free ports, in temporary directories."""

from tests.servers.aerospike import AerospikeCluster, AerospikeServer, until_ready
from tests.servers.process import Unavailable
from tests.servers.prometheus import PrometheusServer
from tests.servers.rabbitmq import RabbitServer

__all__ = ["AerospikeCluster", "AerospikeServer", "PrometheusServer", "RabbitServer", "Unavailable", "until_ready"]
