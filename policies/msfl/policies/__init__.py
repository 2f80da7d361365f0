"""The governance core: documents, signatures, trust, the decision and the audit chain. No I/O, no clock, no network."""
