"""A model of GPT-2's size in a folder of the hub, against `transformers`: `python -m benchmarks.pretrained`.

The folder has random weights of the sizes of GPT-2 with 124 million parameters, so that nothing is downloaded. Both
read the same folder.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measure import OURS, Candidate, Table, Worker, check_close, run_alone, take_turns
from benchmarks.worker import STATUS
from russellgrad.encoding import CharacterEncoding
from russellgrad.russelltransformer import Transformer
from russellgrad.tokenizer import Tokenizer

TORCH = "transformers"
ROUNDS, SECONDS = 9, 120.0
NOTES = [
    "GPT-2 with 124 million parameters, random, read by both from one folder: `Transformer.from_pretrained`, and "
    "`GPT2LMHeadModel.from_pretrained` of `transformers` in PyTorch, eager, with scaled_dot_product_attention. Both "
    "compute in float32.",
]
MEMORY_NOTE = (
    "The peak resident set of a new process (VmHWM), minus the resident set right after the imports (VmRSS), with "
    "reading the model. Two calls for generation, and two training steps."
)


@dataclass(frozen=True)
class Sizes:
    """The sizes of the model and of the measurement."""

    vocab_size: int = 50257
    layers: int = 12
    heads: int = 12
    width: int = 768
    positions: int = 1024
    prompt: int = 32
    new: int = 32
    length: int = 256


QUICK = Sizes(50, 1, 2, 8, 16, 4, 4, 8)


def write_model(folder: Path, sizes: Sizes) -> None:
    """Write a folder of the hub. The weights are GPT-2's initial values; the tokens are characters."""
    characters = "".join(chr(0x4E00 + i) for i in range(min(sizes.vocab_size, 0x5000)))
    characters += "".join(chr(0x10000 + i) for i in range(sizes.vocab_size - len(characters)))
    encoding = CharacterEncoding(characters)
    tokenizer = Tokenizer(sizes.vocab_size, sizes.positions, sizes.width, sizes.vocab_size, encoding=encoding, seed=0)
    model = Transformer(
        tokenizer, sizes.layers, sizes.heads, activation="gelu_tanh", output_projection=True, final_norm=True,
        attention_bias=True, seed=0,
    )  # fmt: skip
    model.astype("float32").save_pretrained(folder)


def candidates(*arguments: str) -> dict[str, Candidate]:
    return {OURS: ("pretrained_ours", *arguments), TORCH: ("pretrained_torch", *arguments)}


def same_tokens(outcomes: dict[str, object]) -> None:
    """The greedy texts are equal."""
    check_close("pretrained generate", 0)(outcomes)


def peak(candidate: Candidate) -> float:
    """Peak bytes of two calls, minus the bytes after the imports."""
    with Worker(candidate) as worker:
        return worker.call(before=1)[2]


def tables(quick: bool = False) -> list[Table]:
    sizes, rounds = (QUICK, 1) if quick else (Sizes(), ROUNDS)
    generation = Table(
        "pretrained_generate", "Generation with GPT-2 (124M)", "prompt + new", "tokens per second",
        [*NOTES, "Greedy generation of one text with a cache of keys and values; both give the same tokens."],
    )  # fmt: skip
    training = Table(
        "pretrained_step", "A training step of GPT-2 (124M)", "batch x tokens", "milliseconds",
        [*NOTES, "Forward, backward and AdamW (PyTorch's default one); the losses agree within a relative 1e-4 in the "
         "first turn."],
    )  # fmt: skip
    memory = Table("pretrained_memory", "Peak memory with GPT-2 (124M)", "work", "MiB", [*NOTES, MEMORY_NOTE])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder, sizes)
        generating = candidates("generate", name, str(sizes.prompt), str(sizes.new))
        stepping = candidates("train_step", name, str(sizes.length))
        times = take_turns(generating, rounds, seconds=SECONDS, check=same_tokens)
        each = {who: [seconds / sizes.new for seconds in turns] for who, turns in times.items()}
        generation.add(f"{sizes.prompt} + {sizes.new}", each)
        steps = take_turns(stepping, rounds, seconds=SECONDS, check=check_close("pretrained train_step", 1e-4))
        training.add(f"1 x {sizes.length}", steps)
        if STATUS.exists():
            for work, everyone in (("generation", generating), ("training step", stepping)):
                memory.add(work, {who: [peak(candidate)] for who, candidate in everyone.items()})
    return [generation, training, memory]


if __name__ == "__main__":
    run_alone(tables, "pretrained", "Measure a model of GPT-2's size against transformers.")
