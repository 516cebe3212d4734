"""Token texts, the categories of tokens, and the page that shows them."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import tokenizers
import transformers
from models import WIDTH, random_model, random_sae

from sae_lm_eval import UserError
from sae_lm_eval.cli import demo
from sae_lm_eval.report.formatting import nats, share
from sae_lm_eval.report.question_page import EDGES, shade
from sae_lm_eval.runtime.text_files import check_writable
from sae_lm_eval.scoring.detokenize import Detokenizer, decoder, namer, pieces, token_label, visible
from sae_lm_eval.talk import html_page as page
from sae_lm_eval.talk.chosen import Sampling
from sae_lm_eval.talk.conversation import Conversation, Model
from sae_lm_eval.talk.html_page import render
from sae_lm_eval.talk.passages import Passage, of_exchange, of_text, passage_record, tables
from sae_lm_eval.talk.token_categories import CATEGORIES, Token, described_tokens, tabulate
from sae_lm_eval.world import text
from sae_lm_eval.world.categories import world_categories

HOSTILE = "<script>'&lt;'</script>"
RESID = "blocks.1.hook_resid_post"


def byte_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """Each byte is a token, with the space before a word in a token of its own: many tokens end inside a character."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    model = tokenizers.models.BPE({c: i for i, c in enumerate(["</s>", *alphabet])}, [])
    inner = tokenizers.Tokenizer(model)
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = tokenizers.decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>")


class TestPieces:
    TEXT = 'The cow, "déjà vu" 😀!\n\n  Indented\tنص'

    def test_they_join_to_the_text(self):
        tokenizer = byte_tokenizer()
        ids = tokenizer.encode(self.TEXT)
        parts = pieces(decoder(tokenizer), ids)
        assert "".join(parts) == self.TEXT
        assert len(parts) == len(ids)
        assert parts[ids.index(tokenizer.encode("é")[0])] == ""

    def test_a_start_in_the_middle_changes_nothing(self):
        tokenizer = byte_tokenizer()
        ids = tokenizer.encode(self.TEXT)
        whole = pieces(decoder(tokenizer), ids)
        assert pieces(decoder(tokenizer), ids, 4) == whole[4:]

    def test_one_at_a_time_is_the_same(self, the_world):
        ids = the_world.tokens.encode("Hugo is richer than Max. List: nut, tree.")
        stream = Detokenizer(the_world.decode)
        assert [stream.add(token) for token in ids] == pieces(the_world.decode, ids)
        assert pieces(the_world.decode, ids)[1:4] == [" Hugo", " is", " richer"]

    def test_names_out_of_context(self, the_world):
        encode = the_world.tokens.tokenizer.encode
        assert the_world.name_token(encode("Hugo")[0]) == " Hugo"
        assert the_world.name_token(encode(".")[0]) == "."
        tokenizer = byte_tokenizer()
        name = namer(tokenizer, tokenizer.encode("a")[0])
        assert name(tokenizer.encode("b")[0]) == "b"
        assert name(tokenizer.encode("é")[0]) == tokenizer.convert_ids_to_tokens(tokenizer.encode("é")[0])

    @pytest.mark.parametrize(
        ("written", "shown"),
        [
            ("\x1b[2Jgone", "⟨U+001B⟩[2Jgone"),
            ("a\u202eb", "a⟨U+202E⟩b"),
            ("a\r\x7f\x9b", "a⟨U+000D⟩⟨U+007F⟩⟨U+009B⟩"),
            ("two\nlines\tand é", "two\nlines\tand é"),
            ("👩\u200d🔬", "👩\u200d🔬"),
        ],
    )
    def test_nothing_steers_the_terminal(self, written, shown):
        assert visible(written) == shown

    @pytest.mark.parametrize(
        ("written", "shown"), [(" cat", "·cat"), ("\n\n", "⏎⏎"), ("", "▫"), (" a b\t", "·a b⇥"), ("\x1b", "⟨U+001B⟩")]
    )
    def test_labels_show_what_is_at_the_ends(self, written, shown):
        assert token_label(written) == shown


class TestCategories:
    TEXT = ("Tom", " has", " 12", " kal", "eido", "scopes", ".", " Tom", " sings", "!", "</s>")
    IDS = (5, 6, 7, 8, 9, 10, 11, 5, 12, 13, 2)

    def tokens(self) -> list[Token]:
        (tokens,) = described_tokens([self.TEXT], [self.IDS], frozenset([2]))
        return tokens

    @pytest.mark.parametrize(
        ("category", "members"),
        [
            ("1st token", ["Tom", " Tom", "</s>"]),
            ("2nd to 5th", [" has", " 12", " kal", "eido", " sings", "!"]),
            ("later", ["scopes", "."]),
            ("2 to 4 times", ["Tom", " Tom"]),
            ("5 times or more", []),
            ("whole word", ["Tom", " has", " Tom", " sings"]),
            ("split word, 1st token", [" kal"]),
            ("split word, later token", ["eido", "scopes"]),
            ("digit", [" 12"]),
            ("punctuation", [".", "!"]),
            ("special token", ["</s>"]),
        ],
    )
    def test_members(self, category, members):
        (belongs,) = (group[category] for group in CATEGORIES.values() if category in group)
        assert [token.text for token in self.tokens() if belongs(token)] == members

    @pytest.mark.parametrize("group", ["position in the sentence", "frequency in these texts"])
    def test_each_token_is_in_one_of_a_group(self, group):
        for token in self.tokens():
            assert sum(belongs(token) for belongs in CATEGORIES[group].values()) == 1

    def test_the_table_by_hand(self):
        kls = [None, 0.0, 0.5, 1.0, 3.0, 0.5, 0.0, 0.0, 0.0, 0.0, 0.0]
        rows = {row.category: row for row in tabulate([self.tokens()], [kls])}
        assert (rows["split word, later token"].tokens, rows["split word, later token"].mean) == (2, 1.75)
        assert rows["split word, later token"].share == 3.5 / 5
        assert rows["1st token"].tokens == 2  # the one that was not predicted is not counted
        worst = rows["2nd to 5th"].worst[0]
        assert (worst.before, worst.token, worst.after, worst.kl) == (
            "Tom has 12 kal",
            "eido",
            "scopes. Tom sings!</…",
            3.0,
        )
        assert (rows["5 times or more"].mean, rows["5 times or more"].worst) == (None, ())
        assert sum(row.share or 0 for row in rows.values() if row.group == "position in the sentence") == pytest.approx(
            1
        )

    def test_without_any_kl_there_is_no_share(self):
        rows = tabulate([self.tokens()], [[0.0] * 11])
        assert {row.share for row in rows} == {None}
        assert all(row.worst == () for row in rows)


class Reader(HTMLParser):
    """Elements, attributes and text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def the_world() -> Model:
    return Model(
        {"pretrained": "world", "sae": "world#blocks.2.hook_resid_post.k4"}, ["world#blocks.2.hook_resid_post.k32"]
    )


@pytest.fixture(scope="module")
def exchanged(the_world) -> tuple[Passage, str]:
    passage = of_exchange(the_world, Conversation(the_world, Sampling(max_new_tokens=16)).answer("Otto Brink owns a"))
    return passage, render(the_world, [passage])


class TestPage:
    def test_each_token_of_the_baseline_is_shaded_by_its_kl_for_each_variant(self, exchanged):
        passage, html = exchanged
        assert [token for _, token in enumerate(passage.ids[-16:])] == [place.token for place in passage.places]
        shades = [int(s) for s in re.findall(r'class="t[^"]*" tabindex="0" style="--k:(\d)"', html)]
        assert shades == [shade(place.kl[v]) for v in (0, 1) for place in passage.places]
        assert max(shades[:16]) > 0

    def test_the_first_token_that_parts_is_marked_once_a_variant(self, exchanged):
        passage, html = exchanged
        parted = [answer.parted for answer in passage.exchange.answers[1:]]
        marks = re.findall(r"<mark title=[^>]*>([^<]*)</mark>", html)
        assert marks == [p[i].strip() for p, i in zip(passage.answer_pieces[1:], parted, strict=True) if i is not None]
        assert marks

    def test_both_top_fives_are_there(self, exchanged, the_world):
        passage, html = exchanged
        read = Reader(html)
        rows = [a for a in read.all("span") if (a.get("class") or "").startswith("row")]
        assert len(rows) == len(passage.places) * 2 * 2 * (5 + 1)
        for token, probability in passage.places[0].variants[0].top:
            assert f"{token_label(the_world.name_token(token))}{share(probability)}" in read.text

    def test_nothing_is_fetched_and_one_script_may_run(self, exchanged):
        _, html = exchanged
        read = Reader(html)
        assert not [a for _, a in read.elements if {"src", "href", "action", "data"} & set(a)]
        assert not re.search(r"url\(|@import|https?:", html)
        (policy,) = (m["content"] for m in read.all("meta") if "http-equiv" in m)
        (script,) = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert policy == f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"

    def test_hostile_text_is_text(self, tmp_path):
        """As prompt, system prompt, name of a file, and in a text; with escapes of a terminal."""
        tokenizer = byte_tokenizer()
        tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
        model = random_model("llama")
        model.resize_token_embeddings(300)
        model = Model({"pretrained": model, "tokenizer": tokenizer, "sae": random_sae(WIDTH, RESID)})
        evil = tmp_path / "<b onclick=alert(1)>.txt"
        evil.write_text(HOSTILE)
        conversation = Conversation(model, Sampling(max_new_tokens=4), system=f"{HOSTILE}s")
        html = render(model, [of_exchange(model, conversation.answer(f"{HOSTILE}\x1b[2J")), *of_text(model, evil, 99)])
        read = Reader(html)
        assert len(read.all("script")) == 1
        assert not read.all("b") or all("onclick" not in a for a in read.all("b"))
        assert f"{HOSTILE}s" in read.text
        assert f"{HOSTILE}⟨U+001B⟩[2J" in read.text
        assert evil.name in read.text
        assert "\x1b" not in html

    def test_the_tables_count_every_shaded_token(self, exchanged, the_world):
        passage, html = exchanged
        for rows in tables([passage, passage], the_world.tokens.special_ids).values():
            position = [row for row in rows if row.group == "position in the sentence"]
            assert sum(row.tokens for row in position) == 2 * len(passage.places)
        assert [c for c in CATEGORIES["kind"] if c not in Reader(html).text] == []

    def test_a_text_is_read_in_windows_without_a_gap(self, the_world, tmp_path):
        sentence = "Hugo is richer than Max. "
        (tmp_path / "text.txt").write_text(sentence * 40)
        passages = list(of_text(the_world, tmp_path / "text.txt", 200))
        assert [len(p.places) for p in passages] == [127, 73]
        assert [p.title for p in passages] == ["text.txt, tokens 1 to 127", "text.txt, tokens 128 to 200"]
        assert [piece.strip() for p in passages for piece in p.pieces] == text.tokens(sentence * 40)[:200]
        line = json.loads(json.dumps(passage_record(passages[0], the_world.name_token)))
        assert [t["variants"][0]["kl_nats"] for t in line["tokens"]] == [place.kl[0] for place in passages[0].places]
        assert line["provenance"]["prefix_token_id"] == 0

    def test_a_text_that_is_none(self, the_world, tmp_path):
        (tmp_path / "text.txt").write_bytes(b"\xff\xfe\x00")
        with pytest.raises(UserError, match="cannot be read: it is no UTF-8 at byte 0"):
            list(of_text(the_world, tmp_path / "text.txt", 9))


def test_shades_and_figures():
    assert [shade(kl) for kl in (0, 0.0099, 0.01, 0.5, 99)] == [0, 0, 1, 4, len(EDGES)]
    assert [nats(x) for x in (None, 0, 0.0001, 0.0123, 0.5, 12.345)] == ["n/a", "0", "<0.001", "0.012", "0.5", "12.3"]
    assert [share(x) for x in (None, 0, 0.0001, 0.1234, 1)] == ["n/a", "0.0%", "<0.1%", "12.3%", "100.0%"]


def test_a_file_that_cannot_be_is_told_of(tmp_path: Path):
    kept = tmp_path / "kept.html"
    kept.write_text("kept")
    for path, why in (
        (tmp_path, "Is a directory"),
        (kept / "x.html", "Not a directory"),
        (tmp_path / "none" / "x.html", "No such file or directory"),
    ):
        with pytest.raises(UserError, match=f"cannot be written: {why}. Name another file"):
            check_writable(path)
    check_writable(kept)
    check_writable(tmp_path / "new.html")
    assert [p.name for p in tmp_path.iterdir()] == ["kept.html"]
    assert kept.read_text() == "kept"


def test_the_page_of_the_demo_asks_a_question_of_each_category(tmp_path):
    html = demo.write_page(tmp_path).read_text()
    assert html.count("<blockquote") == len(world_categories())
    assert re.findall(r"<caption>(.*)</caption>", html) == [f"{demo.MIDDLE}.k4", f"{demo.MIDDLE}.k32"]


def test_every_filter_of_the_template_is_there():
    used = set(re.findall(r"\|([a-z_]+)", Path(page.__file__).with_name("page.html").read_text()))
    assert used <= set(page._environment().filters)
