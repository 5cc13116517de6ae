"""Programs that fill an array from two workers: flowmap, the limit, and other ways to do it.

Each module has two functions. `ready` starts the workers, for a `with` block that gives the
function that does a `Work`; `opened` opens what that wrote, for reading.
"""
