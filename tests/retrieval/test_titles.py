"""Titles in texts: what counts as a mention, and what does not."""

import pytest

from restill.retrieval.titles import MAX_NAMESAKES, TitleFinder, bare, words

TITLES = ["Ed Wood (film)", "Ed Wood", "Tim Burton", "Young adult fiction", "Neighbours", "Alû", "It", "300"]


@pytest.fixture(scope="module")
def finder() -> TitleFinder:
    return TitleFinder(TITLES)


def test_brackets_are_not_written_and_all_namesakes_are_meant(finder):
    assert bare("Kiss and Tell (1945 film)") == "Kiss and Tell"
    assert finder.find("Who directed Ed Wood?") == {0: 2, 1: 2}


def test_mentions_come_in_the_order_of_the_text(finder):
    assert list(finder.find("Neighbours was liked by Tim Burton, and Tim Burton by Neighbours.")) == [4, 2]


@pytest.mark.parametrize(
    "text, expected",
    [
        ("ed wood met Tim burton", {}),  # a name needs its capitals
        ("who is tim burton", {2: 1}),  # where the text has any
        ("a work of young adult fiction by Smith", {3: 1}),  # a phrase that only starts with one does not
        ("Edward Ed Woodward", {}),  # whole words
        ("the demon Alu", {5: 1}),  # accents
        ("It cost 300", {}),  # short words and numbers are no names
        ("", {}),
    ],
)
def test_what_counts_as_a_mention(finder, text, expected):
    assert finder.find(text) == expected


def test_the_longest_title_is_meant():
    finder = TitleFinder(["Esma Sultan", "Esma Sultan Mansion"])
    assert finder.find("Where is the Esma Sultan Mansion of Esma Sultan?") == {1: 1, 0: 1}
    assert finder.find("Where is the Esma Sultan Mansion?") == {1: 1}


def test_a_common_word_is_no_name():
    texts = ["we met the neighbours", "our neighbours", "Neighbours is a soap"]
    assert TitleFinder(["Neighbours"], texts).find("Neighbours") == {}
    assert TitleFinder(["Neighbours"], texts[2:]).find("Neighbours") == {0: 1}


def test_a_name_that_too_many_bear_is_not_looked_for():
    assert len(TitleFinder(["Annual Report"] * MAX_NAMESAKES).find("the Annual Report")) == MAX_NAMESAKES
    assert TitleFinder(["Annual Report"] * (MAX_NAMESAKES + 1)).find("the Annual Report") == {}


def test_titles_are_looked_up_without_brackets_case_and_accents(finder):
    assert finder.documents("ed WOOD (director)") == [0, 1]
    assert finder.documents("Alu") == [5]
    assert finder.documents("nobody") == []
    assert finder.documents("") == []


def test_titles_that_are_never_looked_for_in_texts_are_still_looked_up(finder):
    assert (finder.documents("300"), finder.documents("It")) == ([7], [6])
    many = TitleFinder([*["Annual Report"] * (MAX_NAMESAKES + 1), "Neighbours"], ["our neighbours"])
    assert many.documents("annual report") == list(range(MAX_NAMESAKES + 1))
    assert many.documents("Neighbours") == [MAX_NAMESAKES + 1]
    assert many.find("the Annual Report, Neighbours") == {}


def test_words_keep_their_case_and_lose_their_accents():
    assert words("Géza von Cziffra's ﬁlm") == ["Geza", "von", "Cziffra", "s", "film"]
