"""Generated from `federation.proto` by `make protos`. Do not edit; do not import outside `msfl.protos` and the doors."""
