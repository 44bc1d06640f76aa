"""Customers and their API keys."""

import hashlib
import re
import secrets
import string
from typing import Annotated

import msgspec

from ingest.domain.rates import RateLimit

DAY = 86_400
LAST_CHARACTER = "\U0010ffff"
"""No character is after it in the order of the stores: the end of all ids with the same beginning."""
DEFAULT_RETENTION = 7 * DAY
KEYLESS_RETENTION = 1 * DAY

_CUST_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_KEY_PREFIX = "asg_live_"
_BASE62 = string.digits + string.ascii_letters


class Customer(msgspec.Struct, frozen=True, kw_only=True):
    """A customer. A change is a new value that is saved as a whole.

    `monthly_quota` limits the new tasks of a calendar month (UTC); None is unlimited. `retention` is how long a key is
    remembered, in seconds. `strict` answers another body under a used key with 422 instead of a replay. `webhooks` are
    the accepted values of `callback_url`, compared exactly. Of a `disabled` customer nothing new is accepted; what was
    admitted before is. `rate` limits the submissions over HTTP; None is unlimited. `weight`, above 0, is how much
    more it gets than a customer with weight 1: of a worker's time for its own queues, and of traffic until it is heavy.
    """

    cust_id: str
    monthly_quota: int | None = None
    retention: int = DEFAULT_RETENTION
    strict: bool = False
    webhooks: frozenset[str] = frozenset()
    disabled: bool = False
    rate: RateLimit | None = None
    weight: Annotated[float, msgspec.Meta(gt=0)] = 1.0


class ApiKey(msgspec.Struct, frozen=True, kw_only=True):
    """An API key as it is stored, without the key itself.

    `name` says what the key is for. Times are in Unix milliseconds. `last_used_at` is about an hour exact; None if no
    use was recorded.
    """

    key_id: str
    cust_id: str
    key_hash: bytes
    created_at: int
    revoked: bool = False
    name: str = ""
    last_used_at: int | None = None


def retention_of(retention: int, *, keyed: bool) -> int:
    """How long a submission is remembered, in seconds. An unkeyed one cannot be repeated, so one day is enough."""
    return retention if keyed else min(KEYLESS_RETENTION, retention)


def is_cust_id(value: str) -> bool:
    """Return whether `value` can be a cust_id: 1 to 64 letters, digits, `_` or `-` (one word of a routing key)."""
    return _CUST_ID.fullmatch(value) is not None


def new_api_key() -> str:
    """Return a new API key: `asg_live_` and 32 random base62 characters (190 bits)."""
    return _KEY_PREFIX + "".join(secrets.choice(_BASE62) for _ in range(32))


def hash_api_key(api_key: str) -> bytes:
    """SHA-256 of the key, 32 bytes. Keys are random, so they need neither salt nor stretching."""
    return hashlib.sha256(api_key.encode("utf-8", "surrogateescape")).digest()


def key_id_of(key_hash: bytes) -> str:
    """Return the public name of a key: `key_` and the first 12 hex digits of its hash. It can be logged."""
    return "key_" + key_hash.hex()[:12]
