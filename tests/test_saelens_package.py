"""How SAELens is imported: without wandb until something of it is asked for."""

from __future__ import annotations

import subprocess
import sys

import pytest

from sae_lm_eval.catalog import saelens_registry
from sae_lm_eval.dictionaries import saelens_package


def said(code: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_a_dictionary_is_loaded_without_wandb_and_the_registry():
    code = """
import sys
from sae_lm_eval.dictionaries.loading import load_dictionary
load_dictionary("world#blocks.2.hook_resid_post.k4")
from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory
print("wandb" in sys.modules, get_pretrained_saes_directory.cache_info().currsize)
import sae_lens.config
artifact = sae_lens.config.wandb.Artifact
import wandb
print(artifact is wandb.Artifact, wandb.__spec__.name, type(sys.modules["wandb"]).__name__)
"""
    assert said(code) == ["False", "0", "True", "wandb", "module"]


def test_wandb_that_is_there_stays():
    code = """
import sys, wandb
from sae_lm_eval.dictionaries.saelens_package import import_saelens
print(import_saelens().config.wandb is wandb is sys.modules["wandb"])
"""
    assert said(code) == ["True"]


def test_the_sections_are_the_releases():
    releases = saelens_package.releases()
    assert saelens_package.registry_sections().keys() == releases.keys()
    assert all(saelens_package.is_registered_repository(release.repo_id) for release in releases.values())
    assert not saelens_package.is_registered_repository("stories/sae-stories3M")


@pytest.mark.parametrize("name", ["org/name", "gpt2-small-res-jb/x"])
def test_no_release_has_a_name_as_repositories_have(name, monkeypatch):
    assert not any("/" in release for release in saelens_package.registry_sections())
    monkeypatch.setattr(saelens_registry, "releases", lambda: pytest.fail("parsed the registry"))
    assert saelens_registry.named(name, "x") is None


def test_ids_are_found_in_the_text_as_the_parser_finds_them():
    assert {
        name: list(dict.fromkeys(id_ for _, id_ in saelens_package.IDS.findall(section)))
        for name, section in saelens_package.registry_sections().items()
    } == {name: list(release.saes_map) for name, release in saelens_package.releases().items()}
