"""The model provider `sae_hf` of the framework Inspect: its own `hf`, run with dictionaries spliced in."""

from __future__ import annotations

import gc
import hashlib
import json
import secrets
import time
from collections.abc import Mapping
from typing import Any

import anyio

# Inspect's `hf` makes prompts of chats and messages of texts. Nothing of it is public, and this module alone uses it.
from inspect_ai._util.error import PrerequisiteError  # pyright: ignore[reportMissingImports]
from inspect_ai.model import (  # pyright: ignore[reportMissingImports]
    ChatCompletionChoice,
    ChatMessage,
    ChatMessageAssistant,
    GenerateConfig,
    Logprob,
    Logprobs,
    ModelAPI,
    ModelOutput,
    ModelUsage,
    TopLogprob,
)
from inspect_ai.model._providers.hf import HuggingFaceAPI  # pyright: ignore[reportMissingImports]
from inspect_ai.model._providers.util import HFHandler  # pyright: ignore[reportMissingImports]
from inspect_ai.tool import ToolChoice, ToolInfo  # pyright: ignore[reportMissingImports]
from lm_eval.utils import handle_arg_string

from sae_lm_eval import schema
from sae_lm_eval.errors import UserError
from sae_lm_eval.files.logs import logger_of
from sae_lm_eval.harness.gathered_requests import GatheredRequests
from sae_lm_eval.harness.model import KNOWN, SaeHFLM
from sae_lm_eval.harness.requested_texts import (
    PromptTooLong,
    TextWriter,
    WantedText,
    WrittenText,
    sampling_arguments,
)
from sae_lm_eval.splicing.choices import refuse_misspelt, whole

logger = logger_of(__name__)

ROWS = 32  # texts written at once where nobody says; Inspect's own number for `hf`
LOOK_AGAIN = 0.02  # seconds between looks for an answer
OF_INSPECT = ("do_sample", "chat_template", "use_chat_template", "enable_thinking", "model_path", "tokenizer_path")
NOT_HERE = {
    "pretrained": "the model is named behind sae_hf/, as in --model sae_hf/gpt2",
    "params": "effective compute is converted from lm_eval's task sae_fidelity, which Inspect does not run",
    "tokens": "effective compute is converted from lm_eval's task sae_fidelity, which Inspect does not run",
    "think_end_token": "Inspect tells reasoning from answers by itself",
    "chat_template_args": "Inspect hands enable_thinking alone to a template",
}
MODEL_INFO = ("model_revision", "model_sha", "model_num_parameters")  # by lm_eval's names
OF_COLONS = {"clamp": "12:3.5", "norm_factor": "27:30"}
HOUR = 60  # YAML makes no smaller number of IN:OUT, but of 0:OUT
TEXTS = ("chat_template",)  # which are taken as they are
UNKNOWN_TO_HF = ("frequency_penalty", "presence_penalty", "logit_bias", "num_choices", "best_of", "response_schema")


class SaeHFAPI(HuggingFaceAPI):
    """`--model sae_hf/NAME`: a Hugging Face causal language model with dictionaries spliced in.

    Chats become prompts, and texts tool calls, as by Inspect's `hf`. Requests that come together are written in one
    batch. The likeliest token is taken unless a temperature, top_p or top_k is given, or do_sample=true.

    Args:
        model_name: a model's name on the hub, a local folder, or `world`.
        base_url, api_key: not used.
        config: Inspect's settings of generation.
        model_args: the arguments of `lm_eval --model sae_hf` by their names, and do_sample, chat_template,
            use_chat_template, enable_thinking, model_path and tokenizer_path of Inspect's `hf`.

    Raises:
        PrerequisiteError: with one sentence, for whatever the user can mend.
    """

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig = GenerateConfig(),  # noqa: B008  as Inspect calls it
        **model_args: Any,
    ) -> None:
        ModelAPI.__init__(self, model_name, base_url, api_key, [], config)  # not that of `hf`, which loads a model
        try:
            self._load(_arguments(model_args), config)
        except UserError as error:
            raise PrerequisiteError(f"sae_hf: {error}") from error
        # Inspect's cache of answers knows a model by its name and base URL alone.
        identity = json.dumps([self.spliced.identity(), self.do_sample, self.chat_template, self.use_chat_template])
        self.base_url = f"sae_hf:{hashlib.sha256(identity.encode()).hexdigest()[:32]}"
        self._gathered = GatheredRequests(self.writer.write)

    def _load(self, arguments: dict[str, Any], config: GenerateConfig) -> None:
        own = {name: arguments.pop(name) for name in OF_INSPECT if name in arguments}
        self.do_sample = own.get("do_sample")
        self.chat_template, self.use_chat_template = own.get("chat_template"), own.get("use_chat_template")
        self.enable_thinking = own.get("enable_thinking")
        self.batch_size = arguments.setdefault("batch_size", config.max_connections or ROWS)
        if not str(self.batch_size).startswith("auto"):
            whole(self.batch_size, "batch_size", least=1)
        pretrained = own.get("model_path") or self.model_name
        if own.get("tokenizer_path"):
            arguments.setdefault("tokenizer", own["tokenizer_path"])
        self.lm = SaeHFLM(pretrained=pretrained, **arguments)
        self.spliced, self.tokenizer = self.lm.spliced, self.lm.tokenizer
        self.writer = TextWriter(self.spliced)
        info = self.lm.get_model_info()
        self.model_info = {name: info.get(name) or None for name in MODEL_INFO}
        self.seed = secrets.randbits(32) if config.seed is None else config.seed

    def close(self) -> None:
        self._gathered.close()
        del self._gathered, self.lm, self.spliced, self.writer, self.tokenizer
        gc.collect()

    def max_connections(self) -> int:
        return self.batch_size if isinstance(self.batch_size, int) else ROWS

    async def count_text_tokens(self, text: str) -> int:
        return len(await self.tokenize(text))

    async def tokenize(self, text: str) -> list[int]:
        return self.spliced.tokens.encode(text, add_special_tokens=False)

    # -- generation ---------------------------------------------------------------------------------------

    async def generate(
        self, input: list[ChatMessage], tools: list[ToolInfo], tool_choice: ToolChoice, config: GenerateConfig
    ) -> ModelOutput:
        """What the model answers to messages; "model_length" without a text where they leave no room for one.

        Raises `PrerequisiteError` for messages that are no texts, and where logits are nan.
        """
        start = time.monotonic()
        try:
            prompt = self.hf_chat(input, tools)
        except NotImplementedError as error:
            raise PrerequisiteError("sae_hf reads text alone, and a message holds an image or other media.") from error
        request = self._request(prompt, config)
        try:
            written = await self._answer(request)
        except PromptTooLong as error:
            logger.warning("%s", error)
            output = ModelOutput.from_content(self.model_name, "", "model_length", str(error))
            return output.model_copy(update={"metadata": self._metadata(request)})
        except UserError as error:
            raise PrerequisiteError(f"sae_hf: {error}") from error
        message = self._message(written.text, tools)
        ended = "tool_calls" if message.tool_calls else written.ended
        count = len(written.ids)
        return ModelOutput(
            model=self.model_name,
            choices=[ChatCompletionChoice(message=message, stop_reason=ended, logprobs=self._logprobs(written))],
            usage=ModelUsage(
                input_tokens=written.prompt_tokens,
                output_tokens=count,
                total_tokens=written.prompt_tokens + count,
            ),
            time=time.monotonic() - start,
            metadata=self._metadata(request),
        )

    async def _answer(self, request: WantedText) -> WrittenText:
        future = self._gathered.ask(request)
        try:
            # A look now and then serves on asyncio and on trio, and wherever Inspect cancels a sample.
            while not future.done():
                await anyio.sleep(LOOK_AGAIN)
            return future.result()
        finally:
            future.cancel()

    def _request(self, prompt: str, config: GenerateConfig) -> WantedText:
        for name in UNKNOWN_TO_HF:
            if getattr(config, name, None) not in (None, 1):
                self.spliced.loaded.say_once(name, f"sae_hf does not follow {name}, nor does Inspect's hf.")
        sampling = sampling_arguments(
            do_sample=self.do_sample, temperature=config.temperature, top_p=config.top_p, top_k=config.top_k
        )
        return WantedText(
            prompt,
            length=config.max_tokens or self.max_tokens(),
            stop=tuple(filter(None, config.stop_seqs or ())),
            sampling=sampling,
            seed=self.seed if config.seed is None else config.seed,
            likeliest=(config.top_logprobs or 1) if config.logprobs else None,
        )

    def _message(self, text: str, tools: list[ToolInfo]) -> ChatMessageAssistant:
        if tools:
            return HFHandler(self.model_name, self.model_family()).parse_assistant_response(text, tools)
        return ChatMessageAssistant(content=text, model=self.model_name, source="generate")

    def _logprobs(self, written: WrittenText) -> Logprobs | None:
        if written.logprobs is None:
            return None
        name = self.tokenizer.convert_ids_to_tokens
        return Logprobs(
            content=[
                Logprob(
                    token=name(token),
                    logprob=step.logprob,
                    top_logprobs=[TopLogprob(token=name(other), logprob=value) for other, value in step.likeliest],
                )
                for token, step in zip(written.ids, written.logprobs, strict=True)
            ]
        )

    def _metadata(self, request: WantedText) -> dict[str, Any]:
        """What the answer comes from, as lm_eval's results have it."""
        drawn = dict(request.sampling)["do_sample"]
        sampling = {**dict(request.sampling), **({"seed": request.seed} if drawn else {})}
        has_template = self.use_chat_template is not False and bool(self.chat_template or self.tokenizer.chat_template)
        settings = {"prompt_format": "chat template" if has_template else "role: text", "sampling": sampling}
        record = {schema.KEY: schema.VERSION, "model": self.model_name, **self.model_info}
        return {"sae_lm_eval": {**record, **self.writer.provenance, **settings}}


def _arguments(given: Mapping[str, Any]) -> dict[str, Any]:
    """What `-M` gave, as lm_eval reads `--model_args`. Raises `UserError` for what has no meaning here."""
    refuse_misspelt(given, (*KNOWN, *OF_INSPECT))
    for name, why in NOT_HERE.items():
        if given.get(name) is not None:
            raise UserError(f"{name}= is not for Inspect: {why}.")
    for name, meant in OF_COLONS.items():
        number = given.get(name)
        if isinstance(number, int | float) and (name == "clamp" or number >= HOUR):
            raise UserError(
                f"Inspect reads -M values as YAML, where {name}={meant} is a time of day, and {name} became {number}: "
                f"put it into quotes twice, as in -M {name}='\"{meant}\"'."
            )
    return {
        name: handle_arg_string(value) if isinstance(value, str) and name not in TEXTS else value
        for name, value in given.items()
    }
