"""RussellGrad in benchmarks/pretrained.py. A builder takes strings and returns the callable to time."""

from collections.abc import Callable

import numpy as np

from benchmarks.candidates.model import LEARNING_RATE, WEIGHT_DECAY
from russellgrad import get_backend
from russellgrad.loss import cross_entropy_loss
from russellgrad.optimizer import AdamWOptimizer
from russellgrad.russelltransformer import Transformer

get_backend()  # imports its library, which peak memory leaves out as it leaves out PyTorch's import


def generate(folder: str, n_prompt: str, n_new: str) -> Callable[[], Callable[[], list[int]]]:
    """Greedy generation after random ids."""
    model = Transformer.from_pretrained(folder)
    tokenizer = model.tokenizer
    prompt = tokenizer.decode(random_ids(tokenizer.vocab_size, int(n_prompt)))

    def call() -> Callable[[], list[int]]:
        text = model.generate(prompt, int(n_new), temperature=0)
        return lambda: tokenizer.encode(text)

    return call


def train_step(folder: str, length: str) -> Callable[[], float]:
    """A training step on one text of random ids, the same in each step."""
    model = Transformer.from_pretrained(folder).train()
    optimizer = AdamWOptimizer(model.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    ids = np.array([random_ids(model.tokenizer.vocab_size, int(length) + 1)])

    def step() -> float:
        optimizer.zero_grad()
        loss = cross_entropy_loss(model(ids[:, :-1]), ids[:, 1:], model.tokenizer.pad_token_id)
        loss.backward()
        optimizer.step()
        return float(loss)

    return step


def random_ids(vocab_size: int, length: int) -> list[int]:
    """The same ids for every candidate."""
    ids: list[int] = np.random.default_rng(0).integers(0, vocab_size, length).tolist()
    return ids
