"""The centre's only process that faces the network: runs, artifacts, the doors for people and gateways."""
