"""The manifest of an update: what it is called, which files it has, in which steps they are installed, whom it fits.

It is not about where files lie or how they are fetched. The field names are those of Azure Device Update's import
manifest v5, so that existing ones import as they are; ours beside them are `releaseCounter` and the handlers of
DESIGN.md section 5. It keeps the rule that every file bears a sha256, and that a manifest which does not say
everything needed is refused when it is imported, never on a device.
"""

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Annotated, Any, Final, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)

from protocol.errors import MessageRefused, OperatorError
from protocol.identity import UpdateId
from protocol.strict_json import parse

MANIFEST_BYTES_MAX: Final = 1_048_576  # a manifest names files, and holds none
FILES_MAX: Final = 1_000  # in one update
STEPS_MAX: Final = 100  # in one update
FILE_BYTES_MAX: Final = 2**40  # 1 TiB: beyond any device of today, and safe in every integer

Text = Annotated[str, StringConstraints(max_length=512, pattern=r"^[^\x00]*$")]
FileName = Annotated[
    str, StringConstraints(min_length=1, max_length=255, pattern=r"^[A-Za-z0-9._][A-Za-z0-9._ +@~-]*$")
]
PropertyName = Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=r"^[\x21-\x7e]+$")]
Properties = Annotated[dict[PropertyName, Text], Field(min_length=1, max_length=5)]


class Part(BaseModel):
    """A part of a manifest; fields that Azure's format has and we do not use are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)


class UpdateIdPart(Part):
    """The update id as the manifest writes it."""

    provider: str
    name: str
    version: str


class ManifestFile(Part):
    """One file of an update."""

    filename: FileName
    sizeInBytes: Annotated[int, Field(ge=0, le=FILE_BYTES_MAX)]  # noqa: N815 - Azure Device Update's name
    hashes: dict[str, str]

    @field_validator("filename")
    @classmethod
    def _is_a_plain_name(cls, name: str) -> str:
        if name in {".", ".."}:
            raise ValueError("a file needs a name of its own")
        return name

    @field_validator("hashes")
    @classmethod
    def _has_a_sha256(cls, hashes: dict[str, str]) -> dict[str, str]:
        if "sha256" not in hashes:
            raise ValueError("it lacks a sha256")
        try:
            if len(base64.b64decode(hashes["sha256"], validate=True)) == 32:
                return hashes
        except (binascii.Error, ValueError):
            pass
        raise ValueError("its sha256 is not 32 bytes in base64")

    @property
    def sha256(self) -> str:
        """The file's sha256, in lower-case hexadecimal as everywhere else in lastgood."""
        return base64.b64decode(self.hashes["sha256"]).hex()


class Step(Part):
    """One step of an installation: a handler, and the files it works on."""

    type: Literal["inline"] = "inline"
    description: Text = ""
    handler: Annotated[
        str, StringConstraints(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9][A-Za-z0-9._/:-]*$")
    ]
    files: Annotated[list[FileName], Field(max_length=FILES_MAX)] = []
    handlerProperties: dict[str, Any] = {}  # noqa: N815

    @property
    def handler_name(self) -> str:
        """The handler without provider and version: `archive` for `lastgood/archive:1`."""
        return self.handler.rpartition("/")[2].partition(":")[0]


class Instructions(Part):
    """The steps, in order."""

    steps: Annotated[list[Step], Field(min_length=1, max_length=STEPS_MAX)]


class ManifestDocument(Part):
    """The manifest as it is written."""

    manifestVersion: Literal["4.0", "5.0"] = "5.0"  # noqa: N815
    updateId: UpdateIdPart  # noqa: N815
    description: Text = ""
    compatibility: Annotated[list[Properties], Field(min_length=1, max_length=10)]
    isDeployable: bool = True  # noqa: N815
    instructions: Instructions
    files: Annotated[list[ManifestFile], Field(max_length=FILES_MAX)] = []
    createdDateTime: Text = ""  # noqa: N815
    releaseCounter: Annotated[int, Field(ge=0, le=2**53 - 1)] = 0  # noqa: N815

    @model_validator(mode="after")
    def _steps_and_files_agree(self) -> "ManifestDocument":
        names = [file.filename for file in self.files]
        if len(set(names)) != len(names):
            raise ValueError("two files bear the same name")
        used = {name for step in self.instructions.steps for name in step.files}
        if used - set(names):
            raise ValueError(f"a step uses {sorted(used - set(names))[0]!r}, which is not among the files")
        if set(names) - used:
            raise ValueError(f"no step uses the file {sorted(set(names) - used)[0]!r}")
        return self


@dataclass(frozen=True, slots=True)
class Manifest:
    """A manifest read and checked, with the sha256 of its bytes, which is the update's identity."""

    sha256: str
    size_bytes: int
    update: UpdateId
    document: ManifestDocument

    @property
    def files(self) -> Mapping[str, ManifestFile]:
        """The files by name."""
        return {file.filename: file for file in self.document.files}

    @property
    def steps(self) -> list[Step]:
        """The steps, in the order in which they are carried out."""
        return self.document.instructions.steps

    @property
    def release_counter(self) -> int:
        """The number that never falls below a device's floor (DESIGN.md section 7)."""
        return self.document.releaseCounter

    @property
    def bytes_total(self) -> int:
        """What a device downloads for it, in bytes."""
        return sum(file.sizeInBytes for file in self.document.files)

    def fits(self, properties: Mapping[str, str]) -> bool:
        """Return whether a device with these properties is one that the manifest names."""
        return fits(self.document.compatibility, properties)


def fits(compatibility: list[dict[str, str]], properties: Mapping[str, str]) -> bool:
    """Return whether one of the sets of compatibility properties is wholly found in a device's."""
    return any(all(properties.get(key) == value for key, value in wanted.items()) for wanted in compatibility)


def read_manifest(data: bytes) -> Manifest:
    """Read a manifest from the bytes whose sha256 is its identity.

    Raises:
        OperatorError: it does not parse, lacks a hash, or contradicts itself; the sentence names the field.
    """
    try:
        fields = parse(data, bytes_max=MANIFEST_BYTES_MAX)
        for step in _steps_of(fields):
            if step.get("type", "inline") == "reference":
                raise OperatorError(
                    "The manifest has a step of type 'reference'; lastgood installs inline steps only: "
                    "import the referenced update by itself, or make its steps inline."
                )
        document = ManifestDocument.model_validate(fields)
    except MessageRefused as error:
        raise OperatorError(f"The manifest cannot be read. {error} Mend it and import it again.") from error
    except ValidationError as error:
        raise OperatorError(_sentence(error)) from error
    update = UpdateId.of(document.updateId.provider, document.updateId.name, document.updateId.version)
    return Manifest(sha256(data).hexdigest(), len(data), update, document)


def _steps_of(fields: dict[str, Any]) -> list[dict[str, Any]]:
    instructions = fields.get("instructions")
    steps = instructions.get("steps") if isinstance(instructions, dict) else None
    return [step for step in steps if isinstance(step, dict)] if isinstance(steps, list) else []


def _sentence(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    what = first["msg"].removeprefix("Value error, ")
    if not where:
        return f"The manifest is not valid: {what}. Mend it and import it again."
    return f"The manifest is not valid at {where}: {what}. Mend that field and import it again."
