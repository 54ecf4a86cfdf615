"""How PyTorch runs a step: compilation and its cache, CUDA graphs, precision, memory, device."""
