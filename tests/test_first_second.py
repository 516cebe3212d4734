"""Mistakes that are told before tasks, a model or even torch are loaded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from sae_lm_eval import SaeHFLM, UserError, run, world
from sae_lm_eval.catalog import lookup
from sae_lm_eval.runs import task_index
from sae_lm_eval.runs.checks import TRUTHS, check_model_args
from sae_lm_eval.runs.settings import lm_eval_config
from sae_lm_eval.runs.sweep import sweep_of
from sae_lm_eval.runtime.devices import check_device, check_placement

K4 = "world#blocks.2.hook_resid_post.k4"
OUT = ["--output_path", "out"]
ON_WORLD = ["--model_args", "pretrained=world"]
HOMES = ["--tasks", "sae_world_homes"]
RUN = [*ON_WORLD, *HOMES, *OUT]

# Flags behind `sae-lm-eval run`, and what is told.
MISTAKES: Mapping[str, tuple[Sequence[str], str]] = {
    "a task": (
        [*ON_WORLD, "--sae", K4, "--tasks", "sae_world_homes,sae_wrld_pets", *OUT],
        "There is no task 'sae_wrld_pets'. Did you mean 'sae_world_pets' or ",
    ),
    "a task of lm_eval's": (
        [*ON_WORLD, "--sae", K4, "--tasks", "lambada_openia", *OUT],
        "There is no task 'lambada_openia'. Did you mean 'lambada_openai' or ",
    ),
    "no task fits a pattern": (
        [*ON_WORLD, "--sae", K4, "--tasks", "sae_wrld*", *OUT],
        "There is no task 'sae_wrld*'.",
    ),
    "a file of a task": (
        [*ON_WORLD, "--sae", K4, "--tasks", "nowhere/mine.yaml", *OUT],
        "There is no file 'nowhere/mine.yaml' with a task.",
    ),
    "an embedded id": (
        [*RUN, "--sae", f"{K4}4"],
        "The world has no dictionary 'blocks.2.hook_resid_post.k44'. Did you mean 'blocks.2.hook_resid_post.k4' or ",
    ),
    "a registered id": (
        [*RUN, "--sae", "gpt2-small-res-jb#blocks.8.hook_resid_pree"],
        "The release 'gpt2-small-res-jb' has no dictionary 'blocks.8.hook_resid_pree'. Did you mean "
        "'blocks.8.hook_resid_pre' or ",
    ),
    "a release": (
        [*RUN, "--sae", "gpt2-small-res-bj#blocks.8.hook_resid_pre"],
        "There is no SAELens release 'gpt2-small-res-bj'. Did you mean 'gpt2-small-res-jb' or ",
    ),
    "no id": ([*RUN, "--sae", "gpt2-small-res-jb"], "The release 'gpt2-small-res-jb' has 13 dictionaries: name one"),
    "an id of a folder": (
        [*RUN, "--sae", "my dictionaries#layer_11"],
        "'my dictionaries' holds no dictionary #layer_11 (a folder with cfg.json). Did you mean 'layer_1'? It has "
        "#layer_1.",
    ),
    "a folder": ([*RUN, "--sae", "./nowhere"], "'./nowhere' is neither a folder here nor a SAELens release nor a hub"),
    "a layer of a folder": (
        [*RUN, "--sae", "my dictionaries#layer_1"],
        "my dictionaries#layer_1 was trained on gpt2 at layer 7, and the layers of world run from 0 to 3.",
    ),
    "a layer of a release": (
        [*RUN, "--sae", "gpt2-small-res-jb#blocks.8.hook_resid_pre"],
        "gpt2-small-res-jb#blocks.8.hook_resid_pre was trained on gpt2-small at layer 8, and the layers of world run "
        "from 0 to 3.",
    ),
    "a layer of a hook": (
        [*RUN, "--sae", f"{K4},hook=blocks.4.hook_resid_post"],
        "hook= is at layer 4, and the layers of world run from 0 to 3.",
    ),
    "a model": (
        ["--model_args", "pretrained=./wrld", "--sae", K4, *HOMES, *OUT],
        "There is no folder './wrld' with a model.",
    ),
    "a folder without a model": (
        ["--model_args", "pretrained=my dictionaries", "--sae", K4, *HOMES, *OUT],
        "There is no model in the folder 'my dictionaries': it has no config.json.",
    ),
    "a sequence-to-sequence model": (
        ["--model_args", "pretrained=t5", "--sae", K4, *HOMES, *OUT],
        "t5 is a sequence-to-sequence model; sae_hf splices into causal language models.",
    ),
    "no model": (["--sae", K4, *HOMES, *OUT], "pretrained= is missing: name a model, as in pretrained=gpt2."),
    "no dictionary": ([*RUN], "--sae is missing: name a dictionary for each variant"),
    "no task at all": ([*ON_WORLD, "--sae", K4, *OUT], "--tasks is missing: name tasks of lm_eval's"),
    "no folder": ([*ON_WORLD, "--sae", K4, *HOMES], "--output_path is missing: name a folder for the results."),
    "a word for a GPU": ([*RUN, "--sae", K4, "--device", "gpu"], "'gpu' is no device. Did you mean 'cuda'?"),
    "a limit below zero": ([*RUN, "--sae", K4, "--limit", "-5"], "limit: -5.0 leaves no document to ask: give the"),
    "a limit between": ([*RUN, "--sae", K4, "--limit", "2.5"], "limit: 2.5 is no number of documents: give a whole"),
    "a limit in words": (
        [*RUN, "--sae", K4, "--limit", "few"],
        "Argument --limit/-L: invalid float value: 'few'. sae-lm-eval run --help lists the flags.",
    ),
    "shots below zero": ([*RUN, "--sae", K4, "--num_fewshot", "-1"], "num_fewshot=-1 must be a whole number of at"),
    "a batch size": ([*RUN, "--sae", K4, "--batch_size", "big"], "batch_size=big must be a whole number of at least"),
    "a scale beyond one": ([*RUN, "--sae", f"{K4},scale=1.5"], "scale=1.5 must be from 0, which changes nothing, to 1"),
    "a mode": ([*RUN, "--sae", f"{K4},splice=zeros"], "splice 'zeros' is unknown. Did you mean 'zero'? Choose from"),
    "a map": ([*RUN, "--sae", f"{K4},hook_map=centred"], "hook_map 'centred' is unknown. Did you mean 'centered'?"),
    "a dtype": ([*RUN, "--sae", f"{K4},sae_dtype=float23"], "sae_dtype 'float23' is unknown. Did you mean 'float32'"),
    "an argument of a variant": (
        [*RUN, "--sae", f"{K4},splce=zero"],
        "variants, entry 1 has no key 'splce'. Did you mean 'splice' or ",
    ),
    "no text to average": (
        [*RUN, "--sae", f"{K4},splice=mean"],
        "world_blocks.2.hook_resid_post.k4,splice=mean: ",
    ),
    "a file for a folder": (
        [*ON_WORLD, *HOMES, "--sae", K4, "--output_path", "sweep.yaml/out"],
        "'sweep.yaml/out' cannot be made: 'sweep.yaml' is a file. Give another --output_path.",
    ),
    "categories": ([*RUN, "--sae", K4, "--categories", "nowhere.yaml"], "'nowhere.yaml' cannot be read: "),
    "a folder of tasks": (
        [*RUN, "--sae", K4, "--include_path", "nowhere"],
        "include_path: there is no folder '",
    ),
    "--saes": ([*RUN, "--saes", K4], "run has no flag '--saes'. Did you mean '--sae' or "),
    "--task": ([*ON_WORLD, *OUT, "--sae", K4, "--task", "blimp"], "run has no flag '--task'. Did you mean '--tasks'?"),
    "--model_arg": (
        ["--model_arg", "pretrained=world", *HOMES, *OUT, "--sae", K4],
        "run has no flag '--model_arg'. Did you mean '--model_args'",
    ),
    "an abbreviation": (
        [*RUN, "--sae", K4, "--num_few", "1"],
        "run has no flag '--num_few'. Did you mean '--num",
    ),
    "--model": (
        [*RUN, "--sae", K4, "--model", "hf"],
        "run evaluates --model sae_hf and the untouched model: ",
    ),
    "--config": ([*RUN, "--sae", K4, "--config", "sweep.yaml"], "run takes lm_eval's settings from a sweep file: "),
    "a seed in words": ([*RUN, "--sae", K4, "--seed", "abc"], "Argument --seed: invalid value: 'abc'. sae-lm-eval run"),
    "no path": ([*ON_WORLD, *HOMES, "--sae", K4, "--output_path", ""], "output_path: '' is no path."),
    "an empty model": (
        ["--model_args", "pretrained=", "--sae", K4, *HOMES, *OUT],
        "pretrained= is missing: name a model, as in pretrained=gpt2.",
    ),
    "a dtype of the model": (
        ["--model_args", "pretrained=world,dtype=bfloat17", "--sae", K4, *HOMES, *OUT],
        "dtype 'bfloat17' is unknown. Did you mean 'bfloat16' or ",
    ),
    "an argument of ours": (
        ["--model_args", "pretrained=world,splcie=zero", "--sae", K4, *HOMES, *OUT],
        "sae_hf has no argument 'splcie'. Did you mean 'splice'?",
    ),
    "an argument of lm_eval's": (
        ["--model_args", "pretrained=world,revison=main", "--sae", K4, *HOMES, *OUT],
        "sae_hf has no argument 'revison'. Did you mean 'revision'?",
    ),
    "a revision of the world": (
        ["--model_args", "pretrained=world,revision=v9", "--sae", K4, *HOMES, *OUT],
        "The embedded world has no revisions: leave out revision=v9.",
    ),
    "a length": (
        ["--model_args", "pretrained=world,max_length=abc", "--sae", K4, *HOMES, *OUT],
        "max_length=abc must be a whole number of at least 1.",
    ),
    "a dictionary twice": (
        [*RUN, "--sae", f"{K4}+{K4}"],
        "world_blocks.2.hook_resid_post.k4+world_blocks.2.hook_resid_post.k4: two dictionaries write at ",
    ),
    "two at one site": (
        [*RUN, "--sae", f"{K4}+world#blocks.2.hook_resid_post.k32"],
        "world_blocks.2.hook_resid_post.k4+world_blocks.2.hook_resid_post.k32: two dictionaries write at "
        "'blocks.2.hook_resid_post': one site takes one dictionary.",
    ),
    "an empty hook": ([*RUN, "--sae", f"{K4},hook="], "world_blocks.2.hook_resid_post.k4,hook=: hook= names no site: "),
    "a factor": ([*RUN, "--sae", f"{K4},norm_factor=0"], "norm_factor=0 must be a number above 0, as in norm_factor"),
    "a file for samples": ([*RUN, "--sae", K4, "--samples", "nope.json"], "samples: 'nope.json' is not a mapping of "),
    "samples and a limit": (
        [*RUN, "--sae", K4, "--limit", "2", "--samples", '{"sae_world_homes": [1]}'],
        "limit and samples both say which documents are asked: give one of them.",
    ),
    "JSON": ([*RUN, "--sae", K4, "--metadata", "{x"], "lm_eval does not take these flags: Invalid JSON: {x. Hint: Use"),
    "an address of nobody": ([*RUN, "--sae", K4, "--ray", ""], "ray: '' is no address: give that of a cluster, as"),
    "a task in capitals": (
        [*ON_WORLD, "--sae", K4, "--tasks", "SAE_World_Homes", *OUT],
        "There is no task 'SAE_World_Homes'. Did you mean 'sae_world_homes'?",
    ),
    "two maps for one dictionary": (
        [*RUN, "--sae", f"{K4},hook_map=raw+raw"],
        "world_blocks.2.hook_resid_post.k4,hook_map=raw+raw: hook_map names 2 and there are 1 dictionaries: give one",
    ),
    "no field": ([*RUN, "--sae", K4, "--docs_by", ""], "docs_by: '' names no field of the documents: give one"),
    "a number for variants": (["three.yaml", *RUN, "--sae", K4], "variants: there are none: give a list of entries"),
    "a sweep file": (["sweeep.yaml", *OUT], "There is no sweep file 'sweeep.yaml'. Each dictionary takes a --sae"),
    "a latent": ([*RUN, "--sae", f"{K4},ablate=512"], f"{K4} has no latent 512: they run from 0 to 511."),
    "a clamped latent": ([*RUN, "--sae", f"{K4},clamp=600:1"], f"{K4} has no latent 600: they run from 0 to 511."),
    "more latents than there are": ([*RUN, "--sae", f"{K4},keep_top=513"], f"keep_top=513: {K4} has 512 latents."),
    "a word for a truth": (
        ["--model_args", "pretrained=world,add_bos_token=perhaps", "--sae", K4, *HOMES, *OUT],
        "add_bos_token=perhaps is neither True nor False.",
    ),
    "a tokenizer": (
        ["--model_args", "pretrained=world,tokenizer=./nowhere", "--sae", K4, *HOMES, *OUT],
        "There is no folder './nowhere' with a tokenizer.",
    ),
    "an adapter": (
        ["--model_args", "pretrained=world,peft=my dictionaries", "--sae", K4, *HOMES, *OUT],
        "There is no adapter in the folder 'my dictionaries': it has no adapter_config.json.",
    ),
    "a delta model": (
        ["--model_args", "pretrained=world,delta=~nobody_here/delta", "--sae", K4, *HOMES, *OUT],
        "There is no folder '~nobody_here/delta' with a delta model.",
    ),
    "a user who is not here": (
        [*ON_WORLD, *HOMES, "--sae", K4, "--output_path", "~nobody_here/out"],
        "output_path: there is no user 'nobody_here' here. Give the whole path.",
    ),
    "a model of a user who is not here": (
        ["--model_args", "pretrained=~nobody_here/gpt2", "--sae", K4, *HOMES, *OUT],
        "There is no folder '~nobody_here/gpt2' with a model.",
    ),
    "a sweep of a user who is not here": (
        ["~nobody_here/a.yaml", *OUT],
        "There is no sweep file '~nobody_here/a.yaml'.",
    ),
    "a level of logging": (
        [*RUN, "--sae", K4, "--verbosity", "LOUD"],
        "verbosity: 'LOUD' is no level of logging. Choose",
    ),
    "turns of no chat": (
        [*RUN, "--sae", K4, "--fewshot_as_multiturn", "true"],
        "fewshot_as_multiturn makes turns of a chat: give --apply_chat_template as well.",
    ),
    "seeds of no examples": (
        [*RUN, "--sae", K4, "--fewshot_seeds", "1,2"],
        "--fewshot_seeds needs in-context examples to choose: give --num_fewshot, as in 5.",
    ),
    "a seed of examples": (
        [*RUN, "--sae", K4, "--num_fewshot", "2", "--fewshot_seeds", "1,b"],
        "--fewshot_seeds has '1,b': write numbers joined by commas, as in 1,2,3.",
    ),
    "the world without an id": (
        [*RUN, "--sae", "world"],
        "The world has more than one dictionary: name one of blocks.1.",
    ),
    "a sweep file behind": (
        [*RUN, "--sae", K4, "--limit", "2", "sweep.yaml"],
        "run does not know what to do with '",
    ),
}
# Of every command, the flags behind its name, and what is told.
SPLICED = [*ON_WORLD[:1], f"pretrained=world,sae={K4}"]
CURVE = ["curve", "--models", "world", "--task", "sae_fidelity_world", "--output_path", "c.csv"]
WHERE = ["where", *RUN, "--sae", K4]
OF_COMMANDS: Mapping[str, tuple[Sequence[str], str]] = {
    "a task of a group": (
        ["run", *RUN[:2], "--tasks", "sae_world,sae_world_homes", *OUT, "--sae", K4],
        "tasks: 'sae_world_homes' is in the group 'sae_world' as well: name one of them.",
    ),
    "a group of a group": (
        ["run", *RUN[:2], "--tasks", "mmlu_stem,mmlu", *OUT, "--sae", K4],
        "tasks: 'mmlu_abstract_algebra' is in 'mmlu_stem' and in 'mmlu': name one of these groups.",
    ),
    "a task of a category": (
        ["run", *RUN, "--sae", K4, "--categories", "categories.yaml"],
        "Category 'a': 'sae_world_hommes' is no task or group of those asked. Did you mean 'sae_world_homes'?",
    ),
    "a key of a category": (
        ["run", *RUN, "--sae", K4, "--categories", "keys.yaml"],
        "Category 'a' has feld: give 'field', and 'values' or 'tasks'.",
    ),
    "a layer to skip": (
        ["run", *RUN, "--edit", "skip?layers=4"],
        "edit=skip?layers=4 skips layer 4: layers of world run from 0 to 3.",
    ),
    "a rank": (
        ["run", *RUN, "--edit", "lowrank?rank=128"],
        "edit=lowrank?rank=128 changes nothing: no matrix of world has a rank of more than 128.",
    ),
    "a length beyond the model's": (
        ["run", "--model_args", "pretrained=world,max_length=129", *HOMES, *OUT, "--sae", K4],
        "max_length=129 is more than the 128 tokens that world reads by its configuration.",
    ),
    "a name twice": (
        ["run", "--model_args", "pretrained=world,pretrained=gpt2", *HOMES, *OUT, "--sae", K4],
        "--model_args names 'pretrained' twice: give it once.",
    ),
    "arguments of a template": (
        ["run", "--model_args", "pretrained=world,chat_template_args=5", *HOMES, *OUT, "--sae", K4],
        "chat_template_args=5 is no mapping: ",
    ),
    "a token id": (
        ["run", "--model_args", "pretrained=world,prefix_token_id=x", *HOMES, *OUT, "--sae", K4],
        "prefix_token_id=x must be a whole number of at least 0.",
    ),
    "a kind of model": (
        ["run", "--model_args", "pretrained=world,backend=seq2seq", *HOMES, *OUT, "--sae", K4],
        "backend 'seq2seq' is unknown. Choose from default, causal.",
    ),
    "parameters below zero": (
        ["run", "--model_args", "pretrained=world,params=-5", *HOMES, *OUT, "--sae", K4],
        "The number of parameters is -5.0; it must be positive.",
    ),
    "a template that is not there": (
        ["run", *RUN, "--sae", K4, "--apply_chat_template"],
        "The tokenizer has no chat template: leave out --apply_chat_template.",
    ),
    "no number for memory": (["run", *RUN, "--sae", K4, "--memory", "nan"], "memory: nan is no number of gigabytes"),
    "a cluster": (["run", *RUN, "--sae", K4, "--ray", "http://head"], "ray: 'http://head' is no address: give that"),
    "a temperature": (
        ["run", *RUN, "--sae", K4, "--gen_kwargs", "temperature=hot"],
        "gen_kwargs: temperature=hot must be a number",
    ),
    "a seed below zero": (["run", *RUN, "--sae", K4, "--seed", "-1"], "seed=-1 must be a whole number of at least 0."),
    "no scores": (
        ["run", *RUN, "--sae", K4, "--predict_only"],
        "run compares scores, which --predict_only leaves out: ",
    ),
    "samples of nothing": (["run", *RUN, "--sae", K4, "--samples", "{}"], "samples: {} names no document: leave it "),
    "samples of another task": (
        ["run", *RUN, "--sae", K4, "--samples", '{"sae_world_home": [1]}'],
        "samples: the task 'sae_world_home' is not among those asked. Did you mean 'sae_world_homes'?",
    ),
    "a document below zero": (
        ["run", *RUN, "--sae", K4, "--samples", '{"sae_world_homes": [-1]}'],
        "samples: sae_world_homes: -1 is no number of a document",
    ),
    "a text without text": (
        ["run", *RUN, "--sae", f"{K4},splice=mean,mean_text=empty.txt"],
        "'empty.txt' holds no text.",
    ),
    "a file of another language": (
        ["run", *RUN, "--sae", "python:empty.txt:f"],
        "There is no module 'empty.txt', and a file to run ends in .py.",
    ),
    "a flag of where": (
        [*WHERE, "--categories", "a.yaml"],
        "where has no flag '--categories'. 'sae-lm-eval where --help' lists them.",
    ),
    "chat with a base model": (
        ["talk", *SPLICED, "--prompt_format", "chat"],
        "world has no chat template: use --prompt_format plain.",
    ),
    "a system prompt": (
        ["talk", *SPLICED, "--system", "Be kind."],
        "A system prompt needs a chat template, and world is read as plain text here.",
    ),
    "a column twice": (["talk", *SPLICED, "--sae", K4], f"{K4} is given twice: each variant is a column"),
    "nothing to talk to": (["talk", *ON_WORLD], "Name a dictionary: sae=SPEC in --model_args, or --sae SPEC for"),
    "a page nowhere": (
        ["talk", *SPLICED, "--prompts", "sweep.yaml", "--html", "nowhere/page.html"],
        "'nowhere/page.html' cannot be written: No such file or directory. Name another file.",
    ),
    "a text to read": (["talk", *SPLICED, "--text", "empty.txt"], "'empty.txt' holds no text."),
    "nothing to inspect": (["inspect", *ON_WORLD], "sae= is missing: name a dictionary, as in sae=gpt2-small-res-jb#"),
    "an edit to inspect": (
        ["inspect", "--model_args", "pretrained=world,edit=skip?layers=1"],
        "inspect says where dictionaries go, and edit=skip?layers=1 has none; its results say what it changed.",
    ),
    "a list and a model": (["inspect", "--list", "*", *ON_WORLD], "--list searches registered dictionaries: leave "),
    "a window beyond the model's": (
        [*CURVE, "--max_length", "129"],
        "max_length=129 is more than the 128 tokens that world reads by its configuration.",
    ),
    "a table nowhere": (
        ["compare", "a", "b", "--csv", "nowhere/x.csv"],
        "'nowhere/x.csv' cannot be written: No such file or directory. Name another file.",
    ),
    "a file for a report": (
        ["compare", "a", "b", "--output_path", "sweep.yaml"],
        "'sweep.yaml' cannot be made: 'sweep.yaml' is a file. Give another --output_path.",
    ),
    "a file for the demo": (
        ["demo", "--output_path", "sweep.yaml"],
        "'sweep.yaml' cannot be made: 'sweep.yaml' is a file. Give another --output_path.",
    ),
}
# What a sweep file says in the place of the right thing, and what is told.
FILES: Mapping[str, tuple[Mapping[str, object], str]] = {
    "a list of modes": (
        {"variants": [{"sae": K4, "splice": ["zero", "mean"]}]},
        "variants, entry 1: splice: ['zero', 'mean'] is no single value: give one, and another entry for another.",
    ),
    "a list of hooks": (
        {"variants": [{"sae": K4, "hook": ["a", "b"]}]},
        "variants, entry 1: hook: ['a', 'b'] is no single value: give one, several joined by '+'.",
    ),
    "tasks as a mapping": ({"tasks": {"blimp": 1}}, "tasks: {'blimp': 1} is neither a text nor a list of names"),
    "tasks as numbers": ({"tasks": [1]}, "tasks: [1] is neither a text nor a list of names"),
    "a model as a list": (
        {"model_args": ["world"]},
        "model_args: ['world'] is no mapping, such as {pret",
    ),
    "variants as a number": ({"variants": 3}, "variants: there are none: give a list of entries"),
    "controls as a mapping": ({"controls": {"zero": 1}}, "controls: {'zero': 1} is neither a text nor a list of them."),
    "a limit in words": ({"limit": "few"}, "limit: 'few' leaves no document to ask"),
    "shots as a list": ({"num_fewshot": [5]}, "num_fewshot=[5] must be a whole number of at least 0."),
    "text for a truth": ({"write_out": "yes please"}, "write_out: 'yes please' is not true or false."),
    "a list for generation": ({"gen_kwargs": [1]}, "gen_kwargs: [1] is not a mapping, such as {temperature: 0}."),
    "a path as a list": ({"output_path": ["out"]}, "output_path: ['out'] is no path."),
    "memory in words": ({"memory": "much"}, "memory: 'much' is no number of gigabytes above 0."),
    "a field as a list": ({"docs_by": ["a"]}, "docs_by: ['a'] names no field of the documents: give one, such as"),
    "a category of no task": ({"categories": {"a": "pets"}}, "Category 'a': 'pets' is no task or group of those as"),
    "seeds in words": ({"seed": [0, "one"]}, "seed=one must be a whole number of at least 0."),
    "a key": ({"task": "blimp"}, "The sweep file 'case.yaml' has no key 'task'. Did you mean 'tasks'?"),
}
EVERY = {**{case: (["run", *flags], words) for case, (flags, words) in MISTAKES.items()}, **OF_COMMANDS}
# One process for all, since it takes a while to start; each case is a command in it.
COMMANDS = """
import contextlib, io, json, sys
from sae_lm_eval.cli.main import main
heavy = (
    *("torch", "transformers", "datasets", "sae_lens", "transformer_lens", "lm_eval.tasks"),
    "matplotlib",
)
for arguments in json.load(sys.stdin):
    sys.argv, output, code = ["sae-lm-eval", *arguments], io.StringIO(), None
    with contextlib.redirect_stderr(output), contextlib.redirect_stdout(output):
        try:
            main()
        except SystemExit as error:
            code = error.code
    print(json.dumps([code, output.getvalue(), [name for name in heavy if name in sys.modules]]))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("first second")
    dictionary = folder / "my dictionaries" / "layer_1"
    dictionary.mkdir(parents=True)
    (dictionary / "cfg.json").write_text(
        json.dumps({"d_in": 64, "metadata": {"hook_name": "blocks.7.hook_resid_post", "model_name": "gpt2"}})
    )
    (folder / "t5").mkdir()
    (folder / "t5" / "config.json").write_text(json.dumps({"model_type": "t5", "is_encoder_decoder": True}))
    (folder / "sweep.yaml").write_text("tasks: [sae_world_homes]")
    (folder / "three.yaml").write_text("variants: 3")
    (folder / "categories.yaml").write_text("a: [sae_world_hommes]")
    (folder / "keys.yaml").write_text("a: {feld: kind}")
    (folder / "empty.txt").write_text("")
    return folder


def outcomes(
    folder: Path, commands: Sequence[Sequence[str]], environment: Mapping[str, str] | None = None
) -> list[tuple[int | None, str, list[str]]]:
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS],
        input=json.dumps(commands),
        capture_output=True,
        text=True,
        check=True,
        cwd=folder,
        env={**os.environ, "HF_HUB_OFFLINE": "1"} if environment is None else dict(environment),
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def of_flags(folder: Path) -> dict[str, tuple[int | None, str, list[str]]]:
    return dict(zip(EVERY, outcomes(folder, [flags for flags, _ in EVERY.values()]), strict=True))


@pytest.mark.parametrize("case", EVERY)
def test_a_mistake_is_told_before_anything_is_loaded(case, of_flags, folder):
    code, words, loaded = of_flags[case]
    assert words.startswith(f"sae-lm-eval: {EVERY[case][1]}")
    assert words.count("\n") == 1
    assert code == 2
    assert loaded == []
    assert not (folder / "out").exists()


# What small files on a hub tell.
TOPK8 = "stories/sae-stories3M#blocks.2.hook_resid_post.topk8"
ON_HUB = ["--model_args", "pretrained=stories3M", *HOMES, *OUT, "--sae"]
OF_HUB: Mapping[str, tuple[Sequence[str], str]] = {
    "a latent": (
        ["run", *ON_HUB, f"{TOPK8},ablate=1536"],
        f"{TOPK8} has no latent 1536: they run from 0 to 1535.",
    ),
    "a layer": (
        ["run", *ON_HUB, f"{TOPK8},hook=blocks.6.hook_resid_post"],
        "hook= is at layer 6, and the layers of st",
    ),
    "a template": (["run", *ON_HUB, TOPK8, "--apply_chat_template"], "The tokenizer has no chat template: leave out"),
    "a chat": (
        ["talk", "--model_args", f"pretrained=stories3M,sae={TOPK8}", "--prompt_format", "chat"],
        "stories3M has no chat template: use --prompt_format plain.",
    ),
}


def test_small_files_on_the_hub_tell_of_mistakes(folder, hub_environment):
    endings = outcomes(folder, [arguments for arguments, _ in OF_HUB.values()], hub_environment)
    for (_, expected), (code, words, loaded) in zip(OF_HUB.values(), endings, strict=True):
        assert words.startswith(f"sae-lm-eval: {expected}")
        assert (code, loaded) == (2, [])


# What the model's shapes tell: torch is loaded, and neither tasks nor weights are.
HOOKS = {
    "block.2.hook_resid_post": "world has no hook 'block.2.hook_resid_post'. Give a TransformerLens hook such as ",
    "blocks.2.hook_resid_pots": "world has no hook 'blocks.2.hook_resid_pots'. Did you mean 'hook_resid_post' or ",
    "blocks.1.ln2.hook_normalized": "'blocks.1.ln2.hook_normalized' of world can be read but not written. Layer 1 can",
}


@pytest.mark.parametrize("hook", HOOKS)
def test_a_hook_is_looked_for_in_the_models_shapes(hook, monkeypatch):
    from sae_lm_eval.harness.model import SaeHFLM

    monkeypatch.setattr(SaeHFLM, "__init__", lambda *_, **__: pytest.fail("loaded the model"))
    monkeypatch.setattr(task_index, "quick_index", lambda: pytest.fail("read the tasks"))
    with pytest.raises(UserError) as error:
        run(
            model_args="pretrained=world",
            variants={"sae": K4, "hook": hook},
            tasks="sae_world_homes",
            output_path="out",
        )
    assert str(error.value).startswith(HOOKS[hook])


def test_a_comma_behind_the_last_task_is_none():
    from sae_lm_eval.runs.settings import lm_eval_config

    sweep = sweep_of({"model_args": "pretrained=world", "variants": K4, "tasks": "sae_world_homes, ", "device": "cpu"})
    assert lm_eval_config(sweep).tasks == ["sae_world_homes"]


def test_a_tokenizer_without_a_chat_template_is_told():
    lm = SaeHFLM(pretrained="world", sae=K4, device="cpu")
    with pytest.raises(UserError, match=r"The tokenizer has no chat template: leave out --apply_chat_template\."):
        lm.apply_chat_template([{"role": "user", "content": "hello"}])


@pytest.mark.parametrize("case", FILES)
def test_a_value_of_another_type_in_a_sweep_file(case, folder, monkeypatch):
    from sae_lm_eval.runs.checks import check
    from sae_lm_eval.runs.sweep import read_sweep

    whole = {"model_args": {"pretrained": "world"}, "variants": [K4], "tasks": ["sae_world_homes"], **FILES[case][0]}
    monkeypatch.chdir(folder)
    Path("case.yaml").write_text(json.dumps(whole))
    with pytest.raises(UserError) as error:
        check(sweep_of(read_sweep(Path("case.yaml"))), None)
    assert str(error.value).startswith(FILES[case][1])


def test_the_names_of_tasks_are_lm_evals_own():
    from lm_eval.tasks import TaskManager

    whole = TaskManager().task_index
    with task_index.quick_index():
        quick = TaskManager().task_index
    assert [(name, entry.kind, entry.yaml_path, entry.tags) for name, entry in quick.items()] == [
        (name, entry.kind, entry.yaml_path, entry.tags) for name, entry in whole.items()
    ]
    assert task_index.task_names() == whole.keys()


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("task: a\ndoc_to_text: |\n  task: b\n", {"task": "a"}),
        ('"task": "a b"  # a comment\n', {"task": "a b"}),
        (
            "group: g\ntask:\n- one\n  # or\n- task: two\n  x: 1\n",
            {"group": "g", "task": ["one", {"task": "two", "x": 1}]},
        ),
        ("{task: a, tag: [b, c]}", {"task": "a", "tag": ["b", "c"]}),
        ("include: base\ntask: 12\n", {"task": 12, "tag": "shared"}),
        ("class: !function task.Mine\ntask: 'on'\n", {"class": "task.Mine", "task": "on"}),
    ],
)
def test_the_keys_that_name_a_task(text, keys, tmp_path):
    (tmp_path / "base").write_text("tag: shared\ntask: base\nnum_fewshot: 3\n")
    (tmp_path / "one.yaml").write_text(text)
    assert task_index.naming_keys(str(tmp_path / "one.yaml")) == keys


class TestDevices:
    def test_a_gpu_that_is_not_here(self):
        import torch

        if torch.cuda.is_available():
            pytest.skip("there is a GPU")
        with pytest.raises(UserError, match=r"There is no device 'cuda:1' here: torch [\d.+a-z]+ finds none\."):
            check_device("cuda:1")
        with pytest.raises(UserError, match="There is no device 'cuda' here"):
            run(model_args="pretrained=world", variants=K4, tasks="sae_world_homes", output_path="out", device="cuda")

    def test_a_model_on_several_gpus_that_are_not_here(self):
        import torch

        if torch.accelerator.is_available():
            pytest.skip("there is an accelerator")
        where = {"tasks": "sae_world_homes", "output_path": "out", "variants": K4}
        with pytest.raises(UserError, match=r"parallelize=True spreads a model over GPUs, and torch .* finds none"):
            run(model_args="pretrained=world,parallelize=True", **where)
        with pytest.raises(UserError, match="parallelize=True spreads a model over GPUs"):
            SaeHFLM(pretrained="world", sae=K4, parallelize=True)

    def test_the_device_that_lm_evals_command_names_by_itself(self):
        import torch

        if not torch.cuda.is_available():
            check_placement("cuda:0", None)
            with pytest.raises(UserError, match="There is no device 'cuda' here"):
                check_placement("cuda", None)

    def test_a_gpu_too_many(self, monkeypatch):
        import torch

        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        check_device("cuda:1")
        with pytest.raises(UserError, match=r"There is no device 'cuda:2' here: torch finds cuda:0 to cuda:1\."):
            check_device("cuda:2")


class TestWhatIsMeant:
    def test_a_dictionary_among_the_models_arguments_is_the_first_variant(self):
        sweep = sweep_of({"model_args": f"pretrained=world,sae={K4}", "variants": ["world#x"], "tasks": "t"})
        assert [variant.arguments["sae"] for variant in sweep.variants] == [K4, "world#x"]
        assert sweep.model_args == {"pretrained": "world"}

    def test_settings_among_the_models_arguments(self):
        sweep = sweep_of({"model_args": "pretrained=world,device=cpu,batch_size=4", "variants": K4, "tasks": "t"})
        assert sweep.model_args == {"pretrained": "world"}
        assert {name: sweep.settings[name] for name in ("device", "batch_size")} == {"device": "cpu", "batch_size": 4}
        with pytest.raises(UserError, match="batch_size is 8 by its own flag or key, and 4 in model_args: give one"):
            sweep_of({"model_args": "pretrained=world,batch_size=4", "batch_size": 8, "variants": K4, "tasks": "t"})

    def test_a_folder_of_results_is_not_taken_for_the_world(self, monkeypatch, tmp_path):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "world").mkdir()
        assert world.is_meant_by("world")
        assert lookup.facts_of(K4).hook_out == "blocks.2.hook_resid_post"
        (tmp_path / "world" / "config.json").write_text("{}")
        (tmp_path / "world" / "cfg.json").write_text("{}")
        assert not world.is_meant_by("world")
        assert lookup.facts_of("world#x").hook_out is None

    def test_one_where_a_list_is_meant(self):
        sweep = sweep_of(
            {"model_args": {"pretrained": "world"}, "variants": K4, "controls": "random_error", "tasks": "t"}
        )
        assert [variant.arguments.get("splice") for variant in sweep.variants] == [None, "random_error"]

    def test_the_users_folder(self, monkeypatch, tmp_path):
        monkeypatch.setenv("HOME", str(tmp_path))
        sweep = sweep_of(
            {"model_args": {"pretrained": "~/m"}, "variants": K4, "output_path": "~/o", "use_cache": "~/t"}
        )
        assert sweep.model_args["pretrained"] == str(tmp_path / "m")
        assert sweep.output_path == tmp_path / "o"
        assert sweep.settings["use_cache"] == str(tmp_path / "t")

    def test_a_folder_with_a_space(self, folder, monkeypatch):
        monkeypatch.chdir(folder)
        (variant,) = sweep_of({"model_args": {}, "variants": [Path("my dictionaries/layer_1")]}).variants
        assert variant.specs == ("my dictionaries/layer_1",)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"docs_by": "answr"}, "docs_by: no document has a field 'answr'. Did you mean 'answer'?"),
        ({"categories": {"a": {"field": "colour"}}}, "Category 'a': no document has a field 'colour', only "),
        (
            {"categories": {"a": {"field": "answer", "values": "nowhere"}}},
            "Category 'a': no document's answer is 'nowhere'.",
        ),
        ({"num_fewshot": 100_000}, "num_fewshot=100000: sae_world_homes has "),
    ],
)
def test_what_the_documents_tell_is_told_before_the_model_is_loaded(given, message, monkeypatch, tmp_path):
    monkeypatch.setattr(SaeHFLM, "__init__", lambda *_, **__: pytest.fail("loaded the model"))
    arguments = {"model_args": "pretrained=world", "variants": K4, "tasks": "sae_world_homes", **given}
    with pytest.raises(UserError) as error:
        run(**arguments, output_path=tmp_path / "out", limit=4)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("task", "by", "message"),
    [
        ("sae_world_homes", "field:colour", "--by field:colour: no document has this field; they have "),
        (
            "sae_fidelity_world",
            "kind",
            "where explains tasks that score answers behind a prompt, and sae_fidelity_world",
        ),
    ],
)
def test_what_where_cannot_explain_is_told_before_the_model_is_loaded(task, by, message, monkeypatch, tmp_path):
    from sae_lm_eval.runs.inquiry import Inquiry
    from sae_lm_eval.runs.where import explain_drops

    monkeypatch.setattr(SaeHFLM, "__init__", lambda *_, **__: pytest.fail("loaded the model"))
    sweep = sweep_of({"model_args": "pretrained=world", "variants": K4, "tasks": task, "device": "cpu"})
    with pytest.raises(UserError) as error:
        explain_drops(sweep, lm_eval_config(sweep), tmp_path, Inquiry((by,)))
    assert str(error.value).startswith(message)


def test_the_members_of_groups_are_lm_evals_own():
    from lm_eval.tasks import TaskManager

    with task_index.quick_index():
        loaded = TaskManager().load(["sae_world"])
    groups, tasks = task_index.members(["sae_world"])
    assert {name: sorted(members) for name, members in groups.items()} == {
        name: sorted(members) for name, members in loaded["group_map"].items()
    }
    assert sorted(tasks) == sorted(loaded["tasks"])


def test_members_that_a_group_defines_itself_are_left_to_loading(tmp_path):
    (tmp_path / "group.yaml").write_text("group: own\ntask: [{group: inside, task: [sae_world_homes]}]\n")
    (tmp_path / "other.yaml").write_text("group: other\ntask: [{task: sae_world_homes, num_fewshot: 1}, own_tag]\n")
    (tmp_path / "task.yaml").write_text("task: one\ntag: own_tag\n")
    assert task_index.members(["own"], tmp_path) is None
    assert task_index.members(["nobody's"]) is None
    assert task_index.members(["other"], tmp_path) == (
        {"other": ["sae_world_homes", "one"]},
        ["sae_world_homes", "one"],
    )


@pytest.mark.parametrize(
    ("files", "has"),
    [
        ({}, None),
        ({"tokenizer_config.json": "{}"}, False),
        ({"tokenizer_config.json": '{"chat_template": "x"}'}, True),
        ({"tokenizer_config.json": "{}", "chat_template.jinja": "x"}, True),
    ],
)
def test_files_tell_of_a_chat_template(files, has, tmp_path):
    from sae_lm_eval.harness.chat_template import has_chat_template

    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert has_chat_template({"pretrained": str(tmp_path)}) is has
    assert has_chat_template({"pretrained": "world", "tokenizer": str(tmp_path)}) is has
    assert has_chat_template({"pretrained": str(tmp_path), "trust_remote_code": True}) is None


@pytest.mark.parametrize(
    ("files", "has"),
    [
        ({}, None),
        ({"tokenizer_config.json": "{}"}, None),
        ({"tokenizer_config.json": '{"chat_template": "x"}'}, True),
        ({"chat_template.jinja": "x"}, True),
    ],
)
def test_the_cache_tells_of_a_chat_template_where_the_hub_is_out_of_reach(files, has, tmp_path, monkeypatch):
    from huggingface_hub.errors import HTTPError

    from sae_lm_eval.harness.chat_template import has_chat_template

    def unreachable(*_, **__):
        raise HTTPError("connection refused")

    commit = "0" * 40
    for name, text in {
        "refs/main": commit,
        **{f"snapshots/{commit}/{name}": content for name, content in files.items()},
    }.items():
        path = tmp_path / "models--some--model" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", unreachable)
    assert has_chat_template({"pretrained": "some/model"}) is has


class TestSamples:
    """Which are told once the tasks are read, and before a model is loaded."""

    @pytest.mark.parametrize(
        ("samples", "message"),
        [
            ({"sae_world_pets": [1]}, "the task 'sae_world_pets' is not among those asked. Did you mean 'sae_world_ho"),
            ({"sae_world_homes": [0, 200]}, "sae_world_homes has no document 200: they run from 0 to 199."),
            ({"sae_world_homes": [-1]}, "sae_world_homes: -1 is no number of a document: give whole ones"),
            ({}, "{} names no document: leave it out for all, or give {task: [0, 1]}."),
            ({"sae_world_homes": "all"}, "sae_world_homes: 'all' is no list of numbers of documents, as in [0, 1]."),
            ({"sae_world_homes": []}, "sae_world_homes: [] is no list of numbers of documents, as in [0, 1]."),
            ({"sae_world_homes": [True]}, "sae_world_homes: True is no number of a document: give whole ones"),
            ({"sae_world_homes": [0.0]}, "sae_world_homes: 0.0 is no number of a document: give whole ones"),
            ({"sae_world_homes": ["0"]}, "sae_world_homes: '0' is no number of a document: give whole ones"),
            ({"sae_world_homes": [0, 1, np.int64(0)]}, "sae_world_homes names document 0 twice."),
            ({"sae_world_homes": [np.int64(200)]}, "sae_world_homes has no document 200: they run from 0 to 199."),
            ({3: [0]}, "3 is no name of a task."),
        ],
    )
    def test_documents_that_are_not_there(self, samples, message, monkeypatch, tmp_path):
        monkeypatch.setattr(SaeHFLM, "__init__", lambda *_, **__: pytest.fail("loaded the model"))
        given = {"model_args": "pretrained=world", "variants": K4, "tasks": "sae_world_homes"}
        with pytest.raises(UserError) as error:
            run(**given, output_path=tmp_path / "out", samples=samples)
        assert str(error.value).startswith(f"samples: {message}")

    @pytest.mark.parametrize("group", ["own_group", "own_tag"])
    def test_a_group_is_told_to_be_one(self, group, monkeypatch, tmp_path):
        monkeypatch.setattr(SaeHFLM, "__init__", lambda *_, **__: pytest.fail("loaded the model"))
        question = Path(__file__).parents[1] / "tasks" / "sae_world" / "_question.yaml"
        tasks = tmp_path / "tasks"
        tasks.mkdir()
        task = ["task: own_task", "tag: own_tag", "dataset_kwargs: {category: homes}"]
        (tasks / "one.yaml").write_text("\n".join([f"include: {question}", *task]))
        (tasks / "group.yaml").write_text("group: own_group\ntask: [own_task]\n")
        given = {"model_args": "pretrained=world", "variants": K4, "tasks": group, "include_path": str(tasks)}
        with pytest.raises(UserError, match=f"samples: '{group}' is a group of tasks: name each task of it"):
            run(**given, output_path=tmp_path / "out", samples={group: [0, 1]})

    def test_numbers_of_numpy_are_numbers(self):
        given = {"model_args": "pretrained=world", "variants": K4, "tasks": "sae_world_homes"}
        config = lm_eval_config(sweep_of({**given, "samples": {"sae_world_homes": tuple(np.arange(2))}}))
        assert json.loads(json.dumps(config.samples)) == {"sae_world_homes": [0, 1]}


@pytest.mark.parametrize("name", TRUTHS)
@pytest.mark.parametrize("value", [0, 1, True, False, None, 2, -1, 1.0, "1", "true", [1]])
def test_truths_are_those_of_lm_eval(name, value):
    given = {"pretrained": "world", name: value}
    if value is None or (value in (0, 1) and isinstance(value, int)):
        check_model_args(given)
    else:
        with pytest.raises(UserError, match=rf"{name}=.* is neither True nor False"):
            check_model_args(given)


@pytest.mark.parametrize(
    ("argument", "what"), [("tokenizer", "tokenizer"), ("peft", "adapter"), ("delta", "delta model")]
)
def test_what_is_gated_is_called_what_it_is(argument, what, monkeypatch):
    import httpx
    import huggingface_hub
    from huggingface_hub.errors import GatedRepoError

    def refuse(*_args, **_kwargs):
        raise GatedRepoError("gated", response=httpx.Response(403, request=httpx.Request("GET", "http://hub")))

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with pytest.raises(UserError, match=f"^The {what} 'some/one' is gated"):
        check_model_args({"pretrained": "world", argument: "some/one"})


@pytest.mark.parametrize("edit", [{"ablate": 3}, {"keep_top": 4}, {"clamp": "3:1"}])
@pytest.mark.parametrize("splice", ["zero", "mean", "none"])
class TestEditsOfLatentsThatAreNotAsked:
    def test_are_refused_before_anything_is_loaded(self, edit, splice, monkeypatch, tmp_path):
        monkeypatch.setattr(SaeHFLM, "__init__", lambda *_, **__: pytest.fail("loaded the model"))
        (tmp_path / "text.txt").write_text("a text")
        more = {"mean_text": str(tmp_path / "text.txt")} if splice == "mean" else {}
        variant = {"sae": K4, "splice": splice, **edit, **more}
        with pytest.raises(
            UserError, match=f"splice={splice} does not ask the dictionary, so that {next(iter(edit))}="
        ):
            run(model_args="pretrained=world", variants=[variant], tasks="sae_world_homes", output_path=tmp_path / "o")

    def test_are_not_those_of_a_control(self, edit, splice, tmp_path):
        given = {"variants": [{"sae": K4, **edit}], "controls": [splice], "mean_text": str(tmp_path / "text.txt")}
        (_, control) = sweep_of({"model_args": "pretrained=world", "tasks": "t", **given}).variants
        assert control.arguments["splice"] == splice
        assert not control.arguments.keys() & edit.keys()


def test_a_way_of_attention_that_is_none_is_told():
    with pytest.raises(UserError, match=r"The model does not take that argument: .*attn_implementation=\"flash\""):
        SaeHFLM(pretrained="world", sae=K4, device="cpu", attn_implementation="flash")
