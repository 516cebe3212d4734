"""Training of the embedded world's language models: tokenizer, rows of documents, one run, held-out loss."""

import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from random import Random

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from sae_lm_eval.world import text
from sae_lm_eval.world.categories import world_categories

BOS, EOS, UNK = "<s>", "</s>", "<unk>"
HELD_OUT_SEED = 1_000_003
ROWS_WITHOUT_BOS = 0.1  # so that a harness that adds no <s> still asks the model something it has seen
CONTEXT = 128
BFLOAT16_FROM = 112  # below this width float32 is the faster one on a CPU


@dataclass(frozen=True)
class Run:
    """One training run. `tokens` counts scored tokens: no <s>, no padding."""

    name: str
    width: int
    layers: int
    heads: int
    tokens: int
    learning_rate: float
    batch: int = 24
    seed: int = 0
    checkpoints: int = 0


def make_tokenizer() -> PreTrainedTokenizerFast:
    words = [BOS, EOS, UNK, *text.vocabulary()]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece(cleanup=True)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=EOS,
        unk_token=UNK,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def encode(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> list[list[int]]:
    return [encoding.ids for encoding in tokenizer.backend_tokenizer.encode_batch(texts)]


def pad(rows: list[list[int]], value: int) -> torch.Tensor:
    width = max(map(len, rows))
    return torch.tensor([row + [value] * (width - len(row)) for row in rows])


def batches(tokenizer: PreTrainedTokenizerFast, size: int, seed: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(input ids, labels) of fresh documents, one to a row; labels are -100 where nothing is scored."""
    rng = Random(seed)
    stream = text.documents(rng)
    while True:
        many = encode(tokenizer, [d.text for d in islice(stream, 64 * size)])
        for start in range(0, len(many), size):
            rows = [
                ([] if rng.random() < ROWS_WITHOUT_BOS else [tokenizer.bos_token_id]) + ids + [tokenizer.eos_token_id]
                for ids in many[start : start + size]
            ]
            labels = [[-100, *row[1:]] for row in rows]
            yield pad(rows, tokenizer.pad_token_id), pad(labels, -100)


def make_model(run: Run, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    torch.manual_seed(run.seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=run.width,
        intermediate_size=3 * run.width,
        num_hidden_layers=run.layers,
        num_attention_heads=run.heads,
        num_key_value_heads=run.heads,
        max_position_embeddings=CONTEXT,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
        attn_implementation="sdpa",
    )
    model = LlamaForCausalLM(config)
    for module in model.modules():
        if isinstance(module, (torch.nn.Linear, torch.nn.Embedding)):
            torch.nn.init.normal_(module.weight, std=run.width**-0.5 / (2 if module.weight.shape[0] > 99 else 1))
    return model


def parameters(model: torch.nn.Module) -> dict[str, int]:
    total = sum(p.numel() for p in model.parameters())
    embedding = model.get_input_embeddings().weight.numel() + model.get_output_embeddings().weight.numel()
    return {"parameters": total, "non_embedding_parameters": total - embedding}


@torch.no_grad()
def answers(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, count: int = 200) -> dict[str, list[bool]]:
    """Right or wrong, by category and question: the likeliest of four answers after <s> and the prompt."""
    table = {}
    for name in world_categories():
        questions = text.questions(name, count)
        rows = [[tokenizer.bos_token_id, *ids] for ids in encode(tokenizer, [q.prompt for q in questions])]
        last = torch.tensor([len(row) - 1 for row in rows])
        logits = model(pad(rows, tokenizer.pad_token_id)).logits[torch.arange(count), last]
        ids = torch.tensor([tokenizer.convert_tokens_to_ids(list(q.choices)) for q in questions])
        table[name] = (logits.gather(1, ids).argmax(1) == torch.tensor([q.answer for q in questions])).tolist()
    return table


@torch.no_grad()
def held_out_loss(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, documents: int = 1500) -> dict:
    """Mean nats/token on fresh documents, </s> not counted, with its standard error over documents."""
    texts = [d.text for d in islice(text.documents(Random(HELD_OUT_SEED)), documents)]
    sums, counts = [], []
    for start in range(0, documents, 100):
        rows = [[tokenizer.bos_token_id, *ids] for ids in encode(tokenizer, texts[start : start + 100])]
        ids, labels = pad(rows, tokenizer.pad_token_id), pad(rows, -100)[:, 1:]
        losses = torch.nn.functional.cross_entropy(
            model(ids).logits[:, :-1].transpose(1, 2), labels, ignore_index=-100, reduction="none"
        )
        sums.append(losses.sum(1).double())
        counts.append((labels != -100).sum(1))
    nats, length = torch.cat(sums), torch.cat(counts).double()
    loss = (nats.sum() / length.sum()).item()
    spread = (nats - loss * length).std() / (length.mean() * math.sqrt(documents))
    return {"loss": loss, "standard_error": spread.item(), "documents": documents}


def _rate(run: Run, done: float) -> float:
    """Linear warm-up over 4% of the tokens, then a cosine down to 2% of the peak."""
    if done < 0.04:
        return run.learning_rate * max(done, 1e-3) / 0.04
    return run.learning_rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (done - 0.04) / 0.96)))


def train(run: Run, tokenizer: PreTrainedTokenizerFast, folder: Path) -> dict:
    """Train, save float16 weights under `folder`, and return the row of the family table."""
    model = make_model(run, tokenizer)
    decayed = [p for p in model.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if p.ndim != 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}],
        lr=run.learning_rate,
        betas=(0.9, 0.98),
        fused=True,
    )
    marks = [run.tokens * (i / run.checkpoints) ** 2 for i in range(1, run.checkpoints)]
    seen, table, started = 0, [], time.time()
    counts = parameters(model)

    def record(name: str) -> dict:
        save(model, tokenizer, folder / name)
        compute = 6 * counts["parameters"] * seen
        row = {"name": name, "tokens": seen, "compute": compute, **held_out_loss(model, tokenizer)}
        print(json.dumps({**row, "seconds": round(time.time() - started)}), flush=True)
        return row

    for step, (ids, labels) in enumerate(batches(tokenizer, run.batch, run.seed + 1)):
        for group in optimizer.param_groups:
            group["lr"] = _rate(run, seen / run.tokens)
        with torch.autocast("cpu", torch.bfloat16, enabled=run.width >= BFLOAT16_FROM):
            logits = model(ids).logits
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        seen += int((labels[:, 1:] != -100).sum())
        if step % 200 == 0:
            print(
                f"{run.name} step {step} tokens {seen} loss {loss.item():.4f} {time.time() - started:.0f} s",
                flush=True,
            )
        while marks and seen >= marks[0]:
            marks.pop(0)
            table.append(record(f"step{step + 1}"))
        if seen >= run.tokens:
            break
    final = record("final")
    return {
        **asdict(run),
        **counts,
        **final,
        "name": run.name,
        "seconds": time.time() - started,
        "checkpoint_table": table,
        "held_out_seed": HELD_OUT_SEED,
    }


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Weights in float16 to halve the file; the config says float32, so every loader computes in float32."""
    half = {name: tensor.half() for name, tensor in model.state_dict().items()}
    model.save_pretrained(folder, state_dict=half)
    config = json.loads((folder / "config.json").read_text())
    config.pop("torch_dtype", None)
    (folder / "config.json").write_text(json.dumps({**config, "dtype": "float32"}, indent=2) + "\n")
    tokenizer.save_pretrained(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    portable = {
        **settings,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }  # the name that transformers 4 knows too
    (folder / "tokenizer_config.json").write_text(json.dumps(portable, indent=2) + "\n")
