"""Train a GPT on a text, character by character: python examples/gpt.py input.txt

Builds a GPT and trains it, in one script, with the settings of train/train_transformer.py: read this script first.
`python -m train.datasets shakespeare input.txt` writes the text that it uses by default. In a minute or two the loss
falls from 4.2, which is ln 65 for the text's 65 characters, to about 1.8.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # to import russellgrad from the checkout
from russellgrad import Tensor, no_grad, set_default_dtype
from russellgrad.loss import cross_entropy_loss
from russellgrad.optimizer import AdamWOptimizer
from russellgrad.russelltransformer import Transformer
from russellgrad.schedules import cosine_with_warmup
from russellgrad.tokenizer import Tokenizer
from train.progress import echo, escape_controls  # echo: like print; a closed pipe is no error

parser = argparse.ArgumentParser(description="Train a GPT on a text, character by character.")
parser.add_argument("text", type=Path, help="a UTF-8 text file, such as Tiny Shakespeare")
parser.add_argument("--steps", type=int, default=2000, help="optimizer steps (default: 2000)")
args = parser.parse_args()
if args.text.is_dir() or not args.text.exists():
    parser.error(f"there is no file {args.text}")
if args.steps < 1:
    parser.error(f"--steps must be positive, got {args.steps}")

batch_size, block_size = 12, 64  # B sequences of T characters in each step
learning_rate, weight_decay, max_norm = 2e-3, 0.1, 1.0
set_default_dtype("float32")
rng = np.random.default_rng(0)

# The data: each character is a token. The first 90 % of the text is for training, the rest for validation.
try:
    text = args.text.read_text(encoding="utf-8")
except UnicodeDecodeError as error:
    parser.error(f"{args.text} is not a UTF-8 text: {error}")
if len(text) < 10 * (block_size + 1):  # the validation text needs a block and its last target
    parser.error(f"{args.text} is too short: it has {len(text)} characters and needs {10 * (block_size + 1)}")
tokenizer = Tokenizer.from_text(text, max_seq_len=block_size, embed_dim=128, seed=0)
train_ids, val_ids = np.split(np.array(tokenizer.encode(text)), [len(text) * 9 // 10])


def get_loss(ids: np.ndarray) -> Tensor:
    """The model's mean loss on a random batch: at each position, how well it predicts the next character."""
    starts = rng.integers(0, len(ids) - block_size, size=(batch_size, 1))
    windows = ids[starts + np.arange(block_size + 1)]  # (B, T + 1)
    inputs, targets = windows[:, :-1], windows[:, 1:]  # (B, T), (B, T)
    logits = model(inputs)  # (B, T, vocab_size + 1)
    return cross_entropy_loss(logits, targets, tokenizer.pad_token_id)


# The model, and AdamW with weight decay for its matrices only.
model = Transformer(
    tokenizer, n_layers=4, n_attn_heads=4, activation="gelu", output_projection=True, final_norm=True, seed=0
)
matrices = [p for p in model.parameters() if p.ndim >= 2]
vectors = [p for p in model.parameters() if p.ndim < 2]
schedule = cosine_with_warmup(learning_rate, args.steps // 20, args.steps, min_lr=learning_rate / 10)
groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
optimizer = AdamWOptimizer(groups, schedule, betas=(0.9, 0.99))

for step in range(args.steps):
    loss = get_loss(train_ids)
    if step % 100 == 0 or step == args.steps - 1:  # both losses are those before the step
        with no_grad():
            val_loss = np.mean([get_loss(val_ids).item() for _ in range(20)])
        echo(f"step {step:4}: loss {loss.item():.4f}, validation loss {val_loss:.4f}")
    optimizer.zero_grad()
    loss.backward()
    optimizer.step(max_norm)

prompt = "\n" if "\n" in text else text[0]
echo(escape_controls(model.eval().generate(prompt, max_new_tokens=500, temperature=0.8, seed=0)))
