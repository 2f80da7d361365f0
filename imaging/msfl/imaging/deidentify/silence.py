"""What pydicom thinks of a value is not for a terminal or a log: its warnings quote the value.

Whoever reads or writes DICOM imports this first. Values that are not valid are read as they are; the rules of
de-identification drop what they do not understand.
"""

from __future__ import annotations

import pydicom.config

pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
pydicom.config.settings.writing_validation_mode = pydicom.config.IGNORE
