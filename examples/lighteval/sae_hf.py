"""A model of lighteval's: a Hugging Face model with dictionaries spliced in, and lighteval's own tasks and metrics.

    lighteval custom "pretrained=gpt2,sae=gpt2-small-res-jb#blocks.8.hook_resid_pre" examples/lighteval/sae_hf.py TASKS

The name of the model is what `lm_eval --model sae_hf --model_args` takes, so that lighteval's results carry it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lighteval.models.abstract_model import LightevalModel
from lighteval.models.model_output import ModelResponse
from lighteval.tasks.prompt_manager import PromptManager
from lighteval.tasks.requests import Doc
from lighteval.utils.cache_management import SampleCache
from lm_eval.api.instance import Instance
from lm_eval.utils import simple_parse_args_string

from sae_lm_eval import SaeHFLM


class SaeLightevalModel(LightevalModel):
    """Answers lighteval's requests by `sae_hf`; prompts are cut into tokens as lighteval's own models cut them."""

    def __init__(self, config: Any) -> None:
        self.config = config
        self._cache = SampleCache(config)  # the pipeline wants one; no answer is kept in it, for it knows names alone
        self.lm = SaeHFLM(**{"batch_size": 32, **simple_parse_args_string(config.model_name)})
        has_template = self.tokenizer.chat_template is not None
        self.prompts = PromptManager(has_template, self.tokenizer, config.system_prompt)

    @property
    def tokenizer(self) -> Any:
        return self.lm.tokenizer

    @property
    def add_special_tokens(self) -> bool:
        return not self.prompts.use_chat_template  # a chat template writes them itself

    @property
    def max_length(self) -> int:
        return self.lm.max_length

    def tok_encode(self, str_to_encode: Any, add_special_tokens: bool | None = None) -> Any:
        """The ids of a text, with a BOS token where the dictionary was trained behind one."""
        adds = self.add_special_tokens if add_special_tokens is None else add_special_tokens
        return self.lm.tok_encode(str_to_encode, add_special_tokens=None if adds else False)

    def loglikelihood(self, docs: list[Doc]) -> list[ModelResponse]:
        """Sums of log-probabilities (nats), one for each choice."""
        requests, counts = [], []
        for doc in docs:
            prompt = self.prompts.prepare_prompt(doc)
            contexts, choices = self.tok_encode_pair(prompt, doc.choices, pairwise=True)
            requests += [((prompt, text), *ids) for text, *ids in zip(doc.choices, contexts, choices, strict=True)]
            counts.append(len(doc.choices))
        answers = iter(self.lm._loglikelihood_tokens(requests))
        return [
            self._scored(requests_of_document, [next(answers) for _ in requests_of_document])
            for requests_of_document in _parts(requests, counts)
        ]

    @staticmethod
    def _scored(requests: Sequence[Any], answers: Sequence[tuple[float, bool]]) -> ModelResponse:
        return ModelResponse(
            input=requests[0][0][0],
            input_tokens=requests[0][1],
            output_tokens=[ids for *_, ids in requests],
            logprobs=[logprob for logprob, _ in answers],
            argmax_logits_eq_gold=[is_greedy for _, is_greedy in answers],
        )

    def loglikelihood_rolling(self, docs: list[Doc]) -> list[ModelResponse]:
        """The log-probability (nats) of each whole text."""
        texts = [self.prompts.prepare_prompt(doc) for doc in docs]
        sums = self.lm.loglikelihood_rolling(_instances("loglikelihood_rolling", [(text,) for text in texts]))
        return [ModelResponse(input=text, logprobs=[total]) for text, total in zip(texts, sums, strict=True)]

    def greedy_until(self, docs: list[Doc]) -> list[ModelResponse]:
        """A text for each prompt, by the likeliest token or as `generation_parameters` say."""
        if several := [doc.task_name for doc in docs if doc.num_samples > 1]:
            raise ValueError(f"{several[0]} wants several texts a prompt, and sae_hf writes one.")
        prompts = [self.prompts.prepare_prompt(doc) for doc in docs]
        requests = _instances(
            "generate_until",
            [(prompt, self._settings(doc)) for prompt, doc in zip(prompts, docs, strict=True)],
        )
        texts = self.lm.generate_until(requests)
        return [
            ModelResponse(
                input=prompt,
                input_tokens=self.tok_encode(prompt),
                text=[text],
                output_tokens=[self.tok_encode(text, add_special_tokens=False)],
            )
            for prompt, text in zip(prompts, texts, strict=True)
        ]

    def _settings(self, doc: Doc) -> dict[str, Any]:
        drawn = {
            name: value
            for name in ("temperature", "top_p", "top_k")
            if (value := getattr(self.config.generation_parameters, name)) is not None
        }
        return {
            "until": [text for text in doc.stop_sequences or () if text],
            "max_gen_toks": doc.generation_size or self.lm.max_gen_toks,
            **({"do_sample": True, **drawn} if drawn.get("temperature") else {}),
        }


def _instances(kind: str, arguments: Sequence[tuple[Any, ...]]) -> list[Instance]:
    return [Instance(kind, {}, given, 0, ("lighteval", i, 1)) for i, given in enumerate(arguments)]


def _parts(values: Sequence[Any], counts: Sequence[int]) -> list[Sequence[Any]]:
    """The values of each document in turn."""
    out, start = [], 0
    for count in counts:
        out.append(values[start : start + count])
        start += count
    return out
