"""Device classes: the name of each is its own, and tells its properties (DESIGN.md section 2)."""

from hypothesis import given
from hypothesis import strategies as st

from cloud_stub.core.places import class_key_of, properties_of

odd = st.text(st.sampled_from("ab,= \\"), max_size=6)
properties = st.dictionaries(odd, odd, max_size=4)


@given(properties, properties)
def test_R13_two_classes_never_share_a_name(one: dict[str, str], other: dict[str, str]) -> None:
    """Whatever commas and signs stand in a property: one name is one set of properties, and tells it."""
    assert (class_key_of(one) == class_key_of(other)) == (one == other)
    assert properties_of(class_key_of(one)) == one


def test_R13_a_value_that_looks_like_two_properties_makes_another_class() -> None:
    """What is shown stays readable, and ordinary properties look as they are written."""
    assert class_key_of({"model": "pi4", "rev": "2"}) == "model=pi4, rev=2"
    assert class_key_of({"model": "pi4, rev=2"}) == "model=pi4\\, rev\\=2"


def test_R17_a_long_class_is_cut_and_still_its_own() -> None:
    """A name of any length ends in a digest, from which no properties are guessed."""
    one, other = class_key_of({"model": "x" * 500 + "a"}), class_key_of({"model": "x" * 500 + "b"})
    assert one != other
    assert len(one) < 200
    assert properties_of(one) is None
