"""TODO kernels.augment"""
