"""The types of activations, and autocast."""

import torch

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """Autocast to `precision` on `device`; off for fp32."""
    return torch.autocast(device.type, DTYPES[precision], enabled=precision != "fp32")
