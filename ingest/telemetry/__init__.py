"""What is seen of the service: metrics, health, traces. It wraps the ports; the flow itself knows little of it.

- ``prometheus``  the meter on prometheus_client, for one process or several.
- ``around``      adapters that pass everything through, to be derived from.
- ``broker``      a broker whose publishers and consumers are counted.
- ``store``       a store and an admission that are counted.
- ``http``        an ASGI application that is counted.
- ``tracing``     an application and a broker whose requests and messages have spans.
- ``otel``        OpenTelemetry set up, as its environment variables say; the only one that needs its SDK.
- ``process``     what one process puts together of all this.
- ``health``      whether a process is ready, and why not; the watchdog.
- ``shared``      where the processes of one supervisor leave what they count and how they are.
- ``exposition``  `/metrics`, `/healthz` and `/readyz` on a port of their own.
"""
