"""What crosses a process boundary: wire messages, sealed streams, task frames. Light to import: no gRPC here."""
