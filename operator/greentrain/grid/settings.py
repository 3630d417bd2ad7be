"""The operator's settings for emissions: its location, the emissions of a kilowatt-hour there, and those of making a GPU.

They are a JSON file, which the chart renders from its values. Every field is optional: with none, jobs that name a zone are
accounted with the table that ships. All errors are reported at once, each with its path, its value and what would be right.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic.alias_generators import to_camel

from greentrain.api.spec import MAX_ZONE_LENGTH, ZONE_PATTERN, Basis
from greentrain.carbon.intensity import MAX_SOURCE_LENGTH
from greentrain.grid.formats.series import RepeatedKeyError, refuse_twice
from greentrain.grid.source import ZONE_FORM
from greentrain.quantities import (
    Intensity,
    Micrograms,
    Thousandths,
    format_size,
    from_years,
    parse_emissions,
    parse_intensity,
    parse_pue,
)

LIFETIME_FORM = 'a number of years from 0.5 to 30 in quotes, such as "4"'

NAME_FORM = "a short name of letters, digits, spaces, _ - and ., at most 64 characters"

MODEL_FORM = "a GPU's name as nvidia-smi shows it, such as NVIDIA L40S"

MAX_MODEL_LENGTH = 96
"""NVML_DEVICE_NAME_V2_BUFFER_SIZE of nvml.h."""

MAX_BYTES = 1_000_000


class SettingsError(ValueError):
    """The settings cannot be used; `problems` names each field, its value and what would be right."""

    def __init__(self, problems: tuple[str, ...]) -> None:
        """With at least one problem."""
        super().__init__("; ".join(problems))
        self.problems = problems


def _quoted(value: object, form: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"write it in quotes: {form}")
    return value


def _read_zone(value: object) -> str:
    text = _quoted(value, ZONE_FORM)
    if len(text) > MAX_ZONE_LENGTH or re.fullmatch(ZONE_PATTERN, text, re.ASCII) is None:
        raise ValueError(f"write {ZONE_FORM}")
    return text


def _read_pue(value: object) -> Thousandths:
    return parse_pue(_quoted(value, 'a number such as "1.2"'))


def _read_intensity(value: object) -> Intensity:
    return parse_intensity(_quoted(value, 'such as "200gCO2e/kWh"'))


def _read_emissions(value: object) -> Micrograms:
    return parse_emissions(_quoted(value, 'such as "150kgCO2e"'))


def _read_years(value: object) -> Decimal:
    text = _quoted(value, LIFETIME_FORM)
    known = re.fullmatch(r"[0-9]{1,2}(\.[0-9]{1,3})?", text, re.ASCII) is not None
    years = Decimal(text) if known else Decimal(0)
    if not Decimal("0.5") <= years <= 30:
        raise ValueError(f"write {LIFETIME_FORM}")
    return years


def _read_name(value: object) -> str:
    text = _quoted(value, NAME_FORM)
    if len(text) > MAX_SOURCE_LENGTH or re.fullmatch(r"\w([-. \w]*\w)?", text) is None:
        raise ValueError(f"write {NAME_FORM}")
    return text


def _read_model(value: object) -> str:
    """A GPU's product name; one without a digit would be a brand and match all of its cards."""
    text = _quoted(value, MODEL_FORM)
    if len(text) > MAX_MODEL_LENGTH or re.search("[0-9]", text) is None:
        raise ValueError(f"write {MODEL_FORM}")
    return text


Zone = Annotated[str, BeforeValidator(_read_zone)]
Pue = Annotated[Thousandths, BeforeValidator(_read_pue)]
Milligrams = Annotated[Intensity, BeforeValidator(_read_intensity)]
Emissions = Annotated[Micrograms, BeforeValidator(_read_emissions)]
Years = Annotated[Decimal, BeforeValidator(_read_years)]
Name = Annotated[str, BeforeValidator(_read_name)]
Model = Annotated[str, BeforeValidator(_read_model)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, alias_generator=to_camel, populate_by_name=True)


class FileSource(_Strict):
    """A time series in a file."""

    type: Literal["file"]
    name: Name = "file"
    path: Path
    basis: Basis = "Lifecycle"
    zone: Zone | None = None


class FixedSource(_Strict):
    """One value, for one zone or for all."""

    type: Literal["fixed"]
    name: Name = "fixed"
    intensity: Milligrams
    """Milligrams of CO2 equivalent per kilowatt-hour."""
    basis: Basis = "Lifecycle"
    zone: Zone | None = None


class TableSource(_Strict):
    """The table that ships."""

    type: Literal["table"]

    @property
    def name(self) -> str:
        """There is only one."""
        return "table"


SourceSettings = Annotated[FileSource | FixedSource | TableSource, Field(discriminator="type")]


_SOURCES: Mapping[str, type[BaseModel]] = {"file": FileSource, "fixed": FixedSource, "table": TableSource}


class EmbodiedSettings(_Strict):
    """What making GPUs emitted, and over how long that is spread."""

    lifetime_years: Years = Decimal(4)
    models: Mapping[Model, Emissions] = Field(default_factory=dict)
    """Micrograms of CO2 equivalent by GPU product name; before the table that ships."""

    @property
    def lifetime_seconds(self) -> int:
        """The lifetime in seconds of years of 365 days."""
        return from_years(self.lifetime_years)


class EmissionsSettings(_Strict):
    """Defaults for jobs that do not set these, and the sources in the order in which they are asked."""

    zone: Zone | None = None
    zones: Mapping[str, Zone] = Field(default_factory=dict)
    """Grid zone by the value of a node's label topology.kubernetes.io/zone or /region."""
    pue: Pue | None = None
    """Thousandths; None where the settings do not have it: no overhead of the site is counted then."""
    basis: Basis = "Lifecycle"
    include_embodied: bool = True
    embodied: EmbodiedSettings = EmbodiedSettings()
    sources: tuple[SourceSettings, ...] = (TableSource(type="table"),)

    @model_validator(mode="after")
    def _sources_have_their_names(self) -> EmissionsSettings:
        if not self.sources:
            raise ValueError('sources: is empty: leave it out, or write at least {"type": "table"}')
        names = [s.name for s in self.sources]
        twice = next((n for n in names if names.count(n) > 1), None)
        if twice is not None:
            raise ValueError(
                f"sources: two are called '{twice}': give each its own name, by which its values are reported"
            )
        return self


def load_settings(path: Path) -> EmissionsSettings:
    """Read the settings' file.

    Raises:
        SettingsError: it cannot be read, is not JSON, or has fields that are unknown or not valid; all of them are named.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise SettingsError((f"{path} cannot be read: {error.strerror or error}",)) from error
    if len(content) > MAX_BYTES:
        raise SettingsError((f"{path} is larger than {format_size(MAX_BYTES)}",))
    return parse_settings(content, str(path))


def parse_settings(content: bytes, name: str) -> EmissionsSettings:
    """Read the settings from a file's content.

    Raises:
        SettingsError: as `load_settings`.
    """
    try:
        document = json.loads(content.decode("utf-8-sig"), object_pairs_hook=refuse_twice)
    except json.JSONDecodeError as error:
        raise SettingsError(
            (f"{name} line {error.lineno} is not JSON: {error.msg} at column {error.colno}",)
        ) from None
    except RepeatedKeyError as error:
        raise SettingsError((f"{name} {error}",)) from None
    except (ValueError, RecursionError):
        # Not UTF-8, nested too deeply, or a number with thousands of digits.
        raise SettingsError((f"{name} is not JSON in UTF-8",)) from None
    if not isinstance(document, dict):
        raise SettingsError((f'{name} is not an object: write {{"zone": "DE"}}',))
    try:
        return EmissionsSettings.model_validate(document)
    except ValidationError as error:
        raise SettingsError(tuple(f"{name}: {p}" for p in _explain(error))) from None


def _explain(error: ValidationError) -> Iterator[str]:
    """Each of pydantic's errors with its full path, the value and what would be right."""
    for item in error.errors(include_url=False):
        location = [p for i, p in enumerate(item["loc"]) if not _is_tag(item["loc"], i)]
        path = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in location).lstrip(".")
        words = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            near = difflib.get_close_matches(str(location[-1]), _known_fields(item["loc"]), n=1, cutoff=0.6)
            yield f"{path}: unknown field" + (f"; did you mean {near[0]}?" if near else "; remove it")
        elif item["type"] == "missing":
            yield f"{path}: is required"
        elif item["type"].startswith("union_tag"):
            yield f"{path}.type: {_shown(item['input'])} is not valid: write one of {', '.join(_SOURCES)}"
        elif item["type"] in ("model_attributes_type", "model_type", "dict_type", "mapping_type"):
            yield f"{path}: {_shown(item['input'])} is not valid: write an object in braces"
        elif path:
            yield f"{path}: {_shown(item['input'])} is not valid: {words[0].lower()}{words[1:]}"
        else:
            yield words


def _is_tag(location: tuple[int | str, ...], at: int) -> bool:
    """Whether pydantic adds this part of a path and no file has it: a source's type, or the mark of a key."""
    return location[at] == "[key]" or (at == 2 and location[0] == "sources" and location[2] in _SOURCES)


def _known_fields(location: tuple[int | str, ...]) -> list[str]:
    model: type[BaseModel] = EmissionsSettings
    if len(location) > 1 and location[0] == "embodied":
        model = EmbodiedSettings
    elif len(location) > 2 and location[0] == "sources":
        model = _SOURCES.get(str(location[2]), EmissionsSettings)
    return [f.alias or n for n, f in model.model_fields.items()]


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return repr(value["type"]) if isinstance(value.get("type"), str) else "a source without a type"
    text = "a list" if isinstance(value, list | tuple) else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
