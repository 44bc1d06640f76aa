"""What a page of dead letters selects, as its address says."""

from collections.abc import Mapping
from urllib.parse import urlencode

import msgspec

from ingest.operations.dead_letters import Selection
from ingest.operations.parameters import seconds


class Filter(msgspec.Struct, frozen=True):
    """Selects dead letters. An empty text does not restrict. Ages are texts such as `7d`."""

    id: str = ""
    reason: str = ""
    customer: str = ""
    without_customer: str = ""
    """If set, select only dead letters without a customer."""
    older: str = ""
    newer: str = ""

    @property
    def query(self) -> str:
        """The query of an address that selects the same."""
        return urlencode({name: value for name, value in msgspec.structs.asdict(self).items() if value})

    @property
    def words(self) -> str:
        """What is selected, for people: `invalid of acme, older than 7d`."""
        of = f" of {self.customer}" if self.customer else " without a customer" if self.without_customer else ""
        ages = [f"{name} than {age}" for name, age in (("older", self.older), ("newer", self.newer)) if age]
        return ", ".join([f"{self.id or self.reason or 'all'}{of}", *ages])

    def selection(self) -> Selection:
        """Return it as a selection. Raises ConfigurationError if an age is invalid."""
        return Selection(
            ids=frozenset({self.id}) if self.id else frozenset(),
            reasons=frozenset({self.reason}) if self.reason else frozenset(),
            customer=self.customer or ("" if self.without_customer else None),
            older_than=seconds(self.older, "older than") if self.older else None,
            newer_than=seconds(self.newer, "newer than") if self.newer else None,
        )


def filter_of(query: Mapping[str, str]) -> Filter:
    """Return the filter in a query. Ids and names are taken as they are: producers choose some of them."""
    chosen = Filter(**{name: query.get(name, "") for name in Filter.__struct_fields__})
    return msgspec.structs.replace(chosen, older=chosen.older.strip(), newer=chosen.newer.strip())
