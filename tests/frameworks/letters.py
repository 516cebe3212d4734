"""A model that knows colours: it answers a question with the letter that the question's last word stands for."""

from __future__ import annotations

from pathlib import Path

import tokenizers
import torch
import transformers
from sae_lens import SAE

COLOURS = ("red", "green", "blue", "white")
LETTERS = "ABCD"
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
WORDS = (*SPECIAL, *COLOURS, *(f"ANSWER:{letter}" for letter in LETTERS))
HOOK = "blocks.0.hook_resid_post"


def tokenizer() -> transformers.PreTrainedTokenizerFast:
    """One token a word, of which all but the colours are unknown."""
    ids = {word: number for number, word in enumerate(WORDS)}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, unk_token="<unk>"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    names = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), SPECIAL, strict=True))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner, **names)


def model() -> transformers.PreTrainedModel:
    """Each token is a direction of its own, no layer adds anything, and the head knows what follows each token.

    The letter of its place follows a colour, and the end of the text a letter.
    """
    config = transformers.LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=len(WORDS),
        intermediate_size=4,
        num_hidden_layers=1,
        num_attention_heads=1,
        head_dim=4,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    transformer = transformers.LlamaForCausalLM(config).float()
    follows = {colour: f"ANSWER:{letter}" for colour, letter in zip(COLOURS, LETTERS, strict=True)}
    with torch.no_grad():
        for name, weight in transformer.named_parameters():
            if not name.endswith("norm.weight"):
                weight.zero_()
        transformer.model.embed_tokens.weight.copy_(torch.eye(len(WORDS)))
        for number, word in enumerate(WORDS):
            transformer.lm_head.weight[WORDS.index(follows.get(word, "</s>")), number] = 1
    return transformer


def dictionary(forgotten: str | None = None) -> SAE:
    """A latent for each token, which gives back what it reads, but for a colour that it has forgotten."""
    width = len(WORDS)
    sae = SAE.from_dict(
        {"architecture": "standard", "d_in": width, "d_sae": width, "apply_b_dec_to_input": True}
        | {"metadata": {"hook_name": HOOK, "model_name": "letters", "prepend_bos": False}}
    )
    with torch.no_grad():
        for weight in sae.parameters():
            weight.zero_()
        sae.W_enc.copy_(torch.eye(width))
        sae.W_dec.copy_(torch.eye(width))
        if forgotten is not None:
            sae.W_dec[WORDS.index(forgotten)] = 0
    return sae


def save(folder: Path) -> tuple[Path, dict[str | None, Path]]:
    """The model's folder, and those of dictionaries by the colour that they have forgotten."""
    model().save_pretrained(folder / "letters")
    tokenizer().save_pretrained(folder / "letters")
    dictionaries = {}
    for colour in (None, *COLOURS):
        dictionaries[colour] = folder / f"forgets-{colour}"
        dictionary(colour).save_model(dictionaries[colour])
    return folder / "letters", dictionaries
