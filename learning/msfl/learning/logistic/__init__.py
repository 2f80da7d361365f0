"""A tiny release: voxel-wise logistic regression. It proves that the contract is general, and makes tests fast."""
