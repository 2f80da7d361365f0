"""The nnU-Net release: nnU-Net's own planning, preprocessing, training and inference behind `FederatedModel`."""
