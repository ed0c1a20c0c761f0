"""Labels by hand on tiny texts; no group is divided, classes are balanced, draws are seeded."""

import numpy as np
import pytest

from mmlib_studies.probing import tasks
from mmlib_studies.probing.tasks import Definition, Example, compacted, make_tasks, token_marks


def marked(pieces, mark):
    return [piece for piece, marks in zip(pieces, token_marks(pieces)) if mark in marks]


TEXT = (
    '\n| In| the| town| of| Caf|é| (|near| Bonn|)|,| he| said| "|running| fast|"'
    "| and| walked|.| He| sings| well|.| In| |1|9|8| dogs| sleep|,| glass| too|\n| x"
).split("|")


@pytest.mark.parametrize(
    "mark, expected",
    [
        ("digit", ["1", "9", "8"]),
        ("number goes on", ["1", "9"]),
        ("after the", [" town"]),
        ("in brackets", ["near", " Bonn"]),
        ("in quotes", ["running", " fast"]),
        ("letter outside ASCII", ["é"]),
        ("word goes on", [" Caf"]),
        ("sentence ends", [" walked", " well"]),
        ("comma follows", [" sleep"]),
        ("capitalised", [" In", " Bonn", " He", " In"]),
        ("sentence begins", [" In", " He", " In"]),
        ("capitalised within", [" Bonn"]),
        ("-ing", []),
        ("-ed", [" walked"]),
        ("-s", [" sings", " dogs"]),
        ("function word", [" the", " of", " he", " and"]),
    ],
)
def test_marks_of_tokens_are_those_set_by_hand(mark, expected):
    assert marked(TEXT, mark) == expected


def test_a_line_end_closes_quotes_and_brackets_and_curly_quotes_have_sides():
    text = [" a", " (", " b", "\n", " c", " “", " d", " ”", " e", " )", " f", " g"]
    assert marked(text, "in brackets") == [" b"] and marked(text, "in quotes") == [" d"]


def test_the_first_and_the_last_token_carry_no_mark():
    marks = token_marks([" one", " two", " three"])
    assert not marks[0] and not marks[2] and "word" in marks[1]


def test_words_of_pairs_that_share_a_word_are_one_group():
    group = tasks.tied([("a", "b"), ("c", "d"), ("b", "e"), ("f", "c")])
    assert len({group[w] for w in "abe"}) == len({group[w] for w in "cdf"}) == 1
    assert group["a"] != group["c"]


def sides_of(examples):
    sides = {}
    for example in examples:
        sides.setdefault(example.group, set()).add(example.held_out)
    return sides


def test_relation_examples_say_word_and_place_and_keep_groups_whole():
    families = {
        "sex": [("king", "queen"), ("man", "woman")],
        "plural": [("king", "kings"), ("dog", "dogs"), ("cat", "cats")],
    }
    documents, examples = tasks.relation_examples(families, 0.5, seed=0)
    titles = {document.title for document in documents}
    assert len(documents) == len(examples) == 9 * len(tasks.CARRIERS) == len(titles)
    words = [document.text.split()[-1] for document in documents]
    of_king = [example.marks for word, example in zip(words, examples) if word == "king"]
    assert of_king == [{"sex first", "plural first", "first"}] * len(tasks.CARRIERS)
    assert {len(sides) for sides in sides_of(examples).values()} == {1}
    assert {example.held_out for example in examples} == {True, False}
    tied = {word: example.group for word, example in zip(words, examples)}
    assert tied["queen"] == tied["king"] == tied["kings"] != tied["dogs"]


def test_posts_are_the_first_of_each_label():
    posts = [(f"t{i}", f"text {i}", "ab"[i % 2]) for i in range(20)] + [("empty", " ", "c")]
    documents, examples = tasks.post_examples(posts, 4, 1, 0.25, seed=0)
    assert [document.title for document in documents] == [f"t{i}" for i in range(8)]
    assert sum(example.held_out for example in examples) == 2
    assert examples[1].marks == {"b", "post"} and documents[1].text == "text" + tasks.POST_CLOSING


def example(i, marks, held_out, group=None):
    return Example("s", group or f"g{i}", frozenset(marks), held_out)


EXAMPLES = [example(i, {"all"} if i % 3 else {"all", "yes"}, i % 2 == 0) for i in range(120)]
EXAMPLES.append(Example("other", "o", frozenset({"yes"}), False))
WANTED = Definition("t", "s", "yes", "all")


def test_tasks_are_balanced_undivided_and_of_their_source():
    (task,), left_out = make_tasks(EXAMPLES, [WANTED], 7, 5, seed=0)
    assert not left_out
    assert 120 not in task.rows_e
    assert len(set(task.rows_e)) == len(task.rows_e) == 28
    for held_out in (False, True):
        rows, label = task.side(held_out)
        assert label.sum() == (~label).sum() == 7
        assert all(EXAMPLES[i].held_out == held_out for i in rows)
        assert all(("yes" in EXAMPLES[i].marks) == positive for i, positive in zip(rows, label))
    assert not set(task.group_e[task.held_out_e]) & set(task.group_e[~task.held_out_e])


def test_draws_are_seeded():
    rows = [make_tasks(EXAMPLES, [WANTED], 7, 5, seed)[0][0].rows_e for seed in (0, 0, 1)]
    assert np.array_equal(rows[0], rows[1]) and not np.array_equal(rows[0], rows[2])


def test_a_task_with_too_few_examples_is_left_out_by_name():
    few = EXAMPLES + [example(200 + i, {"rare"}, i % 2 == 0) for i in range(9)]
    rare = Definition("rare", "s", "rare", "all")
    found, left_out = make_tasks(few, [rare, WANTED], 7, 5, seed=0)
    assert [task.name for task in found] == ["t"] and left_out == ["rare"]


def test_compacted_rows_are_the_same_examples():
    found, _ = make_tasks(EXAMPLES, [WANTED, WANTED], 5, 5, seed=0)
    used, moved = compacted(found)
    assert list(used) == sorted({*found[0].rows_e, *found[1].rows_e})
    for before, after in zip(found, moved):
        assert np.array_equal(used[after.rows_e], before.rows_e)


def test_there_are_sixty_eight_tasks():
    labels, families = [f"group {i}" for i in range(20)], [f"family {i}" for i in range(14)]
    wanted = tasks.definitions(labels, families)
    assert len(wanted) == 68 == len({one.name for one in wanted})


def test_whole_words_carry_their_language_and_translations_stay_together():
    pieces = ["Le", " fleuve", " na", "ît", " ici", "."]
    texts = [(pieces, f"{language} {opening}") for opening in range(5) for language in ("fr", "en")]
    examples = tasks.language_examples(texts, 0.4, seed=0)
    assert len(examples) == 60
    assert [i for i in range(6) if examples[i].marks] == [1, 4]
    assert examples[1].marks == {"word", "fr"}
    sides = sides_of(examples)
    assert sorted(map(list, sides.values())) == [[False]] * 3 + [[True]] * 2
    wanted = [one for one in tasks.definitions([], []) if one.source == "languages"]
    found, left_out = make_tasks(examples, wanted, 10, 2, seed=0)
    assert [task.name for task in found] == ["English word", "French word"]
    assert left_out == ["German word", "Spanish word"]
    for task, language in zip(found, ("en", "fr")):
        assert [language in examples[row].marks for row in task.rows_e] == task.label_e.tolist()
