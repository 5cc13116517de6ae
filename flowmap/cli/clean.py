"""`flowmap clean`."""

from flowmap.checksums import write_checksum
from flowmap.cleaning import clean as clean_target
from flowmap.cli.exits import Exit
from flowmap.cli.output import say, say_json
from flowmap.cli.parameters import AsJson, FilePath, Flag, TargetPath


def clean(
    path: TargetPath,
    /,
    *,
    export: FilePath | None = None,
    checksum: Flag = False,
    as_json: AsJson = False,
) -> Exit:
    """Remove the records beside an array that was validated; the array itself stays as it is.

    flowmap then knows the file no more, and will not touch it unless told to overwrite it.

    Args:
        path: Of the .npy file.
        export: Write all that is known of the job to this JSON file before.
        checksum: Write PATH.sha256 before, which `sha256sum -c` compares.
    """
    written = [str(write_checksum(path))] if checksum else []
    removed = clean_target(path, export_to=export)
    written += [] if export is None else [export]
    if as_json:
        document = {"removed": [str(each) for each in removed]}
        say_json(document | {"written": written})
    else:
        for each in written:
            say(f"Written: {each}")
        for place in removed:
            say(f"Removed: {place}")
    return Exit.DONE
