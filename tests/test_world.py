"""Laws of the embedded world: exact entropy, injective text, shipped files that are what the card says."""

import math
import re
from itertools import islice, pairwise
from random import Random

import pytest

from sae_lm_eval import world
from sae_lm_eval.errors import UserError
from sae_lm_eval.world import text
from sae_lm_eval.world.categories import mixture, world_categories

CATEGORIES = list(world_categories())
DICTIONARIES = world.dictionary_ids()


def sample(count: int, seed: int = 0, only: str | None = None) -> list[text.WorldDocument]:
    return list(islice(text.documents(Random(seed), only=only), count))


@pytest.mark.parametrize("name", CATEGORIES)
def test_exact_entropy_and_length_of_a_category_are_the_sampled_means(name):
    exact = text.category_entropy(world_categories()[name])
    documents = sample(1500, only=name)
    nats = [-d.log_probability - mixture().surprisal(name) for d in documents]
    lengths = [len(text.tokens(d.text)) for d in documents]
    for values, expected in ((nats, exact["nats"]), (lengths, exact["tokens"])):
        assert abs(mean(values) - expected) <= 4 * standard_error(values) + 1e-9


def test_exact_entropy_of_the_world_is_the_sampled_mean():
    documents = sample(6000, seed=1)
    exact = text.entropy()["nats_per_token"]
    surplus = [-d.log_probability - exact * len(text.tokens(d.text)) for d in documents]
    assert abs(mean(surplus)) < 4 * standard_error(surplus)


@pytest.mark.parametrize("name", CATEGORIES)
def test_a_document_reads_back_to_its_choices(name):
    for document in sample(150, seed=2, only=name):
        readers = [kind for kind in world_categories().values() if text._read(kind, document.text) is not None]
        assert [kind.name for kind in readers] == [name]
        assert text.log_probability(document.text) == pytest.approx(document.log_probability, abs=1e-9)


def test_no_document_is_the_beginning_of_another():
    documents = sorted({d.text for d in sample(5000, seed=3)})
    assert not any(after.startswith(before) for before, after in pairwise(documents))
    for name, kind in world_categories().items():
        assert {form.count(".") for form in kind.forms} == {kind.sentences}, name


def test_what_the_generator_never_writes_has_probability_zero():
    assert text.log_probability("The ants sleep.") == -math.inf
    question = text.questions("homes")[0]
    held_out = f"{question.prompt} {question.choices[question.answer]}."
    assert text.log_probability(" ".join([held_out] * world_categories()["homes"].repeats)) == -math.inf


def test_text_and_questions_depend_on_the_seed_alone():
    assert sample(50, seed=4) == sample(50, seed=4)
    assert sample(50, seed=4) != sample(50, seed=5)
    assert text.questions("kinship") == text.questions("kinship")
    assert sample(1, seed=0)[0].text == FIRST_DOCUMENT


FIRST_DOCUMENT = (
    "List: pear goose dish knife plum. Again: pear goose dish knife plum. "
    "List: key leaf table knife door. Reversed: door knife table leaf key. "
    "List: loaf dish table wolf ring. Reversed: ring wolf table dish loaf."
)


@pytest.mark.parametrize("name", CATEGORIES)
def test_questions_are_distinct_balanced_and_have_one_right_answer(name):
    kind, questions = world_categories()[name], text.questions(name)
    assert len({q.prompt for q in questions}) == len(questions) == 200
    assert [sum(q.answer == i for q in questions) for i in range(4)] == [50] * 4
    for question in questions:
        assert len(set(question.choices)) == 4
        valid = [is_instance(kind, f"{question.prompt} {choice}") for choice in question.choices]
        assert valid == [i == question.answer for i in range(4)]


@pytest.mark.parametrize("name", CATEGORIES)
def test_no_question_occurs_in_training_text(name):
    prompts = {q.prompt for q in text.questions(name)}
    for document in sample(1500, seed=1, only=name):
        assert not any(document.text.startswith(prompt) for prompt in prompts)


def is_instance(kind, beginning: str) -> bool:
    """Whether the prompt with this answer is the beginning of something the category can write."""
    for tail in (form.split("{answer}")[1] for form in kind.forms):
        for rest in completions(kind, tail, beginning):
            if kind.read(beginning + rest) is not None:
                return True
    return False


def completions(kind, tail: str, beginning: str) -> list[str]:
    """`tail` with its slots filled: by an adverb, or by words of the beginning that the form repeats."""
    if "{" not in tail:
        return [tail]
    slots = re.findall(r"\{(\w+)\}", tail)
    if slots == ["adverb"]:
        return [tail.replace("{adverb}", "often")]
    candidates = list(dict.fromkeys(text.tokens(beginning)))
    return [tail.replace("{" + slots[0] + "}", word) for word in candidates if len(slots) == 1]


def mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


def standard_error(values: list[float]) -> float:
    centre = mean(values)
    return math.sqrt(math.fsum((v - centre) ** 2 for v in values) / (len(values) - 1) / len(values))


def test_vocabulary_covers_documents_and_questions():
    vocabulary = set(text.vocabulary())
    for name in CATEGORIES:
        for document in sample(200, seed=6, only=name):
            assert vocabulary.issuperset(text.tokens(document.text))
        for question in text.questions(name):
            assert vocabulary.issuperset(text.tokens(question.prompt + " " + " ".join(question.choices)))


def test_shipped_files_are_small():
    assert sum(path.stat().st_size for path in world.FILES.rglob("*") if path.is_file()) <= 15 * 2**20


def test_stored_entropies_are_those_of_the_generator():
    facts = world.world_facts()
    assert facts["entropy"] == pytest.approx(text.entropy())
    for name, kind in world_categories().items():
        exact = text.category_entropy(kind)
        assert {key: facts["categories"][name][key] for key in exact} == pytest.approx(exact)


def test_family_loss_falls_with_compute_and_stays_above_the_entropy():
    facts = world.world_facts()
    family = sorted(facts["family"], key=lambda run: run["compute"])
    losses = [run["loss"] for run in family]
    assert len(family) >= 6
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] > facts["entropy"]["nats_per_token"]
    assert len(facts["checkpoints"]) >= 10
    for run in family:
        assert run["compute"] == 6 * run["parameters"] * run["tokens"]


def test_the_story_holds():
    baseline = world.world_facts()["measured"]["baseline"]
    accuracies = [row["accuracy"] for row in baseline["categories"].values()]
    assert baseline["accuracy"] > 0.75
    assert min(accuracies) > 0.25 + 1.96 * math.sqrt(0.25 * 0.75 / 200)
    assert min(accuracies) < 0.95


def test_unknown_names_are_refused_with_the_nearest_ones():
    with pytest.raises(
        UserError,
        match=r"no dictionary 'blocks\.2\.hook_resid_post\.k9'\. Did you mean 'blocks\.2\.hook_resid_post\.k8",
    ):
        world.dictionary_path("blocks.2.hook_resid_post.k9")
    with pytest.raises(UserError, match="The world has no checkpoint 'last'"):
        world.model_path("last")


@pytest.fixture(scope="module")
def loaded():
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(world.model_path())
    model = transformers.AutoModelForCausalLM.from_pretrained(world.model_path()).eval()
    return model, tokenizer


def test_models_load_in_float32(loaded):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    assert loaded[0].dtype == torch.float32
    for name in world.checkpoint_ids():
        other = transformers.AutoModelForCausalLM.from_pretrained(world.model_path(name))
        assert other.dtype == torch.float32
        assert other.num_parameters() == loaded[0].num_parameters()
    assert len(world.checkpoint_ids()) >= 2


@pytest.mark.parametrize("name", CATEGORIES)
def test_one_token_a_word_in_text_and_in_questions(loaded, name):
    _, tokenizer = loaded
    for document in sample(20, seed=8, only=name):
        assert tokenizer.convert_ids_to_tokens(tokenizer.encode(document.text)) == text.tokens(document.text)
        assert tokenizer.decode(tokenizer.encode(document.text)) == document.text.replace("List:", "List :").replace(
            "Again:", "Again :"
        ).replace("Reversed:", "Reversed :")
    for question in text.questions(name):
        context = tokenizer.encode(question.prompt)
        for choice in question.choices:
            whole = tokenizer.encode(f"{question.prompt} {choice}")
            assert whole[:-1] == context
            assert len(whole) == len(context) + 1
            assert tokenizer.unk_token_id not in whole


def test_held_out_loss_is_the_stored_one_and_above_the_entropy(loaded):
    torch = pytest.importorskip("torch")
    model, tokenizer = loaded
    stored = next(run for run in world.world_facts()["family"] if run["name"] == "main")
    documents = sample(300, seed=world.world_facts()["seeds"]["held_out_text"])
    losses, lengths = [], []
    with torch.no_grad():
        for document in documents:
            ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer.encode(document.text)]])
            losses.append(float(model(ids, labels=ids).loss) * (ids.shape[1] - 1))
            lengths.append(ids.shape[1] - 1)
    loss = sum(losses) / sum(lengths)
    assert loss == pytest.approx(stored["loss"], abs=5 * stored["standard_error"] * math.sqrt(2000 / 300))
    # Gibbs: the model's loss less the text's own surprisal is above zero in expectation.
    surplus = [loss + d.log_probability for loss, d in zip(losses, documents, strict=True)]
    assert mean(surplus) > 2 * standard_error(surplus)


@pytest.fixture(scope="module")
def held_out_activations(loaded):
    torch = pytest.importorskip("torch")
    model, tokenizer = loaded
    caught: dict[str, list] = {}
    current = {}
    handles = []
    for layer, block in enumerate(model.model.layers):
        for hook, module, side in (
            (f"blocks.{layer}.hook_resid_post", block, "out"),
            (f"blocks.{layer}.mlp.hook_in", block.mlp, "in"),
            (f"blocks.{layer}.hook_mlp_out", block.mlp, "out"),
        ):

            def catch(_, args, output, hook=hook, side=side):
                current[hook] = args[0] if side == "in" else output

            handles.append(module.register_forward_hook(catch))
    with torch.no_grad():
        for document in sample(150, seed=world.world_facts()["seeds"]["held_out_text"]):
            model.model(torch.tensor([[tokenizer.bos_token_id, *tokenizer.encode(document.text)]]))
            for hook, value in current.items():
                caught.setdefault(hook, []).append(value[0, 1:])
    for handle in handles:
        handle.remove()
    return {hook: torch.cat(parts) for hook, parts in caught.items()}


@pytest.mark.parametrize("id", DICTIONARIES)
def test_dictionary_has_the_explained_variance_and_l0_of_the_card(id, held_out_activations):
    torch = pytest.importorskip("torch")
    sae_lens = pytest.importorskip("sae_lens")
    row = next(row for row in world.world_facts()["dictionaries"] if row["id"] == id)
    dictionary = sae_lens.SAE.load_from_disk(world.dictionary_path(id))
    meta = dictionary.cfg.metadata
    assert dictionary.dtype == torch.float32
    assert (meta.model_name, meta.prepend_bos, meta.hook_name) == ("world", True, row["hook_name"])
    assert meta.hook_name_out == row["hook_name_out"]
    source = held_out_activations[meta.hook_name]
    target = held_out_activations[meta.hook_name_out or meta.hook_name]
    with torch.no_grad():
        error = (target - dictionary(source)).pow(2).sum()
        explained = 1 - error / (target - target.mean(0)).pow(2).sum()
        l0 = (dictionary.encode(source) != 0).sum(1).double().mean()
    assert float(explained) == pytest.approx(row["explained_variance"], abs=0.02)
    assert float(l0) == pytest.approx(row["l0"], rel=0.05)
