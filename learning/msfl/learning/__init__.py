"""What runs inside the containers: the `FederatedModel` contract, the worker, the aggregator, strategies, models."""
