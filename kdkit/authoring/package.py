"""Package: the files of a plugin that can be installed, tested and published.

One module, one test, and the packaging files, as plain strings.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import importlib.util
import keyword
import re
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from textwrap import dedent
from typing import Literal, get_args

from kdkit.__version__ import __version__
from kdkit.authoring.source import Source, grouped
from kdkit.errors import KdError, did_you_mean
from kdkit.parameters.settings import describe
from kdkit.plugins.manager import manager
from kdkit.stages.stage import API

Licence = Literal["MIT", "BSD-3-Clause", "Apache-2.0", "none"]
"""Supported licences, by SPDX identifier."""


@dataclass(frozen=True)
class Package:
    """A new plugin.

    Attributes:
        name: of the distribution, such as "kdkit-tidy".
        source: the stage that it provides; None for a small example stage.
        licence: see `Licence`.
        author: the name in the licence.
    """

    name: str
    source: Source | None = None
    licence: Licence = "MIT"
    author: str = ""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", self.name):
            near = re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")
            raise KdError(f"{self.name!r} is not a valid name for a plugin", "lower-case words with dashes between them, such as kdkit-tidy", did_you_mean(near, [near]))
        if self.licence not in get_args(Licence):
            raise KdError(f"no licence {self.licence!r}", f"licences: {', '.join(get_args(Licence))}")
        if keyword.iskeyword(self.module) or importlib.util.find_spec(self.module):
            what = "is a Python keyword" if keyword.iskeyword(self.module) else "exists already, and one of the two would hide the other"
            raise KdError(f"{self.name!r} is not a valid name for a plugin: the module name {self.module} {what}", f"choose another name, such as {self.name}-mine")
        if self.entry in {plugin.name for plugin in manager().plugins()}:
            raise KdError(f"a plugin {self.entry} is already installed", f"choose another name, such as {self.name}-mine", "%kd plugins lists them")

    @property
    def module(self) -> str:
        """The module's name, such as "kdkit_tidy"."""
        return self.name.replace("-", "_")

    @property
    def entry(self) -> str:
        """The plugin's name in `%kd plugins`, such as "tidy"."""
        rest = self.name.removeprefix("kdkit-")
        return rest if rest[0].isalpha() else self.name

    @property
    def id(self) -> str:
        """The id of its stage."""
        return self.source.stage.id if self.source else f"prune.{self.entry}"

    @property
    def summary(self) -> str:
        """A one-line description."""
        return describe(self.source.stage).rstrip(".") if self.source else "Zero the smallest weights of every layer"

    def files(self) -> dict[str, str]:
        """The text of each file, by path."""
        licensed = {"LICENSE": _licence(self.licence, self.author or f"the authors of {self.name}")} if self.licence != "none" else {}
        return {
            "pyproject.toml": self._pyproject(),
            f"{self.module}.py": self._module(),
            f"tests/test_{self.module}.py": self._test(),
            "README.md": self._readme(),
            **licensed,
            ".gitignore": "__pycache__/\n*.egg-info/\nbuild/\ndist/\n",
        }

    def _pyproject(self) -> str:
        needed = [f"kdkit>={__version__}", *(self.source.packages if self.source else [])]
        fields = [
            f'name = "{self.name}"',
            'version = "0.1.0"',
            f"description = {_quoted(f'{self.summary}: a technique for kdkit')}",
            'readme = "README.md"',
            'requires-python = ">=3.11"',
            *([f'license = "{self.licence}"', 'license-files = ["LICENSE"]'] if self.licence != "none" else []),
            *([f"authors = [{{ name = {_quoted(self.author)} }}]"] if self.author else []),
            f"dependencies = [{', '.join(map(_quoted, needed))}]",
        ]
        return "\n".join(
            [
                "[build-system]",
                'requires = ["hatchling>=1.26"]',
                'build-backend = "hatchling.build"',
                "",
                "[project]",
                *fields,
                "",
                "[project.optional-dependencies]",
                'test = ["pytest"]',
                "",
                "[project.entry-points.kdkit]",
                f'{self.entry} = "{self.module}"',
                "",
                "[tool.hatch.build.targets.wheel]",
                f'only-include = ["{self.module}.py"]',
                "",
            ]
        )

    def _module(self) -> str:
        source = self.source
        title = self.summary.replace("\\", "\\\\").replace('"', "'")
        head = f'"""{title}: a technique for kdkit, `%kd {self.id.replace(".", " ", 1)}`."""'
        parts = source.parts if source else [_EXAMPLE.format(id=self.id)]
        name = source.name if source else "smallest"
        imports = [*(source.imports if source else ["import kdkit"]), "from kdkit import hookimpl"]
        return _spaced(f"{head}\n\n{grouped(imports)}", [*parts, _API.format(api=API), _HOOK.format(name=name)])

    def _test(self) -> str:
        return dedent(f'''\
            """Conformance with kdkit's stage contract, one test for each check."""

            from kdkit.testing import conformance

            from {self.module} import kdkit_stages

            test_conformance = conformance(*kdkit_stages())
            ''')

    def _readme(self) -> str:
        licence = f"\n\nLicence: {self.licence}." if self.licence != "none" else ""
        return (
            dedent(f"""\
            # {self.name}

            {self.summary}: a technique for [kdkit](https://pypi.org/project/kdkit).

                pip install {self.name}

            In a notebook:

                %load_ext kdkit
                %kd use net --train {{train}} --eval {{test}}
                %kd {self.id.replace(".", " ", 1)}
                %kd help {self.id.replace(".", " ", 1)}

            To work on it: `pip install -e '.[test]'`, then `pytest`.""")
            + f"{licence}\n"
        )


def write(package: Package, folder: Path) -> Path:
    """Write the files of a package to a new folder inside `folder`, and return the new folder.

    Raises:
        KdError: the folder exists already, or can't be written.
    """
    target = folder / package.name
    if target.exists():
        raise KdError(f"{target} exists already", "choose another name, or move it away; nothing was overwritten")
    try:
        for path, text in package.files().items():
            file = target / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise KdError(f"can't write {target}: {error.strerror or error}", "choose another folder with --folder") from error
    return target


def _quoted(text: str) -> str:
    """A string in TOML syntax."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _spaced(head: str, parts: list[str]) -> str:
    """The parts of a module below its head: constants in one block, two blank lines around definitions."""
    blocks = ["\n".join(block) if plain else "\n\n\n".join(block) for plain, block in groupby(parts, key=lambda part: "\n" not in part)]
    return head + ("\n\n" if "\n" not in parts[0] else "\n\n\n") + "\n\n\n".join(blocks) + "\n"


_EXAMPLE = '''\
@kdkit.stage("{id}", requires={{kdkit.Trait.FLOAT_WEIGHTS}})
def smallest(model, context, *, share: float = kdkit.param(0.1, "share of the weights to zero", gt=0, lt=1)):
    """Zero the smallest weights of every layer."""
    for weight in model.parameters():
        if weight.dim() > 1:
            smallest = weight.abs() <= weight.abs().flatten().kthvalue(max(1, round(share * weight.numel()))).values
            weight.data[smallest] = 0'''

_API = "kdkit_api = {api}  # version of the stage contract that this plugin was written for"

_HOOK = '''\
@hookimpl
def kdkit_stages():
    """The stages that this plugin adds to kdkit."""
    return [{name}]'''


def _licence(name: Licence, holder: str) -> str:
    notice = f"Copyright (c) {datetime.date.today().year} {holder}"
    if name == "Apache-2.0":
        # the text of kdkit's own licence, from its distribution
        text = importlib.metadata.distribution("kdkit").read_text("licenses/LICENSE") or "Apache License, Version 2.0: https://www.apache.org/licenses/LICENSE-2.0\n"
        return f"{notice}\n\n{text}"
    return {"MIT": _MIT, "BSD-3-Clause": _BSD}[name].format(notice=notice)


_DISCLAIMER = """\
THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER
LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE
SOFTWARE.
"""

_MIT = (
    """\
MIT License

{notice}

Permission is hereby granted, free of charge, to any person obtaining a copy
of this software and associated documentation files (the "Software"), to deal
in the Software without restriction, including without limitation the rights
to use, copy, modify, merge, publish, distribute, sublicense, and/or sell
copies of the Software, and to permit persons to whom the Software is
furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all
copies or substantial portions of the Software.

"""
    + _DISCLAIMER
)

_BSD = """\
BSD 3-Clause License

{notice}

Redistribution and use in source and binary forms, with or without
modification, are permitted provided that the following conditions are met:

1. Redistributions of source code must retain the above copyright notice, this
   list of conditions and the following disclaimer.

2. Redistributions in binary form must reproduce the above copyright notice,
   this list of conditions and the following disclaimer in the documentation
   and/or other materials provided with the distribution.

3. Neither the name of the copyright holder nor the names of its
   contributors may be used to endorse or promote products derived from
   this software without specific prior written permission.

THIS SOFTWARE IS PROVIDED BY THE COPYRIGHT HOLDERS AND CONTRIBUTORS "AS IS"
AND ANY EXPRESS OR IMPLIED WARRANTIES, INCLUDING, BUT NOT LIMITED TO, THE
IMPLIED WARRANTIES OF MERCHANTABILITY AND FITNESS FOR A PARTICULAR PURPOSE ARE
DISCLAIMED. IN NO EVENT SHALL THE COPYRIGHT HOLDER OR CONTRIBUTORS BE LIABLE
FOR ANY DIRECT, INDIRECT, INCIDENTAL, SPECIAL, EXEMPLARY, OR CONSEQUENTIAL
DAMAGES (INCLUDING, BUT NOT LIMITED TO, PROCUREMENT OF SUBSTITUTE GOODS OR
SERVICES; LOSS OF USE, DATA, OR PROFITS; OR BUSINESS INTERRUPTION) HOWEVER
CAUSED AND ON ANY THEORY OF LIABILITY, WHETHER IN CONTRACT, STRICT LIABILITY,
OR TORT (INCLUDING NEGLIGENCE OR OTHERWISE) ARISING IN ANY WAY OUT OF THE USE
OF THIS SOFTWARE, EVEN IF ADVISED OF THE POSSIBILITY OF SUCH DAMAGE.
"""
