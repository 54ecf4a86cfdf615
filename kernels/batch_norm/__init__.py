"""TODO kernels.batch_norm"""
