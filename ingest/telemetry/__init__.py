"""Metrics, health, traces and logs. They decorate the ports, so the flow itself contains little of them.

- ``logs``        structlog, without secrets.
- ``prometheus``  the meter with prometheus_client, for one process or several.
- ``decorators``  base classes of decorators.
- ``broker``      measures publishers and consumers.
- ``store``       measures the store and admission.
- ``http``        measures an ASGI application.
- ``tracing``     adds spans to requests and messages.
- ``otel``        sets up OpenTelemetry; the only module that needs its SDK.
- ``process``     the telemetry of one process, put together.
- ``health``      whether a process is ready, and why not; the watchdog.
- ``reports``     the files that the processes of one supervisor share.
- ``exposition``  `/metrics`, `/healthz` and `/readyz` on a separate port.
"""
