"""The kernels' shapes, rivals, timing and checks."""
