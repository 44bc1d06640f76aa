"""Result codes of Aerospike: https://aerospike.com/docs/develop/client/error-codes"""

from typing import Final

OK: Final = 0
NOT_FOUND: Final = 2
GENERATION: Final = 3
EXISTS: Final = 5
KEY_BUSY: Final = 14
FORBIDDEN: Final = 22
FILTERED_OUT: Final = 27
