"""Are the data still those that were published? Asked before every start of a worker, by hashing every file.

A record lists the hash of each file. A file that changed, is gone, or has come since is a different dataset, which the
policy's custodian has not looked at: it is refused until it is published again.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from msfl.policies.documents import DatasetRecord

# Where a worker looks for cases; what lies elsewhere in the folder it never reads.
_SPLITS = ("imagesTr", "labelsTr", "imagesTs", "labelsTs")
_ACCESS_LIST = "system.posix_acl_access"


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


def closed_to(user: int, record: DatasetRecord, folder: Path) -> Path | None:
    """The first folder or file of the dataset that `user` may not read, by its mode bits; None when all may be read.

    What has an access list of its own is taken for readable, and what is not there for `changed_file` to find.
    """
    folders = {folder} | {folder / above for name in record.files for above in Path(name).parents}
    wanted = [(path, 0o5) for path in sorted(folders)] + [(folder / name, 0o4) for name in sorted(record.files)]
    for path, needed in wanted:
        try:
            found = path.stat()
            if _ACCESS_LIST in os.listxattr(path):
                continue
        except OSError:
            continue
        shift = 6 if found.st_uid == user else 3 if found.st_gid == user else 0
        if found.st_mode >> shift & needed != needed:
            return path
    return None
