"""A study on Shakespeare's plays: characters against byte-pair tokens, and GPT-2's block against Llama's.

python -m benchmarks.study               all runs that are missing, then the page
python -m benchmarks.study --seeds 0     only this seed
python -m benchmarks.study --page        only the page, of the runs that are there

Each run is added to benchmarks/results/study.json when it ends, so that a study that was stopped goes on with the next
run. The page is docs/study.md, with docs/study.png.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks import measure
from benchmarks.chart import COLORS
from benchmarks.measure import ROOT, circumstances, write_atomically
from russellgrad import get_backend, set_default_dtype
from russellgrad.bpe import BPE
from russellgrad.encoding import CharacterEncoding, Encoding
from russellgrad.optimizer import AdamWOptimizer
from russellgrad.russelltransformer import Transformer
from russellgrad.schedules import cosine_with_warmup
from russellgrad.tokenizer import Tokenizer
from train.data import batches, split_batch, validation_blocks
from train.datasets import shakespeare
from train.tokens import bits_per_byte, count_bytes
from train.train_transformer import evaluate, train_step

SETTING: dict[str, Any] = {
    "layers": 4, "heads": 4, "key and value heads of Llama's block": 2, "width": 128, "context, tokens": 64,
    "batch": 12, "steps": 1000, "warmup steps": 50, "learning rate": 2e-3, "weight decay": 0.1,
    "beta1": 0.9, "beta2": 0.99, "vocabulary of BPE": 1024, "parameters": 950_000,
    "validation, characters": 60_000, "steps between validations": 100,
}  # fmt: skip
TOKENS, BLOCKS, SEEDS = ("characters", "BPE"), ("GPT-2", "Llama"), (0, 1, 2)
STORE = "study.json"
PAGE, PICTURE = ROOT / "docs" / "study.md", ROOT / "docs" / "study.png"


# --- One run


def build(encoding: Encoding, block: str, ff_dim: int, seed: int) -> Transformer:
    size, layers, heads = encoding.vocab_size, SETTING["layers"], SETTING["heads"]
    tokenizer = partial(
        Tokenizer, size, SETTING["context, tokens"], SETTING["width"], size, encoding=encoding, seed=seed
    )
    if block == "Llama":
        kv_heads = SETTING["key and value heads of Llama's block"]
        return Transformer.llama(
            tokenizer(positional_encoding=False), layers, heads, n_kv_heads=kv_heads, ff_dim=ff_dim, seed=seed
        )
    return Transformer(
        tokenizer(), layers, heads, ff_dim=ff_dim, activation="gelu", output_projection=True, final_norm=True, seed=seed
    )


def n_parameters(model: Transformer) -> int:
    return sum(p.size for p in model.parameters())


def ff_dim_of(encoding: Encoding, block: str) -> int:
    """The width of the feed-forward layers that gives the model about SETTING's number of parameters."""
    narrow, wide = (n_parameters(build(encoding, block, ff_dim, 0)) for ff_dim in (8, 16))
    return 8 + round(8 * (SETTING["parameters"] - narrow) / (wide - narrow))


def run(text: str, encoding: Encoding, block: str, seed: int) -> dict[str, Any]:
    """Train one model. Returns its results, with the bits per byte of the validation text by step."""
    length, batch, steps = (SETTING[name] for name in ("context, tokens", "batch", "steps"))
    cut = len(text) * 9 // 10
    train_ids = np.array(encoding.encode(text[:cut]), np.int64)
    ids = np.array(encoding.encode(text[cut : cut + SETTING["validation, characters"]]), np.int64)
    inputs, targets = validation_blocks(ids, length)
    n_bytes, ff_dim = count_bytes(encoding, targets), ff_dim_of(encoding, block)
    model = build(encoding, block, ff_dim, seed)
    matrices = {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": SETTING["weight decay"]}
    vectors = {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0}
    rate = SETTING["learning rate"]
    schedule = cosine_with_warmup(rate, SETTING["warmup steps"], steps, rate / 10)
    optimizer = AdamWOptimizer([matrices, vectors], schedule, betas=(SETTING["beta1"], SETTING["beta2"]))
    curve, data = [], batches(train_ids, batch, length, seed)
    for step in range(steps + 1):
        if step % SETTING["steps between validations"] == 0 or step == steps:
            loss = evaluate(model, inputs, targets, batch)
            assert loss is not None
            curve.append((step, bits_per_byte(loss, targets.size, n_bytes)))
        if step < steps:
            train_step(model, optimizer, *split_batch(*next(data), 1, model.tokenizer.pad_token_id), grad_clip=1.0)
    return {
        "curve": curve, "parameters": n_parameters(model),
        "bytes of a token": n_bytes / targets.size,
        "width of the feed-forward layers": ff_dim,
    }  # fmt: skip


# --- All runs


def load() -> dict[str, Any]:
    """The stored runs. Ends the program if they are of another setting."""
    path = measure.RESULTS / STORE
    if not path.exists():
        return {"setting": SETTING, "runs": {}}
    stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if stored["setting"] != SETTING:
        sys.exit(f"study: the runs in {path} have other settings; move the file to start a new study")
    return stored


def key(tokens: str, block: str, seed: int) -> str:
    return f"{tokens}, {block}, seed {seed}"


def run_all(stored: dict[str, Any], seeds: Sequence[int]) -> None:
    text = shakespeare()
    characters = CharacterEncoding("".join(sorted(set(text))))
    encodings: dict[str, Encoding] = {"characters": characters}
    for seed in seeds:
        for tokens in TOKENS:
            for block in BLOCKS:
                name = key(tokens, block, seed)
                if name in stored["runs"]:
                    continue
                if tokens not in encodings:
                    encodings[tokens] = BPE.train(text[: len(text) * 9 // 10], SETTING["vocabulary of BPE"])
                stored["runs"][name] = result = run(text, encodings[tokens], block, seed)
                stored["circumstances"] = {**circumstances("benchmarks.study"), "backend": get_backend().name}
                write_atomically(measure.RESULTS / STORE, json.dumps(stored, indent=1))
                print(f"{name}: {result['curve'][-1][1]:.3f} bits per byte", flush=True)


# --- The page


def of(stored: dict[str, Any], tokens: str, block: str) -> list[dict[str, Any]]:
    """The runs of all seeds."""
    names = [key(tokens, block, seed) for seed in SEEDS]
    return [stored["runs"][name] for name in names if name in stored["runs"]]


def final(runs: list[dict[str, Any]]) -> list[float]:
    return [each["curve"][-1][1] for each in runs]


def row(stored: dict[str, Any], tokens: str, block: str) -> str:
    runs = of(stored, tokens, block)
    ends, first = final(runs), runs[0]
    return (
        f"| {tokens} | {block} | {first['parameters']:,} | {first['width of the feed-forward layers']} "
        f"| {first['bytes of a token']:.2f} | {statistics.mean(ends):.3f} ({min(ends):.3f} to {max(ends):.3f}) |"
    )


def compared(stored: dict[str, Any]) -> list[str]:
    """What the figures say, one sentence for each comparison at which only one thing differs."""
    pairs = [((tokens, BLOCKS[0]), (tokens, BLOCKS[1])) for tokens in TOKENS]
    pairs += [((TOKENS[0], block), (TOKENS[1], block)) for block in BLOCKS]
    lines = []
    for one, other in pairs:
        a, b = final(of(stored, *one)), final(of(stored, *other))
        gaps = [y - x for x, y in zip(a, b, strict=True)]
        what = f"{other[1]}'s block instead of {one[1]}'s, with {one[0]}" if one[0] == other[0] else (
            f"{other[0]} instead of {one[0]}, with {one[1]}'s block"
        )  # fmt: skip
        same = all(gap < 0 for gap in gaps) or all(gap > 0 for gap in gaps)
        sign = "the same sign for all seeds" if same else "the sign differs between the seeds"
        lines.append(f"- {what}: {statistics.mean(gaps):+.3f} bits per byte ({sign})")
    return lines


def draw(stored: dict[str, Any]) -> None:
    """Bits per byte by step: the mean of the seeds, and the range as a band."""
    figure = Figure(figsize=(8, 4.5), dpi=150, layout="constrained")
    axes = figure.subplots()
    for place, (tokens, block) in enumerate((t, b) for t in TOKENS for b in BLOCKS):
        curves = [each["curve"] for each in of(stored, tokens, block)]
        steps = [step for step, _ in curves[0]]
        values = np.array([[value for _, value in curve] for curve in curves])
        label, line = f"{tokens}, {block}", "-" if block == "GPT-2" else "--"
        axes.plot(steps, values.mean(0), line, color=COLORS[place], label=label)
        axes.fill_between(steps, values.min(0), values.max(0), color=COLORS[place], alpha=0.2, linewidth=0)
    low = min(min(final(of(stored, t, b))) for t in TOKENS for b in BLOCKS)
    axes.set_ylim(0.95 * low, 2 * low)  # the first values are those of an untrained model
    axes.set_xlabel("step")
    axes.set_ylabel("validation loss, bits per byte")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(PICTURE)


def page(stored: dict[str, Any]) -> str:
    found, steps = stored["circumstances"], SETTING["steps"]
    n_seeds = len(of(stored, TOKENS[0], BLOCKS[0]))
    rows = "\n".join(row(stored, tokens, block) for tokens in TOKENS for block in BLOCKS)
    settings = "\n".join(f"| {name} | {value:,g} |" for name, value in SETTING.items())
    batch, length, heads = (SETTING[name] for name in ("batch", "context, tokens", "heads"))
    kv_heads = SETTING["key and value heads of Llama's block"]
    head = f"bits per byte, {n_seeds} seeds"
    return f"""# A study: tokens and blocks

Two questions about a small language model of Shakespeare's plays:

- Is it better to predict characters or byte-pair tokens?
- Is Llama's block better than GPT-2's?

All models have about {SETTING["parameters"]:,.0f} parameters and take {steps:,} steps with the same number of tokens.
`python -m benchmarks.study` trains them, draws the picture and writes this page.

![The validation loss in bits per byte, by step](study.png)

The lines are means of {n_seeds} seeds. The bands are from the smallest to the largest value.

| tokens | block | parameters | feed-forward width | bytes per token | {head} |
|---|---|---|---|---|---|
{rows}

{chr(10).join(compared(stored))}

## How to read it

**Bits per byte.** A loss in nats per token depends on what a token is: a token that stands for three characters is
harder to predict than one character. So the losses of all validation tokens are added, and divided by ln 2 and by the
number of UTF-8 bytes that these tokens stand for. The result does not depend on the tokens.

**Equal parameters.** A larger vocabulary needs a larger embedding, and SwiGLU has three matrices where GPT-2's
feed-forward layer has two. The width of the feed-forward layers is chosen so that every model has the same total.

**Equal steps are not equal text.** A step reads {batch * length} tokens. A byte-pair token has more bytes than a
character, and a context of {length} of them reaches further back. This is a main reason to use such tokens. It also
means that the comparison does not separate the tokens from the amount of text.

**The blocks.** GPT-2's has layer norms, learned positions, GELU, and logits tied to the embedding. Llama's has RMSNorm,
rotary positions, SwiGLU, {kv_heads} heads of keys and values for {heads} of queries, and logits with a matrix of their
own, whose parameters the feed-forward layers then lack.

This is one size, one text, a short run and one learning rate, which was chosen for GPT-2's block with characters. The
figures do not say what holds for larger models or longer runs.

## The setting

| | |
|---|---|
{settings}

The first 90 % of the plays are for training; the validation text begins there. AdamW does not decay vectors. Gradients
are clipped to a norm of 1. The learning rate falls to a tenth along a cosine. Backend {found["backend"]}, NumPy
{found["numpy"]}, Python {found["python"]}, {found["processor"]}, {found["cores"]} cores, {found["date"][:10]}, commit
{found["commit"]}.
"""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.study", description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", choices=SEEDS, default=SEEDS)
    parser.add_argument("--page", action="store_true", help="only write the page, of the runs that are there")
    given = parser.parse_args()
    set_default_dtype("float32")
    stored = load()
    if not given.page:
        run_all(stored, given.seeds)
    draw(stored)
    PAGE.write_text(page(stored), encoding="utf-8")
    print(f"written: {PAGE} and {PICTURE}")


if __name__ == "__main__":
    main()
