"""The two bridges between seeing and speaking: P_v→t into the language model's space, P_t→v back."""

from torch import nn


def vision_to_text(region_dim: int, hidden_size: int) -> nn.Sequential:
    """P_v→t: patch and region tokens `(…, region_dim)` to word embeddings `(…, hidden_size)`; exact GELU."""
    return nn.Sequential(nn.Linear(region_dim, hidden_size), nn.GELU(), nn.Linear(hidden_size, hidden_size))


def text_to_vision(hidden_size: int, region_dim: int) -> nn.Sequential:
    """P_t→v: a region code's hidden state `(…, hidden_size)` to a query `(…, region_dim)`."""
    return nn.Sequential(nn.Linear(hidden_size, hidden_size), nn.ReLU(), nn.Linear(hidden_size, region_dim))
