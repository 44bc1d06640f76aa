"""Converts ledger entries and API keys to Aerospike bins, and back."""

from typing import Any, Final

import aerospike
import msgspec

from ingest.domain.customers import ApiKey, Customer
from ingest.domain.errors import StoreUnavailable
from ingest.domain.ledger import Change, Doubt, Entry, Phase, Step


def _write(name: str, value: object) -> dict[str, Any]:
    # The same as operations.write without its checks, which would be most of what a claim costs in Python.
    return {"op": aerospike.OPERATOR_WRITE, "bin": name, "val": value}


ACCEPTED: Final = [_write("phase", Phase.ACCEPTED.value), _write("lease", 0)]
_TAKEN_OVER: Final = ("owner", "lease", "origin", "request_id", "trace_id", "fingerprint")
_QUEUED: Final = [_write("phase", Phase.QUEUED.value), _write("lease", 0)]


def write_all(entry: Entry) -> list[dict[str, Any]]:
    """Return the operations that write a whole entry."""
    op = aerospike.OPERATOR_WRITE  # written out, because eight calls of _write cost as much as the client itself
    ops = [
        {"op": op, "bin": "cust_id", "val": entry.cust_id},
        {"op": op, "bin": "created_at", "val": entry.created_at},
        {"op": op, "bin": "fingerprint", "val": entry.fingerprint},
        {"op": op, "bin": "retention", "val": entry.retention},
        {"op": op, "bin": "phase", "val": entry.phase.value},
        {"op": op, "bin": "owner", "val": entry.owner},
        {"op": op, "bin": "lease", "val": entry.lease},
        {"op": op, "bin": "origin", "val": entry.origin},
    ]
    if entry.request_id:
        ops.append({"op": op, "bin": "request_id", "val": entry.request_id})
    if entry.trace_id:
        ops.append({"op": op, "bin": "trace_id", "val": entry.trace_id})
    if entry.charged or entry.doubt:
        ops += _charge_bins(entry)
    if entry.task_count:
        ops += [_write("task_count", entry.task_count), _write("own_ids", entry.keyed_item_ids)]
    return ops


def write_step(change: Change) -> list[dict[str, Any]]:
    """Return the operations of a change that writes."""
    entry = change.entry
    if change.step is Step.TAKE_OVER:
        ops = [_write(name, getattr(entry, name)) for name in _TAKEN_OVER]
        if entry.doubt:
            ops.append(_write("doubt", entry.doubt.value))
        if entry.task_count:
            ops += [_write("task_count", entry.task_count), _write("own_ids", entry.keyed_item_ids)]
        return ops
    if change.step is Step.REPUBLISH:
        return [_write("owner", entry.owner), _write("lease", entry.lease)]
    if change.step is Step.QUEUE:
        return _QUEUED
    ops = [_write("lease", 0), *_charge_bins(entry)]
    if change.step is Step.REFUND:
        # The owner tells this refund from another one, if the answer is lost.
        ops.append(_write("owner", entry.owner))
    return ops


def _charge_bins(entry: Entry) -> list[dict[str, Any]]:
    # `in_doubt` needs the id; of the key, the server stores only a hash.
    return [
        _write("id", entry.id),
        _write("charged", entry.charged),
        _write("charged_month", entry.charged_month),
        _write("doubt", entry.doubt.value),
    ]


def read_entry(entry_id: str, generation: int, bins: dict[str, Any]) -> Entry:
    """Return the entry in a record."""
    return Entry(
        id=entry_id,
        cust_id=bins["cust_id"],
        created_at=bins["created_at"],
        fingerprint=bytes(bins["fingerprint"]),
        retention=bins["retention"],
        phase=Phase(bins["phase"]),
        owner=bins["owner"],
        lease=bins["lease"],
        charged=bins.get("charged", 0),
        charged_month=bins.get("charged_month", ""),
        doubt=Doubt(bins.get("doubt", "")),
        origin=bins["origin"],
        request_id=bins.get("request_id", ""),
        trace_id=bins.get("trace_id", ""),
        task_count=bins.get("task_count", 0),
        keyed_item_ids=bins.get("own_ids", {}),
        generation=generation,
    )


def read_customer(bins: dict[str, Any]) -> Customer:
    """Return the customer in a record. Raises StoreUnavailable if it is damaged, so that its submissions wait."""
    try:
        return msgspec.convert(bins, Customer)
    except msgspec.ValidationError as error:
        raise StoreUnavailable(f"the record of customer {bins.get('cust_id')} cannot be read: {error}") from error


KEY_INFO: Final = ("name", "last_used_at")
"""Fields of a key that have a record of their own: versions that do not know them refuse a key's record with more."""


def write_api_key(key: ApiKey) -> dict[str, Any]:
    """Return the bins of a key's record."""
    return {name: value for name, value in msgspec.structs.asdict(key).items() if name not in KEY_INFO}


def read_api_key(bins: dict[str, Any], info: dict[str, Any] | None = None) -> ApiKey:
    """Return the API key in a record, with the bins of its `key_info`."""
    known = {name: value for name, value in (bins | (info or {})).items() if name in ApiKey.__struct_fields__}
    return ApiKey(**known | {"key_hash": bytes(bins["key_hash"]), "revoked": bool(bins["revoked"])})
