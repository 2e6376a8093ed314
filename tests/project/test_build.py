"""What the build leaves in the compiled modules: nothing of the machine that they were built on."""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path

import pytest
from elftools.elf.constants import SH_FLAGS
from elftools.elf.elffile import ELFFile

import pyllama2

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems' modules are not ELF")
MODULES = sorted(Path(pyllama2.__file__).parent.rglob("*.so"))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name.partition(".")[0])
def test_no_path_of_the_builder(path: Path) -> None:
    with open(path, "rb") as file:
        elf = ELFFile(file)
        tags = {tag.entry.d_tag for tag in elf.get_section_by_name(".dynamic").iter_tags()}
        loaded = b"".join(s.data() for s in elf.iter_sections() if s["sh_flags"] & SH_FLAGS.SHF_ALLOC)
    assert "DT_NEEDED" in tags and not {"DT_RPATH", "DT_RUNPATH"} & tags
    for folder in (Path(__file__).resolve().parents[2], sysconfig.get_config_var("LIBDIR"), Path.home()):
        assert str(folder).encode() + b"/" not in loaded


def test_every_module_is_looked_at() -> None:
    assert {path.name.partition(".")[0] for path in MODULES} >= {"forward", "matrix", "quantizer", "sample"}
