"""`flowmap doctor`."""

from rich.table import Table

from flowmap.cli.exits import Exit
from flowmap.cli.output import Text, say, say_json
from flowmap.cli.parameters import AsJson, FilePath
from flowmap.doctor import examine

_SIGNS = {"ok": ("ok", "green"), "note": ("note", "yellow"), "trouble": ("trouble", "bold red")}


def doctor(path: FilePath = ".", /, *, as_json: AsJson = False) -> Exit:
    """Look for what goes wrong for people: versions, settings, the server, the disk.

    Nothing is changed. The exit code is 1 where there is trouble; notes do not count.

    Args:
        path: A folder, or an array that is there or is to be.
    """
    findings = examine(path)
    troubles = sum(finding.level == "trouble" for finding in findings)
    code = Exit.FAILED if troubles else Exit.DONE
    if as_json:
        documents = [finding.document() for finding in findings]
        say_json({"troubles": troubles, "findings": documents})
        return code
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        sign, style = _SIGNS[finding.level]
        text = Text(finding.found)
        if finding.remedy:
            text.append(f"\n{finding.remedy}", "cyan")
        table.add_row(Text(sign, style), finding.name, text)
    say(table)
    say("No trouble was found." if not troubles else f"Troubles found: {troubles}.")
    return code
