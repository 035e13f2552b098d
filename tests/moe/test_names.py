from __future__ import annotations

import pytest
from helpers import random_moe

from smolmoe.errors import RequestError, SourceError
from smolmoe.moe.loading import load_config
from smolmoe.moe.names import expert_names, find_experts, group_by_name, named_layers, set_expert_names

NAMES = ("code", "math", None, "code")


@pytest.mark.parametrize("kind", ["mixtral", "glm4_moe"])
def test_names_are_kept_in_the_files(tmp_path, kind):
    model = random_moe(kind)
    assert expert_names(model.config) is None
    set_expert_names(model.config, NAMES, [1])
    model.save_pretrained(tmp_path)
    found = load_config(tmp_path)
    assert expert_names(found) == NAMES
    assert named_layers(found) == (1,)


def test_experts_are_found_by_name_and_by_index():
    config = random_moe("mixtral").config
    set_expert_names(config, NAMES)
    assert group_by_name(NAMES) == {"code": (0, 3), "math": (1,)}
    assert find_experts(config, ["math", "code"], 4) == (0, 1, 3)
    assert find_experts(config, ["2", 0], 4) == (0, 2)
    set_expert_names(config, ("0", "1", None, "0"))  # a name made of digits is a name
    assert find_experts(config, ["0"], 4) == (0, 3)
    assert find_experts(config, [0], 4) == (0,)


@pytest.mark.parametrize("asked", [["poetry"], ["4"], [-1], ["-1"], []])
def test_what_is_not_there_is_refused_with_what_is(asked):
    config = random_moe("mixtral").config
    set_expert_names(config, NAMES)
    with pytest.raises(RequestError) as caught:
        find_experts(config, asked, 4)
    if asked:
        assert "code, math" in str(caught.value)


def test_a_config_that_holds_something_else_is_refused():
    config = random_moe("mixtral").config
    config.expert_names = {"code": 0}
    with pytest.raises(SourceError):
        expert_names(config)
