"""The three gRPC services: for people, for sites that join, for gateways. Adapters; they decide nothing."""
