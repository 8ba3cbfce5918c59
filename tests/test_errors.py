"""The hint that errors give for a name that is nearly right."""

from vblora_lab.errors import did_you_mean, nearest


def test_the_nearest_name_is_found_whatever_the_case():
    assert nearest("Q_Poj", ["k_proj", "q_proj"]) == "q_proj"
    assert nearest("lora_only", ["none", "vblora_only"]) == "vblora_only"
    assert nearest("q_proj", ["Q_PROJ"]) == "Q_PROJ"
    assert nearest(None, ["none", "all"]) == "none"
    assert nearest("q_proj", []) is None


def test_what_is_not_like_any_gets_no_hint():
    assert nearest("xyz", ["k_proj"]) is None
    assert nearest("xyz", ["k_proj"], cutoff=0) == "k_proj"
    assert did_you_mean("xyz", ["k_proj"]) == ""
    assert did_you_mean("k_prj", ["k_proj"]) == " Did you mean 'k_proj'?"
