"""The conformance suite for a plugin's packaging, whatever its kind."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import typing
from functools import cache
from importlib import import_module, resources
from pathlib import Path
from typing import Any, ClassVar

import pytest
from msgspec import NODEFAULT

from taskq._plugins import KINDS, PluginManager, PluginRecord
from taskq._plugins.records import State
from taskq.config.values import Mismatch, convert, fields_of
from taskq.spi import COMPATIBLE_SPI, StoreSpec, TransportSpec
from taskq.testing.base import Suite

_IMPORTED = "import json, sys; import {module}; print(json.dumps(sorted(sys.modules)))"
# What importing the interface, pluggy's marker and a dataclass of options brings along anyway.
_MAY = "import json, sys; import taskq.spi.hooks, dataclasses, pluggy, typing; print(json.dumps(sorted(sys.modules)))"


@cache
def _in_process(code: str) -> frozenset[str]:
    run = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert not run.returncode, f"importing it in a fresh process failed: {run.stderr[-2000:]}"
    return frozenset(json.loads(run.stdout))


class PackagingSuite(Suite):
    """How a plugin is packaged: metadata, laziness, options, documentation.

    Subclass it in a class named ``Test…`` with ``kind`` and ``name``. It tests the installed distribution.
    """

    kind: ClassVar[Any]
    """``transport``, ``result_store``, ``pool``, ``serializer``, ``compressor``, ``scheduler`` or ``autoscaler``."""
    name: ClassVar[str]
    """Name or first URL scheme, as the entry point is named."""

    @pytest.fixture
    def record(self) -> PluginRecord:
        """The plugin's entry point as the kernel sees it."""
        assert self.kind in KINDS, f"kind is {self.kind!r}, not one of {', '.join(KINDS)}"
        found = [r for r in PluginManager().records(self.kind) if r.name == self.name]
        assert found, (
            f"no installed distribution offers the {self.kind} {self.name!r}: install yours "
            "(pip install --no-index --no-deps --no-build-isolation -e .)"
        )
        assert len(found) == 1, f"several distributions offer it: {', '.join(r.origin for r in found)}"
        return found[0]

    @pytest.fixture
    def spec(self, record: PluginRecord) -> Any:
        return PluginManager().select(self.kind, self.name)

    @staticmethod
    def _module(record: PluginRecord) -> str:
        return record.value.partition(":")[0]

    def _folder(self, record: PluginRecord) -> Path:
        package = self._module(record).partition(".")[0]
        with resources.as_file(resources.files(package)) as folder:
            return folder

    def test_the_kernel_accepts_it(self, record: PluginRecord) -> None:
        """Check what ``taskq plugins check`` says: it imports, its spec is valid, its requirements are installed."""
        checked = PluginManager().check(record)
        assert checked.state is State.LOADED, checked.detail

    def test_names_follow_the_convention(self, record: PluginRecord) -> None:
        """Check that ``taskq-<kind>-<name>`` has the import package ``taskq_<kind>_<name>`` and a module plugin.py.

        Distributions of other names are fine; they are only harder to find.
        """
        module = self._module(record)
        assert module.endswith(".plugin"), f"the entry point names {module}; the module with the hooks is plugin.py"
        if record.distribution.startswith("taskq-"):
            assert module.partition(".")[0] == re.sub(r"[-.]", "_", record.distribution)

    def test_importing_the_plugin_imports_no_client_library(self, record: PluginRecord) -> None:
        """Check that plugin.py imports neither a client library nor the driver: it is imported to be asked, not used.

        Import them in the factory.
        """
        module = self._module(record)
        package = module.partition(".")[0]
        imported = _in_process(_IMPORTED.format(module=module)) - _in_process(_MAY)
        foreign = sorted(
            m
            for m in imported
            if m.partition(".")[0] not in {package, "taskq", "pluggy", "msgspec"}
            and not m.startswith("taskq_lib_")  # what plugins share is light, or its own client library shows here
            and m.partition(".")[0].lstrip("_") not in {n.lstrip("_") for n in sys.stdlib_module_names}
        )
        assert not foreign, f"importing {module} also imports {', '.join(foreign[:10])}"
        allowed = {package, module, f"{package}.options"}
        own = sorted(m for m in imported if m.startswith(f"{package}.") and m not in allowed)
        assert not own, f"importing {module} also imports its driver: {', '.join(own)}"

    def test_asking_for_the_spec_imports_no_client_library(self, record: PluginRecord) -> None:
        """Check that spec and capabilities come without a client library: ``plugins show`` needs no server."""
        hook = f"taskq_{self.kind}"
        module = self._module(record)
        code = (
            f"import json, sys; import {module} as m; s = m.{hook}({self.name!r}); "
            "c = s.capabilities(s.options()) if callable(getattr(s, 'capabilities', None)) else None; "
            "print(json.dumps(sorted(sys.modules)))"
        )
        package = module.partition(".")[0]
        imported = _in_process(code) - _in_process(_MAY)
        foreign = sorted({m.partition(".")[0] for m in imported} - {package, "taskq", "pluggy", "msgspec"})
        known = {n.lstrip("_") for n in sys.stdlib_module_names}
        third_party = [m for m in foreign if m.lstrip("_") not in known and not m.startswith("taskq_lib_")]
        assert not third_party, f"asking for the spec imports {', '.join(third_party)}"

    def test_the_spec_says_what_it_is(self, spec: Any) -> None:
        """Check name, interface version and a one-line summary."""
        assert spec.spi in COMPATIBLE_SPI
        assert spec.name
        assert spec.summary, "summary is the line that `taskq plugins list` shows"
        assert "\n" not in spec.summary
        if isinstance(spec, TransportSpec | StoreSpec):
            assert self.name in spec.schemes

    def test_it_is_typed(self, record: PluginRecord) -> None:
        """Check that the import package ships py.typed, so that mypy reads its annotations."""
        assert (self._folder(record) / "py.typed").exists(), "the package has no py.typed"

    def test_options_are_documented(self, spec: Any) -> None:
        """Check that every option has a type, a default or none, and a sentence of help."""
        for field in fields_of(spec.options).values():
            assert field.about.help.strip(), f"option {field.name} has no help"
            assert field.type is not Any, f"option {field.name} has no type"
            if re.search(r"password|secret|token|(^|_)key$", field.name):
                assert field.about.secret, f"option {field.name} looks like a secret and is not marked so"

    def test_options_refuse_values_of_the_wrong_type(self, spec: Any) -> None:
        """Check that each option's annotation is a type that configuration text can be checked against."""
        for field in fields_of(spec.options).values():
            kinds = set(typing.get_args(field.type) or (field.type,))
            if kinds & {str, Any, object} or any(typing.get_origin(k) for k in kinds):
                continue
            with pytest.raises(Mismatch):
                convert("\x00 certainly no value", field.type, field.about)

    def test_default_options_can_be_made(self, spec: Any) -> None:
        """Check that options without defaults are few: with none required, a URL alone is enough."""
        required = [f.name for f in fields_of(spec.options).values() if f.default is NODEFAULT]
        if not required:
            spec.options()

    def test_there_is_a_readme(self, record: PluginRecord) -> None:
        """Check that the distribution has a description: the README that pyproject.toml names."""
        from importlib.metadata import distribution  # noqa: TID251  the kit looks at what an index will show

        found = distribution(record.distribution)
        about: Any = found.metadata
        text = str(about.get_payload() or about.get("Description") or "")
        assert len(text) > 200, "the distribution has no README, or a very short one: readme = … in pyproject.toml"
        assert "taskq-plugin" in str(about.get("Keywords")), 'keywords = ["taskq-plugin"] in pyproject.toml'
        assert about.get("Requires-Python"), "requires-python in pyproject.toml"
        assert any(r.startswith("taskq-core") for r in found.requires or ()), "dependencies must name taskq-core"

    def test_public_names_exist(self, record: PluginRecord) -> None:
        """Check that whatever the package lists in ``__all__`` is there."""
        package = import_module(self._module(record).partition(".")[0])
        missing = [n for n in getattr(package, "__all__", ()) if not hasattr(package, n)]
        assert not missing, f"__all__ names what does not exist: {', '.join(missing)}"
