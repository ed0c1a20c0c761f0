"""Other people's texts: read right, or refused with the name of the file, the row or the
document.
"""

import json
import os

import pytest
import tiny_lm

from mmlib.activations.corpora import (
    Document,
    load_documents,
    overlap,
    split_documents,
    stream_documents,
    told,
)


def folder_of(tmp_path, **files):
    for name, content in files.items():
        path = tmp_path / name.replace("__", ".")
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(tmp_path)


def test_a_byte_order_mark_and_other_line_ends_are_no_text(tmp_path):
    folder_of(tmp_path, a__txt=b"\xef\xbb\xbfone\r\n\r\ntwo\r\rthree")
    assert [d.text for d in load_documents(str(tmp_path))] == ["one\n\ntwo\n\nthree"]
    assert [d.text for d in load_documents(str(tmp_path / "a.txt"))] == ["one", "two", "three"]


def test_endings_in_any_case_are_read_and_hidden_files_are_not(tmp_path, capsys):
    names = {
        "a__TXT": "a",
        "b__md": "b",
        "__a__txt": b"\x00\x05\x16\x07",
        "__DS_Store": b"\x00",
        "c__csv": "1,2",
    }
    documents = load_documents(folder_of(tmp_path, **names))
    assert [d.title for d in documents] == ["a.TXT", "b.md"]
    assert "reading 2 texts, leaving out 1 other files (c.csv)" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.pdf", "a.parquet", "a.docx", "a.tsv"])
def test_tables_are_not_taken_for_text(tmp_path, name):
    (tmp_path / name).write_text('1,"first\n\nsecond"\n' * 60)
    for corpus in (tmp_path / name, tmp_path):
        with pytest.raises(
            ValueError, match=rf"{name if corpus != tmp_path else 'a'}.*expected UTF-8 text.*hf:"
        ):
            load_documents(str(corpus))


BAD = {
    "latin-1": ("caf\xe9 noir".encode("latin-1"), "byte 0xe9 at 3"),
    "utf-16": ("text".encode("utf-16"), "byte 0xff at 0"),
    "utf-16 without a mark": ("text".encode("utf-16-le"), "byte 0x00 at 1"),
    "cut in a letter": ("caf\xe9".encode()[:-1], "byte 0xc3 at 3"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_file_that_is_no_utf8_is_refused_by_name_and_byte(tmp_path, kind):
    content, where = BAD[kind]
    folder_of(tmp_path, a__txt="good", b__txt=content)
    for corpus in (tmp_path, tmp_path / "b.txt"):
        with pytest.raises(ValueError, match=f"b.txt is no UTF-8 text: {where}"):
            load_documents(str(corpus))


def test_a_file_name_that_is_no_utf8_is_kept_escaped(tmp_path):
    with open(os.fsencode(tmp_path) + b"/caf\xe9.txt", "w") as file:
        file.write("some text")
    assert [d.title for d in load_documents(str(tmp_path))] == [r"caf\xe9.txt"]


@pytest.mark.parametrize(
    "title, text, told",
    [
        ("a", "half \ud83d of a pair", r"document 'a': its text holds '\\ud83d' at 5"),
        ("a\udce9", "text", r"its title holds '\\udce9' at 1"),
        ("a\0b", "text", r"document 'a\\x00b': its title holds NUL"),
        ("a", None, "document 'a': its text is of type NoneType, expected a string"),
        (7, "text", "document 7: its title is of type int"),
    ],
)
def test_a_document_that_no_store_can_keep_is_refused_by_its_title(title, text, told):
    with pytest.raises(ValueError, match=told):
        Document(title, text)


def rows(tmp_path, values):
    lines = [json.dumps({"text": value}) for value in values]
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    return f"hf:{tmp_path}"


def test_rows_of_a_stream_without_text_are_left_out(tmp_path):
    corpus = rows(tmp_path, ["one", None, "  ", "two"])
    assert [d.text for d in load_documents(corpus, limit=9)] == ["one", "two"]
    assert [d.title for d in stream_documents(corpus)] == [f"{corpus[3:]}[{i}]" for i in (0, 3)]


def test_a_row_that_is_no_text_is_refused_by_number_and_type(tmp_path):
    corpus = rows(tmp_path, [[{"role": "user", "content": "hi"}]] * 3)
    with pytest.raises(ValueError, match="row 0: its text is of type list, expected a string"):
        load_documents(corpus, limit=9)


COPIES = {
    "same": str,
    "case": str.upper,
    "white space": lambda text: "\n " + text.replace(" ", " \n\t"),
}


@pytest.mark.parametrize("kind", COPIES)
@pytest.mark.parametrize("seed", range(3))
def test_copies_of_a_text_lie_in_one_split(kind, seed):
    documents = tiny_lm.documents(40)
    documents += [Document(f"again {d.title}", COPIES[kind](d.text)) for d in documents[::2]]
    splits = split_documents(documents, 8, 12, seed)
    assert splits[:40:2] == splits[40:]
    assert splits[:40] == split_documents(documents[:40], 8, 12, seed)  # copies move no other text
    assert overlap(documents, splits)["copies"] == 20


def test_runs_of_words_that_training_texts_hold_too_are_counted():
    words = [f"w{i}" for i in range(40)]
    train, test = (
        " ".join(words[:26]),
        " ".join(words[13:39]),
    )  # 14 runs each, the middle one shared
    documents = [Document("a", train), Document("b", test), Document("c", "too short")]
    found = overlap(documents, ["train", "test", "validation"])
    assert found == {"copies": 0, "validation": None, "test": 1 / 14}
    held_out = overlap(documents, ["validation", "test", "train"])
    assert held_out == {"copies": 0, "validation": 0, "test": 0}, "they may share what they like"
    assert told(found).endswith(
        "of the runs of 13 words, 7.1 % of test also occur in training documents"
    )
