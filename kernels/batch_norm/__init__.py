"""BatchNorm with the addition and activation after it: kernels, launch, routing, the choice of the path."""
