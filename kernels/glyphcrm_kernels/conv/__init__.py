"""Convolution with bias, residual, ReLU and pooling."""
