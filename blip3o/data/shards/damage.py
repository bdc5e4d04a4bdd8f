"""The error of a sample that cannot be used."""

from blip3o.errors import DataError


class DamagedSampleError(DataError):
    """A sample that cannot be used; `reason` is what the ledger says of it."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
