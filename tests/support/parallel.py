"""Worker processes of pytest-xdist: which files they run side by side, and what they report at the end."""

from typing import Any, Final

import pytest

from tests.support import summary

ALONE: Final = (
    "tests/chaos/test_chaos.py",
    "tests/e2e/test_http_limits.py",
    "tests/e2e/test_isolation.py",
)
"""Files whose tests measure time or use all cores: they run last, in one process."""
FIRST: Final = ("tests/simulation/test_simulation.py",)
"""Files that take long: they begin first, so that no process has much left to do when the others have ended."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object:
    """With `--dist loadfile`, run the files in FIRST first, and those in ALONE when all others have ended."""
    return _scheduler(config, log) if config.getvalue("dist") == "loadfile" else None


def pytest_sessionfinish(session: pytest.Session) -> None:
    """In a worker process, report what its servers ran on."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["servers"] = summary.origins


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Note what a worker process has reported. One that has crashed reports nothing."""
    for name, origins in getattr(node, "workeroutput", {}).get("servers", {}).items():
        for origin in origins:
            summary.note_server(name, origin)


def _scheduler(config: pytest.Config, log: Any) -> object:
    from xdist.scheduler import LoadFileScheduling  # not installed where only hypothesis and pytest are

    class AloneLast(LoadFileScheduling):  # type: ignore[misc]  # xdist has no annotations for other packages
        """Gives each process one file at a time, and those in ALONE to the only process that remains at the end."""

        def _assign_work_unit(self, node: Any) -> None:
            files = [file for file in self.workqueue if not file.startswith(ALONE)]
            file = next((file for file in files if file.startswith(FIRST)), files[0] if files else None)
            if file is not None:
                self.workqueue.move_to_end(file, last=False)
            elif len(self.nodes) > 1:
                return
            super()._assign_work_unit(node)

        def _reschedule(self, node: Any) -> None:
            only_alone = bool(self.workqueue) and all(file.startswith(ALONE) for file in self.workqueue)
            if not only_alone or len(self.nodes) == 1:
                super()._reschedule(node)
            elif not node.shutting_down and any(not other.shutting_down for other in self.nodes if other is not node):
                node.shutdown()

        def remove_node(self, node: Any) -> str | None:
            crashed: str | None = super().remove_node(node)
            if self.collection is not None:
                for other in self.nodes:
                    self._reschedule(other)
            return crashed

    return AloneLast(config, log)
