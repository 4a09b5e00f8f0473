"""The token table, stored sparsely: rows that were trained, and a seed for the 49,000 others."""

from __future__ import annotations

import numpy as np
import torch

from .config import VOCABULARY, WIDTH

TABLE_KEY = "text_model.embeddings.token_embedding.weight"
IDS_KEY, ROWS_KEY = "token_table.ids", "token_table.rows"
SEED = 49408


def untrained_rows(scale: float) -> torch.Tensor:
    """(V, d) rows N(0, scale^2), rounded to fp16 so that every platform has the same bits.

    NumPy's legacy generator is used because its stream is promised never to change.
    """
    noise = np.random.RandomState(SEED).standard_normal((VOCABULARY, WIDTH)) * scale
    return torch.from_numpy(noise.astype(np.float16)).float()


def pack(ids: torch.Tensor, rows: torch.Tensor) -> dict[str, torch.Tensor]:
    """The two tensors to store: trained token ids (n,) and their rows (n, d) in fp16."""
    return {IDS_KEY: ids.to(torch.int32).contiguous(), ROWS_KEY: rows.detach().half().contiguous()}


def unpack(stored: dict[str, torch.Tensor]) -> torch.Tensor:
    """The full table (V, d) in fp32; the untrained rows have the trained rows' root mean square.

    Raises KeyError where a tensor is missing, ValueError for ids outside the vocabulary or rows of another width.
    """
    ids, rows = stored[IDS_KEY].long(), stored[ROWS_KEY].float()
    if rows.shape != (len(ids), WIDTH) or (len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < VOCABULARY):
        raise ValueError(f"not a sparse token table: ids {tuple(ids.shape)}, rows {tuple(rows.shape)}")
    table = untrained_rows(float(rows.square().mean().sqrt()))
    table[ids] = rows
    return table
