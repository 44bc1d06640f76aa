"""What is seen of the service: metrics, health, traces. It wraps the ports; the flow itself knows little of it.

- ``prometheus``  the meter on prometheus_client, for one process or several.
- ``broker``      a broker whose publishers and consumers are counted.
- ``store``       a store and an admission that are counted.
- ``http``        an ASGI application that is counted.
- ``health``      whether a process is ready, and why not; the watchdog.
- ``shared``      where the processes of one supervisor leave what they count and how they are.
- ``exposition``  `/metrics`, `/healthz` and `/readyz` on a port of their own.
"""
