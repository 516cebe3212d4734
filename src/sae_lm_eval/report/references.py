"""The works that a report cites, as BibTeX fields; braces keep the capitals of names."""

# ruff: noqa: E501

from __future__ import annotations

from urllib.parse import quote

REFERENCES: dict[str, dict[str, str]] = {
    "sae-lm-eval": {
        "type": "misc",
        "author": r"{The sae\_lm\_eval developers}",
        "title": r"{sae\_lm\_eval}: evaluate language models with sparse autoencoders spliced in",
        "year": "2026",
    },
    "lm-eval": {
        "type": "misc",
        "author": "Gao, Leo and Tow, Jonathan and Abbasi, Baber and Biderman, Stella and Black, Sid and DiPofi, Anthony "
        "and Foster, Charles and Golding, Laurence and Hsu, Jeffrey and Le Noac'h, Alain and Li, Haonan and McDonell, "
        "Kyle and Muennighoff, Niklas and Ociepa, Chris and Phang, Jason and Reynolds, Laria and Schoelkopf, Hailey and "
        "Skowron, Aviya and Sutawika, Lintang and Tang, Eric and Thite, Anish and Wang, Ben and Wang, Kevin and Zou, "
        "Andy",
        "title": "The Language Model Evaluation Harness",
        "year": "2024",
        "publisher": "Zenodo",
        "doi": "10.5281/zenodo.12608602",
    },
    "saelens": {
        "type": "misc",
        "author": "Bloom, Joseph and Tigges, Curt and Duong, Anthony and Chanin, David",
        "title": "{SAELens}",
        "year": "2024",
        "url": "https://github.com/decoderesearch/SAELens",
    },
    "transformerlens": {
        "type": "misc",
        "author": "Nanda, Neel and Bloom, Joseph",
        "title": "{TransformerLens}",
        "year": "2022",
        "url": "https://github.com/TransformerLensOrg/TransformerLens",
    },
    "transformers": {
        "type": "inproceedings",
        "author": "Wolf, Thomas and Debut, Lysandre and Sanh, Victor and Chaumond, Julien and Delangue, Clement and Moi, "
        "Anthony and Cistac, Pierric and Rault, Tim and Louf, Remi and Funtowicz, Morgan and Davison, Joe and Shleifer, "
        "Sam and von Platen, Patrick and Ma, Clara and Jernite, Yacine and Plu, Julien and Xu, Canwen and Le Scao, Teven "
        "and Gugger, Sylvain and Drame, Mariama and Lhoest, Quentin and Rush, Alexander",
        "title": "Transformers: State-of-the-Art Natural Language Processing",
        "booktitle": "Proceedings of the 2020 Conference on Empirical Methods in Natural Language Processing: System "
        "Demonstrations",
        "pages": "38--45",
        "year": "2020",
        "doi": "10.18653/v1/2020.emnlp-demos.6",
    },
    "mcnemar1947": {
        "type": "article",
        "author": "McNemar, Quinn",
        "title": "Note on the sampling error of the difference between correlated proportions or percentages",
        "journal": "Psychometrika",
        "volume": "12",
        "number": "2",
        "pages": "153--157",
        "year": "1947",
        "doi": "10.1007/BF02295996",
    },
    "tango1998": {
        "type": "article",
        "author": "Tango, Toshiro",
        "title": "Equivalence test and confidence interval for the difference in proportions for the paired-sample "
        "design",
        "journal": "Statistics in Medicine",
        "volume": "17",
        "number": "8",
        "pages": "891--908",
        "year": "1998",
        "doi": "10.1002/(SICI)1097-0258(19980430)17:8<891::AID-SIM780>3.0.CO;2-B",
    },
    "holm1979": {
        "type": "article",
        "author": "Holm, Sture",
        "title": "A simple sequentially rejective multiple test procedure",
        "journal": "Scandinavian Journal of Statistics",
        "volume": "6",
        "number": "2",
        "pages": "65--70",
        "year": "1979",
    },
    "bonett2012": {
        "type": "article",
        "author": "Bonett, Douglas G. and Price, Robert M.",
        "title": "Adjusted {Wald} confidence interval for a difference of binomial proportions based on paired data",
        "journal": "Journal of Educational and Behavioral Statistics",
        "volume": "37",
        "number": "4",
        "pages": "479--488",
        "year": "2012",
        "doi": "10.3102/1076998611411915",
    },
    "efron1979": {
        "type": "article",
        "author": "Efron, Bradley",
        "title": "Bootstrap methods: another look at the jackknife",
        "journal": "The Annals of Statistics",
        "volume": "7",
        "number": "1",
        "pages": "1--26",
        "year": "1979",
        "doi": "10.1214/aos/1176344552",
    },
    "phipson2010": {
        "type": "article",
        "author": "Phipson, Belinda and Smyth, Gordon K.",
        "title": "Permutation {P}-values should never be zero: calculating exact {P}-values when permutations are "
        "randomly drawn",
        "journal": "Statistical Applications in Genetics and Molecular Biology",
        "volume": "9",
        "number": "1",
        "pages": "39",
        "year": "2010",
        "doi": "10.2202/1544-6115.1585",
    },
    "gurnee2024": {
        "type": "misc",
        "author": "Gurnee, Wes",
        "title": "{SAE} reconstruction errors are (empirically) pathological",
        "year": "2024",
        "url": "https://www.alignmentforum.org/posts/rZPiuFxESMxCDHe4B/sae-reconstruction-errors-are-empirically-pathological",
    },
    "besiroglu2024": {
        "type": "misc",
        "author": "Besiroglu, Tamay and Erdil, Ege and Barnett, Matthew and You, Josh",
        "title": "{Chinchilla} Scaling: A replication attempt",
        "year": "2024",
        "eprint": "2404.10102",
        "archiveprefix": "arXiv",
        "url": "https://arxiv.org/abs/2404.10102",
    },
    "hoffmann2022": {
        "type": "misc",
        "author": "Hoffmann, Jordan and Borgeaud, Sebastian and Mensch, Arthur and Buchatskaya, Elena and Cai, Trevor and "
        "Rutherford, Eliza and de Las Casas, Diego and Hendricks, Lisa Anne and Welbl, Johannes and Clark, Aidan and "
        "Hennigan, Tom and Noland, Eric and Millican, Katie and van den Driessche, George and Damoc, Bogdan and Guy, "
        "Aurelia and Osindero, Simon and Simonyan, Karen and Elsen, Erich and Rae, Jack W. and Vinyals, Oriol and Sifre, "
        "Laurent",
        "title": "Training Compute-Optimal Large Language Models",
        "year": "2022",
        "eprint": "2203.15556",
        "archiveprefix": "arXiv",
        "url": "https://arxiv.org/abs/2203.15556",
    },
}


def entry(key: str) -> str:
    """The reference for BibTeX; the plain styles print the address of a `misc` from `howpublished` alone."""
    of = dict(REFERENCES[key])
    kind = of.pop("type")
    if kind == "misc" and (address := link(key)):
        of["howpublished"] = rf"\url{{{address}}}"
    return "\n".join([f"@{kind}{{{key},", *(f"  {name} = {{{value}}}," for name, value in of.items()), "}"])


def plain(key: str) -> str:
    """A reference as a line of text."""
    fields = REFERENCES[key]
    authors = [" ".join(reversed(name.split(", "))) for name in fields["author"].split(" and ")]
    who = f"{authors[0]} et al." if len(authors) > 6 else f"{', '.join(authors)}."
    where = fields.get("journal") or fields.get("booktitle") or fields.get("publisher") or ""
    volume = f" {fields['volume']}({fields['number']})" if "volume" in fields else ""
    pages = f":{fields['pages']}" if "volume" in fields else f", pages {fields['pages']}" if "pages" in fields else ""
    text = f"{who} {fields['title']}. {where}{volume}{pages}{', ' if where else ''}{fields['year']}."
    return text.replace("{", "").replace("}", "").replace(r"\_", "_").replace("--", "\N{EN DASH}")


def link(key: str) -> str | None:
    fields = REFERENCES[key]
    return f"https://doi.org/{quote(fields['doi'])}" if "doi" in fields else fields.get("url")


def label(key: str) -> str | None:
    fields = REFERENCES[key]
    return f"doi:{fields['doi']}" if "doi" in fields else fields.get("url")
