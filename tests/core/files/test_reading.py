"""A file that nobody vouches for gives its tensors or a ConceptFileError, whatever was done to its bytes."""

import contextlib
import io
import json
import pickle
import struct
import zipfile

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

from contextual_inversion.core.files.contents import describe, load_concept
from contextual_inversion.core.files.errors import ConceptFileError
from contextual_inversion.core.files.reading import DTYPES, MAX_ENTRIES, MAX_HEADER, read_header, read_tensors

from .conftest import concept, raw_file

laws = settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


class Trap:
    """Unpickling this would fail the test."""

    def __reduce__(self):
        return (pytest.fail, ("a pickle was opened",))


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
def test_every_type_reads_as_the_library_reads_it(tmp_path, dtype):
    values = torch.arange(6).reshape(2, 3).to(dtype)
    path = tmp_path / "x.safetensors"
    path.write_bytes(save({"a": values, "b": values[0].clone(), "c": torch.tensor(2.0)}, {"k": "v"}))
    tensors, metadata = read_tensors(path)
    expected = load(path.read_bytes())
    assert metadata == {"k": "v"}
    assert set(tensors) == set(expected)
    for key, value in tensors.items():
        assert value.dtype == expected[key].dtype
        assert torch.equal(value.float(), expected[key].float())


def test_truncation_at_every_byte_is_found(tmp_path, embedding_bytes):
    path = tmp_path / "x.safetensors"
    for length in range(len(embedding_bytes)):
        path.write_bytes(embedding_bytes[:length])
        with pytest.raises(ConceptFileError, match=r"x\.safetensors"):
            read_tensors(path)
    path.write_bytes(embedding_bytes + b"\0")
    with pytest.raises(ConceptFileError, match="1 bytes more"):
        read_tensors(path)


@laws
@given(data=st.data())
def test_mutated_bytes_never_raise_anything_else(tmp_path, data):
    from contextual_inversion.core.files import save_bundle

    original = tmp_path / "dog.safetensors"
    if not original.exists():
        save_bundle(concept({"clip_l": 4}, layers=2), tmp_path)
    content = bytearray(original.read_bytes())
    end_of_header = 8 + struct.unpack("<Q", content[:8])[0]
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.one_of(st.integers(0, end_of_header), st.integers(0, len(content) - 1)))
        content[position] = data.draw(st.one_of(st.sampled_from(b'{}[]",:0129-e\0\xff '), st.integers(0, 255)))
    cut = data.draw(st.one_of(st.none(), st.integers(0, len(content))))
    path = tmp_path / "mutated.safetensors"
    path.write_bytes(content[:cut])
    for read in (read_header, read_tensors, load_concept, describe):
        with contextlib.suppress(ConceptFileError):
            read(path)


ENTRY = {"dtype": "F32", "shape": [1, 2], "data_offsets": [0, 8]}
LIES = {
    "no header": b"",
    "header of nothing": raw_file(b""),
    "endless header": raw_file({}, length=2**63),
    "header longer than allowed": struct.pack("<Q", 100_000_001) + b"{" + b" " * 64,
    "header longer than the file": raw_file({}, length=100),
    "not JSON": raw_file(b"{hello"),
    "not UTF-8": raw_file(b'{"\xff": 1}'),
    "deeply nested": raw_file(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "huge number": raw_file(b'{"a": {"dtype": "F32", "data_offsets": [0, 8], "shape": [%s]}}' % (b"9" * 5000), b""),
    "a list": raw_file([]),
    "entry without fields": raw_file({"a": {}}),
    "entry is text": raw_file({"a": "F32"}),
    "extra field": raw_file({"a": ENTRY | {"more": 1}}, bytes(8)),
    "unknown type": raw_file({"a": ENTRY | {"dtype": "F31"}}, bytes(8)),
    "type is a list": raw_file({"a": ENTRY | {"dtype": ["F32"]}}, bytes(8)),
    "shape too large": raw_file({"a": ENTRY | {"shape": [2, 2]}}, bytes(8)),
    "shape too small": raw_file({"a": ENTRY | {"shape": [1, 1]}}, bytes(8)),
    "shape overflows": raw_file({"a": ENTRY | {"shape": [2**62, 2**62, 2**62]}}, bytes(8)),
    "negative shape": raw_file({"a": ENTRY | {"shape": [-1, -2]}}, bytes(8)),
    "fractional shape": raw_file({"a": ENTRY | {"shape": [1.0, 2.0]}}, bytes(8)),
    "boolean shape": raw_file({"a": ENTRY | {"shape": [True, 2]}}, bytes(8)),
    "empty tensor": raw_file({"a": ENTRY | {"shape": [0, 2], "data_offsets": [0, 0]}}),
    "many dimensions": raw_file({"a": ENTRY | {"shape": [1] * 100 + [2]}}, bytes(8)),
    "offsets backwards": raw_file({"a": ENTRY | {"data_offsets": [8, 0]}}, bytes(8)),
    "offsets negative": raw_file({"a": ENTRY | {"data_offsets": [-8, 0]}}, bytes(8)),
    "offsets beyond the end": raw_file({"a": ENTRY | {"data_offsets": [0, 16], "shape": [1, 4]}}, bytes(8)),
    "offsets far away": raw_file({"a": ENTRY | {"data_offsets": [2**62, 2**62 + 8]}}, bytes(8)),
    "three offsets": raw_file({"a": ENTRY | {"data_offsets": [0, 4, 8]}}, bytes(8)),
    "overlap": raw_file({"a": ENTRY, "b": ENTRY}, bytes(8)),
    "gap": raw_file({"a": ENTRY, "b": ENTRY | {"data_offsets": [12, 20]}}, bytes(20)),
    "hidden bytes": raw_file({"a": ENTRY}, bytes(9)),
    "duplicate keys": raw_file(b'{"a": %b, "a": %b}' % ((json.dumps(ENTRY).encode(),) * 2), bytes(8)),
    "metadata is a list": raw_file({"__metadata__": ["x"], "a": ENTRY}, bytes(8)),
    "metadata holds numbers": raw_file({"__metadata__": {"x": 1}, "a": ENTRY}, bytes(8)),
    "not a number": raw_file({"a": ENTRY}, struct.pack("<2f", 1.0, float("nan"))),
    "infinite": raw_file({"a": ENTRY}, struct.pack("<2f", float("inf"), 0.0)),
    "text": b"a photo of a dog, which is no file of tensors",
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_a_header_that_lies_is_found_out(tmp_path, lie):
    path = tmp_path / "liar.safetensors"
    path.write_bytes(LIES[lie])
    for read in (read_tensors, load_concept, describe):
        with pytest.raises(ConceptFileError, match=r"liar\.safetensors"):
            read(path)


@pytest.mark.parametrize(
    ("header", "length"),
    [
        ({str(number): {} for number in range(MAX_ENTRIES + 1)}, None),
        ({"a": {**ENTRY, "x": {str(number): 0 for number in range(MAX_ENTRIES + 1)}}}, None),
        ({"__metadata__": {"x": "y" * MAX_HEADER}, "a": ENTRY}, None),
        (b'{"a": 1', MAX_HEADER + 1),
    ],
    ids=["more tables than a file has tensors", "one large table", "long metadata", "a long header that is announced"],
)
def test_a_header_of_any_size_is_not_chewed(tmp_path, header, length):
    path = tmp_path / "large.safetensors"
    path.write_bytes(raw_file(header, bytes(8), length))
    for read in (read_header, read_tensors, load_concept, describe):
        with pytest.raises(ConceptFileError, match=r"large\.safetensors") as error:
            read(path)
        assert len(str(error.value)) < 400


def test_headers_as_large_as_those_of_real_files_are_read(tmp_path):
    """A checkpoint's number of tensors, and captions by the megabyte in the metadata."""
    tensors = {f"model.layer_{number}.weight": torch.ones(1) for number in range(5000)}
    path = tmp_path / "x.safetensors"
    path.write_bytes(save(tensors, {"ss_tag_frequency": json.dumps({f"tag {number}": 1 for number in range(100_000)})}))
    assert len(read_header(path).tensors) == 5000
    assert len(read_tensors(path)[0]) == 5000


def test_the_same_file_without_a_lie_is_read(tmp_path):
    path = tmp_path / "honest.safetensors"
    path.write_bytes(raw_file({"a": ENTRY}, struct.pack("<2f", 1.0, 2.0)))
    assert read_tensors(path)[0]["a"].tolist() == [[1.0, 2.0]]


def pickles() -> dict[str, bytes]:
    """Everything torch.save and pickle write, with something in it that must never run."""
    modern, legacy = io.BytesIO(), io.BytesIO()
    torch.save({"string_to_param": Trap()}, modern)
    torch.save({"string_to_param": Trap()}, legacy, _use_new_zipfile_serialization=False)
    empty = io.BytesIO()
    zipfile.ZipFile(empty, "w").close()
    plain = {f"protocol {number}": pickle.dumps(Trap(), protocol=number) for number in range(2, 6)}
    return {"torch zip": modern.getvalue(), "torch legacy": legacy.getvalue(), "empty zip": empty.getvalue(), **plain}


@pytest.mark.parametrize("kind", pickles())
@pytest.mark.parametrize("ending", [".safetensors", ".pt", ".bin", ".ckpt"])
def test_a_pickle_is_recognised_and_never_opened(tmp_path, kind, ending):
    path = tmp_path / f"renamed{ending}"
    path.write_bytes(pickles()[kind])
    for read in (read_tensors, load_concept, describe):
        with pytest.raises(ConceptFileError, match=r"is a pickle.*never read"):
            read(path)


@pytest.mark.parametrize("length", [0x0280, 0x0580, 0x010280])
def test_a_header_length_that_looks_like_a_pickle_is_none(tmp_path, length):
    """The first two bytes of these files are those of a pickle."""
    text = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    path = tmp_path / "x.safetensors"
    path.write_bytes(raw_file(text.ljust(length), struct.pack("<f", 1.0)))
    assert path.read_bytes()[:1] == b"\x80"
    assert read_tensors(path)[0]["a"].tolist() == [1.0]


def test_what_cannot_be_opened_is_one_error_too(tmp_path):
    for path in (tmp_path / "absent.safetensors", tmp_path):
        for read in (read_tensors, load_concept, describe):
            with pytest.raises(ConceptFileError, match="cannot be read"):
                read(path)
