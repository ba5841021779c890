"""Write text with a trained model: `python train/generate.py runs/shakespeare/model.safetensors --prompt "ROMEO:"`.

RG_BACKEND chooses the backend.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # where `russellgrad` and `train` are

from russellgrad import get_backend
from russellgrad.checkpoint import load_model
from train.progress import plain_errors


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Write text with a model that train_transformer.py trained.")
    parser.add_argument("model", help="a model.safetensors")
    parser.add_argument("--prompt", help="how the text begins (default: a new line)")
    parser.add_argument("--tokens", type=int, default=500, help="characters to add to it (default: 500)")
    parser.add_argument("--temperature", type=float, default=0.8, help="0 takes the most likely one (default: 0.8)")
    parser.add_argument("--top-k", type=int, help="draw from so many of the most likely ones (default: from all)")
    parser.add_argument("--seed", type=int, default=0, help="of the draws (default: 0)")
    return parser.parse_args(arguments)


def generate(
    path: str | Path,
    prompt: str | None = None,
    tokens: int = 500,
    temperature: float = 0.8,
    top_k: int | None = None,
    seed: int = 0,
) -> str:
    """The prompt, and `tokens` characters more by the model in the file `path`. Raises as load_model and generate."""
    model = load_model(path)
    vocabulary = model.tokenizer.vocabulary
    start = prompt or ("\n" if "\n" in vocabulary else vocabulary[0])
    return model.generate(start, tokens, temperature=temperature, top_k=top_k, seed=seed)


if __name__ == "__main__":
    options = parse()
    with plain_errors(ValueError, ImportError, RuntimeError, TypeError):
        get_backend()
    with plain_errors(ValueError, ImportError, OSError):
        print(generate(options.model, options.prompt, options.tokens, options.temperature, options.top_k, options.seed))
