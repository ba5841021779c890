"""`transformers` in benchmarks/pretrained.py. A builder takes strings and returns the callable to time."""

from collections.abc import Callable
from typing import Any

import torch
from transformers import GPT2LMHeadModel

from benchmarks.candidates.model import LEARNING_RATE, WEIGHT_DECAY
from benchmarks.candidates.pretrained_ours import random_ids


def _model(folder: str) -> Any:
    return GPT2LMHeadModel.from_pretrained(folder, attn_implementation="sdpa")


def generate(folder: str, n_prompt: str, n_new: str) -> Callable[[], Callable[[], list[int]]]:
    """Greedy generation after random ids."""
    model = _model(folder).eval()
    prompt = torch.tensor([random_ids(model.config.vocab_size, int(n_prompt))])
    mask = torch.ones_like(prompt)

    def call() -> Callable[[], list[int]]:
        found = model.generate(prompt, attention_mask=mask, do_sample=False, max_new_tokens=int(n_new))[0]
        return lambda: list(map(int, found))

    return call


def train_step(folder: str, length: str) -> Callable[[], float]:
    """A training step on one text of random ids, the same in each step. Dropout is off, as in ours."""
    model = _model(folder).eval()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    ids = torch.tensor([random_ids(model.config.vocab_size, int(length) + 1)])

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        logits = model(ids[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step
