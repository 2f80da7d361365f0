"""Are the data still those that were published? Asked before every start of a worker, by hashing every file.

A record lists the hash of each file. A file that changed, is gone, or has come since is a different dataset, which the
policy's custodian has not looked at: it is refused until it is published again.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from msfl.policies.documents import DatasetRecord

# Where a worker looks for cases; what lies elsewhere in the folder it never reads.
_SPLITS = ("imagesTr", "labelsTr", "imagesTs", "labelsTs")


def changed_file(record: DatasetRecord, folder: Path) -> str | None:
    """The first path below `folder` that is not as `record` says; None when all are."""
    present = {f"{split}/{p.name}" for split in _SPLITS for p in (folder / split).glob("[!.]*") if p.is_file()}
    listed = {name for name in record.files if "/" in name}
    if unexpected := sorted(present ^ listed):
        return unexpected[0]
    for name, expected in sorted(record.files.items()):
        try:
            with open(folder / name, "rb") as file:
                found = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
        except OSError:
            return name
        if found != expected:
            return name
    return None
