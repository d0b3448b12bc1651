"""Word statistics of captions and the balance of groups."""

import pytest

from imagen_jax.errors import ConfigError
from imagen_jax.inspection.word_stats import caption_words, column_groups, compare_groups, word_groups


def test_words_of_any_script():
    message = ["A red-haired Woman's hat, 3 (of 12)!", "WOMAN … ein süßes Mädchen; женщина_写真 <b>", "", "\ud800 9"]
    assert caption_words(message) == set(
        ["a", "red-haired", "woman's", "hat", "of", "woman", "ein", "süßes", "mädchen", "женщина", "写真", "b"]
    )


def records(*counted):
    return [(caption_words([text]), columns) for text, columns, count in counted for _ in range(count)]


RECORDS = records(
    ("a woman cooking", {"place": "home"}, 30),
    ("a woman at work", {"place": "office"}, 10),
    ("two men at work", {"place": "office"}, 60),
    ("a man cooking", {"place": "home"}, 20),
    ("a man and a woman dancing", {}, 7),
    ("a fox", {}, 5),
)


def test_word_groups_and_skewed_words():
    men, women = compare_groups(RECORDS, word_groups("woman|women, man|men"))
    assert (men.name, men.records, women.name, women.records) == ("man|men", 87, "woman|women", 47)
    assert {skew.word for skew in women.skewed} == {"cooking", "a"}
    assert {skew.word for skew in men.skewed} == {"work", "at", "two"}
    cooking = next(skew for skew in women.skewed if skew.word == "cooking")
    assert (cooking.with_group, cooking.with_others) == (30 / 40, 20 / 80)  # records of one group alone


def test_column_groups():
    office, home = compare_groups(RECORDS, column_groups("place"))
    assert (office.name, office.records, home.name, home.records) == ("office", 70, "home", 50)
    assert "work" in {skew.word for skew in office.skewed}
    assert "woman" in {skew.word for skew in home.skewed}


def test_unmentioned_group_is_counted():
    groups = compare_groups(RECORDS, word_groups("fox,owl"))
    assert [(group.name, group.records) for group in groups] == [("fox", 5), ("owl", 0)]
    assert compare_groups([], column_groups("place")) == []


def test_similar_groups_have_no_skewed_words():
    even = records(
        ("a woman at work", {}, 50), ("a man at work", {}, 50), ("a man at home", {}, 3), ("a woman at home", {}, 2)
    )
    assert [group.skewed for group in compare_groups(even, word_groups("woman,man"))] == [[], []]


@pytest.mark.parametrize("text", ["woman", "woman,", "woman|,man", ",", "woman,woman"])
def test_fewer_than_two_groups_raise(text):
    with pytest.raises(ConfigError, match="--groups"):
        word_groups(text)
