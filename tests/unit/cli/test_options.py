"""Values of options: sizes."""

import pytest

from ingest.cli.options import byte_count, size_text
from ingest.domain.errors import ConfigurationError


@pytest.mark.parametrize(("text", "count"), [("1KiB", 1024), ("256MiB", 256 * 2**20), ("3GiB", 3 * 2**30)])
def test_size_is_a_number_with_a_unit(text: str, count: int) -> None:
    assert byte_count(text, "--keep") == count


@pytest.mark.parametrize("text", ["", "1", "0GiB", "1GB", "1 GiB", "1.5GiB", "-1GiB", "1gib", "12345678KiB", "1GiB\n"])
def test_other_size_is_refused_with_the_name_of_the_option(text: str) -> None:
    with pytest.raises(ConfigurationError, match="--keep must be a size such as 512KiB"):
        byte_count(text, "--keep")


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 bytes"), (1023, "1,023 bytes"), (1536, "1.5 KiB"), (2**40, "1,024.0 GiB")]
)
def test_number_of_bytes_is_shown_in_its_largest_unit(count: int, text: str) -> None:
    assert size_text(count) == text
