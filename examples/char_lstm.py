"""Train an LSTM on a text, character by character: python examples/char_lstm.py

A language model without attention: an embedding, an LSTM, which reads the text in order, and a linear layer, which
computes the logits of the next character. The state of the LSTM is its only memory of the preceding text. Compare it
with the transformer in gpt.py. The default text is Shakespeare's plays. After 1,000 steps, about two minutes, the
validation loss is 1.7.
"""

import argparse
import math
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # to import russellgrad from the checkout
from russellgrad import Module, Tensor, cross_entropy, manual_seed, no_grad, set_default_dtype
from russellgrad.layers import LSTM, Embedding, Linear
from russellgrad.optimizer import AdamWOptimizer
from russellgrad.schedules import cosine
from train.datasets import load_text
from train.progress import echo, escape_controls, exit_on_error  # echo: like print; a closed pipe is no error

parser = argparse.ArgumentParser(description="Train an LSTM on a text, character by character.")
parser.add_argument("--dataset", default="shakespeare", help="a UTF-8 text file, or shakespeare (the default)")
parser.add_argument("--steps", type=int, default=1000, help="optimizer steps (default: 1000)")
args = parser.parse_args()
if args.steps < 1:
    parser.error(f"--steps must be positive, got {args.steps}")

State = tuple[Tensor, Tensor]
batch_size, block_size, hidden_size = 32, 64, 256  # B sequences of T characters in each step
set_default_dtype("float32")
manual_seed(0)  # of the initial weights
rng = np.random.default_rng(0)

with exit_on_error(OSError, ValueError):
    text = load_text(args.dataset)
    if len(text) < 10 * (block_size + 1):
        needed = 10 * (block_size + 1)
        raise ValueError(f"{args.dataset} is too short: it has {len(text)} characters and needs {needed}")
vocabulary = sorted(set(text))
ids = np.searchsorted(vocabulary, list(text))
train_ids, val_ids = np.split(ids, [len(ids) * 9 // 10])


class CharLSTM(Module):
    """Character ids (B, T) and the state before them -> logits (B, T, vocabulary) and the state after them."""

    def __init__(self) -> None:
        self.embedding = Embedding(len(vocabulary), 64)
        self.lstm = LSTM(64, hidden_size, batch_first=True)
        self.output = Linear(hidden_size, len(vocabulary))

    def forward(self, ids: np.ndarray, state: State | None = None) -> tuple[Tensor, State]:
        hidden, state = self.lstm(self.embedding(ids), state)
        return self.output(hidden), state


def get_loss(ids: np.ndarray) -> Tensor:
    """The mean loss on a random batch."""
    starts = rng.integers(0, len(ids) - block_size, size=(batch_size, 1))
    windows = ids[starts + np.arange(block_size + 1)]  # (B, T + 1)
    logits, _ = model(windows[:, :-1])
    return cross_entropy(logits, windows[:, 1:])


def generate(prompt: str, n: int, temperature: float = 0.8) -> str:
    """The prompt and n more characters, sampled one at a time."""
    logits, state = model(np.array([[vocabulary.index(character) for character in prompt]]))
    for _ in range(n):
        p = (logits[0, -1] / temperature).softmax().numpy().astype("float64")
        new = rng.choice(len(vocabulary), p=p / p.sum())
        prompt += vocabulary[new]
        logits, state = model(np.array([[new]]), state)
    return prompt


model = CharLSTM()
optimizer = AdamWOptimizer(model.parameters(), cosine(3e-3, args.steps))
start = time.perf_counter()
for step in range(args.steps):
    loss = get_loss(train_ids)
    if step % 100 == 0 or step == args.steps - 1:  # both losses are those before the step
        with no_grad():
            val_loss = np.mean([get_loss(val_ids).item() for _ in range(5)])
        bits = val_loss / math.log(2)
        echo(f"step {step:4}: loss {loss:.4f}, validation loss {val_loss:.4f}, {bits:.2f} bits per character")
    optimizer.zero_grad()
    loss.backward()
    optimizer.step(max_norm=1.0)
echo(f"seed 0, {time.perf_counter() - start:.0f} s")
with no_grad():
    echo(escape_controls(generate("\n" if "\n" in vocabulary else vocabulary[0], 300)))
