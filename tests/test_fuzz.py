"""Whatever comes in: a right result, or an error of ours that names what came; never a library's
traceback, never a hang.

pytest tests/test_fuzz.py --examples 5000      more than the default of each test
"""

import re
import string
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tiny_lm
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from mmlib.activations.corpora import SPLITS, Document, load_documents, split_documents
from mmlib.activations.extract import extract
from mmlib.activations.store import ActivationStore, StoreError

OURS = (ValueError, StoreError, IndexError)


def examples(n):
    """So many examples of a test, the same each time."""
    return settings(
        max_examples=n,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


names = st.text(string.ascii_letters + string.digits + " .-_éß", min_size=1, max_size=9).filter(
    lambda name: name.strip(".") and not name.startswith(".")
)
endings = st.sampled_from([".txt", ".TXT", ".md", "", ".csv", ".jsonl", ".pdf"])
contents = st.one_of(
    st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.text(max_size=30).map(lambda text: text.encode("utf-16", "surrogatepass")),
    st.binary(max_size=60),
    st.sampled_from([b"", b"\xef\xbb\xbf", b"\n\n \n", b"a\n\nb\r\n\r\nc"]),
)


@examples(300)
@given(st.dictionaries(st.tuples(names, endings).map("".join), contents, max_size=5))
def test_a_folder_of_any_files_gives_their_texts_or_names_a_file(files):
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            (Path(folder) / name).write_bytes(content)
        try:
            documents = load_documents(folder)
        except ValueError as error:
            assert folder in str(error)
            return
        texts = {d.title: d.text for d in documents}
        assert set(texts) <= set(files) and all(text.strip() for text in texts.values())
        for title, text in texts.items():
            decoded = files[title].decode("utf-8-sig")
            assert text.split() == decoded.split()


@examples(300)
@given(
    st.lists(st.text("ab \n", max_size=4), max_size=12),
    st.integers(-2, 9),
    st.integers(-2, 9),
    st.integers(0, 3),
)
def test_any_texts_and_counts_are_split_as_asked_or_refused(texts, n_validation, n_test, seed):
    documents = [Document(str(i), text) for i, text in enumerate(texts)]
    try:
        splits = split_documents(documents, n_validation, n_test, seed)
    except ValueError as error:
        assert re.search(r"cannot give|expected an integer of 0 or more", str(error))
        return
    firsts = {" ".join(text.split()): split for text, split in zip(texts, splits)}
    counts = [list(firsts.values()).count(split) for split in SPLITS]
    assert counts[1:] == [n_validation, n_test] and counts[0] > 0


@pytest.fixture(scope="module")
def lm():
    return tiny_lm.language_model()


odd = st.sampled_from([True, 1.5, float("nan"), "ab", "", -1, 0, 10**9, [], [1, 1], (0, 3), b"1"])
usual = dict(
    layers=st.sampled_from([None, 0, 3, [1], [0, 2], np.int64(1)]),
    window=st.integers(2, 512),
    batch_tokens=st.integers(1, 600),
    document_tokens=st.one_of(st.none(), st.integers(1, 50)),
    validation=st.integers(0, 1),
    test=st.integers(0, 1),
    seed=st.integers(0, 3),
)


@examples(120)
@given(
    st.fixed_dictionaries(usual),
    st.dictionaries(st.sampled_from(sorted(usual)), odd, max_size=1),
    st.lists(st.text(max_size=200), min_size=3, max_size=6, unique=True),
)
def test_any_extraction_is_made_or_refused(lm, asked, changed, texts):
    documents = [Document(str(i), text) for i, text in enumerate(texts)]
    with tempfile.TemporaryDirectory() as folder:
        try:
            store = extract(lm, documents, Path(folder) / "s", progress=False, **asked | changed)
        except OURS as error:
            assert str(error) and type(error) in OURS, repr(error)
            OUTCOMES["refused"] += 1
            return
        ids = [lm.encode([text])[0] for text in texts]
        longest = {**asked, **changed}["document_tokens"]
        assert sorted(map(len, (x[:longest] for x in ids))) == sorted(store.document_rows)
        assert torch.isfinite(store.read(slice(None)).float()).all()
        OUTCOMES["made"] += 1


def test_many_of_them_were_made():
    assert min(OUTCOMES["made"], OUTCOMES["refused"]) > 20


OUTCOMES = Counter()


rows = st.one_of(
    st.lists(st.integers(-5, 2100), max_size=6),
    st.lists(st.booleans(), max_size=6),
    st.lists(st.floats(-3, 3000), max_size=4),
    st.integers(-3, 2100),
    st.sampled_from([[], [[0]], ["a"], None, slice(0, 3), range(2), slice(None, None, 2)]),
)


@examples(300)
@given(rows, st.booleans())
@example([True, False], True)
def test_any_rows_are_those_asked_for_or_refused(asked, as_array):
    store, values = ROWS
    if as_array and isinstance(asked, list):
        try:
            asked = np.array(asked)
        except ValueError:
            return
    try:
        found = store.read(asked)
    except OURS as error:
        assert str(error)
        return
    asked = np.arange(store.n)[asked] if isinstance(asked, slice) else np.asarray(asked)
    assert torch.equal(found, values[asked])


@pytest.fixture(autouse=True, scope="module")
def some_rows(tmp_path_factory, lm):
    global ROWS
    store = extract(
        lm, tiny_lm.documents(12), tmp_path_factory.mktemp("rows") / "s", layers=[1], progress=False
    )
    ROWS = ActivationStore(store.path), store.read(slice(None))
