"""Result codes of Aerospike: https://aerospike.com/docs/develop/client/error-codes"""

from typing import Final

NO_RESPONSE: Final = -15
"""The client sent nothing for the record, or got no answer."""
OK: Final = 0
NOT_FOUND: Final = 2
GENERATION: Final = 3
EXISTS: Final = 5
RECORD_TOO_BIG: Final = 13
KEY_BUSY: Final = 14
FORBIDDEN: Final = 22
FILTERED_OUT: Final = 27

OF_ONE_RECORD: Final = frozenset({RECORD_TOO_BIG, KEY_BUSY})
"""Results that concern one record. Any other result may mean that the cluster has trouble."""
