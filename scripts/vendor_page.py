"""Fetch what the server's page has of others into pyllama2/server/page/vendor, or check what is there.

    python scripts/vendor_page.py            # fetch the versions below from npm (needs npm)
    python scripts/vendor_page.py --check    # exit 1 if a file is not the one that was fetched

Files are taken as they are in the packages. versions.json beside them has the packages and the SHA-256 of each file. To
take a new version, change it below with the `integrity` that `npm view NAME@VERSION dist.integrity` prints, run this
script, and look at the page.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[1] / "pyllama2" / "server" / "page" / "vendor"


@dataclass(frozen=True)
class Package:
    """A package of npm.

    Attributes:
        name: on npm.
        version: the one that is taken.
        licence: its SPDX expression.
        integrity: SHA-512 of the package, as npm writes it.
        files: path in the package -> name in FOLDER.
    """

    name: str
    version: str
    licence: str
    integrity: str
    files: dict[str, str]


PACKAGES = (
    Package(
        "markdown-it",
        "15.0.3",
        "MIT",
        "sha512-+Az7Ojz3iRGu8KYMvJ6xVhvrxP3eE+vEtJX75Ow88XBpcQNV/0lGX5ZynIIBftREo4DC2jsveAMDaeltmm8QvQ==",
        {
            "dist/browser/markdown-it.esm.min.mjs": "markdown-it.js",
            "LICENSE": "markdown-it.LICENSE.txt",
        },
    ),
    Package(
        "dompurify",
        "3.5.0",
        "Apache-2.0",
        "sha512-LYC0ZkE8P1V42JsRYTwMdme/2ET8SpOc5AA2eOFjP/IadvRd2fwiT4TVz5vkfy0XUx12aS2UaRkTnfVPNOv9vw==",
        {
            "dist/purify.es.mjs": "dompurify.js",
            "LICENSE": "dompurify.LICENSE.txt",
        },
    ),
    Package(
        "@highlightjs/cdn-assets",
        "11.12.0",
        "BSD-3-Clause",
        "sha512-KvOKXODaiFmId9xaq3xc5xCL66wVLUuOngDbO9B/kewbFTqdGbn2nJxNhN3H5R1cgDTVj6R8vH0zgiNDEGjpDw==",
        {
            "es/highlight.min.js": "highlight.js",
            "LICENSE": "highlight.LICENSE.txt",
        },
    ),
    Package(
        "@fontsource-variable/inter",
        "5.3.0",
        "OFL-1.1",
        "sha512-OupL48va4JNofb97w6NYeF9S7W/kHNKM0Er8Dem5nqi4jeOLrVJDoE8tZEpnMJmtkvNbB1EIPPwHcdkF6b1oUA==",
        {
            "files/inter-latin-wght-normal.woff2": "inter.woff2",
            "LICENSE": "inter.LICENSE.txt",
        },
    ),
)


def fetch(package: Package, folder: Path) -> dict[str, bytes]:
    """Return the wanted files of a package by their names here. Raises SystemExit if the package is another one."""
    command = ["npm", "pack", "--silent", "--pack-destination", str(folder), f"{package.name}@{package.version}"]
    name = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1]
    data = (folder / name).read_bytes()
    found = "sha512-" + base64.b64encode(hashlib.sha512(data).digest()).decode()
    if found != package.integrity:
        raise SystemExit(f"{package.name} {package.version} has the integrity {found}, not {package.integrity}")
    with tarfile.open(folder / name) as archive:
        members = {inside: archive.extractfile(f"package/{inside}") for inside in package.files}
        return {package.files[inside]: member.read() for inside, member in members.items() if member is not None}


def described(contents: dict[str, bytes]) -> dict[str, Any]:
    """What versions.json says."""
    return {
        package.name: {
            "version": package.version,
            "licence": package.licence,
            "integrity": package.integrity,
            "files": {name: hashlib.sha256(contents[name]).hexdigest() for name in package.files.values()},
        }
        for package in PACKAGES
    }


def main() -> int:
    """Run the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="fetch nothing, compare files with versions.json")
    versions = FOLDER / "versions.json"
    if parser.parse_args().check:
        names = {name for package in PACKAGES for name in package.files.values()}
        there = {path.name: path.read_bytes() for path in FOLDER.iterdir() if path != versions}
        same = set(there) == names and described(there) == json.loads(versions.read_text())
        print("the files are those of versions.json" if same else "a file differs: run scripts/vendor_page.py")
        return 0 if same else 1
    FOLDER.mkdir(parents=True, exist_ok=True)
    contents: dict[str, bytes] = {}
    with tempfile.TemporaryDirectory() as folder:
        for package in PACKAGES:
            contents |= fetch(package, Path(folder))
    for name, data in contents.items():
        (FOLDER / name).write_bytes(data)
    versions.write_text(json.dumps(described(contents), indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
