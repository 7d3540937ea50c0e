"""`lastgood update`: pack, import, list, show and withdraw updates."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from cloud_stub.cli.client import Cloud, UploadFiles
from cloud_stub.cli.options import cloud_options, json_option
from cloud_stub.cli.output import console, counted, instant, say_facts, say_json, say_table, size
from cloud_stub.cli.packing import pack as pack_folder
from cloud_stub.core.packing import archive_manifest, compatibility_of
from protocol.errors import OperatorError
from protocol.identity import UpdateId
from protocol.manifest import MANIFEST_BYTES_MAX, Manifest, read_manifest


@click.group(epilog="Exit codes: 0 done, 1 failed or refused, 2 called wrongly, 130 stopped by Ctrl-C.")
def update() -> None:
    """Import, list and show updates."""


@update.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--id", "update_id", required=True, metavar="PROVIDER/NAME:VERSION", help="What the update is called."
)
@click.option("--compat", multiple=True, required=True, metavar="K=V[,K=V...]",
              help="A device class it fits, such as manufacturer=acme,model=pump; once for each class.")  # fmt: skip
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), required=True, help="Folder for archive and manifest."
)
@click.option("--description", default="", help="For people.")
@click.option("--release-counter", type=click.IntRange(min=0), default=0, show_default=True,
              help="Never falls on a device; raise it to bar the way back to older releases.")  # fmt: skip
@json_option
def pack(
    folder: Path,
    update_id: str,
    compat: tuple[str, ...],
    out: Path,
    description: str,
    release_counter: int,
    as_json: bool,
) -> None:
    """Make an update of FOLDER: one archive and its manifest. The same folder gives the same bytes."""
    name = UpdateId.parse(update_id)
    compatibility = compatibility_of(compat)
    stem = f"{name.provider}.{name.name}.{name.version}"
    archive, manifest = out / f"{stem}.tar", out / f"{stem}.importmanifest.json"
    size_bytes, sha256 = pack_folder(folder, archive)
    data = archive_manifest(
        name,
        filename=archive.name,
        size_bytes=size_bytes,
        sha256=sha256,
        compatibility=compatibility,
        description=description,
        release_counter=release_counter,
    )
    try:
        manifest.write_bytes(data)
    except OSError as error:
        raise OperatorError(f"{manifest} cannot be written: {error.strerror}.") from error
    if as_json:
        say_json({"update": str(name), "manifest": str(manifest), "archive": str(archive), "sha256": sha256})
    else:
        click.echo(
            f"{name}: {size(size_bytes)} in {archive}\nBring it in with:  lastgood update import {manifest}"
        )


@update.command("import")
@click.argument("manifest_path", metavar="MANIFEST", type=click.Path(path_type=Path))
@click.option(
    "--files", "folder", type=click.Path(path_type=Path), help="Folder of its files. [beside the manifest]"
)
@json_option
@cloud_options
def import_(cloud: Cloud, manifest_path: Path, folder: Path | None, as_json: bool) -> None:
    """Import an update: its manifest, and those of its files that the cloud has not yet."""
    data = _read(manifest_path)
    manifest = read_manifest(data)
    wanted = {row["filename"] for row in cloud.post("updates/missing", content=data)}
    paths = _paths(manifest, folder or manifest_path.parent, wanted)
    with ExitStack() as stack:
        files: UploadFiles = [
            ("manifest", (manifest_path.name, stack.enter_context(manifest_path.open("rb"))))
        ]
        bar = stack.enter_context(_progress())
        for name, path in paths.items():
            try:
                opened = bar.open(path, "rb", description=name)
            except OSError as error:
                raise OperatorError(f"The file {path} cannot be read: {error.strerror}.") from error
            files.append(("file", (name, stack.enter_context(opened))))
        row = cloud.upload("updates", files)
    if as_json:
        say_json(row)
    else:
        click.echo(
            f"{row['update']} is imported: {counted(len(row['files']), 'file')}, {size(row['bytes_total'])}."
        )


@update.command("list")
@json_option
@cloud_options
def list_(cloud: Cloud, as_json: bool) -> None:
    """List updates, the newest import first."""
    rows = cloud.get("updates")
    if as_json:
        say_json(rows)
        return
    say_table(
        ("update", "fits", "#size", "#counter", "imported", ""),
        (
            (
                row["update"],
                _fits(row),
                size(row["bytes_total"]),
                row["release_counter"],
                instant(row["imported_ms"]),
                "withdrawn" if row["withdrawn_ms"] is not None else "",
            )
            for row in rows
        ),
        empty="No update. Make one with `lastgood update pack`, and bring it in with `lastgood update import`.",
    )


@update.command()
@click.argument("update_id", metavar="PROVIDER/NAME:VERSION")
@json_option
@cloud_options
def show(cloud: Cloud, update_id: str, as_json: bool) -> None:
    """Show one update with its files and steps."""
    row = cloud.get(_path(update_id))
    if as_json:
        say_json(row)
        return
    withdrawn = row["withdrawn_ms"] is not None
    say_facts(
        (
            ("update", row["update"]),
            ("description", row["description"]),
            ("identity", row["sha256"]),
            ("fits", _fits(row)),
            ("release counter", row["release_counter"]),
            ("imported", instant(row["imported_ms"])),
            ("withdrawn", f"{instant(row['withdrawn_ms'])}: {row['withdrawn_why']}" if withdrawn else ""),
            *(("step", step) for step in row["steps"]),
        )
    )
    click.echo()
    rows = ((file["filename"], size(file["size_bytes"]), file["sha256"]) for file in row["files"])
    say_table(("file", "#size", "sha256"), rows, empty="It has no files.")


@update.command()
@click.argument("update_id", metavar="PROVIDER/NAME:VERSION")
@click.option("--why", required=True, help="Said to whoever meets it again.")
@json_option
@cloud_options
def withdraw(cloud: Cloud, update_id: str, why: str, as_json: bool) -> None:
    """Stop offering an update; devices that run it stay as they are."""
    row = cloud.post(f"{_path(update_id)}/withdraw", {"why": why})
    if as_json:
        say_json(row)
    else:
        click.echo(f"{row['update']} is withdrawn: {row['withdrawn_why']}")
        left = len(cloud.get_all("devices", "id", runs=row["update"]))
        listing = f"lastgood device list --runs {row['update']}"
        click.echo(f"Devices that run it, and stay as they are: {left}{f' ({listing})' if left else ''}")


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MANIFEST_BYTES_MAX + 1)
    except OSError as error:
        raise OperatorError(
            f"The manifest {path} cannot be read: {error.strerror}; name the .importmanifest.json that "
            "`lastgood update pack` has written."
        ) from error
    if len(data) > MANIFEST_BYTES_MAX:
        raise OperatorError(
            f"{path} is larger than a manifest can be ({MANIFEST_BYTES_MAX} bytes); name the .importmanifest.json, "
            "and not a file of the update."
        )
    return data


def _paths(manifest: Manifest, folder: Path, wanted: set[str]) -> dict[str, Path]:
    """Return where the files lie that have to be sent, each of the size that the manifest says."""
    found = {}
    for name, file in manifest.files.items():
        if name not in wanted:
            continue
        path = folder / name
        if not path.is_file():
            raise OperatorError(
                f"The file {name!r} of the manifest is not in {folder}; put it there, or name its folder with --files."
            )
        if path.stat().st_size != file.sizeInBytes:
            raise OperatorError(
                f"The file {path} has {path.stat().st_size} bytes, and the manifest says {file.sizeInBytes}; "
                "use the file that the manifest was made for."
            )
        found[name] = path
    return found


def _progress() -> Any:
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    shown = console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    return Progress(*columns, console=shown, disable=not shown.is_terminal, transient=True)


def _path(text: str) -> str:
    found = UpdateId.parse(text)
    return f"updates/{found.provider}/{found.name}/{found.version}"


def _fits(row: Any) -> str:
    return " or ".join(
        ", ".join(f"{k}={v}" for k, v in sorted(wanted.items())) for wanted in row["compatibility"]
    )
