"""The progress of a command on dead letters."""

import pytest

from ingest.cli.dlq_session import ProgressBar


@pytest.mark.parametrize("undated", [0, 2])
def test_command_says_how_many_dead_letters_of_unknown_age_it_left_out(
    undated: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with ProgressBar().of(5) as progress:
        progress.undated = undated
    assert ("left out 2 of unknown age" in capsys.readouterr().err) == bool(undated)
