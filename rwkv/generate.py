"""python -m rwkv.generate [MODEL] [--prompt TEXT] ...: let a model write, streamed to the screen."""

import codecs
import sys
import time
from pathlib import Path

from rwkv.config import cli
from rwkv.config.arguments import Parser, number
from rwkv.errors import ConfigError

DRAGON = (
    "\nIn a shocking finding, scientist discovered a herd of dragons living in a remote, previously unexplored valley, in Tibet. "
    "Even more surprising to the researchers was the fact that the dragons spoke perfect Chinese."
)


def main(argv: list[str]) -> int:
    """Load a model, read the prompt, write."""
    parser = Parser(prog="python -m rwkv.generate", description="Let a model write after a prompt.")
    parser.add_argument("model", nargs="?", help="run folder, checkpoint folder or official .pth; default: the newest run in --out")
    parser.add_argument("--out", default="outputs", help="folder of the runs (%(default)s)")
    parser.add_argument("--prompt", default=DRAGON, help="text to go on from; default: the dragon prompt")
    parser.add_argument("--tokens", type=number(1, 2**31, int), default=300, help="length of what is written (%(default)s)")
    parser.add_argument("--temperature", type=number(0, 100), default=1.0, help="0: always the most likely token (%(default)s)")
    parser.add_argument("--top-p", type=number(1e-9, 1), default=0.7, help="share of the probability drawn from (%(default)s)")
    parser.add_argument("--top-k", type=number(0, 2**31, int), default=0, help="drawn from the so many most likely tokens; 0: all (%(default)s)")
    parser.add_argument("--presence", type=number(0, 100), default=0.0, help="taken off the logit of each token written before (%(default)s)")
    parser.add_argument("--frequency", type=number(0, 100), default=0.0, help="the same for each time it was written (%(default)s)")
    parser.add_argument("--seed", type=number(0, 2**63 - 1, int), default=None, help="default: another text each time")
    parser.add_argument("--tokenizer", default=None, help="bytes, world, or a tokenizer.json; default: the run's, else by vocabulary size")
    args = parser.parse_args(argv)

    import torch

    from rwkv.checkpoint import official
    from rwkv.checkpoint.run import newest_run
    from rwkv.model.sampling import generate

    path = Path(args.model) if args.model else newest_run(Path(args.out)).path
    weights = official.load(path)
    model = official.build(weights).to("cuda" if torch.cuda.is_available() else "cpu")
    tok = find_tokenizer(args.tokenizer, path, model.size.vocab_size)
    prompt = [int(i) for i in tok.encode(args.prompt.encode("utf-8", "surrogateescape"))]
    if not prompt:
        raise ConfigError("--prompt: empty; a model needs at least one token to go on from")
    if max(prompt) >= model.size.vocab_size:
        raise ConfigError(f"--tokenizer: gives token {max(prompt)}, the model has {model.size.vocab_size}")
    if not args.model:
        print(f"[{path}]", file=sys.stderr)
    print(args.prompt, end="", flush=True)
    seed = args.seed if args.seed is not None else time.time_ns() % 2**63
    text = codecs.getincrementaldecoder("utf-8")("replace")  # holds back a character until its last byte
    names = ("tokens", "temperature", "top_p", "top_k", "presence", "frequency")
    options = {name: getattr(args, name) for name in names}
    for token in generate(model, prompt, seed=seed, state=official.initial_state(weights, model), **options):
        print(text.decode(tok.decode([token])), end="", flush=True)
    print(text.decode(b"", final=True))
    return 0


def find_tokenizer(option: str | None, path: Path, vocab_size: int):
    """The tokenizer asked for, else that of the run the model comes from, else the one with that vocabulary size."""
    import yaml

    from rwkv.config.vocab import VOCAB_SIZES
    from rwkv.data import tokenizer

    if option is not None:
        return tokenizer.build(option, None) if option in ("bytes", "world") else tokenizer.build("hf", option)
    for folder in (path, *path.parents[:2]):
        if (folder / "config.yaml").is_file() and (folder / "checkpoints").is_dir():
            settings = yaml.safe_load((folder / "config.yaml").read_text())["tokenizer"]
            return tokenizer.build(settings["kind"], settings["path"])
    for kind in ("bytes", "world"):
        if VOCAB_SIZES[kind] == vocab_size:
            return tokenizer.build(kind, None)
    raise ConfigError(f"{path}: no tokenizer is known for a vocabulary of {vocab_size}; give --tokenizer bytes, world or a tokenizer.json")


if __name__ == "__main__":
    sys.exit(cli.guarded(main))
