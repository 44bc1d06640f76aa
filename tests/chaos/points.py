"""The points at which a process can be made to kill itself."""

from typing import Final

AFTER_CLAIM: Final = "after-claim"
AFTER_CHARGE: Final = "after-charge"
MID_EXPANSION: Final = "mid-expansion"
AFTER_PUBLISH: Final = "after-publish"
AFTER_SETTLE: Final = "after-settle"
