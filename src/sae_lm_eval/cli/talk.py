"""`sae-lm-eval talk`: the baseline and its variants side by side, at a prompt or unattended."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sae_lm_eval.cli.first_words import check_splices, say_loading
from sae_lm_eval.errors import UserError, one_of

if TYPE_CHECKING:
    from rich.console import Console

    from sae_lm_eval.talk.chosen import Sampling
    from sae_lm_eval.talk.conversation import Exchange, Model
    from sae_lm_eval.talk.passages import Passage


def talk(
    model_args: Annotated[
        str, typer.Option("--model_args", help="As for lm_eval: pretrained=gpt2,sae=SPEC,splice=reconstruction")
    ],
    sae: Annotated[
        list[str] | None, typer.Option("--sae", help="Another variant, in its own column. Repeatable.")
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help='Answer the prompts of this file: one a line, or a .jsonl with "prompt".')
    ] = None,
    text: Annotated[
        Path | None, typer.Option(help="Show where the splice hurts in a text (.txt, .jsonl or .parquet), by token.")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page for --prompts and --text.")] = None,
    system: Annotated[str | None, typer.Option(help="The system prompt of a chat model.")] = None,
    prompt_format: Annotated[
        str | None, typer.Option("--prompt_format", help="chat or plain (default: chat, if there is a template).")
    ] = None,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Seed of the noise, which all columns share.")] = 0,
    max_new_tokens: Annotated[int, typer.Option("--max_new_tokens", help="Longest answer, in tokens.")] = 128,
    tokens: Annotated[int, typer.Option(help="Tokens of --text to read.")] = 2048,
) -> None:
    """Talk to the baseline and its variants side by side, and see where their answers part."""
    from sae_lm_eval.runs.argument_text import named_values
    from sae_lm_eval.runtime.text_files import check_readable, check_writable
    from sae_lm_eval.splicing.choices import whole
    from sae_lm_eval.talk.chosen import FORMATS, Sampling, check_columns, temperature_of
    from sae_lm_eval.talk.prompt_file import read_prompts

    questions = read_prompts(prompts) if prompts is not None else []
    if text is not None:
        check_readable(text)
    if html is not None:
        if not questions and text is None:
            raise UserError("--html needs something to show: give --prompts FILE or --text FILE.")
        check_writable(html)
    if prompt_format is not None:
        one_of(prompt_format, FORMATS, "--prompt_format")
    sampling = Sampling(
        temperature_of(temperature),
        whole(seed, "--seed", least=0),
        whole(max_new_tokens, "--max_new_tokens", least=1),
    )
    whole(tokens, "--tokens", least=1)
    arguments = named_values(model_args)
    check_columns([*([arguments["sae"]] if arguments.get("sae") else []), *(sae or [])], arguments.get("edit"))
    check_splices(arguments, sae or [])
    if prompt_format == "chat" or system is not None:
        _check_template(arguments, prompt_format, system)
    say_loading()
    from sae_lm_eval.talk.conversation import Model
    from sae_lm_eval.talk.terminal import Session

    model = Model(arguments, sae or [], prompt_format)
    model.check_system(system)
    if not questions and text is None:
        Session(model, sampling, system).run()
        return
    _unattended(model, questions, sampling, system, text, tokens, html)


def _check_template(arguments: dict[str, Any], prompt_format: str | None, system: str | None) -> None:
    """Raise `UserError` where the files of the tokenizer tell that it has no chat template for what is asked."""
    from sae_lm_eval.harness.chat_template import has_chat_template
    from sae_lm_eval.talk.chosen import check_system, prompt_format_of

    has_template, name = has_chat_template(arguments), str(arguments.get("pretrained"))
    if has_template is not None:
        check_system(system, prompt_format_of(prompt_format, name, has_template=has_template), name)


def _unattended(
    model: Model,
    prompts: list[str],
    sampling: Sampling,
    system: str | None,
    text: Path | None,
    tokens: int,
    html: Path | None,
) -> None:
    from rich.console import Console

    from sae_lm_eval.cli.tables import print_sentence
    from sae_lm_eval.talk import passages
    from sae_lm_eval.talk.html_page import render

    console = Console()
    pages: list[Passage] = []
    for exchange in _answers(model, prompts, sampling, system):
        if html is not None:
            pages.append(passages.of_exchange(model, exchange))
        else:
            _print_exchange(model, exchange, console)
    read = list(passages.of_text(model, text, tokens)) if text is not None else []
    if html is not None:
        html.write_text(render(model, [*pages, *read]), encoding="utf-8")
        print_sentence(console, f"Written: {html}", soft_wrap=True)
    elif read:
        _print_text(model, read, console)


def _answers(model: Model, prompts: list[str], sampling: Sampling, system: str | None) -> Iterator[Exchange]:
    """Each prompt in a conversation of its own."""
    from rich.console import Console
    from rich.progress import track

    from sae_lm_eval.talk.conversation import Conversation

    progress = Console(stderr=True)
    for prompt in track(prompts, "answering", console=progress, transient=True, disable=not progress.is_terminal):
        yield Conversation(model, sampling, system).answer(prompt)


def _print_exchange(model: Model, exchange: Exchange, console: Console) -> None:
    from sae_lm_eval.scoring.detokenize import visible
    from sae_lm_eval.talk.conversation import exchange_record
    from sae_lm_eval.talk.side_by_side import Columns

    if not console.is_terminal:
        print(json.dumps(exchange_record(exchange), ensure_ascii=False), flush=True)
        return
    console.print(f"> {visible(exchange.prompt)}", markup=False, highlight=False, style="bold")
    console.print(Columns(model.decode, exchange.answers).table(console))


def _print_text(model: Model, read: list[Passage], console: Console) -> None:
    """On a terminal the table of categories, elsewhere a line of jsonl for each passage."""
    from sae_lm_eval.talk import passages
    from sae_lm_eval.talk.side_by_side import category_table

    if not console.is_terminal:
        for passage in read:
            print(json.dumps(passages.passage_record(passage, model.name_token), ensure_ascii=False))
        return
    for variant, rows in passages.tables(read, model.tokens.special_ids).items():
        console.print(category_table(variant, rows))
