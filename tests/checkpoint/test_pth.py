"""Torch files: what torch.save writes is read exactly; damaged and hostile zip files are refused."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.work import at_most
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyllama2.checkpoint.pth import read_pth
from pyllama2.checkpoint.zip_members import read_members
from pyllama2.errors import CheckpointError
from pyllama2.storage.mapped import MappedFile


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def torch_file(value: object = None, **options: object) -> bytes:
    buffer = io.BytesIO()
    torch.save({"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(3).half()} if value is None else value, buffer)
    return buffer.getvalue()


def rezip(data: bytes, changes: dict[str, bytes | None] | None = None, **options: int) -> bytes:
    """The same zip file made by the standard library, members replaced or (None) left out."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, "w", **options) as new:
        members = {name: old.read(name) for name in old.namelist()} | (changes or {})
        for name, content in members.items():
            if content is not None:
                new.writestr(zipfile.ZipInfo(name), content, options.get("compression"))
    return buffer.getvalue()


def refuse(path: Path, *words: str) -> None:
    with at_most(lines=2_000_000), pytest.raises(CheckpointError) as caught:
        read_pth(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 600
    message = str(caught.value).replace(str(path), "")  # whose name has words of the test's
    for word in words:
        assert word in message


class TestReading:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
    def test_every_type(self, tmp_path: Path, dtype: torch.dtype) -> None:
        bits = np.arange(1 << 16, dtype=np.uint16)
        if dtype == torch.float32:
            expected = torch.randn(256, 256)
        else:  # every number there is, NaN apart
            expected = torch.from_numpy(bits.view(np.int16)).view(dtype).reshape(256, 256)
            expected = expected.nan_to_num(1.0, float("inf"), float("-inf"))
        torch.save({"x": expected}, tmp_path / "m.pth")
        tensor = read_pth(tmp_path / "m.pth")["x"]
        array = tensor.read()
        assert array.dtype == (np.float16 if dtype == torch.float16 else np.float32)
        np.testing.assert_array_equal(array.astype(np.float32), expected.float().numpy())
        out = np.full((256, 300), 7, array.dtype)
        tensor.read_into(out[:, 10:266])
        np.testing.assert_array_equal(out[:, 10:266], array)
        assert (out[:, :10] == 7).all()
        assert (out[:, 266:] == 7).all()

    def test_bfloat16_keeps_nan(self, tmp_path: Path) -> None:
        torch.save({"x": torch.tensor([float("nan"), 1.0]).bfloat16()}, tmp_path / "m.pth")
        assert np.isnan(read_pth(tmp_path / "m.pth")["x"].read()).tolist() == [True, False]

    def test_views_and_strides(self, tmp_path: Path) -> None:
        base = torch.randn(12, 20)
        value = {
            "all": base,
            "rows": base[3:7],
            "columns": base[:, 5:9],
            "transposed": base.t(),
            "both": base.t()[2:11, 4:6],
            "every_other": base[::2, 1::3],
            "row": base[5],
            "number": base[2, 2],
            "last": base[11:, 19:],
            "half": torch.chunk(base.bfloat16(), 2, dim=1)[1],
        }
        for name, expected in value.items():
            torch.save({name: expected}, tmp_path / "m.pth")
            tensor = read_pth(tmp_path / "m.pth")[name]
            np.testing.assert_array_equal(tensor.read(), expected.float().numpy(), err_msg=name)
            tensor.release()
            np.testing.assert_array_equal(tensor.read(), expected.float().numpy(), err_msg=name)

    def test_views_of_one_storage(self, tmp_path: Path) -> None:
        """Tied weights are the same view; parts of a fused matrix lie beside each other, by rows or by columns."""
        base = torch.randn(12, 20)
        parts = torch.split(torch.randn(6, 12), 5, dim=1)
        value = {
            "tied": base,
            "untied": base,
            **{f"rows{i}": rows for i, rows in enumerate(torch.randn(9, 4).chunk(3))},
            **{f"columns{i}": columns for i, columns in enumerate(parts)},
            "even": (steps := torch.randn(10))[::2],
            "alone": torch.randn(4, 4).t(),
            "one": steps[9:],
        }
        torch.save(value, tmp_path / "m.pth")
        tensors = read_pth(tmp_path / "m.pth")
        for name, expected in value.items():
            np.testing.assert_array_equal(tensors[name].read(), expected.numpy(), err_msg=name)

    def test_module_parameters(self, tmp_path: Path) -> None:
        module = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.LayerNorm(7))
        for value in (module.state_dict(), dict(module.named_parameters())):
            torch.save(value, tmp_path / "m.pth")
            tensors = read_pth(tmp_path / "m.pth")
            assert tensors.keys() == value.keys()
            for name, expected in value.items():
                np.testing.assert_array_equal(tensors[name].read(), expected.detach().numpy())

    def test_nothing_is_copied(self, tmp_path: Path) -> None:
        torch.save({"x": torch.ones(100)}, tmp_path / "m.pth")
        array = read_pth(tmp_path / "m.pth")["x"].read()
        assert not array.flags.owndata
        assert not array.flags.writeable

    @pytest.mark.subprocess
    def test_torch_is_not_imported(self, tmp_path: Path) -> None:
        torch.save({"x": torch.ones(3)}, tmp_path / "m.pth")
        code = (
            "import sys; from pyllama2.checkpoint.pth import read_pth; "
            f"print(read_pth({str(tmp_path / 'm.pth')!r})['x'].read().sum(), 'torch' in sys.modules)"
        )
        output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        assert output.split() == ["3.0", "False"]

    def test_made_by_other_zip_writers(self, tmp_path: Path) -> None:
        tensors = read_pth(write(tmp_path / "m.pth", rezip(torch_file())))
        np.testing.assert_array_equal(tensors["a"].read(), np.arange(6.0).reshape(2, 3))

    def test_members_over_4_gb(self, tmp_path: Path) -> None:
        # A sparse file of 4.5 GB: one large member in front, so that offsets need 64 bits too.
        path = tmp_path / "m.pth"
        size = 1_125_000_000
        with zipfile.ZipFile(io.BytesIO(torch_file({"large": torch.ones(65537), "small": torch.ones(3)}))) as small:
            program = small.read("archive/data.pkl").replace(struct.pack("<I", 65537), struct.pack("<I", size))
        entries = []
        with open(path, "wb") as file:
            for name, length, content in (
                ("m/data.pkl", len(program), program),
                ("m/data/0", 4 * size, b""),
                ("m/data/1", 12, np.array([1, 2, 3], np.float32).tobytes()),
            ):
                entries.append((name, length, file.tell()))
                file.write(struct.pack("<4s5H3I2H", b"PK\3\4", 0, 8, 0, 0, 0, 0, 0, 0, len(name), 0) + name.encode())
                start = file.tell()
                file.write(content)
                file.seek(start + length)
            directory = file.tell()
            for name, length, offset in entries:
                wide = [n for n in (length, length, offset) if n > 0xFFFFFFFE]
                extra = struct.pack(f"<2H{len(wide)}Q", 1, 8 * len(wide), *wide) if wide else b""
                small = [min(n, 0xFFFFFFFF) for n in (length, length, offset)]
                file.write(struct.pack("<4s6H3I5H2I", b"PK\1\2", 0, 0, 8, 0, 0, 0, 0, *small[:2], len(name), len(extra),
                                       0, 0, 0, 0, small[2]) + name.encode() + extra)  # fmt: skip
            end = file.tell()
            file.write(struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 0, 0, 0, 0, 3, 3, end - directory, directory))
            file.write(struct.pack("<4sIQI", b"PK\6\7", 0, end, 1))
            file.write(struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 3, 3, end - directory, 0xFFFFFFFF, 0))
        assert zipfile.ZipFile(path).getinfo("m/data/0").file_size == 4 * size  # others agree with how it is written
        tensors = read_pth(path)
        assert tensors["small"].read().tolist() == [1, 2, 3]
        assert tensors["small"].offset > 1 << 32
        assert tensors["large"].shape == (size,)
        assert tensors["large"].read()[-1] == 0


class TestRefusedFiles:
    def test_old_torch_file(self, tmp_path: Path) -> None:
        torch.save({"a": torch.ones(2)}, tmp_path / "m.pth", _use_new_zipfile_serialization=False)
        refuse(tmp_path / "m.pth", "before version 1.6")

    def test_not_a_zip_file(self, tmp_path: Path) -> None:
        refuse(write(tmp_path / "m.pth", b"<html>"), "zip")
        refuse(write(tmp_path / "m.pth", b"P"), "zip")
        refuse(write(tmp_path / "m.pth", b""), "empty")
        refuse(tmp_path / "absent.pth", "cannot open")
        refuse(tmp_path, "not a regular file")

    def test_other_zip_files(self, tmp_path: Path) -> None:
        refuse(write(tmp_path / "m.pth", rezip(torch_file(), {"archive/data.pkl": None})), "data.pkl")
        refuse(write(tmp_path / "m.pth", rezip(torch_file(), {"other/data.pkl": b"x"})), "data.pkl")
        refuse(write(tmp_path / "m.pth", rezip(torch_file(), {"archive/data.pkl": None, "a/b/data.pkl": b"x"})))

    def test_byte_order(self, tmp_path: Path) -> None:
        refuse(write(tmp_path / "m.pth", rezip(torch_file(), {"archive/byteorder": b"big"})), "little-endian")
        assert read_pth(write(tmp_path / "m.pth", rezip(torch_file(), {"archive/byteorder": None})))

    def test_missing_or_short_storage(self, tmp_path: Path) -> None:
        refuse(write(tmp_path / "m.pth", rezip(torch_file(), {"archive/data/1": None})), "'b'", "missing")
        refuse(
            write(tmp_path / "m.pth", rezip(torch_file(), {"archive/data/0": bytes(20)})), "'a'", "6 F32", "20 bytes"
        )
        refuse(write(tmp_path / "m.pth", rezip(torch_file(), {"archive/data/0": bytes(28)})), "'a'", "28 bytes")

    def test_tensors_outside_their_storage(self, tmp_path: Path) -> None:
        data = torch_file({"a": torch.ones(2, 3)})
        pickled = zipfile.ZipFile(io.BytesIO(data)).read("archive/data.pkl")
        shape, stride, offset = b"K\x02K\x03\x86", b"K\x03K\x01\x86", b"QK\x00"
        for old, new in (
            (shape, b"K\x03K\x03\x86"),
            (shape, b"K\x02K\x04\x86"),
            (shape, b"K\x00K\x03\x86"),
            (shape, b"\x8a\x08" + b"\xff" * 7 + b"\x7fK\x03\x86"),
            (stride, b"K\x04K\x01\x86"),
            (stride, b"K\x03\x8a\x08" + b"\xff" * 7 + b"\x7f\x86"),
            (offset, b"QK\x01"),
            (offset, b"Q\x8a\x08" + b"\xff" * 7 + b"\x7f"),
        ):
            assert pickled.count(old) == 1
            changed = {"archive/data.pkl": pickled.replace(old, new)}
            refuse(write(tmp_path / "m.pth", rezip(data, changed)), "'a'", "storage of 6")

    def test_a_huge_tensor_of_one_number(self, tmp_path: Path) -> None:
        torch.save({"a": torch.ones(1).expand(1 << 20, 1 << 20)}, tmp_path / "m.pth")
        refuse(tmp_path / "m.pth", "'a'", "storage of 1 ")

    @pytest.mark.parametrize(
        ("shape", "stride"),
        [((6,), (0,)), ((2, 3), (0, 1)), ((3, 2), (1, 1)), ((2, 3), (2, 1)), ((2, 2, 1), (1, 1, 0))],
    )
    def test_elements_that_share_their_place(
        self, tmp_path: Path, shape: tuple[int, ...], stride: tuple[int, ...]
    ) -> None:
        torch.save({"a": torch.ones(6).as_strided(shape, stride)}, tmp_path / "m.pth")
        refuse(tmp_path / "m.pth", "'a'", "elements that share their place")

    @pytest.mark.parametrize(
        "cut",
        [
            lambda base: base[1:],
            lambda base: base.t(),
            lambda base: base.flatten(),
            lambda base: base[11:, 19:],
            lambda base: base[::2],
            lambda base: base.flatten()[5:7],
        ],
    )
    def test_tensors_that_overlap(self, tmp_path: Path, cut: Callable[[torch.Tensor], torch.Tensor]) -> None:
        base = torch.ones(12, 20)
        torch.save({"a": base, "b": cut(base)}, tmp_path / "m.pth")
        refuse(tmp_path / "m.pth", "'a' and 'b' overlap")

    def test_views_that_interleave_too_much(self, tmp_path: Path) -> None:
        """Each is compared with each, so that there are few, whatever they are."""
        columns = torch.ones(2, 1000).unbind(1)
        torch.save({str(i): column for i, column in enumerate(columns)}, tmp_path / "m.pth")
        refuse(tmp_path / "m.pth", "overlap")


class TestZipTricks:
    """Changes to a good file that readers of zip files are known to disagree about."""

    GOOD = rezip(torch_file())

    @staticmethod
    def entry(data: bytes, name: bytes) -> int:
        """Where the directory entry of a member starts."""
        return data.rindex(name) - 46

    def changed(self, offset: int, layout: str, value: int) -> bytes:
        data = bytearray(self.GOOD)
        struct.pack_into(layout, data, offset, value)
        return bytes(data)

    def test_compressed_member(self, tmp_path: Path) -> None:
        refuse(write(tmp_path / "m.pth", rezip(torch_file(), compression=zipfile.ZIP_DEFLATED)), "compressed")

    def test_compressed_by_the_local_header_alone(self, tmp_path: Path) -> None:
        local = self.GOOD.index(b"archive/data/0") - 30
        refuse(write(tmp_path / "m.pth", self.changed(local + 8, "<H", 8)), "local header")

    def test_compressed_by_both_headers_without_being_smaller(self, tmp_path: Path) -> None:
        local = self.GOOD.index(b"archive/data/0") - 30
        data = bytearray(self.changed(local + 8, "<H", 8))
        struct.pack_into("<H", data, self.entry(data, b"archive/data/0") + 10, 8)
        refuse(write(tmp_path / "m.pth", bytes(data)), "compressed")

    @pytest.mark.parametrize("flag", [0, 5, 6, 13])
    def test_encrypted_or_unknown_flags(self, tmp_path: Path, flag: int) -> None:
        entry = self.entry(self.GOOD, b"archive/data/0")
        refuse(write(tmp_path / "m.pth", self.changed(entry + 8, "<H", 1 << flag)), "data/0", "flags")

    def test_lying_sizes(self, tmp_path: Path) -> None:
        entry = self.entry(self.GOOD, b"archive/data/0")
        refuse(write(tmp_path / "m.pth", self.changed(entry + 24, "<I", 4096)), "compressed")
        for size in (4096, 1 << 30, 0xFFFFFFFE):
            data = bytearray(self.changed(entry + 24, "<I", size))
            struct.pack_into("<I", data, entry + 20, size)
            refuse(write(tmp_path / "m.pth", bytes(data)), "data/0")
        data = bytearray(self.changed(entry + 24, "<I", 0xFFFFFFFF))
        struct.pack_into("<I", data, entry + 20, 0xFFFFFFFF)
        refuse(write(tmp_path / "m.pth", bytes(data)), "zip64")

    def test_extra_field_cut_off(self, tmp_path: Path) -> None:
        entry = self.entry(self.GOOD, b"archive/data/0")
        start = entry + 46 + len(b"archive/data/0")
        extra = struct.pack("<2HQ6x", 1, 16, 24)  # two sizes announced, 14 bytes there
        data = bytearray(self.GOOD[:start] + extra + self.GOOD[start:])
        struct.pack_into("<2I", data, entry + 20, 0xFFFFFFFF, 0xFFFFFFFF)
        struct.pack_into("<H", data, entry + 30, len(extra))
        size = struct.unpack_from("<I", data, len(data) - 10)[0]
        struct.pack_into("<I", data, len(data) - 10, size + len(extra))
        refuse(write(tmp_path / "m.pth", bytes(data)), "data/0", "zip64")

    def test_last_entry_beyond_the_directory(self, tmp_path: Path) -> None:
        last = self.entry(self.GOOD, b"archive/.data/serialization_id")
        for offset in (28, 30, 32):  # lengths of name, extra field and comment
            value = struct.unpack_from("<H", self.GOOD, last + offset)[0]
            refuse(write(tmp_path / "m.pth", self.changed(last + offset, "<H", value + 1)), "directory")

    def test_wrong_local_headers(self, tmp_path: Path) -> None:
        local = self.GOOD.index(b"archive/data/0") - 30
        for offset, kind, value in (
            (0, "<I", 0),
            (6, "<H", 1),
            (18, "<I", 25),
            (22, "<I", 0),
            (26, "<H", 13),
            (30, "<B", 66),
        ):
            refuse(write(tmp_path / "m.pth", self.changed(local + offset, kind, value)), "data/0", "local header")
        entry = self.entry(self.GOOD, b"archive/data/0")
        for offset in (0, local + 1, len(self.GOOD) - 4, 0xFFFFFFF0):
            refuse(write(tmp_path / "m.pth", self.changed(entry + 42, "<I", offset)))

    def test_overlapping_members(self, tmp_path: Path) -> None:
        # The trick of zip bombs: a member whose data are the local header and the data of the next one.
        inner_name, outer_name = b"archive/data/1", b"archive/data/0"
        inner = struct.pack("<4s5H3I2H", b"PK\3\4", 0, 0, 0, 0, 0, 0, 6, 6, len(inner_name), 0) + inner_name + bytes(6)
        size = len(inner)
        outer = struct.pack("<4s5H3I2H", b"PK\3\4", 0, 0, 0, 0, 0, 0, size, size, len(outer_name), 0) + outer_name
        body = outer + inner
        directory = b"".join(
            struct.pack("<4s6H3I5H2I", b"PK\1\2", 0, 0, 0, 0, 0, 0, 0, n, n, len(name), 0, 0, 0, 0, 0, offset) + name
            for name, n, offset in ((outer_name, size, 0), (inner_name, 6, len(outer)))
        )
        end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 2, 2, len(directory), len(body), 0)
        refuse(write(tmp_path / "m.pth", body + directory + end), "overlaps")

    def test_member_in_the_directory(self, tmp_path: Path) -> None:
        data = self.GOOD
        last = data.index(b"archive/.data/serialization_id")
        entry = self.entry(data, b"archive/.data/serialization_id")
        changed = bytearray(data)
        for offset in (last - 30 + 18, last - 30 + 22, entry + 20, entry + 24):
            struct.pack_into("<I", changed, offset, 60)  # 40 bytes and the first 20 of the directory
        refuse(write(tmp_path / "m.pth", bytes(changed)), "overlaps")

    @pytest.mark.filterwarnings("ignore:Duplicate name")
    def test_duplicate_names(self, tmp_path: Path) -> None:
        buffer = io.BytesIO(torch_file())
        with zipfile.ZipFile(buffer, "a") as file:
            file.writestr("archive/data/0", bytes(24))
        refuse(write(tmp_path / "m.pth", buffer.getvalue()), "'archive/data/0' appears twice")

    @pytest.mark.parametrize("name", ["/etc/passwd", "archive/../data/9", "archive//x", "./x", "archive/", "a\\b"])
    def test_names_like_paths(self, tmp_path: Path, name: str) -> None:
        refuse(write(tmp_path / "m.pth", rezip(torch_file(), {name: b"x"})), repr(name))

    def test_name_that_is_no_text(self, tmp_path: Path) -> None:
        refuse(write(tmp_path / "m.pth", self.GOOD.replace(b"archive/version", b"archive/versi\xff\xfe")), "UTF-8")

    def test_bytes_before_or_behind(self, tmp_path: Path) -> None:
        refuse(write(tmp_path / "m.pth", b"PK\3\4" + self.GOOD), "directory")
        refuse(write(tmp_path / "m.pth", self.GOOD + b"\0"), "does not end with a zip directory")

    def test_comments(self, tmp_path: Path) -> None:
        buffer = io.BytesIO(torch_file())
        with zipfile.ZipFile(buffer, "a") as file:
            file.comment = b"x"
        refuse(write(tmp_path / "m.pth", buffer.getvalue()))
        comment = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 0, 0, 0, 0, 0)  # an end record inside of a comment
        with zipfile.ZipFile(buffer, "a") as file:
            file.comment = comment
        refuse(write(tmp_path / "m.pth", buffer.getvalue()))

    @pytest.mark.parametrize(
        ("offset", "layout"), [(4, "<H"), (6, "<H"), (8, "<H"), (10, "<H"), (12, "<I"), (16, "<I"), (20, "<H")]
    )
    def test_end_record(self, tmp_path: Path, offset: int, layout: str) -> None:
        end = len(self.GOOD) - 22
        for value in (1, 9, 0x7FFF, 0xFFFF):
            refuse(write(tmp_path / "m.pth", self.changed(end + offset, layout, value)))

    def test_directory_too_large(self, tmp_path: Path) -> None:
        directory = bytes(5 << 20)
        end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 9, 9, len(directory), 4, 0)
        refuse(write(tmp_path / "m.pth", b"PK\3\4" + directory + end), "exceeds")

    def test_zip64_records(self, tmp_path: Path) -> None:
        data = self.GOOD
        end = len(data) - 22
        count, size, start = struct.unpack_from("<H2I", data, end + 10)
        marks = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)

        def wide(record: tuple[int, ...] = (44, 0, 0, 0, 0, count, count, size, start),
                 locator: tuple[int, ...] = (0, end, 1), last: bytes = marks) -> bytes:  # fmt: skip
            return data[:end] + struct.pack("<4sQ2H2I4Q4sIQI", b"PK\6\6", *record, b"PK\6\7", *locator) + last

        path = tmp_path / "m.pth"
        assert read_pth(write(path, wide())).keys() == {"a", "b"}
        assert read_pth(write(path, wide(last=data[end:]))).keys() == {"a", "b"}
        for record in (
            (45, 0, 0, 0, 0, count, count, size, start),
            (44, 0, 0, 1, 0, count, count, size, start),
            (44, 0, 0, 0, 1, count, count, size, start),
            (44, 0, 0, 0, 0, count, count + 1, size, start),
            (44, 0, 0, 0, 0, count + 1, count + 1, size, start),
            (44, 0, 0, 0, 0, count, count, size - 46, start),
            (44, 0, 0, 0, 0, count, count, 1 << 63, start),
            (44, 0, 0, 0, 0, count, count, size, 1 << 63),
            (44, 0, 0, 0, 0, 1 << 62, 1 << 62, size, start),
        ):
            refuse(write(path, wide(record)))
        for locator in ((1, end, 1), (0, end - 1, 1), (0, 1 << 63, 1), (0, end, 2)):
            refuse(write(path, wide(locator=locator)), "locator")
        refuse(write(path, wide(last=marks[:12] + struct.pack("<I", size + 1) + marks[16:])), "disagree")


def test_truncation_at_every_byte(tmp_path: Path) -> None:
    path = write(tmp_path / "m.pth", torch_file())
    for length in reversed(range(path.stat().st_size)):
        os.truncate(path, length)
        with pytest.raises(CheckpointError):
            read_pth(path)


@pytest.mark.slow
def test_every_bit_of_headers_and_directory(tmp_path: Path) -> None:
    """A flipped bit is found, or changes nothing but what is not looked at (dates, checksums, unused members)."""
    data = rezip(torch_file())  # without the filler between members
    path = write(tmp_path / "m.pth", data)
    good = {name: (tensor.dtype, tensor.shape) for name, tensor in read_pth(path).items()}
    directory = struct.unpack_from("<I", data, len(data) - 6)[0]
    refused = 0
    with open(path, "r+b", buffering=0) as file:
        for position in [*range(30 + len("archive/data.pkl")), *range(directory, len(data))]:
            for bit in range(8):
                os.pwrite(file.fileno(), bytes([data[position] ^ 1 << bit]), position)
                try:
                    tensors = read_pth(path)
                except CheckpointError:
                    refused += 1
                    continue
                assert {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()} == good
                assert tensors["a"].read().tolist() == [[0, 1, 2], [3, 4, 5]]
            os.pwrite(file.fileno(), data[position : position + 1], position)
    assert refused > 2500


@pytest.mark.slow
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damaged_bytes_never_raise_anything_else(tmp_path: Path, data: st.DataObject) -> None:
    changed = bytearray(torch_file())
    for _ in range(data.draw(st.integers(1, 5))):
        position = data.draw(st.integers(0, len(changed) - 1))
        changed[position] = data.draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]) | st.integers(0, 255))
    try:
        tensors = read_pth(write(tmp_path / "m", bytes(changed)))
    except CheckpointError:
        return
    for tensor in tensors.values():
        tensor.read()


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200))
def test_any_bytes(tmp_path: Path, data: bytes) -> None:
    path = write(tmp_path / "m", b"PK\3\4" + data + struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 1, 1, len(data), 4, 0))
    with MappedFile(path) as file, pytest.raises(CheckpointError):
        read_members(file)
